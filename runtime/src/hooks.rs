//! Lifecycle hooks: run a program with the container's state on its standard input, within a time limit.
//! config.md, "POSIX-platform Hooks". Runs on both sides of clone3, so nothing between fork and wait allocates.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::error::{Error, Result};
use crate::fault::{Explain, Fault, Shown, Step};
use crate::plan::process::{CArray, c_path, c_string};
use crate::spec;
use crate::syscall::{self, Fork, Sys};

/// One hook, ready to be executed.
pub(crate) struct Hook {
    path: CString,
    argv: CArray,
    envp: CArray,
    /// It names no environment of its own.
    inherits: bool,
    timeout: Option<i64>,
}

/// The hooks of each stage, in the order they run.
#[derive(Default)]
pub(crate) struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
}

impl Hooks {
    /// Check the hooks of the configuration. `env` is the process's.
    #[allow(deprecated, reason = "prestart is deprecated, but engines still use it")]
    pub fn new(hooks: Option<&spec::Hooks>, env: &[String]) -> Result<Hooks> {
        let Some(hooks) = hooks else {
            return Ok(Hooks::default());
        };
        poststart_and_poststop(hooks)?;
        let inside = || env.iter().map(|entry| c_string("process.env", entry)).collect();
        Ok(Hooks {
            prestart: stage("prestart", hooks.prestart())?,
            create_runtime: stage("createRuntime", hooks.create_runtime())?,
            create_container: stage("createContainer", hooks.create_container())?,
            start_container: stage_in("startContainer", hooks.start_container(), inside)?,
        })
    }

    /// There is none before `start` is done.
    pub fn is_empty(&self) -> bool {
        !self.between() && self.create_container.is_empty() && self.start_container.is_empty()
    }

    /// Some hook has to run between the making of the namespaces and that of the mounts.
    pub fn between(&self) -> bool {
        !self.prestart.is_empty() || !self.create_runtime.is_empty()
    }
}

/// They run long after `create`; a mistake in them should still be found by it.
fn poststart_and_poststop(hooks: &spec::Hooks) -> Result<()> {
    stage("poststart", hooks.poststart())?;
    stage("poststop", hooks.poststop()).map(drop)
}

/// Check the hooks of one stage; those that name no environment get the runtime's.
pub(crate) fn stage(name: &str, hooks: &Option<Vec<spec::Hook>>) -> Result<Vec<Hook>> {
    stage_in(name, hooks, || Ok(inherited_environment()))
}

fn stage_in(
    name: &str,
    hooks: &Option<Vec<spec::Hook>>,
    environment: impl Fn() -> Result<Vec<CString>>,
) -> Result<Vec<Hook>> {
    let hooks = hooks.iter().flatten();
    hooks.map(|hook| Hook::new(name, hook, &environment)).collect()
}

impl Hook {
    fn new(stage: &str, hook: &spec::Hook, environment: &dyn Fn() -> Result<Vec<CString>>) -> Result<Hook> {
        let path = hook.path();
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "hooks.{stage}: path {:?} is not absolute",
                path.display()
            )));
        }
        if let Some(timeout) = hook.timeout().filter(|&timeout| timeout <= 0) {
            return Err(Error::invalid(format!(
                "hooks.{stage}: timeout is {timeout}; it must be greater than zero"
            )));
        }
        let path = c_path("hooks.path", path)?;
        let argv = match hook.args().as_deref() {
            None | Some([]) => vec![path.clone()],
            Some(args) => args
                .iter()
                .map(|arg| c_string("hooks.args", arg))
                .collect::<Result<_>>()?,
        };
        let envp = match hook.env() {
            Some(env) => env
                .iter()
                .map(|entry| c_string("hooks.env", entry))
                .collect::<Result<_>>()?,
            None => environment()?,
        };
        Ok(Hook {
            path,
            argv: CArray::new(argv, 0),
            envp: CArray::new(envp, 1),
            inherits: hook.env().is_none(),
            timeout: hook.timeout(),
        })
    }
}

fn inherited_environment() -> Vec<CString> {
    std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect()
}

/// Annotations of crun's: files to which hooks' standard output and standard error are appended.
pub(crate) const OUTPUT_ANNOTATIONS: [&str; 2] = ["run.oci.hooks.stdout", "run.oci.hooks.stderr"];

/// The state as hooks get it, with the pid still open: it is known only after clone3, and differs inside. And where they
/// write to.
#[derive(Default)]
pub(crate) struct HookState {
    before: Vec<u8>,
    after: Vec<u8>,
    /// Standard output and standard error, where annotations name files.
    outputs: [Option<OwnedFd>; 2],
}

impl HookState {
    /// Lay out the JSON of `state`, whose pid is a placeholder, and open what its annotations name.
    pub fn new(state: &crate::container::State) -> Result<HookState> {
        let open = |annotation: &str| {
            let path = state.annotations.get(annotation).filter(|path| !path.is_empty());
            let file = path.map(|path| {
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                file.map_err(|e| Error::os(format!("annotation {annotation}: open {path}"), e))
            });
            file.transpose().map(|file| file.map(OwnedFd::from))
        };
        let [out, err] = OUTPUT_ANNOTATIONS.map(open);
        let mut value = serde_json::to_value(state).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("pid");
        }
        let text = value.to_string();
        Ok(HookState {
            before: b"{\"pid\":".to_vec(),
            after: [b",", &text.as_bytes()[1..]].concat(),
            outputs: [out?, err?],
        })
    }

    fn write(&self, file: BorrowedFd, pid: i32) -> Sys<()> {
        write_all(file, &self.before)?;
        let mut number = crate::fault::Text::new();
        let _ = std::fmt::write(&mut number, format_args!("{pid}"));
        write_all(file, number.as_bytes())?;
        write_all(file, &self.after)?;
        rustix::fs::seek(file, SeekFrom::Start(0)).map(drop)
    }
}

fn write_all(file: BorrowedFd, mut bytes: &[u8]) -> Sys<()> {
    while !bytes.is_empty() {
        bytes = &bytes[rustix::io::write(file, bytes)?..];
    }
    Ok(())
}

/// What the process of a hook does to itself before it executes it.
type Confine<'a> = &'a dyn Fn() -> Step;

/// Run the hooks of one stage in order; the first failure stops.
pub(crate) fn run(stage: &str, hooks: &[Hook], state: &HookState, pid: i32) -> Step {
    run_confined(stage, hooks, state, pid, &|| Ok(()))
}

/// As [`run`], of hooks that are programs of the image: each gives up with `confine` what the container must not have.
pub(crate) fn run_confined(stage: &str, hooks: &[Hook], state: &HookState, pid: i32, confine: Confine) -> Step {
    for (index, hook) in hooks.iter().enumerate() {
        hook.run(state, pid, confine).map_err(|fault| {
            Fault::plain(format_args!(
                "error running {stage} hook #{index}: {}: {fault}",
                Shown(&hook.path)
            ))
        })?;
    }
    Ok(())
}

/// Run all hooks of one stage, whatever becomes of each: failures are only warned about.
pub(crate) fn run_all(stage: &str, hooks: &[Hook], state: &HookState, pid: i32) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(fault) = hook.run(state, pid, &|| Ok(())) {
            let path = Shown(&hook.path);
            crate::error::warn(&format!("error running {stage} hook #{index}: {path}: {fault}"));
        }
    }
}

impl Hook {
    /// One entry more, for a hook that gets the environment of someone else; it must live until the hook has run.
    pub fn inherit(&mut self, entry: *const libc::c_char) {
        if self.inherits {
            self.envp.push(entry);
        }
    }

    fn run(&self, state: &HookState, pid: i32, confine: Confine) -> Step {
        let input = rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC).explain(format_args!("memfd_create"))?;
        let output = rustix::fs::memfd_create(c"output", MemfdFlags::CLOEXEC).explain(format_args!("memfd_create"))?;
        state
            .write(input.as_fd(), pid)
            .explain(format_args!("write the state"))?;
        let (failed, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).explain(format_args!("pipe"))?;
        // SAFETY: the child makes only system calls before it executes the hook.
        let pidfd = match unsafe { syscall::clone3(0, None) }.explain(format_args!("clone3"))? {
            Fork::Child => {
                let [out, err] = state.outputs.each_ref().map(|file| file.as_ref().unwrap_or(&output));
                self.execute([&input, out, err], &report, confine)
            }
            Fork::Parent { pidfd, .. } => pidfd,
        };
        drop(report);
        let mut errno = [0; 4];
        if rustix::io::read(&failed, &mut errno) == Ok(errno.len()) {
            let _ = wait(pidfd.as_fd());
            return Err(Fault::new(
                Errno::from_raw_os_error(i32::from_le_bytes(errno)),
                format_args!("execute it"),
            ));
        }
        self.finish(pidfd.as_fd(), output.as_fd())
    }

    fn execute(&self, streams: [&OwnedFd; 3], report: &OwnedFd, confine: Confine) -> ! {
        let wire = || {
            for (from, to) in streams.into_iter().zip(0..) {
                // SAFETY: plain integers; descriptors 0 to 2 of this short-lived child belong to nobody else.
                if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
                    return Errno::BADF;
                }
            }
            if let Err(errno) = syscall::cloexec_from(3) {
                return errno;
            }
            crate::init::reset_signals();
            if let Err(fault) = confine() {
                return fault.errno();
            }
            // SAFETY: CArray keeps NULL-terminated arrays.
            unsafe { syscall::execve(&self.path, self.argv.as_ptr(), self.envp.as_ptr()) }
        };
        let errno = wire();
        let _ = rustix::io::write(report, &errno.raw_os_error().to_le_bytes());
        syscall::exit(127)
    }

    fn finish(&self, pidfd: BorrowedFd, output: BorrowedFd) -> Step {
        let timeout = self.timeout.map(|seconds| Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        });
        let mut ready = [PollFd::new(&pidfd, PollFlags::IN)];
        let exited = loop {
            match rustix::event::poll(&mut ready, timeout.as_ref()) {
                Err(Errno::INTR) => (),
                other => break other.explain(format_args!("poll"))? > 0,
            }
        };
        if !exited {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            let _ = wait(pidfd);
            let seconds = self.timeout.unwrap_or(0);
            return Err(Fault::plain(format_args!("killed after its timeout of {seconds} s")));
        }
        let (code, signal) = wait(pidfd).explain(format_args!("wait for it"))?;
        if code == 0 && signal == 0 {
            return Ok(());
        }
        let mut said = [0; 512];
        let length = rustix::io::pread(output, &mut said, 0).unwrap_or(0);
        let said = Said(said[..length].trim_ascii());
        match signal {
            0 => Err(Fault::plain(format_args!("exit status {code}, output: {said}"))),
            libc::SIGSYS => Err(Fault::plain(format_args!("bad system call, output: {said}"))),
            signal => Err(Fault::plain(format_args!("killed by signal {signal}, output: {said}"))),
        }
    }
}

/// Output of a hook as text.
struct Said<'a>(&'a [u8]);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.0.utf8_chunks().try_for_each(|chunk| out.write_str(chunk.valid()))
    }
}

/// Reap the process: (exit code, signal).
fn wait(pidfd: BorrowedFd) -> Sys<(i32, i32)> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => (),
            Err(errno) => return Err(errno),
            Ok(None) => return Ok((0, 0)),
            Ok(Some(status)) => {
                let signal = status.terminating_signal().unwrap_or(0);
                return Ok((status.exit_status().unwrap_or(0), signal));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{State, Status};

    fn state() -> HookState {
        HookState::new(&State {
            oci_version: "1.2.0".into(),
            id: "c1".into(),
            status: Status::Created,
            pid: 0,
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            created: String::new(),
            owner: String::new(),
            annotations: Default::default(),
        })
        .unwrap()
    }

    fn shell(script: &str, timeout: Option<i64>) -> Vec<Hook> {
        let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout});
        stage("createRuntime", &Some(vec![serde_json::from_value(hook).unwrap()])).unwrap()
    }

    #[test]
    fn a_hook_reads_the_state_with_the_pid() {
        let hooks = shell(
            "read state; case $state in '{\"pid\":4242,'*'\"id\":\"c1\"'*) exit 0;; esac; exit 1",
            None,
        );
        assert!(run("createRuntime", &hooks, &state(), 4242).is_ok());
    }

    #[test]
    fn a_failing_hook_is_named_with_its_output() {
        let hooks = shell("echo no luck >&2; exit 3", None);
        let error = run("createRuntime", &hooks, &state(), 1).err().unwrap().into_error();
        assert_eq!(
            error.to_string(),
            "error running createRuntime hook #0: /bin/sh: exit status 3, output: no luck"
        );
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let hooks = shell("exec sleep 1000", Some(1));
        let error = run("createRuntime", &hooks, &state(), 1).err().unwrap().into_error();
        assert!(
            error.to_string().ends_with("killed after its timeout of 1 s"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_hook_says_so() {
        let hook = serde_json::json!({"path": "/nowhere/hook"});
        let hooks = stage("prestart", &Some(vec![serde_json::from_value(hook).unwrap()])).unwrap();
        let error = run("prestart", &hooks, &state(), 1).err().unwrap().into_error();
        assert!(
            error.to_string().ends_with("execute it: no such file or directory"),
            "{error}"
        );
    }

    #[test]
    fn relative_paths_and_zero_timeouts_are_refused() {
        let hook = |json| {
            stage("poststop", &Some(vec![serde_json::from_value(json).unwrap()]))
                .err()
                .unwrap()
                .to_string()
        };
        assert!(hook(serde_json::json!({"path": "hook"})).contains("not absolute"));
        assert!(hook(serde_json::json!({"path": "/hook", "timeout": 0})).contains("greater than zero"));
    }
}
