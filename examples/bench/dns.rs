//! DNS from a pod: the time to an answer, and the processor time it costs, beside other servers found here (unbound,
//! dnsmasq, each with the same names) and beside the floor: an echo over the same way.
//!
//! Everything happens in network namespaces of this process: one stands for the host, one for the pod.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hull_agent::dns::{self, Config, ServiceRecords, ZoneConfig};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;

use super::quantile;

/// Services that each server knows.
const SERVICES: usize = 10_000;
/// Questions under way at once when the processor time is measured.
const WINDOW: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);

/// One of those compared.
struct Contender {
    name: &'static str,
    address: String,
    /// What the kernel counts its processor time under.
    stat: String,
    child: Option<Child>,
    times: Vec<f64>,
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs the comparison with so many questions to each, asked in turn.
pub fn run(questions: usize) -> Result<()> {
    // SAFETY: nothing but the network changes, and no other thread runs yet.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("a network namespace of the benchmark's own")?;
    shell("ip link set lo up")?;
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut contenders = vec![echo()?, hull(&runtime, dir.path())?];
    contenders.extend(unbound(dir.path())?);
    contenders.extend(dnsmasq(dir.path())?);
    let pod = std::thread::scope(|scope| {
        let (ready, namespace) = std::sync::mpsc::channel();
        let (go, connected) = std::sync::mpsc::channel::<()>();
        let contenders = &mut contenders;
        let pod = scope.spawn(move || -> Result<Vec<(f64, f64)>> {
            // SAFETY: only this thread's network changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("the pod's network namespace")?;
            ready.send(rustix::thread::gettid().as_raw_nonzero()).ok();
            connected.recv().context("the host's side failed")?;
            shell(
                "ip link set lo up; ip link set eth0 up; ip addr add 10.244.0.2/32 dev eth0; \
                   ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1",
            )?;
            for round in 0..questions {
                for contender in contenders.iter_mut() {
                    contender.times.push(ask(&contender.address, round)?);
                }
            }
            contenders.iter().map(load).collect()
        });
        let thread = namespace.recv().context("the pod's side failed")?;
        let process = std::process::id();
        shell(&format!(
            "ip link add pod type veth peer name eth0 netns /proc/{process}/task/{thread}/ns/net; ip link set pod up; \
             ip addr add 169.254.1.1/32 dev pod; ip route add 10.244.0.2/32 dev pod"
        ))?;
        go.send(()).ok();
        pod.join()
            .unwrap_or_else(|_| anyhow::bail!("the pod's thread panicked"))
    })?;
    report(&contenders, &pod);
    Ok(())
}

fn report(contenders: &[Contender], loads: &[(f64, f64)]) {
    println!(
        "DNS from a pod, {SERVICES} services, {} questions in turn (microseconds):",
        contenders[0].times.len()
    );
    println!(
        "{:<10} {:>8} {:>8} {:>8} {:>9} {:>12} {:>14}",
        "", "p50", "p99", "p99.9", "of floor", "answers/s", "per cpu second"
    );
    let floor = quantile(&contenders[0].times, 0.5);
    for (contender, (rate, per_cpu)) in contenders.iter().zip(loads) {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| quantile(&contender.times, q));
        println!(
            "{:<10} {p50:>8.1} {p99:>8.1} {p999:>8.1} {:>8.2}x {rate:>12.0} {per_cpu:>14.0}",
            contender.name,
            p50 / floor
        );
    }
}

fn service(number: usize) -> String {
    format!("svc-{}", number.wrapping_mul(7919) % SERVICES)
}

fn address(number: usize) -> String {
    format!("10.96.{}.{}", number / 250, 1 + number % 250)
}

fn question(round: usize) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message[..2].copy_from_slice(&(round as u16).to_be_bytes());
    let name = service(round);
    for label in [name.as_str(), "shop", "svc", "cluster", "local"] {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn client(server: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Microseconds from the question to its answer, with a socket of its own, as the C library asks.
fn ask(server: &str, round: usize) -> Result<f64> {
    let socket = client(server)?;
    let question = question(round);
    let mut answer = [0; 512];
    let started = Instant::now();
    socket.send(&question)?;
    let length = socket
        .recv(&mut answer)
        .with_context(|| format!("no answer from {server}"))?;
    let time = started.elapsed();
    let is_echo = answer[..length] == question;
    ensure!(
        is_echo || (answer[3] & 0x0f == 0 && answer[7] == 1),
        "{server} does not know {}",
        service(round)
    );
    Ok(time.as_secs_f64() * 1e6)
}

/// Answers a second, and for each second of the server's processor time.
fn load(contender: &Contender) -> Result<(f64, f64)> {
    let socket = client(&contender.address)?;
    let before = cpu(&contender.stat)?;
    let (started, mut answers) = (Instant::now(), 0usize);
    for round in 0..WINDOW {
        socket.send(&question(round))?;
    }
    let mut answer = [0; 512];
    while started.elapsed() < Duration::from_secs(2) {
        socket.recv(&mut answer)?;
        answers += 1;
        socket.send(&question(answers))?;
    }
    let time = started.elapsed().as_secs_f64();
    let used = cpu(&contender.stat)? - before;
    Ok((answers as f64 / time, answers as f64 / used.max(0.01)))
}

/// Seconds of processor time so far (proc_pid_stat(5), utime and stime).
fn cpu(stat: &str) -> Result<f64> {
    let text = fs::read_to_string(stat).with_context(|| format!("read {stat}"))?;
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / 100.0)
}

/// A thread that sends back what comes.
fn echo() -> Result<Contender> {
    shell("ip addr add 169.254.20.9/32 dev lo")?;
    let socket = UdpSocket::bind("169.254.20.9:7")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        sender.send(rustix::thread::gettid().as_raw_nonzero()).ok();
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    let thread = receiver.recv().context("the echo did not start")?;
    Ok(contender(
        "echo",
        "169.254.20.9:7",
        format!("/proc/self/task/{thread}/stat"),
        None,
    ))
}

fn contender(name: &'static str, address: &str, stat: String, child: Option<Child>) -> Contender {
    Contender {
        name,
        address: address.to_owned(),
        stat,
        child,
        times: Vec::new(),
    }
}

fn hull(runtime: &tokio::runtime::Runtime, dir: &Path) -> Result<Contender> {
    let listen = dns::DEFAULT_LISTEN;
    let resolv_conf = dir.join("resolv.conf");
    fs::write(&resolv_conf, "")?;
    let server = runtime.block_on(dns::Server::bind(Config {
        listen: vec![listen.into()],
        resolv_conf,
        cluster: Vec::new(),
        zone: ZoneConfig {
            domain: "cluster.local".to_owned(),
            ranges: Vec::new(),
        },
    }))?;
    let change = |number: usize| {
        let spec = json!({"clusterIP": address(number), "ports": [{"name": "http", "port": 80}]});
        let service = serde_json::from_value(json!({"metadata": {}, "spec": spec}))?;
        let name = format!("svc-{number}");
        Ok(("shop".to_owned(), name, ServiceRecords::new(&service, [])))
    };
    let changes: Result<Vec<_>> = (0..SERVICES).map(change).collect();
    server.handle().replace(changes?);
    runtime.spawn(server.run());
    let thread = wait_for(|| thread_called("dns")).context("hull's thread did not start")?;
    Ok(contender(
        "hull",
        &listen.to_string(),
        format!("/proc/self/task/{thread}/stat"),
        None,
    ))
}

fn thread_called(name: &str) -> Option<String> {
    let threads = fs::read_dir("/proc/self/task").ok()?.flatten();
    threads
        .map(|thread| thread.file_name().to_string_lossy().into_owned())
        .find(|thread| {
            fs::read_to_string(format!("/proc/self/task/{thread}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
}

fn wait_for<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match found() {
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            found => return found,
        }
    }
}

fn unbound(dir: &Path) -> Result<Option<Contender>> {
    let names = (0..SERVICES).map(|number| {
        format!(
            "  local-data: \"svc-{number}.shop.svc.cluster.local. 5 A {}\"\n",
            address(number)
        )
    });
    let text = format!(
        "server:\n  interface: 169.254.20.11\n  access-control: 0.0.0.0/0 allow\n  num-threads: 1\n  do-daemonize: no\n  \
         username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  local-zone: \"cluster.local.\" static\n{}",
        names.collect::<String>()
    );
    let file = dir.join("unbound.conf");
    fs::write(&file, text)?;
    peer(
        "unbound",
        "169.254.20.11",
        Command::new("unbound").arg("-d").arg("-c").arg(file),
    )
}

fn dnsmasq(dir: &Path) -> Result<Option<Contender>> {
    let names = (0..SERVICES).map(|number| format!("{} svc-{number}.shop.svc.cluster.local\n", address(number)));
    let file = dir.join("hosts");
    fs::write(&file, names.collect::<String>())?;
    let mut command = Command::new("dnsmasq");
    command
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
        ])
        .args([
            "--pid-file=",
            "--bind-interfaces",
            "--listen-address=169.254.20.12",
            "--local=/cluster.local/",
        ])
        .arg(format!("--addn-hosts={}", file.display()));
    peer("dnsmasq", "169.254.20.12", &mut command)
}

/// A server of others, if it is installed; ready when it answers.
fn peer(name: &'static str, address: &str, command: &mut Command) -> Result<Option<Contender>> {
    shell(&format!("ip addr add {address}/32 dev lo"))?;
    let child = match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(_) => {
            println!("{name} is not installed: left out");
            return Ok(None);
        }
    };
    let stat = format!("/proc/{}/stat", child.id());
    let contender = contender(name, &format!("{address}:53"), stat, Some(child));
    wait_for(|| ask(&contender.address, 1).ok()).with_context(|| format!("{name} does not answer"))?;
    Ok(Some(contender))
}

fn shell(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", script]).status().context("run sh")?;
    ensure!(status.success(), "failed: {script}");
    Ok(())
}
