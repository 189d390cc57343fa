//! Commands of the OCI runtime command line: parse, call the library, print. Exit codes as runc's.

mod args;
mod exec;
mod foreground;
mod log;
mod show;
mod update;

use std::path::{Path, PathBuf};

use args::{Args, Flags};
use hull_runtime::container::{self, CreateOptions};
use hull_runtime::error::{Error, Kind, Result};
use hull_runtime::{sealed, signals, warden};

const DEFAULT_ROOT: &str = "/run/hull-runtime";
const DEFAULT_WARDEN: &str = "/run/hull/warden";
const FAILURE: i32 = 1;

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
    values: &["bundle|b", "console-socket", "pid-file", "pidfd-socket", "preserve-fds"],
    interspersed: true,
};

const ONE_ID: Flags = Flags {
    switches: &["force|f", "all|a", "help|h"],
    values: &[],
    interspersed: true,
};

const USAGE: &str = "\
hull-runtime: an OCI runtime

usage: hull-runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND [flags] ...

commands:
  create [-b BUNDLE] [--console-socket PATH] [--pid-file FILE] [--no-pivot] [--preserve-fds N] ID
  start ID
  run [flags of create] [-d] [--keep] ID
  exec [-t] [-u UID[:GID]] [--cwd DIR] [-e NAME=VALUE]... [-p process.json] [-d] ID COMMAND...
  state ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
  pause ID | resume ID
  update [-r FILE|-] [--memory N] [--cpu-quota N] [--pids-limit N] ... ID
  list [-f table|json] [-q]
  ps [-f table|json] ID
  spec [-b DIR] [--rootless]
  features
  warden [--dir DIR]

global flags: --root (default /run/hull-runtime), --log, --log-format, --cgroup-manager cgroupfs, --debug, --version
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
    match run(&global) {
        Ok(code) => code,
        Err(error) => {
            log::error(&global, &error.to_string());
            FAILURE
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
    let root = PathBuf::from(global.value("root").unwrap_or(DEFAULT_ROOT));
    let root = root.as_path();
    if matches!(command.as_str(), "create" | "run" | "exec" | "warden") {
        refuse_systemd(global)?;
        sealed::protect()?;
    }
    let one = |act: fn(&Path, &str) -> Result<()>| {
        act(root, ONE_ID.parse(arguments)?.only_id()?)?;
        Ok(0)
    };
    match command.as_str() {
        "create" => create(root, arguments),
        "run" => run_container(root, arguments),
        "exec" => exec::exec(root, arguments),
        "start" => one(container::start),
        "pause" => one(container::pause),
        "resume" => one(container::resume),
        "state" => show::state(root, ONE_ID.parse(arguments)?.only_id()?),
        "kill" => kill(root, arguments),
        "delete" => delete(root, arguments),
        "update" => update::update(root, arguments),
        "list" => show::list(root, arguments),
        "ps" => show::ps(root, arguments),
        "spec" => show::spec(arguments),
        "features" => show::features(),
        "warden" => run_warden(arguments),
        "help" => {
            print!("{USAGE}");
            Ok(0)
        }
        other => Err(Error::invalid(format!(
            "no such command: {other} (see hull-runtime --help)"
        ))),
    }
}

fn refuse_systemd(global: &Args) -> Result<()> {
    if global.is_set("systemd-cgroup") || global.value("cgroup-manager") == Some("systemd") {
        return Err(Error::invalid(
            "cgroups are managed directly, not through systemd: give the engine the cgroup manager \"cgroupfs\" \
             (podman: --cgroup-manager cgroupfs; containerd: SystemdCgroup = false)",
        ));
    }
    Ok(())
}

/// The options that `create` and `run` share.
fn create_options<'a>(root: &'a Path, args: &'a Args, bundle: &'a Path) -> Result<CreateOptions<'a>> {
    let mut options = CreateOptions::new(root, args.only_id()?, bundle);
    options.console_socket = args
        .value("console-socket")
        .filter(|path| !path.is_empty())
        .map(Path::new);
    options.pid_file = args.value("pid-file").filter(|path| !path.is_empty()).map(Path::new);
    options.preserve_fds = preserved(args)?;
    options.no_new_keyring = args.is_set("no-new-keyring");
    options.no_pivot = args.is_set("no-pivot");
    Ok(options)
}

/// `--preserve-fds`, and what socket activation passes.
fn preserved(args: &Args) -> Result<u32> {
    let listen: u32 = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(0);
    Ok(args.number::<u32>("preserve-fds")?.unwrap_or(0) + listen)
}

fn create(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = CREATE.parse(arguments)?;
    let bundle = Path::new(args.value("bundle").unwrap_or("."));
    let created = container::create(create_options(root, &args, bundle)?)?;
    if created.console.is_some() {
        container::delete(root, args.only_id()?, true)?;
        return Err(no_console_socket());
    }
    Ok(0)
}

fn no_console_socket() -> Error {
    Error::invalid("cannot allocate tty if the runtime will detach without setting console socket")
}

fn run_container(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = CREATE.parse(arguments)?;
    let bundle = Path::new(args.value("bundle").unwrap_or("."));
    let detach = args.is_set("detach");
    let watch = foreground::Watch::new(detach)?;
    let mut running = container::run(create_options(root, &args, bundle)?)?;
    let console = running.created.console.take();
    if detach && console.is_some() {
        foreground::discard(running);
        return Err(no_console_socket());
    }
    if detach {
        return Ok(0);
    }
    let code = watch.until_exit(&running.created, console)?;
    if !args.is_set("keep") {
        running.delete()?;
    }
    Ok(code)
}

fn kill(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = ONE_ID.parse(arguments)?;
    let id = args.operand(0, "the container's ID")?;
    let name = args.operands.get(1).map_or("SIGTERM", String::as_str);
    let signal = signals::parse(name).ok_or_else(|| Error::invalid(format!("unknown signal {name:?}")))?;
    container::kill(root, id, signal, args.is_set("all"))?;
    Ok(0)
}

fn delete(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = ONE_ID.parse(arguments)?;
    container::delete(root, args.only_id()?, args.is_set("force"))?;
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
