//! `cargo xtask layout`: which functions the commands of hull-runtime execute, found by single-stepping them, written to
//! runtime/link-order.txt and .ld. The linker puts these side by side, so that a command touches a third of the pages.
//! Names are those of this compiler and these sources; a name that a later build does not have is skipped by the linker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::host;

const HEADER: &str = "\
# Functions that the commands of hull-runtime execute, in the order of their addresses: the linker puts them side by side, so that the
# rest is never in memory. Made by `cargo xtask layout`. A name that a build does not have is skipped.
";

const SCRIPT_HEADER: &str =
    "Rust's functions of link-order.txt, whatever hashes a build gives them. Made by cargo xtask layout.";

/// Builds hull-runtime with symbols, steps through its commands and writes the list.
///
/// # Errors
/// Not root, the build fails, or a command cannot be traced.
pub fn run(inside: bool) -> Result<()> {
    host::require_root("containers are started")?;
    if !inside {
        return enter();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| host::workspace().join("target"), Into::into)
        .join("layout");
    let map = target.join("hull-runtime.map");
    let mut build = host::cargo();
    build
        .args(["build", "--release", "--package", "hull-runtime", "--target-dir"])
        .arg(&target);
    host::run(build.env("HULL_LINK_MAP", &map))?;
    let binary = target.join("x86_64-unknown-linux-gnu/release/hull-runtime");
    let functions = functions(&map)?;
    let scene = Scene::new(&binary)?;
    let mut addresses = BTreeSet::new();
    for command in scene.commands() {
        host::say(&format!("stepping through {}", command.join(" ")));
        step(&binary, &command, &mut addresses)?;
    }
    drop(scene);
    let used: BTreeSet<u64> = addresses
        .iter()
        .filter_map(|address| start_of(&functions, *address))
        .collect();
    let names: Vec<&str> = used
        .iter()
        .flat_map(|start| &functions[start].names)
        .map(String::as_str)
        .collect();
    ensure!(names.len() > 100, "only {} functions were seen", names.len());
    let mut patterns: Vec<String> = Vec::new();
    for pattern in names.iter().filter_map(|name| any_build(name)) {
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    let sections: String = patterns.iter().map(|pattern| format!("    {pattern}\n")).collect();
    let script = format!(
        "/* {SCRIPT_HEADER} */\nSECTIONS\n{{\n  .text.used :\n  {{\n{sections}  }}\n}}\nINSERT BEFORE .text;\n"
    );
    for (name, text) in [
        ("runtime/link-order.txt", format!("{HEADER}{}\n", names.join("\n"))),
        ("runtime/link-order.ld", script),
    ] {
        let path = host::workspace().join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    host::say(&format!(
        "runtime/link-order: {} functions, {} patterns",
        names.len(),
        patterns.len()
    ));
    Ok(())
}

/// A pattern of the section of a Rust function, without the hash in its name: that depends on the sources, and on which
/// packages are built together.
fn any_build(name: &str) -> Option<String> {
    const HASH: usize = 16;
    let (path, rest) = name.rsplit_once("17h")?;
    let hash = rest.get(..HASH)?;
    let hashed =
        name.starts_with("_ZN") && rest[HASH..].starts_with('E') && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    hashed.then(|| format!("*(.text.{path}17h*E*)"))
}

/// Goes on in a private mount namespace with a cgroup2, as the runtime expects it.
fn enter() -> Result<()> {
    let script = "mount --make-rprivate / && umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup && exec \"$0\" layout --inside";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().context("path of xtask")?);
    Err(command.exec()).context("start unshare")
}

struct Function {
    size: u64,
    names: Vec<String>,
}

/// The functions of the binary by their address, from lld's map: address, load address, size, alignment, symbol. The names of
/// the binary itself are not those of a release build: cargo makes stripping a part of them.
fn functions(map: &Path) -> Result<BTreeMap<u64, Function>> {
    let text = fs::read_to_string(map).with_context(|| format!("read {} (is the linker lld?)", map.display()))?;
    let mut functions = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [address, _, size, _, name] = fields.as_slice() else {
            continue;
        };
        let (Ok(address), Ok(size)) = (u64::from_str_radix(address, 16), u64::from_str_radix(size, 16)) else {
            continue;
        };
        if name.starts_with('.') || name.contains(':') || name.starts_with('<') {
            continue;
        }
        let function = functions.entry(address).or_insert(Function {
            size,
            names: Vec::new(),
        });
        function.size = function.size.max(size);
        function.names.push((*name).to_owned());
    }
    Ok(functions)
}

fn start_of(functions: &BTreeMap<u64, Function>, address: u64) -> Option<u64> {
    let (start, function) = functions.range(..=address).next_back()?;
    (address < start + function.size.max(1)).then_some(*start)
}

/// A bundle and two containers of it, removed at the end.
struct Scene {
    directory: tempfile::TempDir,
    binary: std::path::PathBuf,
}

impl Scene {
    fn new(binary: &Path) -> Result<Scene> {
        host::install(&[("busybox-static", "the program inside the container")])?;
        let scene = Scene {
            directory: tempfile::tempdir().context("make a temporary directory")?,
            binary: binary.to_owned(),
        };
        let bundle = scene.directory.path();
        for name in ["bin", "dev", "etc", "proc", "sys"] {
            fs::create_dir_all(bundle.join("rootfs").join(name)).context("make the root file system")?;
        }
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/sleep")).context("copy busybox")?;
        fs::write(bundle.join("rootfs/etc/hosts"), "").context("write etc/hosts")?;
        scene.call(&["spec"])?;
        let path = bundle.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?).context("config.json")?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = serde_json::json!(["/bin/sleep", "0.2"]);
        config["linux"]["cgroupsPath"] = "/hull-layout/stepped".into();
        fs::write(&path, config.to_string()).context("write config.json")?;
        config["process"]["args"] = serde_json::json!(["/bin/sleep", "100000"]);
        config["linux"]["cgroupsPath"] = "/hull-layout/resident".into();
        fs::create_dir(bundle.join("resident")).context("make a bundle")?;
        config["root"]["path"] = serde_json::json!(bundle.join("rootfs"));
        fs::write(bundle.join("resident/config.json"), config.to_string()).context("write config.json")?;
        scene.call(&["create", "-b", "resident", "layout-resident"])?;
        config["process"]["args"] = serde_json::json!(["/bin/sleep", "0.2"]);
        as_kubelets_ask(&mut config);
        fs::create_dir(bundle.join("kubelet")).context("make a bundle")?;
        fs::write(bundle.join("kubelet/config.json"), config.to_string()).context("write config.json")?;
        // The container's root is nobody here.
        fs::set_permissions(bundle, fs::Permissions::from_mode(0o755)).context("open the bundle to other users")?;
        Ok(scene)
    }

    fn call(&self, arguments: &[&str]) -> Result<()> {
        host::run(
            Command::new(&self.binary)
                .arg("--root")
                .arg(self.directory.path().join("state"))
                .args(arguments)
                .current_dir(self.directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
    }

    /// In an order in which each finds what it needs.
    fn commands(&self) -> Vec<Vec<String>> {
        let directory = self.directory.path().to_string_lossy();
        let root = format!("{directory}/state");
        let kubelet = format!("{directory}/kubelet");
        let commands: [&[&str]; 10] = [
            &["start", "layout-resident"],
            &["run", "-b", &directory, "layout-run"],
            &["run", "-b", &directory, "layout-run"],
            &["run", "-b", &kubelet, "layout-run"],
            &["run", "-b", &kubelet, "layout-run"],
            &["exec", "layout-resident", "/bin/sleep", "0"],
            &["state", "layout-resident"],
            &["create", "-b", &directory, "layout-create"],
            &["kill", "layout-resident", "KILL"],
            &["delete", "--force", "layout-resident"],
        ];
        let whole = |command: &&[&str]| {
            ["--root", &root]
                .iter()
                .chain(*command)
                .map(|word| (*word).to_owned())
                .collect()
        };
        commands.iter().map(whole).collect()
    }
}

/// What a kubelet adds to the default: a user namespace, a seccomp profile, files mounted from the host, read-only paths.
fn as_kubelets_ask(config: &mut serde_json::Value) {
    let ids = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    config["linux"]["cgroupsPath"] = "/hull-layout/stepped".into();
    config["linux"]["uidMappings"] = ids.clone();
    config["linux"]["gidMappings"] = ids;
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(serde_json::json!({"type": "user"}));
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.push(serde_json::json!({"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "rprivate", "ro"]}));
    }
    config["process"]["oomScoreAdj"] = 500.into();
    config["linux"]["readonlyPaths"] =
        serde_json::json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    config["linux"]["seccomp"] = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["swapon", "swapoff", "reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
        ]
    });
}

impl Drop for Scene {
    fn drop(&mut self) {
        for id in ["layout-resident", "layout-run", "layout-create"] {
            let _ = self.call(&["delete", "--force", id]);
        }
    }
}

/// Runs a command instruction by instruction, and its children for as long as they are the runtime themselves.
fn step(binary: &Path, arguments: &[String], addresses: &mut BTreeSet<u64>) -> Result<()> {
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: ptrace(PTRACE_TRACEME) is one system call.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
    let child = command.spawn().context("start hull-runtime")?;
    let main = Pid::from_raw(child.id().cast_signed());
    waitpid(main, None).context("wait for the traced process")?;
    let options = Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options).context("set ptrace options")?;
    ptrace::step(main, None).context("step")?;
    let mut execs: HashMap<Pid, u32> = HashMap::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).context("wait for traced processes")? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == main => return Ok(()),
            WaitStatus::PtraceEvent(pid, _, event) if event == nix::libc::PTRACE_EVENT_EXEC => {
                // The runtime executes itself once, from a mount of its own; whatever a child executes is the container's.
                let count = execs.entry(pid).or_default();
                *count += 1;
                match pid == main && *count == 1 {
                    true => ptrace::step(pid, None).context("step")?,
                    false => ptrace::detach(pid, None).context("detach from the container's program")?,
                }
            }
            WaitStatus::PtraceEvent(pid, ..) => ptrace::step(pid, None).context("step")?,
            WaitStatus::Stopped(pid, signal) => {
                addresses.insert(ptrace::getregs(pid).context("read registers")?.rip);
                let signal = (!matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP)).then_some(signal);
                ptrace::step(pid, signal).context("step")?;
            }
            _ => (),
        }
    }
}
