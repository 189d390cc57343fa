//! Commands that only print: state, list, ps, spec, features, version.

use std::path::Path;
use std::process::Command;

use hull_runtime::container;
use hull_runtime::error::{Error, Result};
use hull_runtime::{caps, defaults, features, spec};

use super::args::Flags;

/// What `--version` prints; engines look for "spec:".
pub(super) fn version() -> String {
    format!(
        "hull-runtime version {}\nspec: {}\n",
        env!("CARGO_PKG_VERSION"),
        features::OCI_VERSION
    )
}

pub(super) fn state(root: &Path, id: &str) -> Result<i32> {
    println!("{}", pretty(&container::state(root, id)?)?);
    Ok(0)
}

fn pretty(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::system(format!("encode: {e}")))
}

pub(super) fn list(root: &Path, arguments: &[String]) -> Result<i32> {
    const LIST: Flags = Flags {
        switches: &["quiet|q"],
        values: &["format|f"],
        interspersed: true,
    };
    let args = LIST.parse(arguments)?;
    let states = container::list(root)?;
    if args.is_set("quiet") {
        states.iter().for_each(|state| println!("{}", state.id));
        return Ok(0);
    }
    match args.value("format").unwrap_or("table") {
        "json" => println!(
            "{}",
            serde_json::to_string(&states).map_err(|e| Error::system(format!("encode: {e}")))?
        ),
        "table" => {
            let row = |state: &container::State| {
                [
                    state.id.clone(),
                    state.pid.to_string(),
                    format!("{:?}", state.status).to_lowercase(),
                    state.bundle.display().to_string(),
                    state.created.clone(),
                    state.owner.clone(),
                ]
            };
            let rows: Vec<_> = states.iter().map(row).collect();
            super::table::print(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], &rows);
        }
        other => return Err(Error::invalid(format!("invalid format option: {other:?}"))),
    }
    Ok(0)
}

pub(super) fn ps(root: &Path, arguments: &[String]) -> Result<i32> {
    const PS: Flags = Flags {
        switches: &[],
        values: &["format|f"],
        interspersed: false,
    };
    let args = PS.parse(arguments)?;
    let (id, options) = (args.operand(0, "the container's ID")?, &args.operands[1..]);
    let options = options.strip_prefix(&["--".to_owned()]).unwrap_or(options);
    let pids = container::processes(root, id)?;
    match args.value("format").unwrap_or("table") {
        "json" => println!("{}", serde_json::json!(pids)),
        "table" => table(&pids, options)?,
        other => return Err(Error::invalid(format!("invalid format option: {other:?}"))),
    }
    Ok(0)
}

/// The lines of ps(1) that are about these processes.
fn table(pids: &[i32], options: &[String]) -> Result<()> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default[..] } else { options };
    let output = Command::new("ps")
        .args(options)
        .output()
        .map_err(|e| Error::os("run ps", e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::invalid("couldn't find PID field in ps output"))?;
    println!("{header}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(())
}

pub(super) fn features() -> Result<i32> {
    println!("{}", pretty(&features::document())?);
    Ok(0)
}

pub(super) fn spec(arguments: &[String]) -> Result<i32> {
    const SPEC: Flags = Flags {
        switches: &["rootless"],
        values: &["bundle|b"],
        interspersed: true,
    };
    let args = SPEC.parse(arguments)?;
    let path = Path::new(args.value("bundle").unwrap_or(".")).join(spec::CONFIG);
    if path.exists() {
        return Err(Error::invalid(format!(
            "file {} exists. Remove it first",
            path.display()
        )));
    }
    let text = pretty(&template(args.is_set("rootless")))?;
    std::fs::write(&path, text + "\n").map_err(|e| Error::os(format!("write {}", path.display()), e))?;
    Ok(0)
}

/// A configuration to start from: a shell in a terminal, with the engines' defaults.
fn template(rootless: bool) -> serde_json::Value {
    let set: Vec<String> = ["AUDIT_WRITE", "KILL", "NET_BIND_SERVICE"]
        .iter()
        .filter_map(|name| caps::parse(name))
        .map(caps::name)
        .collect();
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    namespaces.push(if rootless { "user" } else { "network" });
    let mut linux = serde_json::json!({
        "namespaces": namespaces.iter().map(|kind| serde_json::json!({"type": kind})).collect::<Vec<_>>(),
        "maskedPaths": defaults::masked_paths(),
        "readonlyPaths": defaults::readonly_paths(),
    });
    if rootless {
        let map = |id: u32| serde_json::json!([{"containerID": 0, "hostID": id, "size": 1}]);
        linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
        linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    } else {
        linux["resources"] = serde_json::json!({"devices": [{"allow": false, "access": "rwm"}]});
    }
    serde_json::json!({
        "ociVersion": features::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": set, "effective": set, "permitted": set},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "hull",
        "mounts": mounts(rootless),
        "linux": linux
    })
}

/// Who maps one user only cannot give a mount to another.
fn mounts(rootless: bool) -> Vec<spec::Mount> {
    let mut mounts = defaults::mounts();
    for mount in mounts.iter_mut().filter(|_| rootless) {
        if let Some(options) = mount.options_mut() {
            options.retain(|option| !option.starts_with("gid=") && !option.starts_with("uid="));
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_valid_configuration() {
        for rootless in [false, true] {
            let spec: spec::Spec = serde_json::from_value(template(rootless)).unwrap();
            assert_eq!(spec.process().as_ref().unwrap().args().as_ref().unwrap(), &["sh"]);
        }
    }
}
