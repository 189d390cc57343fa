//! `hull top services`: latency, traffic and failures of services as the kernels of all nodes see them, live.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hull_agent::observe::snapshot::Snapshot;
use hull_agent::observe::top::{Look, Row, Sort, View, rows, text};
use serde_json::json;

use crate::cluster::Cluster;
use crate::remote::{Access, Remote, runtime};

/// Lines where the terminal does not say how many it has.
const LINES: usize = 24;
/// To the top left corner, and everything away.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Subcommands of `hull top`.
#[derive(Subcommand)]
pub enum Command {
    /// Connect latency, round-trip time, traffic and failures of services, from all nodes
    Services(Options),
}

/// Flags of `hull top services`.
#[derive(Args)]
pub struct Options {
    /// Only services of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// A line for each backend
    #[arg(long)]
    backends: bool,
    /// Print once, what was counted since the backends were first used, and end
    #[arg(long)]
    once: bool,
    /// By what to sort
    #[arg(long, default_value = "rate", value_parser = Sort::WORDS)]
    sort: String,
    /// Output format: text or json (json prints once)
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Counts and percentiles are those of this many seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    window: u64,
    #[command(flatten)]
    access: Access,
}

/// Runs one of the subcommands.
///
/// # Errors
/// The API server does not answer, or none of the nodes does.
pub fn run(cluster: &Cluster, command: &Command) -> Result<()> {
    let Command::Services(options) = command;
    let remote = options.access.open(cluster)?;
    let view = View {
        namespace: options.namespace.clone(),
        by_backend: options.backends,
        sort: Sort::from_word(&options.sort).unwrap_or(Sort::Rate),
    };
    runtime()?.block_on(async {
        if options.once || options.output == "json" || !std::io::stdout().is_terminal() {
            once(&remote, &view, options.output == "json").await
        } else {
            live(&remote, &view, options).await
        }
    })
}

async fn once(remote: &Remote, view: &View, json: bool) -> Result<()> {
    let (snapshots, problems) = look(remote).await?;
    let rows = rows(&Look::of(&snapshots), None, view);
    if json {
        let nodes: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.node.as_str()).collect();
        println!("{:#}", json!({"nodes": nodes, "problems": problems, "services": rows}));
    } else {
        print!("{}", text(&rows, view.by_backend));
        for problem in problems {
            eprintln!("hull: {problem}");
        }
    }
    Ok(())
}

async fn live(remote: &Remote, view: &View, options: &Options) -> Result<()> {
    let (interval, window) = (
        Duration::from_secs(options.interval),
        Duration::from_secs(options.window),
    );
    let mut looks: VecDeque<(Instant, Look)> = VecDeque::new();
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let (snapshots, problems) = look(remote).await?;
        let (now, new) = (Instant::now(), Look::of(&snapshots));
        // The one that is as old as the window stays: it is what the newest is compared with.
        while looks.get(1).is_some_and(|(time, _)| now - *time >= window) {
            looks.pop_front();
        }
        let earlier = looks.front().map(|(time, look)| (look, (now - *time).as_secs_f64()));
        let title = match earlier {
            Some((_, seconds)) => format!("{} nodes, the last {seconds:.0} s", snapshots.len()),
            None => format!("{} nodes, since the backends were first used", snapshots.len()),
        };
        show(&title, &rows(&new, earlier, view), view, &problems)?;
        looks.push_back((now, new));
    }
}

fn show(title: &str, rows: &[Row], view: &View, problems: &[String]) -> Result<()> {
    let room = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(LINES, |size| usize::from(size.ws_row));
    let width = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(usize::MAX, |size| usize::from(size.ws_col));
    let mut screen = format!("{CLEAR}hull top services: {title}   (^C ends)\n\n");
    let room = room.saturating_sub(4 + problems.len());
    for line in text(rows, view.by_backend).lines().take(room) {
        screen.extend(line.chars().take(width));
        screen.push('\n');
    }
    for problem in problems {
        screen += &format!("{problem}\n");
    }
    let mut out = std::io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    Ok(out.flush()?)
}

/// Asks every node; what could not be asked is a problem, unless it is all of them.
async fn look(remote: &Remote) -> Result<(Vec<Snapshot>, Vec<String>)> {
    let (ready, others) = remote.nodes().await?;
    let mut problems: Vec<String> = others
        .iter()
        .map(|node| format!("node {node} is not ready: not asked"))
        .collect();
    let asked = ready
        .iter()
        .map(|node| remote.get::<Snapshot>(node, "observe/services"));
    let mut snapshots = Vec::new();
    for (node, answer) in ready.iter().zip(join_all(asked).await) {
        match answer {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(error) => problems.push(format!("node {node}: {error:#}")),
        }
    }
    if snapshots.is_empty() {
        bail!("no node answers: {}", problems.join("; "));
    }
    Ok((snapshots, problems))
}

/// All at once, on this thread.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in pinned.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *slot = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
