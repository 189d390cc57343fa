//! `exec`: the process from a file, or the container's own with the flags' changes.

use std::path::Path;

use hull_runtime::caps;
use hull_runtime::container::{self, ExecOptions};
use hull_runtime::error::{Error, Result};
use hull_runtime::spec::{self, Capability, LinuxCapabilities, Process, User};

use super::args::{Args, Flags};
use super::foreground::Watch;

const EXEC: Flags = Flags {
    switches: &["tty|t", "detach|d", "no-new-privs", "ignore-paused"],
    values: &[
        "console-socket",
        "cwd",
        "env|e",
        "user|u",
        "additional-gids|g",
        "process|p",
        "pid-file",
        "pidfd-socket",
        "process-label",
        "apparmor",
        "cap|c",
        "preserve-fds",
        "cgroup",
    ],
    interspersed: false,
};

pub(super) fn exec(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = EXEC.parse(arguments)?;
    let id = args.operand(0, "the container's ID")?;
    let process = match args.value("process") {
        Some(path) => spec::load_process(Path::new(path))?,
        None => from_flags(&args, container::base_process(root, id)?)?,
    };
    let detach = args.is_set("detach");
    if detach && process.terminal() == Some(true) && args.path("console-socket").is_none() {
        return Err(super::no_console_socket());
    }
    let watch = Watch::new(detach)?;
    let mut options = ExecOptions::new(process);
    options.console_socket = args.path("console-socket");
    options.pid_file = args.path("pid-file");
    let environment;
    (options.preserve_fds, environment) = super::preserved(&args)?;
    options.process.env_mut().get_or_insert_default().extend(environment);
    options.cgroup = args.value("cgroup").map(below).transpose()?;
    options.ignore_paused = args.is_set("ignore-paused");
    let mut created = container::exec(root, id, options)?;
    if let Err(error) = super::send_pidfd(&args, &created) {
        super::foreground::end(&created);
        return Err(error);
    }
    if detach {
        return Ok(0);
    }
    let console = created.console.take();
    watch.until_exit(&created, console, None)
}

/// Of both versions of cgroup.
const CONTROLLERS: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "io",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// A cgroup below the container's: `PATH`, or `CONTROLLER,...:PATH` as for version 1, of which the path counts.
fn below(text: &str) -> Result<&Path> {
    let (controllers, path) = text.split_once(':').unwrap_or(("", text));
    let mut named = controllers.split(',').filter(|name| !name.is_empty());
    if let Some(unknown) = named.find(|name| !CONTROLLERS.contains(name)) {
        return Err(Error::invalid(format!("--cgroup: unknown controller {unknown:?}")));
    }
    let path = Path::new(path.trim_start_matches('/'));
    match path.components().any(|part| part == std::path::Component::ParentDir) {
        true => Err(Error::invalid(format!(
            "--cgroup: bad sub cgroup path {text:?}: it leads out of the container's cgroup"
        ))),
        false => Ok(path),
    }
}

fn from_flags(args: &Args, mut process: Process) -> Result<Process> {
    let command = &args.operands[1..];
    if command.is_empty() {
        return Err(Error::invalid("exec needs a command, or --process"));
    }
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(args.is_set("tty")));
    if let Some(cwd) = args.value("cwd") {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.values("env").map(str::to_owned));
    process.set_env(Some(env));
    if let Some(user) = args.value("user") {
        process.set_user(parse_user(user)?);
    }
    let gids = args
        .values("additional-gids")
        .map(|gid| number("--additional-gids", gid))
        .collect::<Result<Vec<_>>>()?;
    if !gids.is_empty() {
        let mut user = process.user().clone();
        user.set_additional_gids(Some(gids));
        process.set_user(user);
    }
    if let Some(profile) = args.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if let Some(label) = args.value("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    if args.is_set("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    let added: Vec<Capability> = args.values("cap").filter_map(known).collect();
    if !added.is_empty() {
        process.set_capabilities(Some(with(process.capabilities().clone(), &added)));
    }
    Ok(process)
}

/// As in a configuration, a capability of another kernel is warned about and left out: that grants nothing.
fn known(name: &str) -> Option<Capability> {
    let capability = caps::parse(name);
    if capability.is_none() {
        eprintln!("hull-runtime: warning: --cap: unknown capability {name:?} is ignored");
    }
    capability
}

/// Bounding, effective and permitted get the additions, inheritable never (CVE-2022-29162), and ambient what is inheritable
/// already.
fn with(capabilities: Option<LinuxCapabilities>, added: &[Capability]) -> LinuxCapabilities {
    let mut capabilities = capabilities.unwrap_or_else(caps::none);
    let grow = |set: &Option<std::collections::HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(added);
        Some(set)
    };
    let inheritable = capabilities.inheritable().clone().unwrap_or_default();
    let raised = added.iter().filter(|capability| inheritable.contains(capability));
    let ambient = capabilities.ambient().iter().flatten().chain(raised).copied().collect();
    let ambient = (!inheritable.is_empty()).then_some(ambient);
    let (bounding, effective, permitted) = (
        grow(capabilities.bounding()),
        grow(capabilities.effective()),
        grow(capabilities.permitted()),
    );
    capabilities
        .set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_ambient(ambient);
    capabilities
}

/// `UID` or `UID:GID`, numbers only: a name is an error, never user 0 (CVE-2026-30892).
fn parse_user(text: &str) -> Result<User> {
    let mut user = User::default();
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    user.set_uid(number("--user", uid)?);
    if let Some(gid) = gid {
        user.set_gid(number("--user", gid)?);
    }
    Ok(user)
}

/// Digits only: no sign, no space.
fn number(flag: &str, text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => Err(Error::invalid(format!("{flag}: {text:?} is not a numeric id"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        let user = parse_user("1000:100").unwrap();
        assert_eq!((user.uid(), user.gid()), (1000, 100));
        assert_eq!(parse_user("7").unwrap().gid(), 0);
        for text in ["", "root", ":", "1:", "-1", "+1", "1:2:3", " 1", "4294967296", "1000x"] {
            assert!(parse_user(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_group_below_is_named_with_or_without_controllers() {
        assert_eq!(below("/inner").unwrap(), Path::new("inner"));
        assert_eq!(below("cpu,memory:inner/most").unwrap(), Path::new("inner/most"));
        assert_eq!(below("/").unwrap(), Path::new(""));
        for text in ["..", "cpu:a/../..", "what:/", "cpu,what:/"] {
            assert!(below(text).is_err(), "{text}");
        }
    }

    #[test]
    fn added_capabilities_are_never_inheritable() {
        let sets = with(Some(caps::none()), &[Capability::NetAdmin]);
        assert!(sets.effective().as_ref().unwrap().contains(&Capability::NetAdmin));
        assert!(sets.inheritable().is_none() && sets.ambient().is_none());
        let mut config = caps::none();
        config.set_inheritable(Some([Capability::Chown, Capability::Syslog].into()));
        config.set_ambient(Some([Capability::Chown].into()));
        let sets = with(Some(config), &[Capability::NetAdmin, Capability::Syslog]);
        assert_eq!(sets.ambient(), &Some([Capability::Chown, Capability::Syslog].into()));
    }
}
