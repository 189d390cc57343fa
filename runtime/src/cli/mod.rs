//! Commands of the OCI runtime command line: parse, call the library, print. Exit codes as runc's.

mod args;
mod events;
mod exec;
mod foreground;
mod log;
mod notify;
mod pattern;
mod show;
mod table;
mod update;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use args::{Args, Flags};
use hull_runtime::container::{self, CreateOptions, Created};
use hull_runtime::error::{Error, Kind, Result};
use hull_runtime::{sealed, signals, warden};
use pattern::Pattern;

const DEFAULT_ROOT: &str = "/run/hull-runtime";
/// Below XDG_RUNTIME_DIR, for a user who is not root.
const USERS_ROOT: &str = "hull-runtime";
const DEFAULT_WARDEN: &str = "/run/hull/warden";
const FAILURE: i32 = 1;
/// Of `exec`, whose other codes are those of the process: runc(8), "exec".
const EXEC_FAILURE: i32 = 255;

const COMMANDS: [&str; 18] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
    "warden",
];

const GLOBAL: Flags = Flags {
    switches: &["debug", "systemd-cgroup", "version|v", "help|h"],
    values: &[
        "root",
        "log",
        "log-format",
        "log-level",
        "cgroup-manager",
        "rootless",
        "criu",
    ],
    interspersed: false,
};

const CREATE: Flags = Flags {
    switches: &["no-pivot", "no-new-keyring", "detach|d", "keep", "no-subreaper"],
    values: &[
        "bundle|b",
        "config|f",
        "console-socket",
        "pid-file",
        "pidfd-socket",
        "preserve-fds",
    ],
    interspersed: true,
};

const ONE_ID: Flags = Flags {
    switches: &["force|f", "all|a", "help|h", "regex|r"],
    values: &[],
    interspersed: true,
};

const USAGE: &str = "\
hull-runtime: an OCI runtime

usage: hull-runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND [flags] ...

commands:
  create [-b BUNDLE] [-f CONFIG] [--console-socket PATH] [--pid-file FILE] [--no-pivot] [--preserve-fds N] ID
  start ID
  run [flags of create] [-d] [--keep] ID
  exec [-t] [-u UID[:GID]] [--cwd DIR] [-e NAME=VALUE]... [-p process.json] [-d] ID COMMAND...
  state ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID | delete [--force] --regex PATTERN
  pause ID | resume ID
  update [-r FILE|-] [--memory N] [--cpu-quota N] [--pids-limit N] ... ID
  events [--stats] [--interval 5s] ID
  list [-f table|json] [-q]
  ps [-f table|json] ID
  spec [-b DIR] [--rootless]
  features
  warden [--dir DIR]

global flags: --root (default /run/hull-runtime; $XDG_RUNTIME_DIR/hull-runtime for other users than root), --log FILE,
--log-format text|json, --debug, --systemd-cgroup (cgroups are scopes of systemd), --cgroup-manager cgroupfs|systemd,
--rootless true|false|auto, --version
";

/// Run one command; the process's exit code comes back.
pub(super) fn main(arguments: &[String]) -> i32 {
    let global = match GLOBAL.parse(arguments) {
        Ok(global) => global,
        Err(error) => {
            log::error(&Args::default(), &error.to_string());
            return FAILURE;
        }
    };
    if let Err(error) = log::check(&global) {
        log::error(&Args::default(), &error.to_string());
        return FAILURE;
    }
    match run(&global) {
        Ok(code) => code,
        Err(error) => {
            log::error(&global, &error.to_string());
            match global.operands.first().is_some_and(|command| command == "exec") {
                true => EXEC_FAILURE,
                false => FAILURE,
            }
        }
    }
}

fn run(global: &Args) -> Result<i32> {
    if global.is_set("version") {
        print!("{}", show::version());
        return Ok(0);
    }
    let Some((command, arguments)) = global.operands.split_first() else {
        print!("{USAGE}");
        return Ok(if global.is_set("help") { 0 } else { FAILURE });
    };
    if arguments
        .first()
        .is_some_and(|first| matches!(first.as_str(), "--help" | "-h"))
    {
        if !COMMANDS.contains(&command.as_str()) {
            return Err(Error::invalid(format!("No help topic for '{command}'")));
        }
        print!("{USAGE}");
        return Ok(0);
    }
    let root = &root(global)?;
    let systemd = systemd(global)?;
    log::debug(global, &format!("{command}, state root {}", root.display()));
    if matches!(command.as_str(), "create" | "run" | "exec" | "warden") {
        sealed::protect()?;
    }
    let one = |act: fn(&Path, &str) -> Result<()>| {
        act(root, ONE_ID.parse(arguments)?.only_id()?)?;
        Ok(0)
    };
    match command.as_str() {
        "create" => create(root, arguments, systemd),
        "run" => run_container(root, arguments, systemd),
        "exec" => exec::exec(root, arguments),
        "start" => start(root, ONE_ID.parse(arguments)?.only_id()?),
        "pause" => one(container::pause),
        "resume" => one(container::resume),
        "state" => show::state(root, ONE_ID.parse(arguments)?.only_id()?),
        "kill" => kill(root, arguments),
        "delete" => delete(root, arguments),
        "update" => update::update(root, arguments),
        "events" => events::events(root, arguments),
        "list" => {
            // One that was named should be there; the usual one is made with the first container.
            if global.path("root").is_some() && !root.exists() {
                return Err(Error::os(
                    format!("state root {}", root.display()),
                    rustix::io::Errno::NOENT,
                ));
            }
            show::list(root, arguments)
        }
        "ps" => show::ps(root, arguments),
        "spec" => show::spec(arguments),
        "features" => show::features(),
        "warden" => run_warden(arguments),
        "help" => {
            print!("{USAGE}");
            Ok(0)
        }
        "checkpoint" | "restore" => Err(Error::invalid(format!(
            "{command} is not supported: it needs CRIU, with which this runtime does not work"
        ))),
        other => Err(Error::invalid(format!(
            "no such command: {other} (see hull-runtime --help)"
        ))),
    }
}

/// Where state is kept: what is said, or the usual place for this user.
fn root(global: &Args) -> Result<PathBuf> {
    let mine = || {
        let user = rustix::process::geteuid();
        let directory = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
        let rootless = match global.value("rootless") {
            None | Some("auto") => !user.is_root() || directory.is_some() && hull_runtime::cgroup::in_user_namespace(),
            Some(value) => value != "false",
        };
        match (rootless, directory) {
            (true, Some(directory)) => Path::new(&directory).join(USERS_ROOT),
            (true, None) if !user.is_root() => PathBuf::from(format!("/run/user/{}/{USERS_ROOT}", user.as_raw())),
            _ => PathBuf::from(DEFAULT_ROOT),
        }
    };
    let root = global
        .value("root")
        .filter(|root| !root.is_empty())
        .map_or_else(mine, PathBuf::from);
    std::path::absolute(&root).map_err(|e| Error::os(format!("state root {}", root.display()), e))
}

/// Cgroups are made by systemd.
fn systemd(global: &Args) -> Result<bool> {
    match global.value("cgroup-manager") {
        None => Ok(global.is_set("systemd-cgroup")),
        Some("cgroupfs") => Ok(false),
        Some("systemd") => Ok(true),
        Some(other) => Err(Error::invalid(format!(
            "--cgroup-manager: {other:?} is neither cgroupfs nor systemd"
        ))),
    }
}

/// The options that `create` and `run` share.
fn create_options<'a>(root: &'a Path, args: &'a Args, bundle: &'a Path, systemd: bool) -> Result<CreateOptions<'a>> {
    let mut options = CreateOptions::new(root, args.only_id()?, bundle);
    options.config = args.path("config");
    options.console_socket = args.path("console-socket");
    options.pid_file = args.path("pid-file");
    (options.preserve_fds, options.environment) = preserved(args)?;
    options.no_new_keyring = args.is_set("no-new-keyring");
    options.no_pivot = args.is_set("no-pivot");
    options.notify = notify::wanted();
    options.systemd_cgroup = systemd;
    Ok(options)
}

/// `--preserve-fds`, and what socket activation passes to this very process: sd_listen_fds(3). An engine that cannot know
/// its pid leaves LISTEN_PID out.
fn preserved(args: &Args) -> Result<(u32, Vec<String>)> {
    let own = args.number::<u32>("preserve-fds")?.unwrap_or(0);
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (pid, Some(count @ 1..)) if pid.is_none_or(|pid| pid == std::process::id()) => {
            let mut environment = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".into()];
            environment.extend(std::env::var("LISTEN_FDNAMES").map(|names| format!("LISTEN_FDNAMES={names}")));
            Ok((own.saturating_add(count), environment))
        }
        _ => Ok((own, Vec::new())),
    }
}

fn create(root: &Path, arguments: &[String], systemd: bool) -> Result<i32> {
    let args = CREATE.parse(arguments)?;
    let bundle = Path::new(args.value("bundle").unwrap_or("."));
    let created = container::create(create_options(root, &args, bundle, systemd)?)?;
    let result = match created.console {
        Some(_) => Err(no_console_socket()),
        None => send_pidfd(&args, &created),
    };
    if result.is_err() {
        container::delete(root, args.only_id()?, true)?;
    }
    result.map(|()| 0)
}

/// `--pidfd-socket`: the process's pidfd, for whoever listens there.
fn send_pidfd(args: &Args, created: &Created) -> Result<()> {
    match args.path("pidfd-socket") {
        Some(path) => container::send_pidfd(path, created.pidfd.as_fd()),
        None => Ok(()),
    }
}

fn no_console_socket() -> Error {
    Error::invalid(
        "cannot allocate tty if the runtime will detach without setting console socket: use --console-socket",
    )
}

fn start(root: &Path, id: &str) -> Result<i32> {
    let proxy = notify::Proxy::new(root, id)?;
    container::start(root, id)?;
    if let Some(proxy) = proxy {
        proxy.until_ready(container::state(root, id)?.pid)?;
    }
    Ok(0)
}

fn run_container(root: &Path, arguments: &[String], systemd: bool) -> Result<i32> {
    let args = CREATE.parse(arguments)?;
    let bundle = Path::new(args.value("bundle").unwrap_or("."));
    let detach = args.is_set("detach");
    let watch = foreground::Watch::new(detach)?;
    let mut running = container::run(create_options(root, &args, bundle, systemd)?)?;
    let console = running.created.console.take();
    if let Err(error) = send_pidfd(&args, &running.created) {
        foreground::discard(running);
        return Err(error);
    }
    if detach && console.is_some() {
        foreground::discard(running);
        return Err(no_console_socket());
    }
    let notify = running.created.notify.take().map(notify::Proxy);
    if detach {
        if let Some(notify) = notify {
            notify.until_ready(running.created.pid)?;
        }
        return Ok(0);
    }
    let code = watch.until_exit(&running.created, console, notify)?;
    if !args.is_set("keep") {
        running.delete()?;
    }
    Ok(code)
}

fn kill(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = ONE_ID.parse(arguments)?;
    let id = args.operand(0, "the container's ID")?;
    let name = args.operands.get(1).map_or("SIGTERM", String::as_str);
    // None is sent by 0, but whether there is somebody to get one is found out. kill(2).
    let signal = match name {
        "0" => 0,
        name => signals::parse(name).ok_or_else(|| Error::invalid(format!("unknown signal {name:?}")))?,
    };
    container::kill(root, id, signal, args.is_set("all"))?;
    Ok(0)
}

fn delete(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = ONE_ID.parse(arguments)?;
    if !args.is_set("regex") {
        container::delete(root, args.only_id()?, args.is_set("force"))?;
        return Ok(0);
    }
    let pattern = Pattern::new(args.operand(0, "the regular expression")?)?;
    let containers = container::list(root)?;
    for state in containers.iter().filter(|state| pattern.matches(&state.id)) {
        container::delete(root, &state.id, args.is_set("force"))?;
    }
    Ok(0)
}

fn run_warden(arguments: &[String]) -> Result<i32> {
    const WARDEN: Flags = Flags {
        switches: &[],
        values: &["dir"],
        interspersed: true,
    };
    let args = WARDEN.parse(arguments)?;
    let dir = args.value("dir").unwrap_or(DEFAULT_WARDEN);
    warden::main(Path::new(dir)).map_err(|e| Error::new(Kind::System, e.to_string()))?;
    Ok(0)
}
