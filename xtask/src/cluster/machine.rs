//! A host of a cluster: a network namespace, a cgroup, directories, and the hull process in them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use super::lan::Lan;
use super::{Options, base, cgroup, pins};

/// A host.
pub struct Machine {
    cluster: String,
    name: String,
    number: usize,
    segment: usize,
    ips: Vec<IpAddr>,
    binary: PathBuf,
    child: Option<Child>,
    notify: Option<UnixDatagram>,
}

/// Arguments: a cgroup, a host name, and what to execute.
const AS_A_PROCESS_OF: &str =
    "echo $$ > \"$0\"/cgroup.procs && echo \"$1\" > /proc/sys/kernel/hostname && shift && exec \"$@\"";

impl Machine {
    pub(super) fn new(options: &Options, lan: &Lan, name: &str, number: usize) -> Self {
        Machine {
            cluster: options.name.clone(),
            name: name.to_owned(),
            number,
            segment: lan.segment(number),
            ips: lan.addresses(number),
            binary: options.binaries.join("hull"),
            child: None,
            notify: None,
        }
    }

    /// `control`, `node-1`, …: also the node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, one of each family of the cluster.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Name of its network namespace, as ip-netns(8) has it.
    pub fn namespace(&self) -> String {
        format!("hc-{}-{}", self.cluster, self.name)
    }

    /// Data that a reboot would keep.
    pub fn data_dir(&self) -> PathBuf {
        base(&self.cluster).join(&self.name).join("data")
    }

    /// State that a reboot would erase.
    pub fn run_dir(&self) -> PathBuf {
        base(&self.cluster).join(&self.name).join("run")
    }

    /// Where its service proxy pins maps and links.
    pub fn bpf_dir(&self) -> PathBuf {
        pins(&self.cluster).join(&self.name)
    }

    /// Its cgroup, relative to the cgroup2 mount: processes in it see the services as those of this host do.
    pub fn cgroup(&self) -> String {
        format!("{}/{}", cgroup(&self.cluster), self.name)
    }

    /// What its hull process said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        base(&self.cluster).join(format!("{}.log", self.name))
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn segment(&self) -> usize {
        self.segment
    }

    pub(super) fn addresses(&self) -> String {
        self.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    pub(super) fn socket_address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ips[0], port)
    }

    /// Flags that tell a hull command about this host's directories.
    pub fn directories(&self) -> Vec<String> {
        vec![
            format!("--data-dir={}", self.data_dir().display()),
            format!("--run-dir={}", self.run_dir().display()),
            format!("--bpf-dir={}", self.bpf_dir().display()),
            format!("--node-cgroup={}", self.cgroup()),
        ]
    }

    /// A program that runs as a process of this host: in its network namespace, in its cgroup, and under its name, which
    /// pods of the host's network see.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let cgroup = cgroup2_mount()?.join(self.cgroup()).join("system");
        fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace()))
            .args(["--", "unshare", "--uts", "--", "/bin/sh", "-c", AS_A_PROCESS_OF])
            .args([cgroup.as_os_str(), self.name.as_ref(), program.as_os_str()]);
        Ok(command)
    }

    /// Starts `hull control` or `hull agent`.
    pub(super) fn start(&mut self, role: &str, flags: &[String]) -> Result<()> {
        self.reap();
        let socket = base(&self.cluster).join(format!("{}.notify", self.name));
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).with_context(|| format!("bind {}", socket.display()))?;
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log_path())
            .context("open the log")?;
        let mut command = self.command(&self.binary)?;
        command.args(self.directories()).arg(role).args(flags);
        if role == "agent" {
            command.arg(format!("--node-name={}", self.name));
            command.arg(format!("--node-ip={}", self.addresses()));
        }
        command
            .env("NOTIFY_SOCKET", &socket)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        self.child = Some(command.spawn().context("start hull")?);
        self.notify = Some(notify);
        Ok(())
    }

    /// Waits for the readiness message.
    pub(super) fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let (Some(notify), Some(child)) = (&self.notify, &mut self.child) else {
            bail!("{} was not started", self.name);
        };
        notify
            .set_read_timeout(Some(Duration::from_millis(100)))
            .context("set a time-out")?;
        let deadline = Instant::now() + patience;
        let log = base(&self.cluster).join(format!("{}.log", self.name));
        while notify.recv(&mut [0; 64]).is_err() {
            if let Some(status) = child.try_wait().context("look after hull")? {
                bail!("hull on {} ended: {status}\n{}", self.name, last_lines(&log));
            }
            ensure!(
                Instant::now() < deadline,
                "hull on {} is not ready after {patience:?}\n{}",
                self.name,
                last_lines(&log)
            );
        }
        Ok(())
    }

    /// Process id of its hull.
    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id().cast_signed())
    }

    /// Sends its hull a signal and waits for the end.
    ///
    /// # Errors
    /// It does not run, or cannot be signalled.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let child = self.child.as_mut().context("hull does not run")?;
        let pid = Pid::from_raw(child.id().cast_signed()).context("a pid")?;
        rustix::process::kill_process(pid, signal).context("signal hull")?;
        child.wait().context("wait for hull")?;
        self.child = None;
        Ok(())
    }

    /// Forgets a process that has been killed.
    pub(super) fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Where the unified hierarchy is mounted.
pub(super) fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let line = line.context("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")?;
    line.split(' ').nth(4).map(PathBuf::from).context("its mount point")
}

/// Kills all processes of a cgroup and those below, and waits until they are gone.
pub(super) fn kill(cgroup: &Path) -> Result<()> {
    let path = cgroup.join("cgroup.kill");
    if !path.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + super::PATIENCE;
    loop {
        fs::write(&path, "1").with_context(|| format!("write {}", path.display()))?;
        let events = fs::read_to_string(cgroup.join("cgroup.events")).context("read cgroup.events")?;
        if events.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "processes in {} do not end",
            cgroup.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A cgroup goes after its children (cgroups(7)).
pub(super) fn remove_cgroup(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("read {}", path.display()))?,
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("remove {}", path.display()))
}

/// Unmounts everything below a directory, the deepest first.
pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    points.sort_unstable_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        match rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("unmount {point}")),
        }
    }
    Ok(())
}
