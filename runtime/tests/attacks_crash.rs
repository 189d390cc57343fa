//! Ends that nobody planned: the runtime killed at any system call of `create`, `start` and `run` (FAULTS 3), a process
//! that hangs in the kernel (18), a pid that belongs to somebody else by now (72).

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::process::{Pid, Signal};
use serde_json::json;
use support::{Bundle, hostile};

/// Run `arguments` and kill the runtime when it makes its system call number `last`; true if it ended before.
fn killed_at(bundle: &Bundle, arguments: &[&str], last: usize) -> bool {
    let mut command = bundle.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().unwrap();
    let pid = child.id() as libc::pid_t;
    // The first stop is that of execve.
    let mut status = wait_for(pid);
    let mut stops = 0;
    while libc::WIFSTOPPED(status) {
        if stops == 2 * last {
            child.kill().unwrap();
        }
        stops += 1;
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP | libc::SIGSTOP => 0,
            other => other,
        };
        // SAFETY: our own tracee, stopped. It may have been killed: then the wait says so.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, signal) };
        status = wait_for(pid);
    }
    // Reaped above: only std does not know.
    let _ = child.wait();
    libc::WIFEXITED(status)
}

fn wait_for(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: our own child, not reaped yet.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// Processes that name the container in their command line, which are the runtime's.
fn named(id: &str) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let names = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(id)
    };
    processes.filter(names).collect()
}

/// `delete --force` works, twice, and nothing is left.
fn deleted_without_a_trace(bundle: &Bundle, when: &str) {
    for time in ["first", "second"] {
        let done = bundle.call(&["delete", "--force", &bundle.id]);
        assert_eq!(done.code, Some(0), "{time} delete, {when}: {done:?}");
    }
    assert!(!bundle.state_dir().exists(), "{when}: state is left");
    assert!(!bundle.cgroup().exists(), "{when}: the cgroup is left");
    assert!(!support::is_mounted_below(&bundle.path("")), "{when}: a mount is left");
    // What has noticed the death of its parent goes by itself.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !named(&bundle.id).is_empty() {
        assert!(
            std::time::Instant::now() < deadline,
            "{when}: processes are left: {:?}",
            named(&bundle.id)
        );
        std::thread::yield_now();
    }
}

fn demanding() -> Bundle {
    let mut bundle = Bundle::new("exec sleep 1000");
    let volume = bundle.path("volume");
    fs::create_dir(&volume).unwrap();
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    hostile::mount(
        &mut bundle,
        json!({"destination": "/tmp/mapped", "type": "bind", "source": volume, "options": ["rbind", "idmap"],
               "uidMappings": map, "gidMappings": map}),
    );
    bundle.config["linux"]["seccomp"] = json!(hull_runtime::seccomp::default_profile());
    bundle
}

/// Row 3: at every third system call, so that each step of the conversation with the child is hit.
#[test]
fn a_runtime_that_is_killed_leaves_nothing_that_delete_cannot_remove() {
    let bundle = demanding();
    for command in ["create", "run"] {
        for last in (1..).step_by(3) {
            let arguments: &[&str] = match command {
                "run" => &["run", "-d", &bundle.id],
                _ => &["create", &bundle.id],
            };
            let ended = killed_at(&bundle, arguments, last);
            let when = format!("{command} killed at system call {last}");
            let state = bundle.call(&["state", &bundle.id]);
            if state.code == Some(0) {
                let state: serde_json::Value = serde_json::from_str(&state.out).unwrap();
                let status = state["status"].as_str().unwrap();
                assert!(
                    ["creating", "created", "running", "stopped"].contains(&status),
                    "{when}: {state}"
                );
            }
            deleted_without_a_trace(&bundle, &when);
            if ended {
                assert!(last > 60, "{command} made only {last} system calls: it was not traced");
                break;
            }
            assert!(last < 3000, "{command} has no end");
        }
    }
}

#[test]
fn a_start_that_is_killed_leaves_nothing_that_delete_cannot_remove() {
    let bundle = demanding();
    for last in (1..).step_by(2) {
        bundle.create().ok();
        let ended = killed_at(&bundle, &["start", &bundle.id], last);
        let status = bundle.state()["status"].as_str().unwrap().to_owned();
        assert!(["created", "running"].contains(&&*status), "{status}");
        deleted_without_a_trace(&bundle, &format!("start killed at system call {last}"));
        if ended {
            assert!(last > 5);
            return;
        }
    }
}

/// Row 72: the init is gone, and its number given to a bystander.
#[test]
fn a_pid_that_was_given_away_is_nobodys_of_the_container() {
    // SAFETY: an integer option: orphans of `create` become our children, so that we decide when their number is free.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    let (bundle, bystander) = loop {
        let bundle = Bundle::new("exec sleep 1000");
        bundle.create().ok();
        bundle.start().ok();
        let pid = bundle.state()["pid"].as_i64().unwrap() as libc::pid_t;
        // A process is told from another of the same number by its start, which the kernel shows in clock ticks of 10 ms
        // (proc_pid_stat(5), starttime). Without set_tid, numbers come round only after all others were used.
        std::thread::sleep(std::time::Duration::from_millis(30));
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        wait_for(pid);
        // Somebody else on this machine may be quicker.
        if let Some(bystander) = with_pid(pid) {
            break (bundle, bystander);
        }
    };
    assert_eq!(bundle.state()["status"], "stopped");
    for signal in ["TERM", "KILL"] {
        bundle
            .call(&["kill", &bundle.id, signal])
            .fails("container not running");
    }
    bundle.exec(&[&bundle.id, "true"]).fails("stopped container");
    bundle.call(&["pause", &bundle.id]).fails("not running");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!bundle.state_dir().exists());
    let alive = bystander.is_alive();
    assert!(alive, "the bystander was killed");
}

/// A child that only waits.
struct Bystander(libc::pid_t);

impl Bystander {
    fn is_alive(&self) -> bool {
        let mut status = 0;
        // SAFETY: our own child.
        unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) == 0 }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // SAFETY: our own child, not reaped.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// clone3(2) with set_tid: a process with the number we want, if it is free.
fn with_pid(pid: libc::pid_t) -> Option<Bystander> {
    let numbers = [pid];
    // SAFETY: all-zero is valid; the child only waits.
    unsafe {
        let mut args: libc::clone_args = std::mem::zeroed();
        args.exit_signal = libc::SIGCHLD as u64;
        args.set_tid = numbers.as_ptr() as u64;
        args.set_tid_size = 1;
        match libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) {
            0 => loop {
                libc::pause();
            },
            made if made == i64::from(pid) => Some(Bystander(pid)),
            _ => None,
        }
    }
}

/// A FUSE file system that answers for its root and for nothing else: whoever looks for a name in it hangs, past SIGKILL.
struct Hanging {
    device: Option<OwnedFd>,
    server: Option<std::thread::JoinHandle<()>>,
    /// Hears of each request that gets no answer.
    hung: Receiver<()>,
    at: PathBuf,
}

impl Hanging {
    fn mount(at: &Path) -> Hanging {
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount(c"hull-test", at, c"fuse", flags, &*options).unwrap();
        let mut file = device.try_clone().unwrap();
        let (sender, hung) = channel();
        let server = std::thread::spawn(move || serve(&mut file, &sender));
        Hanging {
            device: Some(device.into()),
            server: Some(server),
            hung,
            at: at.to_path_buf(),
        }
    }

    /// Abort the connection: everything that hangs gets an error.
    fn end(&mut self) {
        use rustix::mount::UnmountFlags;
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::FORCE | UnmountFlags::DETACH);
        self.device.take();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.end();
    }
}

/// linux/fuse.h: INIT (26) and GETATTR (3) of the root are answered. The end of the connection ends the loop (ENODEV).
fn serve(device: &mut fs::File, hung: &Sender<()>) {
    const INIT: u32 = 26;
    const GETATTR: u32 = 3;
    let mut request = vec![0; 1 << 17];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let unique: [u8; 8] = request[8..16].try_into().unwrap();
        let body = match (word(4), length) {
            // Version 7.31, then zeros: the kernel's own limits.
            (INIT, _) => {
                let mut body = [0; 64];
                body[..4].copy_from_slice(&7u32.to_ne_bytes());
                body[4..8].copy_from_slice(&31u32.to_ne_bytes());
                body[20..24].copy_from_slice(&4096u32.to_ne_bytes());
                body.to_vec()
            }
            // Valid for an hour; inode 1, a directory with two links.
            (GETATTR, _) => {
                let mut body = [0; 104];
                body[..8].copy_from_slice(&3600u64.to_ne_bytes());
                body[16..24].copy_from_slice(&1u64.to_ne_bytes());
                body[76..80].copy_from_slice(&0o40755u32.to_ne_bytes());
                body[80..84].copy_from_slice(&2u32.to_ne_bytes());
                body.to_vec()
            }
            _ => {
                let _ = hung.send(());
                continue;
            }
        };
        let mut answer = (16 + body.len() as u32).to_ne_bytes().to_vec();
        answer.extend([0; 4]);
        answer.extend(unique);
        answer.extend(body);
        if device.write_all(&answer).is_err() {
            return;
        }
    }
}

/// Row 18: the runtime says so after its time-out instead of hanging too, and finishes once the kernel lets go.
#[test]
fn a_process_that_hangs_in_the_kernel_does_not_hang_the_runtime() {
    let mut bundle = Bundle::new("echo here; exec cat /vol/name");
    let volume = bundle.path("volume");
    fs::create_dir(&volume).unwrap();
    let mut hanging = Hanging::mount(&volume);
    hostile::bind(&mut bundle, &volume, "/vol");
    bundle.create().ok();
    bundle.start().ok();
    hanging.hung.recv().unwrap();
    bundle.call(&["kill", "--all", &bundle.id, "KILL"]).ok();
    assert_eq!(bundle.state()["status"], "running");
    bundle.call(&["delete", "--force", &bundle.id]).fails("state D");
    assert!(
        bundle.state_dir().exists() && bundle.cgroup().exists(),
        "what still runs must not be forgotten"
    );
    hanging.end();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
}
