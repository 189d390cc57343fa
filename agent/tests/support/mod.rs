//! A place of its own for each test: a network namespace as host, a cgroup, directories. All of it goes with the test.
//!
//! The test's thread is moved into a threaded cgroup (cgroups(7)) and a fresh network namespace, so that parallel tests
//! of one process see neither each other's programs nor each other's addresses.
#![allow(dead_code, reason = "every test crate uses another part")]

pub mod proxy;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hull_agent::network::namespaces::{self, Kind, Pinned};
use hull_agent::proxy::{Proxy, ProxyConfig, unload};

/// How long anything may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(5);

static COUNTER: AtomicU32 = AtomicU32::new(0);
static PROCESS: Mutex<Option<Arc<ProcessCgroup>>> = Mutex::new(None);

/// The cgroup that this process sits in while tests with cgroups run.
struct ProcessCgroup {
    dir: PathBuf,
    before: PathBuf,
}

impl ProcessCgroup {
    fn enter() -> Arc<ProcessCgroup> {
        let mut process = PROCESS.lock().unwrap();
        if let Some(cgroup) = &*process {
            return cgroup.clone();
        }
        let root = cgroup2_mount();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap()
            .to_owned();
        let dir = root.join(format!("hull-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let cgroup = Arc::new(ProcessCgroup {
            dir,
            before: root.join(own),
        });
        *process = Some(cgroup.clone());
        cgroup
    }
}

fn leave(cgroup: Arc<ProcessCgroup>) {
    let mut process = PROCESS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // One reference here, one in the static: the last test goes.
    if Arc::strong_count(&cgroup) == 2 {
        *process = None;
        let _ = fs::write(cgroup.before.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&cgroup.dir);
    }
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("a cgroup2 mount");
    line.split(' ').nth(4).unwrap().into()
}

fn thread_id() -> String {
    rustix::thread::gettid().as_raw_nonzero().to_string()
}

/// The test's own host.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub cgroup: PathBuf,
    process: Option<Arc<ProcessCgroup>>,
    pods: Mutex<Vec<Pinned>>,
}

impl Host {
    /// Moves the calling thread into a new host.
    pub fn enter() -> Host {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let process = ProcessCgroup::enter();
        let cgroup = process
            .dir
            .join(format!("t{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.type"), "threaded").unwrap();
        fs::write(cgroup.join("cgroup.threads"), thread_id()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // The host's own namespace is pinned like a pod's, so that other threads can come in.
        let host = Host {
            cgroup,
            dir,
            process: Some(process),
            pods: Mutex::default(),
        };
        let namespace = host.pin("host", None);
        enter_namespace(&namespace.path(Kind::Net));
        host
    }

    pub fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    pub fn bpf_dir(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    pub fn proxy_config(&self) -> ProxyConfig {
        ProxyConfig::new(&self.bpf_dir(), &self.cgroup, &self.netns_dir())
    }

    pub fn proxy(&self) -> Proxy {
        Proxy::load(self.proxy_config()).unwrap()
    }

    /// Makes the namespaces of a pod.
    pub fn pin(&self, name: &str, hostname: Option<&str>) -> Pinned {
        let kinds = [Kind::Net, Kind::Ipc, Kind::Uts];
        let pinned = Pinned::create(&self.netns_dir().join(name), &kinds, hostname).unwrap();
        self.pods.lock().unwrap().push(pinned.clone());
        pinned
    }

    /// Runs `task` as a process of the pod would: in its network namespace, in the test's cgroup.
    pub fn inside<T: Send>(&self, pod: &Pinned, task: impl FnOnce() -> T + Send) -> T {
        let namespace = namespaces::open(&pod.path(Kind::Net)).unwrap();
        namespaces::within(&namespace, || {
            fs::write(self.cgroup.join("cgroup.threads"), thread_id()).unwrap();
            Ok(task())
        })
        .unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = unload(&self.bpf_dir());
        for pod in self
            .pods
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .drain(..)
        {
            let _ = pod.remove();
        }
        if let Some(process) = self.process.take() {
            let _ = fs::write(process.dir.join("cgroup.threads"), thread_id());
            // Threads of servers that have just been joined may still be on their way out.
            for _ in 0..100 {
                if fs::remove_dir(&self.cgroup).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
            leave(process);
        }
    }
}

fn enter_namespace(path: &Path) {
    let namespace = namespaces::open(path).unwrap();
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
}

/// A server that tells each client its own name; stops when dropped.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A TCP server in the calling thread's network namespace; answers with `name` and the client's address.
    pub fn tcp(address: impl Into<SocketAddr>, name: &str) -> Server {
        let listener = TcpListener::bind(address.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let name = name.to_owned();
        let (stop, stopped) = mpsc::channel();
        listener.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || {
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                match listener.accept() {
                    Ok((mut stream, client)) => {
                        let _ = write!(stream, "{name} {client}");
                    }
                    Err(_) => wait_readable(&listener),
                }
            }
        });
        Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// A UDP server that answers every datagram with `name`.
    pub fn udp(address: impl Into<SocketAddr>, name: &str) -> Server {
        let socket = UdpSocket::bind(address.into()).unwrap();
        let address = socket.local_addr().unwrap();
        let name = name.to_owned();
        let (stop, stopped) = mpsc::channel();
        socket.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 512];
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                match socket.recv_from(&mut buffer) {
                    Ok((_, client)) => drop(socket.send_to(name.as_bytes(), client)),
                    Err(_) => wait_readable(&socket),
                }
            }
        });
        Server {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

/// Waits until a client comes, but not so long that a server could not be stopped.
fn wait_readable(fd: &impl std::os::fd::AsFd) {
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects and reads what the server says of itself: its name.
pub fn ask_tcp(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Sends a datagram on a connected socket and returns the answer.
pub fn ask_connected(socket: &UdpSocket) -> std::io::Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Sends a datagram on an unconnected socket; returns the answer and from where it seems to come.
pub fn ask_unconnected(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
}

/// `127.0.0.n`: as many backends as a test wants, on one interface.
pub fn loopback(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0)
}
