//! Starting one container: image, root file system, environment, configuration, then the warden.
//!
//! Everything that may be wrong with the pod is found before a container exists (`Refused`: wait and try again);
//! what the runtime or the program refuses afterwards counts as an attempt (`Failed`).

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hull_runtime::warden::{CreateRequest, LogConfig};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use serde_json::Value;

use super::host::Host;
use super::images::{self, ImageFacts, ImageRefused};
use super::qos::{self, QosClass};
use super::references::References;
use super::security::{Seccomp, Security};
use super::spec::{self, Inputs, Mount};
use super::user::{self, Accounts};
use super::warden::ExitSender;
use super::{command, env, etc, expand, resources, sandbox};
use crate::events::Kind;
use crate::volume::subpath;

/// A log file of this size is rotated.
const LOG_BYTES_MAX: u64 = 10 << 20;
/// Log files kept for each container.
const LOG_FILES_MAX: u32 = 5;

/// The label of containers that names their pod.
pub const LABEL_POD: &str = "pod-uid";
/// The label of containers that names their place in the pod.
pub const LABEL_CONTAINER: &str = "container";

/// One attempt.
pub struct Attempt {
    /// What the node has.
    pub host: Arc<Host>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container.
    pub container: Arc<Container>,
    /// Number of the attempt.
    pub number: u32,
    /// Id of the container to be.
    pub id: String,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Where its exit is sent.
    pub exits: ExitSender,
}

/// A container that runs.
pub struct Started {
    /// Since when.
    pub at: Timestamp,
    /// Digest of its image.
    pub image_id: String,
    /// Limits that this machine cannot enforce.
    pub missing_limits: Vec<&'static str>,
}

/// Why none runs.
pub enum NotStarted {
    /// There is no container; the reason stands in its waiting state.
    Refused {
        /// `ErrImagePull`, `CreateContainerConfigError`, …
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// The runtime said no, or the program cannot be run: the attempt counts.
    Failed {
        /// For people.
        message: String,
        /// Digest of its image.
        image_id: String,
    },
}

impl From<ImageRefused> for NotStarted {
    fn from(refused: ImageRefused) -> Self {
        NotStarted::Refused {
            reason: refused.reason,
            message: refused.message,
        }
    }
}

fn config_error(message: impl Into<String>) -> NotStarted {
    NotStarted::Refused {
        reason: "CreateContainerConfigError",
        message: message.into(),
    }
}

fn create_error(message: impl Into<String>) -> NotStarted {
    NotStarted::Refused {
        reason: "CreateContainerError",
        message: message.into(),
    }
}

impl Attempt {
    /// Makes it. On failure nothing of the container is left but its record.
    pub async fn make(self) -> Result<Started, NotStarted> {
        let result = self.try_make().await;
        if result.is_err() {
            let _ = self.host.warden.delete(&self.id).await;
            let (host, id) = (Arc::clone(&self.host), self.id.clone());
            let uid = self.pod.metadata.uid.clone().unwrap_or_default();
            let _ = tokio::task::spawn_blocking(move || {
                sandbox::clear_container(&host, &uid, &id);
                images::unmount(&host, &id);
            })
            .await;
        }
        result
    }

    async fn try_make(&self) -> Result<Started, NotStarted> {
        let variables = self.environment();
        let (image, variables) = tokio::join!(images::ensure(&self.host, &self.pod, &self.container), variables);
        let (image, variables) = (image?, variables?);
        let image_id = image.id.clone();
        let attempt = Prepared {
            host: Arc::clone(&self.host),
            pod: Arc::clone(&self.pod),
            container: Arc::clone(&self.container),
            id: self.id.clone(),
            image,
            variables,
        };
        let bundle = tokio::task::spawn_blocking(move || attempt.write_bundle());
        let missing_limits = bundle.await.map_err(|error| create_error(error.to_string()))??;
        let failed = |message: String| NotStarted::Failed {
            message,
            image_id: image_id.clone(),
        };
        self.host.warden.listen(&self.id, self.exits.clone());
        self.host
            .warden
            .create(self.request()?)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let name = self.container.name.as_str();
        self.host.events.pod(
            &self.pod,
            Some(name),
            Kind::Normal,
            "Created",
            format!("Created container: {name}"),
        );
        self.host
            .warden
            .start_container(&self.id)
            .await
            .map_err(|error| failed(error.to_string()))?;
        self.host.events.pod(
            &self.pod,
            Some(name),
            Kind::Normal,
            "Started",
            format!("Started container {name}"),
        );
        Ok(Started {
            at: Timestamp::now(),
            image_id,
            missing_limits,
        })
    }

    async fn environment(&self) -> Result<Vec<(String, String)>, NotStarted> {
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let references = References::of_environment(&self.container);
        let held = self.host.objects.fetch(&namespace, &references).await;
        let held = held.map_err(|error| config_error(error.to_string()))?;
        let links = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.enable_service_links)
            .unwrap_or(true);
        let services = self.host.services.load();
        let services = env::service_variables(services.iter().map(|service| &**service), &namespace, links);
        let sources = env::Sources {
            pod: &self.pod,
            pod_ips: &self.ips,
            node: &self.host.facts,
            objects: &held.objects,
            services: &services,
        };
        env::build(&self.container, &sources).map_err(config_error)
    }

    fn request(&self) -> Result<CreateRequest, NotStarted> {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let directory = self.host.logs(&self.pod).join(&self.container.name);
        fs::create_dir_all(&directory)
            .map_err(|error| create_error(format!("making the log directory {}: {error}", directory.display())))?;
        let labels = BTreeMap::from([
            (LABEL_POD.to_owned(), uid.clone()),
            (LABEL_CONTAINER.to_owned(), self.container.name.clone()),
        ]);
        Ok(CreateRequest {
            id: self.id.clone(),
            bundle: self.host.records(&uid).bundle(&self.id),
            log: Some(LogConfig {
                path: directory.join(format!("{}.log", self.number)),
                max_bytes: LOG_BYTES_MAX,
                max_files: LOG_FILES_MAX,
            }),
            stdin: self.container.stdin == Some(true),
            terminal: self.container.tty == Some(true),
            labels,
        })
    }
}

/// An attempt whose image and environment are there.
struct Prepared {
    host: Arc<Host>,
    pod: Arc<Pod>,
    container: Arc<Container>,
    id: String,
    image: ImageFacts,
    variables: Vec<(String, String)>,
}

impl Prepared {
    /// Mounts the root file system and writes config.json. Returns the limits that cannot be enforced. Blocks.
    fn write_bundle(self) -> Result<Vec<&'static str>, NotStarted> {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let records = self.host.records(uid);
        let root = images::mount(&self.host, &self.image, &self.id).map_err(create_error)?;
        let security = Security::of(&self.pod, &self.container);
        let user = user::resolve(&security.user, &self.image.user, &Accounts::read(&root)).map_err(config_error)?;
        let hostname = etc::hostname(&self.pod, &self.host.config.node_name);
        let mut image_env = self.image.env.clone();
        if !image_env.iter().any(|entry| entry.starts_with("HOME=")) {
            image_env.push(format!("HOME={}", user.home));
        }
        let args = self.arguments()?;
        let mounts = self.mounts(&root)?;
        let limits = resources::compute(&self.container, &self.host.controllers);
        let class = QosClass::of(&self.pod);
        let config = spec::build(Inputs {
            root: &root,
            args,
            cwd: self.working_directory(),
            terminal: self.container.tty == Some(true),
            user: &user,
            security: &security,
            namespaces: &sandbox::namespaces(&self.host, &self.pod),
            mounts,
            devices: if security.privileged {
                host_devices()
            } else {
                Vec::new()
            },
            cgroup: &format!("/{}/pod{uid}/{}", self.host.config.pods_cgroup(), self.id),
            resources: limits.value,
            oom_score_adj: qos::oom_score_adj(class, &self.container, self.host.facts.memory),
            seccomp: self.seccomp(&security.seccomp)?,
            env: env::over_image(&image_env, &hostname, self.variables),
        });
        let bundle = records.bundle(&self.id);
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&bundle)?;
            fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)
        };
        write().map_err(|error| create_error(format!("writing the bundle {}: {error}", bundle.display())))?;
        Ok(limits.missing)
    }

    fn lookup(&self, name: &str) -> Option<&str> {
        self.variables
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    fn arguments(&self) -> Result<Vec<String>, NotStarted> {
        let list = |values: &Option<Vec<String>>| -> Vec<String> {
            values
                .iter()
                .flatten()
                .map(|value| expand::expand(value, |name| self.lookup(name)))
                .collect()
        };
        let (own_command, own_args) = (list(&self.container.command), list(&self.container.args));
        let args = command::merge(&own_command, &own_args, &self.image.entrypoint, &self.image.cmd);
        if args.is_empty() {
            return Err(create_error(
                "no command specified: neither the pod nor the image names a program",
            ));
        }
        Ok(args)
    }

    fn working_directory(&self) -> String {
        let own = self
            .container
            .working_dir
            .clone()
            .filter(|directory| !directory.is_empty());
        let directory = own.unwrap_or_else(|| self.image.working_dir.clone());
        if directory.starts_with('/') {
            directory
        } else {
            format!("/{directory}")
        }
    }

    fn seccomp(&self, seccomp: &Seccomp) -> Result<Option<Value>, NotStarted> {
        let local = match seccomp {
            Seccomp::Localhost(path) => {
                let full = self.host.config.data_dir.join("seccomp").join(path);
                if Path::new(path)
                    .components()
                    .any(|part| !matches!(part, std::path::Component::Normal(_)))
                {
                    return Err(config_error(format!(
                        "seccomp profile {path:?} must be relative and without .."
                    )));
                }
                let bytes =
                    fs::read(&full).map_err(|error| config_error(format!("reading {}: {error}", full.display())))?;
                let parsed = serde_json::from_slice(&bytes);
                Some(parsed.map_err(|error| config_error(format!("parsing {}: {error}", full.display())))?)
            }
            _ => None,
        };
        Ok(spec::seccomp_filter(seccomp, local))
    }

    fn mounts(&self, root: &Path) -> Result<Vec<Mount>, NotStarted> {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let records = self.host.records(uid);
        let mut mounts = Vec::new();
        for (index, mount) in self.container.volume_mounts.iter().flatten().enumerate() {
            mounts.push(self.volume_mount(index, mount)?);
        }
        let file = |destination: &str, source: std::path::PathBuf| Mount {
            destination: destination.to_owned(),
            source: source.to_string_lossy().into_owned(),
            read_only: false,
            propagation: "rprivate",
        };
        let mut own: Vec<Mount> = ["hosts", "hostname", "resolv.conf"]
            .into_iter()
            .map(|name| file(&format!("/etc/{name}"), records.etc().join(name)))
            .collect();
        if records.shm().exists() {
            own.push(file("/dev/shm", records.shm()));
        } else if root.exists() {
            own.push(file("/dev/shm", "/dev/shm".into()));
        }
        let message = records.termination_message(&self.id);
        make_message_file(&message).map_err(|error| create_error(format!("making {}: {error}", message.display())))?;
        own.push(file(
            self.container
                .termination_message_path
                .as_deref()
                .unwrap_or("/dev/termination-log"),
            message,
        ));
        own.retain(|mount| !mounts.iter().any(|other| other.destination == mount.destination));
        mounts.extend(own);
        Ok(mounts)
    }

    fn volume_mount(&self, index: usize, mount: &VolumeMount) -> Result<Mount, NotStarted> {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let volume = volumes.into_iter().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| {
            config_error(format!(
                "volume {:?} of the mount {} does not exist",
                mount.name, mount.mount_path
            ))
        })?;
        let place = self.host.volumes(uid).place(volume);
        let expression = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
        let sub = match expression {
            Some(expression) => expand::expand(expression, |name| self.lookup(name)),
            None => mount.sub_path.clone().unwrap_or_default(),
        };
        let source = if sub.is_empty() {
            place.path
        } else {
            let target = self.host.records(uid).subpaths(&self.id).join(index.to_string());
            subpath::mount(&mount.name, &place.path, &sub, &target).map_err(|error| config_error(error.to_string()))?;
            target
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            _ => "rprivate",
        };
        let destination = mount.mount_path.trim_end_matches('/');
        Ok(Mount {
            destination: if destination.starts_with('/') {
                destination.to_owned()
            } else {
                format!("/{destination}")
            },
            source: source.to_string_lossy().into_owned(),
            read_only: mount.read_only == Some(true) || place.read_only,
            propagation,
        })
    }
}

/// Any user of the container may write its termination message.
fn make_message_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// The host's devices, for privileged containers; terminals and what the engines mount themselves are left out.
fn host_devices() -> Vec<Value> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let mut devices = Vec::new();
    let mut pending = vec![std::path::PathBuf::from("/dev")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else {
                continue;
            };
            let kind = metadata.file_type();
            let skipped = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/.lxc"];
            if skipped.iter().any(|other| path == Path::new(other)) {
                continue;
            }
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                let device = metadata.rdev();
                devices.push(serde_json::json!({
                    "path": path,
                    "type": if kind.is_block_device() { "b" } else { "c" },
                    "major": rustix::fs::major(device),
                    "minor": rustix::fs::minor(device),
                    "fileMode": metadata.mode() & 0o7777,
                    "uid": metadata.uid(),
                    "gid": metadata.gid(),
                }));
            }
        }
    }
    devices
}
