//! The measurement: the same request to the service address and to the pods' own, in turn, on fresh connections.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::workload::ReadyPod;

/// One request: how long connect(2) took, how long everything took, who answered.
struct Sample {
    connect: Duration,
    total: Duration,
    answer: String,
}

fn request(address: SocketAddrV4) -> Result<Sample> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    let connect = began.elapsed();
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("answer of {address}"))?;
    let total = began.elapsed();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{address}: not an HTTP answer: {text:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{address}: {head}");
    Ok(Sample {
        connect,
        total,
        answer: body.trim().to_owned(),
    })
}

/// Sends `count` requests each way, alternating, and prints who answered and both latencies.
///
/// # Errors
/// Any request fails: not one may.
pub fn run(service: SocketAddrV4, pods: &[ReadyPod], count: usize) -> Result<()> {
    println!(
        "\n{count} requests to the service {service}, {count} to the pod addresses, in turn, each on a new connection"
    );
    let (mut through, mut direct) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for i in 0..count {
        through.push(request(service)?);
        direct.push(request(pods[i % pods.len()].address)?);
    }
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    for sample in &through {
        *answered.entry(&sample.answer).or_default() += 1;
    }
    println!("  through the service answered:");
    for (answer, times) in &answered {
        println!("    {times:>5}  {answer}");
    }
    for pod in pods {
        let heard = answered.keys().any(|answer| answer.ends_with(&pod.name));
        ensure!(
            heard,
            "{} is ready and behind the service, but never answered",
            pod.name
        );
    }
    println!("  {:<22}{:>10}{:>10}{:>10}", "latency in us", "p50", "p90", "p99");
    for (name, samples, of) in [
        ("connect, service", &through, (|s| s.connect) as fn(&Sample) -> Duration),
        ("connect, pod address", &direct, |s| s.connect),
        ("request, service", &through, |s| s.total),
        ("request, pod address", &direct, |s| s.total),
    ] {
        let mut sorted: Vec<f64> = samples.iter().map(|sample| of(sample).as_secs_f64() * 1e6).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quantile: f64| sorted[((sorted.len() - 1) as f64 * quantile).round() as usize];
        println!("  {name:<22}{:>10.0}{:>10.0}{:>10.0}", at(0.5), at(0.9), at(0.99));
    }
    Ok(())
}
