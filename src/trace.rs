//! `hull trace service`: what the proxy would do with a connection, and what it did with the last ones.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use hull_agent::observe::trace::{Trace, text};

use crate::cluster::Cluster;
use crate::remote::{Access, Remote, runtime, service_name};

/// How often the diary is looked into while it is followed.
const LOOK: Duration = Duration::from_millis(500);

/// Subcommands of `hull trace`.
#[derive(Subcommand)]
pub enum Command {
    /// Where a connection to a service would go and why, and what became of the last ones
    Service(Options),
}

/// Flags of `hull trace service`.
#[derive(Args)]
pub struct Options {
    /// The service
    #[arg(value_name = "NAMESPACE/NAME")]
    service: String,
    /// Port of the service, by name or number [default: all of them]
    #[arg(long)]
    port: Option<String>,
    /// The client: a node, or a pod as NAMESPACE/POD, whose connections alone are shown then [default: each ready node]
    #[arg(long, value_name = "NODE|NAMESPACE/POD")]
    from: Option<String>,
    /// How many of the last events to show
    #[arg(long, default_value_t = 10, value_name = "N")]
    last: usize,
    /// Go on showing what happens until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Output format: text, or json (with --follow one object a line)
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    #[command(flatten)]
    access: Access,
}

/// Runs one of the subcommands.
///
/// # Errors
/// The API server or the node does not answer, or there is no such service.
pub fn run(cluster: &Cluster, command: &Command) -> Result<()> {
    let Command::Service(options) = command;
    let remote = options.access.open(cluster)?;
    runtime()?.block_on(show(&remote, options))
}

async fn show(remote: &Remote, options: &Options) -> Result<()> {
    let (namespace, service) = service_name(&options.service)?;
    remote
        .client
        .get(&format!("/api/v1/namespaces/{namespace}/services/{service}"))
        .await?;
    let (nodes, client) = match &options.from {
        Some(pod) if pod.contains('/') => (vec![remote.node_of(pod).await?], Some(pod.clone())),
        Some(node) => (vec![node.clone()], None),
        None => (remote.nodes().await?.0, None),
    };
    if nodes.is_empty() {
        bail!("no node is ready to be asked");
    }
    let mut query = format!("observe/trace?namespace={namespace}&service={service}");
    for (name, value) in [("port", options.port.as_deref()), ("client", client.as_deref())] {
        query += &value
            .map(|value| format!("&{name}={}", encode(value)))
            .unwrap_or_default();
    }
    let mut seen: Vec<(String, u64)> = Vec::new();
    let mut traces = Vec::new();
    for node in nodes {
        let trace: Trace = remote
            .get(&node, &format!("{query}&last={}", options.last))
            .await
            .with_context(|| format!("ask node {node}"))?;
        seen.push((node, trace.newest));
        traces.push(trace);
    }
    let json = options.output == "json";
    if json && !options.follow {
        println!("{:#}", serde_json::to_value(&traces)?);
    } else if json {
        print_lines(&traces)?;
    } else {
        print!("{}", text(&options.service, &traces));
    }
    if !options.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(LOOK).await;
        for (node, newest) in &mut seen {
            let trace: Trace = remote.get(node, &format!("{query}&last=10000&after={newest}")).await?;
            *newest = trace.newest;
            if json {
                print_lines(&[trace])?;
            } else {
                for line in &trace.diary {
                    println!("{}", line.text());
                }
            }
        }
    }
}

fn print_lines(traces: &[Trace]) -> Result<()> {
    for trace in traces {
        for line in &trace.diary {
            println!("{}", serde_json::to_string(line)?);
        }
    }
    Ok(())
}

/// For a query: names have nothing else that must be written another way.
fn encode(text: &str) -> String {
    text.replace('%', "%25")
        .replace('/', "%2F")
        .replace('&', "%26")
        .replace(' ', "%20")
}
