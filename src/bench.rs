//! `hull bench service`: measures the ways to a service from a node, side by side.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use hull_agent::observe::bench::plan::{DEFAULT_CONNECTIONS, DEFAULT_RATE, Path, Request, Schedule, Talk};
use hull_agent::observe::bench::plot;
use hull_agent::observe::bench::report::Report;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::remote::{Access, Remote, runtime, service_name};

/// A node answers this much later than it has measured, at most.
const SLACK: Duration = Duration::from_secs(60);

/// Subcommands of `hull bench`.
#[derive(Subcommand)]
pub enum Command {
    /// Latency of a service by its pods' addresses, its own address and its node port, side by side
    Service(Options),
}

/// Flags of `hull bench service`.
#[derive(Args)]
pub struct Options {
    /// The service
    #[arg(value_name = "NAMESPACE/NAME")]
    service: String,
    /// Port of the service, by name or number [default: the first one]
    #[arg(long)]
    port: Option<String>,
    /// Node to measure from [default: that of --from-pod, else the first that is ready]
    #[arg(long, value_name = "NODE")]
    from: Option<String>,
    /// Pod in whose network namespace to measure [default: that of the node]
    #[arg(long, value_name = "NAMESPACE/POD")]
    from_pod: Option<String>,
    /// Paths to measure in turn: pod, clusterip, nodeport [default: those that the service has]
    #[arg(long, value_delimiter = ',')]
    paths: Vec<Path>,
    /// Operations a second, on a fixed schedule; latency counts from when each was due [default: 200]
    #[arg(long, conflicts_with = "closed")]
    rate: Option<u32>,
    /// Clients at once; without --rate each begins its next operation when it has finished one
    #[arg(long)]
    connections: Option<u32>,
    /// Each client begins its next operation when it has finished one, whatever the rate
    #[arg(long)]
    closed: bool,
    /// How long all of it takes, in seconds
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    duration: u64,
    /// What to ask: http:PATH, echo:TEXT, raw:TEXT or connect [default: by the port's appProtocol or name]
    #[arg(long, value_parser = talk)]
    request: Option<Talk>,
    /// State what the other paths cost beside the pod's own address, with a confidence interval
    #[arg(long, value_parser = ["direct"])]
    against: Option<String>,
    /// Output format: table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Draws the latencies of the paths by percentile into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

/// Runs one of the subcommands.
///
/// # Errors
/// The API server or the node does not answer, or refuses.
pub fn run(cluster: &Cluster, command: &Command) -> Result<()> {
    let Command::Service(options) = command;
    let remote = options.access.open(cluster)?;
    let report = runtime()?.block_on(measure(&remote, options))?;
    if let Some(file) = &options.svg {
        std::fs::write(file, plot::svg(&report)).with_context(|| format!("write {}", file.display()))?;
    }
    if options.output == "json" {
        let mut value = serde_json::to_value(&report).context("encode the report")?;
        value["againstDirect"] = json!(report.against_direct());
        println!("{value:#}");
    } else {
        print!("{}", report.text(options.against.is_some()));
    }
    Ok(())
}

async fn measure(remote: &Remote, options: &Options) -> Result<Report> {
    let (namespace, service) = service_name(&options.service)?;
    let found = remote
        .client
        .get(&format!("/api/v1/namespaces/{namespace}/services/{service}"))
        .await?;
    let mut paths = options.paths.clone();
    if paths.is_empty() {
        paths = paths_of(&found, options.port.as_deref());
    }
    if options.against.is_some() && !paths.contains(&Path::Pod) {
        paths.insert(0, Path::Pod);
    }
    let node = match (&options.from, &options.from_pod) {
        (Some(node), _) => node.clone(),
        (None, Some(pod)) => remote.node_of(pod).await?,
        (None, None) => match remote.nodes().await?.0.into_iter().next() {
            Some(node) => node,
            None => bail!("no node is ready to measure from"),
        },
    };
    let schedule = match (options.rate, options.connections) {
        (Some(rate), _) => Schedule::Rate(rate),
        (None, Some(_)) => Schedule::Closed,
        (None, None) if options.closed => Schedule::Closed,
        (None, None) => Schedule::Rate(DEFAULT_RATE),
    };
    let request = Request {
        namespace,
        service,
        port: options.port.clone(),
        paths,
        pod: options.from_pod.clone(),
        schedule,
        connections: options.connections.unwrap_or(DEFAULT_CONNECTIONS),
        milliseconds: options.duration.saturating_mul(1_000),
        talk: options.request.clone(),
    };
    request.check().map_err(anyhow::Error::msg)?;
    eprintln!("measuring from node {node} for {} s", options.duration);
    let time = request.duration() * 3 + SLACK;
    remote.post(&node, "observe/bench", &json!(request), time).await
}

/// The paths that a service has.
fn paths_of(service: &Value, port: Option<&str>) -> Vec<Path> {
    let mut paths = vec![Path::Pod];
    let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    if !matches!(ip, "" | "None") {
        paths.push(Path::ClusterIp);
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let meant = ports.find(|own| {
        port.is_none_or(|wanted| own["name"] == wanted || own["port"].as_u64().is_some_and(|p| p.to_string() == wanted))
    });
    if meant.is_some_and(|port| port["nodePort"].as_u64().is_some()) {
        paths.push(Path::NodePort);
    }
    paths
}

fn talk(text: &str) -> Result<Talk, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    // As printf(1) writes them: a line of a protocol ends in \r\n.
    let unescaped = || rest.replace("\\r", "\r").replace("\\n", "\n");
    match kind {
        "connect" => Ok(Talk::Connect),
        "http" => Ok(Talk::Http(if rest.is_empty() {
            "/".to_owned()
        } else {
            rest.to_owned()
        })),
        "echo" if !rest.is_empty() => Ok(Talk::Echo(unescaped())),
        "raw" if !rest.is_empty() => Ok(Talk::Raw(unescaped())),
        _ => Err("a request is http:PATH, echo:TEXT, raw:TEXT or connect".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_measured_by_the_paths_it_has() {
        let service = json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30081}]}});
        assert_eq!(paths_of(&service, None), [Path::Pod, Path::ClusterIp]);
        assert_eq!(
            paths_of(&service, Some("81")),
            [Path::Pod, Path::ClusterIp, Path::NodePort]
        );
        let headless = json!({"spec": {"clusterIP": "None", "ports": [{"port": 80}]}});
        assert_eq!(paths_of(&headless, None), [Path::Pod]);
    }

    #[test]
    fn a_request_is_written_in_one_word() {
        assert_eq!(talk("http:/healthz"), Ok(Talk::Http("/healthz".to_owned())));
        assert_eq!(talk("raw:PING\\r\\n"), Ok(Talk::Raw("PING\r\n".to_owned())));
        assert_eq!(talk("connect"), Ok(Talk::Connect));
        assert!(talk("echo").is_err() && talk("ftp:x").is_err());
    }
}
