//! Clients that keep every answer: pods that use a service by its cluster address, and this process, which is outside of every
//! cluster, by a node port. None of them needs an agent to go on.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::cluster::Machine;

use super::nodes::{ECHO, Nodes};
use super::{IMAGE, PATIENCE};

/// How long a client waits for an answer before it is a failure.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Between two connections of a client: the machine has other things to do than to answer it.
const PAUSE: Duration = Duration::from_millis(20);
/// What a pod says of a connection that failed, and of one that should have lasted.
const FAILED: &str = "FAILED";
const LOST: &str = "LOST";
const TICK: &str = "tick";

/// A pod that opens connections to a service, one after the other, and keeps another one open.
pub struct Caller {
    log: PathBuf,
}

impl Caller {
    /// Starts one on a node and waits until it has had answers.
    pub fn start(nodes: &Nodes, machine: &Machine, service: &str) -> Self {
        let address = nodes.get(&["service", service])["spec"]["clusterIP"].clone();
        let address = address.as_str().expect("an address");
        let name = format!("caller-{}-{service}", machine.name());
        let script = format!(
            "( (while :; do echo {TICK}; sleep 0.2; done) | nc {address} {ECHO}; echo {LOST}) & while :; do \
             a=$(printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 3 /bin/busybox nc {address} 80 | tail -n 1); echo ${{a:-{FAILED}}}; sleep {}; done",
            PAUSE.as_secs_f32()
        );
        nodes.apply(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1, "nodeSelector": {"kubernetes.io/hostname": machine.name()},
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script]}]}}),
        );
        nodes.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        let uid = nodes.get(&["pod", &name])["metadata"]["uid"].clone();
        let directory = format!("default_{name}_{}", uid.as_str().expect("a uid"));
        let caller = Caller {
            log: machine.data_dir().join("logs").join(directory).join("main/0.log"),
        };
        caller.wait_more(3);
        caller.wait_tick();
        caller
    }

    /// What it said so far: names of pods, [`TICK`], [`FAILED`], [`LOST`]. The log is a file in CRI's format.
    fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().filter_map(|line| line.split_once(" stdout F "));
        lines.map(|(_, said)| said.to_owned()).collect()
    }

    /// The answers so far, [`FAILED`] among them.
    pub fn answers(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line != TICK && line != LOST);
        lines
    }

    /// Waits for so many answers more.
    pub fn wait_more(&self, more: usize) {
        let before = self.answers().len();
        self.wait("answers", || self.answers().len() >= before + more);
    }

    /// Waits for a sign of life of the lasting connection.
    pub fn wait_tick(&self) {
        let ticks = || self.lines().iter().filter(|line| *line == TICK).count();
        let before = ticks();
        self.wait("a sign of life", || ticks() > before);
    }

    fn wait(&self, what: &str, mut enough: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough() {
            let last: Vec<String> = self.lines().into_iter().rev().take(5).collect();
            assert!(
                Instant::now() < deadline,
                "no {what} in {}: {last:?}",
                self.log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fails unless every answer was one of the service's pods', and the lasting connection lasts.
    pub fn assert_served_by(&self, service: &str) {
        let prefix = format!("{service}-");
        let wrong: Vec<String> = self
            .answers()
            .into_iter()
            .filter(|said| !said.starts_with(&prefix))
            .collect();
        assert!(wrong.is_empty(), "{}: {wrong:?}", self.log.display());
        assert!(!self.lines().iter().any(|line| line == LOST), "{}", self.log.display());
    }
}

/// What came of one connection.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the client began to connect.
    pub begun: Instant,
    /// When it knew.
    pub ended: Instant,
    /// The name of the pod, or what went wrong.
    pub said: Result<String, String>,
}

/// Opens connections to an address, one after the other, until it is dropped.
pub struct Outside {
    answers: Arc<Mutex<Vec<Answer>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Outside {
    /// Starts.
    pub fn start(address: SocketAddr) -> Self {
        let (answers, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, end) = (Arc::clone(&answers), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let said = ask(address).map_err(|error| error.to_string());
                let answer = Answer {
                    begun,
                    ended: Instant::now(),
                    said,
                };
                kept.lock().expect("the list").push(answer);
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            answers,
            ended,
            thread: Some(thread),
        }
    }

    /// The answers so far.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().expect("the list").clone()
    }

    /// Waits for so many answers more.
    pub fn wait_more(&self, more: usize) {
        let count = || self.answers.lock().expect("the list").len();
        let (begin, deadline) = (count(), Instant::now() + PATIENCE);
        while count() < begin + more {
            assert!(Instant::now() < deadline, "only {} answers", count() - begin);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails unless every connection begun since then was answered by one of the service's pods. How many there were.
    pub fn assert_served_by(&self, service: &str, since: Instant) -> usize {
        let prefix = format!("{service}-");
        let answers = self.answers();
        let asked: Vec<&Answer> = answers.iter().filter(|answer| answer.begun >= since).collect();
        let is_right = |answer: &&&Answer| answer.said.as_ref().is_ok_and(|said| said.starts_with(&prefix));
        let wrong: Vec<&&Answer> = asked.iter().filter(|answer| !is_right(answer)).collect();
        assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), asked.len());
        asked.len()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The last line of a web server's answer.
fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let last = text.lines().last().filter(|line| !line.is_empty());
    last.map(str::to_owned)
        .ok_or_else(|| std::io::Error::other(format!("an answer without a name: {text:?}")))
}

/// A connection to a pod that sends back what it is sent, after its name.
pub struct Lasting {
    stream: BufReader<TcpStream>,
    /// The pod.
    pub pod: String,
}

impl Lasting {
    /// Connects.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut lasting = Lasting {
            stream: BufReader::new(stream),
            pod: String::new(),
        };
        lasting.pod = lasting.line();
        lasting
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line from the pod");
        line.trim().to_owned()
    }

    /// Fails unless what is sent comes back.
    pub fn assert_alive(&mut self) {
        let question = format!("still {:?}?", Instant::now());
        writeln!(self.stream.get_ref(), "{question}").expect("send to the pod");
        assert_eq!(self.line(), question, "{}", self.pod);
    }
}
