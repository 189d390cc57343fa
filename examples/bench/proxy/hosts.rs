//! Hosts for the measurement: network namespaces with routed veth pairs, as a node with pods has them, and cgroups.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The pods of a node: who asks, and who answers.
pub const CLIENT: Pod = Pod {
    name: "c",
    address: "10.244.0.10",
};
pub const SERVERS: [Pod; 2] = [
    Pod {
        name: "a",
        address: "10.244.0.11",
    },
    Pod {
        name: "b",
        address: "10.244.0.12",
    },
];
const GATEWAY: &str = "10.244.0.1";

/// A network namespace behind a node's.
#[derive(Clone, Copy)]
pub struct Pod {
    pub name: &'static str,
    pub address: &'static str,
}

/// A node with its pods; goes with the value.
pub struct Node {
    name: String,
}

impl Node {
    pub fn create(name: &str) -> Result<Node> {
        let name = format!("hb{}{name}", std::process::id());
        let node = Node { name };
        let n = &node.name;
        ip(&format!("netns add {n}"))?;
        ip(&format!("-n {n} link set lo up"))?;
        node.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        for Pod { name, address } in [CLIENT, SERVERS[0], SERVERS[1]] {
            let pod = format!("{n}{name}");
            ip(&format!("netns add {pod}"))?;
            ip(&format!("-n {pod} link set lo up"))?;
            ip(&format!(
                "link add v0 netns {pod} type veth peer name v{name} netns {n}"
            ))?;
            ip(&format!("-n {n} addr add {GATEWAY}/32 dev v{name}"))?;
            ip(&format!("-n {n} link set v{name} up"))?;
            ip(&format!("-n {n} route add {address}/32 dev v{name}"))?;
            ip(&format!("-n {pod} addr add {address}/32 dev v0"))?;
            ip(&format!("-n {pod} link set v0 up"))?;
            ip(&format!("-n {pod} route add {GATEWAY} dev v0"))?;
            ip(&format!("-n {pod} route add default via {GATEWAY} dev v0"))?;
        }
        Ok(node)
    }

    /// Runs a program on the node itself.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments);
        let output = command.output().with_context(|| format!("start {program}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments:?}: {error}");
        Ok(())
    }

    /// The namespace of a pod, as a file.
    pub fn namespace(&self, pod: Pod) -> PathBuf {
        Path::new("/run/netns").join(format!("{}{}", self.name, pod.name))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for pod in [CLIENT.name, SERVERS[0].name, SERVERS[1].name, ""] {
            let _ = ip(&format!("netns del {}{pod}", self.name));
        }
    }
}

pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("start ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {error}");
    Ok(())
}

/// Who is left alone, who is balanced, and who is observed besides.
const CGROUPS: [&str; 3] = ["plain", "hull", "hull/observed"];

/// A cgroup whose members are threads of this process.
pub struct Cgroups {
    dir: PathBuf,
    before: PathBuf,
}

impl Cgroups {
    /// Moves this process into a cgroup of its own, so that threads can be told apart below it.
    pub fn enter() -> Result<Cgroups> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let root = line
            .and_then(|line| line.split(' ').nth(4))
            .context("cgroup v2 is not mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or_default();
        let dir = Path::new(root).join(format!("hull-bench-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let cgroups = Cgroups {
            before: Path::new(root).join(own),
            dir,
        };
        fs::write(cgroups.dir.join("cgroup.procs"), std::process::id().to_string())?;
        for name in CGROUPS {
            fs::create_dir(cgroups.path(name))?;
            fs::write(cgroups.path(name).join("cgroup.type"), "threaded")?;
        }
        Ok(cgroups)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), std::process::id().to_string());
        for name in CGROUPS.iter().rev() {
            let _ = fs::remove_dir(self.path(name));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Runs `task` in a thread in a network namespace, and in a cgroup.
pub fn within<T: Send>(namespace: &Path, cgroup: Option<&Path>, task: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = fs::File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
    let enter = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        if let Some(cgroup) = cgroup {
            let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
            fs::write(cgroup.join("cgroup.threads"), thread).context("enter the cgroup")?;
        }
        task()
    };
    thread::scope(|scope| match scope.spawn(enter).join() {
        Ok(result) => result,
        Err(_) => anyhow::bail!("a thread panicked"),
    })
}
