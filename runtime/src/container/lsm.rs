//! Security modules that labels are for: a label that the kernel would not enforce is refused, not dropped.

use std::path::Path;

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::plan::process::ProcessPlan;

const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
/// The profile that is none.
const UNCONFINED: &str = "exec unconfined";

/// The kernel has what the labels of `plan` need.
pub(super) fn check(plan: &mut Plan) -> Result<()> {
    check_process(&mut plan.process)?;
    match plan.mount_label && !has_selinux() {
        true => Err(absent("linux.mountLabel", "SELinux")),
        false => Ok(()),
    }
}

/// As [`check`], for a process that enters a container.
pub(super) fn check_process(process: &mut ProcessPlan) -> Result<()> {
    if process.selinux.is_some() && !has_selinux() {
        return Err(absent("process.selinuxLabel", "SELinux"));
    }
    let Some(profile) = &process.apparmor else {
        return Ok(());
    };
    if has_apparmor() {
        return Ok(());
    }
    if profile.to_bytes() == UNCONFINED.as_bytes() {
        process.apparmor = None;
        return Ok(());
    }
    Err(absent("process.apparmorProfile", "AppArmor"))
}

fn absent(field: &str, module: &str) -> Error {
    Error::invalid(format!(
        "{field} is set, but {module} is not enabled on this machine: leave the field out, or boot with lsm={}",
        module.to_lowercase()
    ))
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|enabled| enabled.starts_with(b"Y"))
}

fn has_selinux() -> bool {
    ["/sys/fs/selinux", "/selinux"]
        .iter()
        .any(|mount| rustix::fs::statfs(Path::new(mount)).is_ok_and(|stat| stat.f_type == SELINUX_MAGIC))
}
