//! The one binary an operator installs. It parses arguments and calls the crates; `up` supervises the two long-running halves.

mod addresses;
mod bench;
mod cluster;
mod detach;
mod down;
mod image;
mod lock;
mod notify;
mod process;
mod remote;
mod status;
mod token;
mod top;
mod trace;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use cluster::Cluster;

/// hull: Kubernetes rebuilt around the Linux kernel
#[derive(Parser)]
#[command(name = "hull", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a one-node cluster on this machine
    Up(detach::Detach),
    /// Stop the cluster on this machine, its pods included
    Down(down::Options),
    /// Nodes, pods, services, versions and health at a glance
    Status(status::Options),
    /// What services are like now, live
    Top {
        #[command(subcommand)]
        command: top::Command,
    },
    /// What the service proxy does with connections, and why
    Trace {
        #[command(subcommand)]
        command: trace::Command,
    },
    /// Measure services from a node
    Bench {
        #[command(subcommand)]
        command: bench::Command,
    },
    /// Images on this node
    Image {
        #[command(subcommand)]
        command: image::Command,
    },
    /// Run the control plane: store, API server, controllers, scheduler
    Control(process::Options),
    /// Run the node agent: pods, images, network, service proxy, DNS; with --join as a node of another machine's cluster
    Agent(process::AgentOptions),
    /// Bootstrap tokens: what other machines join the cluster with
    Token {
        #[command(subcommand)]
        command: token::Command,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hull: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.cluster;
    match arguments.command {
        Command::Up(options) => up::run(cluster, &options),
        Command::Down(options) => down::run(&cluster.started()?, &options),
        Command::Status(options) => status::run(&cluster.started()?, &options),
        Command::Top { command } => top::run(&cluster.started()?, &command),
        Command::Trace { command } => trace::run(&cluster.started()?, &command),
        Command::Bench { command } => bench::run(&cluster.started()?, &command),
        Command::Image { command } => image::run(&cluster.started()?, command),
        Command::Control(options) => process::control(&cluster.complete()?, &options),
        Command::Agent(options) => process::agent(cluster, options),
        Command::Token { command } => token::run(&cluster.started()?, command),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
