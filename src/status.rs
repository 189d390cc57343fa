//! `hull status`: what the API server knows and what the processes weigh, at a glance; `-o json` for programs.

use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use hull_agent::client::{Client, ClientError};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Flags of `hull status`.
#[derive(Args)]
pub struct Options {
    /// Output format: text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Prints the cluster's state.
///
/// # Errors
/// Hull is not running, or the API server does not answer.
pub fn run(cluster: &Cluster, options: &Options) -> Result<()> {
    let processes = processes(cluster)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let mut report = match runtime.block_on(gather(cluster)) {
        Ok(report) => report,
        Err(error) if processes.is_empty() => bail!(
            "hull is not running here ({}): start it with hull up. {error}",
            cluster.run_dir.display()
        ),
        Err(error) => bail!(
            "hull runs, but its API server does not answer: {error}. See {}",
            cluster.log_path().display()
        ),
    };
    report["processes"] = Value::Array(processes);
    if options.output == "json" {
        println!("{report:#}");
    } else {
        print!("{}", text(&report));
    }
    Ok(())
}

async fn gather(cluster: &Cluster) -> Result<Value, ClientError> {
    let client = Client::from_kubeconfig(&cluster.kubeconfig())?;
    // A node that joined sees its own pods only.
    let pods = match cluster.joined {
        Some(_) => format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", cluster.node()),
        None => "/api/v1/pods".to_owned(),
    };
    let version = client.get("/version").await?;
    let (nodes, pods, services) = tokio::try_join!(
        client.list("/api/v1/nodes"),
        client.list(&pods),
        client.list("/api/v1/services")
    )?;
    let node = |node: &Value| {
        let ready = condition(node, "Ready");
        let info = &node["status"]["nodeInfo"];
        json!({
            "name": node["metadata"]["name"], "ready": ready, "version": info["kubeletVersion"], "kernel": info["kernelVersion"],
            "addresses": node["status"]["addresses"].as_array().into_iter().flatten().map(|a| a["address"].clone()).collect::<Vec<_>>(),
        })
    };
    let pod = |pod: &Value| {
        let statuses = pod["status"]["containerStatuses"].as_array();
        let restarts: u64 = statuses
            .into_iter()
            .flatten()
            .filter_map(|s| s["restartCount"].as_u64())
            .sum();
        json!({
            "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"], "phase": pod["status"]["phase"],
            "ready": condition(pod, "Ready"), "restarts": restarts, "ip": pod["status"]["podIP"], "node": pod["spec"]["nodeName"],
        })
    };
    let service = |service: &Value| {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let ports: Vec<String> = ports
            .map(|p| {
                format!(
                    "{}/{}",
                    p["port"].as_u64().unwrap_or_default(),
                    p["protocol"].as_str().unwrap_or("TCP")
                )
            })
            .collect();
        json!({
            "namespace": service["metadata"]["namespace"], "name": service["metadata"]["name"], "type": service["spec"]["type"],
            "clusterIP": service["spec"]["clusterIP"], "ports": ports,
        })
    };
    Ok(json!({
        "server": { "url": cluster.server_url(), "version": version["gitVersion"], "kubeconfig": cluster.kubeconfig() },
        "nodes": nodes.iter().map(node).collect::<Vec<_>>(),
        "pods": pods.iter().map(pod).collect::<Vec<_>>(),
        "services": services.iter().map(service).collect::<Vec<_>>(),
    }))
}

fn condition(object: &Value, name: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == name && c["status"] == "True")
}

/// hull's processes of this cluster: those whose command line names the run directory, or the supervisor by its lock.
fn processes(cluster: &Cluster) -> Result<Vec<Value>> {
    let supervisor = fs::read_to_string(cluster.lock_path()).unwrap_or_default();
    let run_dir = cluster.run_dir.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok) {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let arguments: Vec<_> = command.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
        let role = match arguments.get(1).map(|argument| argument.as_ref()) {
            Some(role @ ("control" | "agent")) if arguments.iter().any(|a| *a == format!("--run-dir={run_dir}")) => {
                role
            }
            Some("warden") if arguments.iter().any(|a| a.starts_with(&format!("{run_dir}/"))) => "warden",
            _ if pid == supervisor.trim() && !command.is_empty() => "supervisor",
            _ => continue,
        };
        found.push(
            json!({ "role": role, "pid": pid.parse::<u32>().unwrap_or_default(), "residentKiB": resident_kib(&pid) }),
        );
    }
    found.sort_by_key(|process| process["role"].to_string());
    Ok(found)
}

fn resident_kib(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

fn text(report: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let yes = |value: &Value| {
        if value.as_bool() == Some(true) {
            "ready"
        } else {
            "NOT READY"
        }
        .to_owned()
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = format!(
        "API server  {}  {}\n\n",
        word(&report["server"]["url"]),
        word(&report["server"]["version"])
    );
    let found = list(&report["processes"]);
    let rows = found.iter().map(|p| {
        vec![
            word(&p["role"]),
            p["pid"].to_string(),
            format!("{:.1} MB", p["residentKiB"].as_f64().unwrap_or_default() / 1024.0),
        ]
    });
    out += &table(&["PROCESS", "PID", "RESIDENT"], rows.collect());
    let found = list(&report["nodes"]);
    let rows = found.iter().map(|n| {
        let addresses: Vec<String> = list(&n["addresses"]).iter().map(word).collect();
        vec![
            word(&n["name"]),
            yes(&n["ready"]),
            word(&n["version"]),
            word(&n["kernel"]),
            addresses.join(" "),
        ]
    });
    out += &table(&["NODE", "HEALTH", "VERSION", "KERNEL", "ADDRESSES"], rows.collect());
    let found = list(&report["pods"]);
    let rows = found.iter().map(|p| {
        let name = format!("{}/{}", word(&p["namespace"]), word(&p["name"]));
        vec![
            name,
            word(&p["phase"]),
            yes(&p["ready"]),
            p["restarts"].to_string(),
            word(&p["ip"]),
            word(&p["node"]),
        ]
    });
    out += &table(&["POD", "PHASE", "HEALTH", "RESTARTS", "IP", "NODE"], rows.collect());
    let found = list(&report["services"]);
    let rows = found.iter().map(|s| {
        let ports: Vec<String> = list(&s["ports"]).iter().map(word).collect();
        vec![
            format!("{}/{}", word(&s["namespace"]), word(&s["name"])),
            word(&s["type"]),
            word(&s["clusterIP"]),
            ports.join(","),
        ]
    });
    out + table(&["SERVICE", "TYPE", "CLUSTER-IP", "PORTS"], rows.collect()).trim_end_matches('\n') + "\n"
}

/// Columns padded to their widest cell, an empty line behind.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut all: Vec<Vec<String>> = vec![head.iter().map(|cell| (*cell).to_owned()).collect()];
    all.extend(rows);
    let widths: Vec<usize> = (0..head.len())
        .map(|i| all.iter().map(|row| row[i].chars().count()).max().unwrap_or_default())
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect::<String>() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let out = table(&["A", "LONG"], vec![vec!["wide cell".into(), "x".into()]]);
        assert_eq!(out, "A          LONG\nwide cell  x\n\n");
    }
}
