//! `create`: configuration to plan, cgroup, state directory; then [`birth`](super::birth).
//! What exists so far is written down before the next thing is made, so that `delete --force` finds it after a crash.

use std::path::{Path, PathBuf};

use super::birth::{Container, birth};
use super::record::{self, Directory, Inherited, Record};
use super::{CreateOptions, Created, notify};
use crate::cgroup::systemd::Scope;
use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::plan::process::ProcessPlan;
use crate::seccomp::cache::Entry;
use crate::spec::{self, Config};
use crate::timestamp;

/// Create the container: afterwards its init waits in `created` for [`start`](super::start).
pub fn create(options: CreateOptions) -> Result<Created> {
    make(options, false).map(|(created, ..)| created)
}

/// Create and start the container in one go: there is no moment in which another could start it.
pub fn run(options: CreateOptions) -> Result<Running> {
    let (created, directory, record) = make(options, true)?;
    Ok(Running {
        created,
        directory,
        record,
    })
}

/// A container that [`run`] started.
pub struct Running {
    /// Its init.
    pub created: Created,
    directory: Directory,
    record: Record,
}

impl Running {
    /// Remove the container, as [`delete`](super::delete) with force.
    pub fn delete(self) -> Result<()> {
        super::lifecycle::remove(&self.directory, &self.record)
    }
}

fn make(options: CreateOptions, start: bool) -> Result<(Created, Directory, Record)> {
    let bundle = std::path::absolute(options.bundle)
        .map_err(|e| Error::os(format!("bundle {}", options.bundle.display()), e))?;
    record::check_id(options.id)?;
    let (spec, mut plan, filter) = plan(&bundle, &options)?;
    super::lsm::check(&mut plan)?;
    check_terminal(&plan.process, &options)?;
    super::rootless::enter(&mut plan.namespaces, &plan.process)?;
    let hierarchy = Hierarchy::find()?;
    let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let scope = match options.systemd_cgroup {
        true => Some(Scope::new(cgroups_path, options.id)?),
        false => None,
    };
    let cgroup = match &scope {
        Some(scope) => Cgroup::at(scope.dir(&hierarchy)?),
        None => hierarchy.container(cgroups_path, options.id)?,
    };
    let (directory, lock) = Directory::make(options.root, options.id)?;
    let mut unfinished = Unfinished {
        directory: Some(&directory),
        cgroup: None,
    };
    if options.notify {
        notify::prepare(options.root, options.id)?;
    }
    // systemd makes it otherwise, around the init.
    let ours = scope.is_none() || !plan.namespaces.has(libc::CLONE_NEWCGROUP);
    let mut record = new_record(spec, &plan, &options, bundle, &cgroup);
    record.scope = scope;
    let file = directory.save(&record)?;
    if ours {
        create_group(&cgroup, &hierarchy, &plan)?;
    }
    unfinished.cgroup = Some(&cgroup);
    // A container that fails on its way is destroyed like any other: its poststop hooks run.
    let failed = record.poststop.is_some().then(|| record.clone());
    let container = Container {
        directory: &directory,
        cgroup: &cgroup,
        record,
        file,
        lock: Some(lock),
        filter,
    };
    let (created, record) = match birth(plan, container, options, start) {
        Ok(born) => born,
        Err(error) => {
            drop(unfinished);
            if let Some(record) = failed {
                super::lifecycle::stopped(&directory, &record);
            }
            return Err(error);
        }
    };
    unfinished.directory = None;
    unfinished.cgroup = None;
    drop(unfinished);
    Ok((created, directory, record))
}

/// A user without a group of his own to divide can run containers all the same, unless they ask for limits.
fn create_group(cgroup: &Cgroup, hierarchy: &Hierarchy, plan: &Plan) -> Result<()> {
    match cgroup.create(hierarchy) {
        Err(error) if matches!(error.errno(), Some(libc::EACCES | libc::EPERM | libc::EROFS)) => {
            let dispensable = plan.limits.settings().iter().all(|setting| setting.dispensable);
            match dispensable && crate::cgroup::in_user_namespace() {
                true => Ok(()),
                false => Err(error.context("limits need a cgroup that is delegated to this user")),
            }
        }
        other => other,
    }
}

/// Configuration and plan; the filter of a profile that was met before is taken as it was compiled then.
fn plan(bundle: &Path, options: &CreateOptions) -> Result<(spec::Spec, Plan, Option<Entry>)> {
    let config = Config::read(&bundle.join(options.config.unwrap_or(Path::new(spec::CONFIG))))?;
    let Some(profile) = config.seccomp() else {
        let spec = extended(config.parse()?, options);
        let plan = Plan::new(&spec, bundle)?;
        return Ok((spec, plan, None));
    };
    let entry = Entry::new(options.root, profile);
    if let Some(filter) = entry.load() {
        let spec = extended(config.parse_without(profile)?, options);
        let mut plan = Plan::new(&spec, bundle)?;
        plan.process.seccomp = Some(filter);
        return Ok((spec, plan, Some(entry)));
    }
    let spec = extended(config.parse()?, options);
    let plan = Plan::new(&spec, bundle)?;
    let stored = plan.process.seccomp.as_ref().map(|filter| entry.store(filter));
    Ok((spec, plan, stored.is_some_and(|stored| stored.is_ok()).then_some(entry)))
}

/// The configuration with what the caller adds to it.
fn extended(mut spec: spec::Spec, options: &CreateOptions) -> spec::Spec {
    if options.environment.is_empty() && !options.notify {
        return spec;
    }
    let mut environment = options.environment.clone();
    if options.notify {
        let (mount, variable) = notify::announce(options.root, options.id);
        spec.mounts_mut().get_or_insert_default().push(mount);
        environment.push(variable);
    }
    if let Some(process) = spec.process_mut() {
        process.env_mut().get_or_insert_default().extend(environment);
    }
    spec
}

/// Undoes an unfinished `create`.
struct Unfinished<'a> {
    directory: Option<&'a Directory>,
    cgroup: Option<&'a Cgroup>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        if let Some(directory) = self.directory {
            super::rdt::remove(directory.load_resctrl());
            let _ = directory.remove();
        }
    }
}

fn check_terminal(process: &ProcessPlan, options: &CreateOptions) -> Result<()> {
    if !process.terminal && (options.console_socket.is_some() || options.console.is_some()) {
        return Err(Error::invalid("a console is given, but process.terminal is false"));
    }
    Ok(())
}

fn new_record(mut spec: spec::Spec, plan: &Plan, options: &CreateOptions, bundle: PathBuf, cgroup: &Cgroup) -> Record {
    let hooks = spec.hooks().as_ref();
    Record {
        oci_version: spec.version().clone(),
        id: options.id.to_owned(),
        bundle,
        rootfs: plan.rootfs.clone(),
        no_new_keyring: options.no_new_keyring,
        created: timestamp::rfc3339(timestamp::now()),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        inherited: spec.linux().as_ref().map(Inherited::new).unwrap_or_default(),
        resctrl: plan.rdt.is_some(),
        scope: None,
        pid: 0,
        start_time: 0,
        cgroup: cgroup.dir().to_path_buf(),
        namespaces: plan.namespaces.all(),
        poststart: hooks.and_then(|hooks| hooks.poststart().clone()),
        poststop: hooks.and_then(|hooks| hooks.poststop().clone()),
        process: spec.process_mut().take().unwrap_or_default(),
    }
}
