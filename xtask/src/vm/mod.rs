//! Root tests in a virtual machine: a whole cgroup v2, an OOM killer and a power switch of their own.
//!
//! A stock Debian kernel boots under emulation (no KVM needed) from an initramfs made here: busybox, a few modules and the files of
//! the job, copied to a tmpfs so that pivot_root works. The guest's test output comes back over its second serial port, the exit code in
//! its last line. Correctness only: emulation costs 10 to 30 times the CPU, so nothing in a VM is ever timed.

mod cpio;
mod kit;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use kit::{Kit, Release};

use crate::host;

/// What the harness does after a line of guest output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Kill the machine now, as a power cut would.
    CutPower,
}

/// One run of a machine.
pub struct Job {
    /// Names the run in messages and files.
    pub name: String,
    /// Guest path (absolute) and host path of each file to bring along; executable if the host file is.
    pub files: Vec<(String, PathBuf)>,
    /// Shell script (busybox ash) that runs as root; its exit code is the job's.
    pub script: String,
    /// A disk image that outlives the machine: /dev/vda in the guest.
    pub disk: Option<PathBuf>,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The machine is killed and the job fails after this long.
    pub timeout: Duration,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The script's exit code; `None` after a power cut.
    pub exit: Option<i32>,
    /// What the script printed.
    pub output: String,
}

/// Kills the machine when the harness is done with it, however that comes about.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a machine, runs the job's script in it and returns what came back. `on_line` sees every line of output as it arrives.
///
/// # Errors
/// QEMU cannot start, the machine dies without an exit line, or the job takes longer than its time-out; the error quotes the console.
pub fn run(kit: &Kit, job: &Job, mut on_line: impl FnMut(&str) -> Verdict) -> Result<Outcome> {
    let dir = tempfile::Builder::new()
        .prefix("hull-vm-")
        .tempdir()
        .context("make a temporary directory")?;
    let initramfs = dir.path().join("initramfs");
    kit.write_initramfs(&initramfs, &job.files, &job.script)?;
    let console = dir.path().join("console");
    let mut command = qemu(kit, job, &initramfs, &console);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut machine = Machine(command.spawn().context("start qemu-system-x86_64")?);
    let output = machine.0.stdout.take().context("no pipe to the machine")?;
    let lines = read_lines(output);
    let deadline = Instant::now() + job.timeout;
    let mut collected = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                bail!(
                    "VM job {}: not done after {:?}\n{collected}\n{}",
                    job.name,
                    job.timeout,
                    tail(&console)
                )
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                let mut said = String::new();
                if let Some(mut stderr) = machine.0.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
                }
                bail!(
                    "VM job {}: the machine ended without a result\n{collected}\n{said}\n{}",
                    job.name,
                    tail(&console)
                )
            }
        };
        if let Some(code) = line.strip_prefix("@@EXIT ") {
            let code = code.trim().parse().with_context(|| format!("exit line {line:?}"))?;
            return Ok(Outcome {
                exit: Some(code),
                output: collected,
            });
        }
        collected.push_str(&line);
        collected.push('\n');
        if on_line(&line) == Verdict::CutPower {
            return Ok(Outcome {
                exit: None,
                output: collected,
            });
        }
    }
}

/// As [`run`], but anything except exit code 0 is an error that quotes the output.
///
/// # Errors
/// Those of [`run`], and a failed script.
pub fn check(kit: &Kit, job: &Job) -> Result<String> {
    let outcome = run(kit, job, |_| Verdict::Continue)?;
    match outcome.exit {
        Some(0) => Ok(outcome.output),
        code => bail!("VM job {}: exit code {code:?}\n{}", job.name, outcome.output),
    }
}

/// The programs under test for a guest's `/bin`, stripped so that they load quickly under emulation.
///
/// # Errors
/// They are not built, or cannot be stripped.
pub fn hull_binaries() -> Result<Vec<(String, PathBuf)>> {
    ["hull", "hull-runtime"].into_iter().map(stripped).collect()
}

/// The runtime and its probe (runtime/examples) for a guest's `/bin`: all that a test of containers alone needs.
///
/// # Errors
/// As [`hull_binaries`].
pub fn runtime_binaries() -> Result<Vec<(String, PathBuf)>> {
    ["hull-runtime", "examples/probe"].into_iter().map(stripped).collect()
}

/// One built program, named by its path below the build's directory.
fn stripped(path: &str) -> Result<(String, PathBuf)> {
    let built = host::binaries()?.join(path);
    let name = path.rsplit('/').next().unwrap_or(path);
    let partial = host::workspace()
        .join("target/vm")
        .join(format!("{name}.{}", std::process::id()));
    host::run(Command::new("strip").arg("-o").arg(&partial).arg(built))?;
    let kept = partial.with_extension("stripped");
    std::fs::rename(&partial, &kept).context("keep the stripped binary")?;
    Ok((format!("/bin/{name}"), kept))
}

fn qemu(kit: &Kit, job: &Job, initramfs: &Path, console: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-M",
            "q35",
        ])
        .args([
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-cpu",
            "max,la57=off",
            "-smp",
            "2",
        ])
        .args(["-m", &job.memory_mib.to_string()])
        .arg("-kernel")
        .arg(kit.kernel())
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", KERNEL_COMMAND_LINE])
        .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
    if let Some(disk) = &job.disk {
        let drive = format!("if=none,id=d0,format=raw,cache=writeback,file={}", disk.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=d0"]);
    }
    command
}

/// Quiet, without the mitigations and self tests that only cost time under emulation.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr random.trust_cpu=on \
     tsc=reliable no_timer_check audit=0 apparmor=0 selinux=0 8250.nr_uarts=2 noreplace-smp lpj=4000000 cryptomgr.notests \
     initcall_blacklist=jent_mod_init,load_system_certificate_list,crypto_kdf108_init,init_encrypted,i8042_init \
     nowatchdog rcupdate.rcu_cpu_stall_suppress=1 workqueue.watchdog_thresh=0 psi=1";

fn read_lines(source: impl std::io::Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

fn tail(console: &Path) -> String {
    let text = std::fs::read(console)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("console:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
}
