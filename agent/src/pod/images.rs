//! Which image a container gets and when it is pulled: the pull policy, pull secrets, and what is told about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use serde_json::Value;

use super::host::Host;
use super::references::References;
use crate::events::Kind;
use crate::image::{Credentials, Image, Reference};

/// What a container takes from its image.
#[derive(Clone, Debug, Default)]
pub struct ImageFacts {
    /// Its digest: that of the repository where it is from one, else of its configuration.
    pub id: String,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `USER`.
    pub user: String,
    /// `WORKDIR`, `/` by default.
    pub working_dir: String,
    /// `STOPSIGNAL`.
    pub stop_signal: Option<String>,
    image: Option<Arc<Image>>,
}

/// Why there is no image; the reason stands in the container's waiting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRefused {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    fn of(container: &Container) -> Self {
        let name = container.image.as_deref().unwrap_or_default();
        match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            _ if name.ends_with(":latest") || !name.rsplit('/').next().unwrap_or(name).contains([':', '@']) => {
                PullPolicy::Always
            }
            _ => PullPolicy::IfNotPresent,
        }
    }
}

/// Makes sure that the container's image is on this node, as its pull policy says.
pub async fn ensure(host: &Arc<Host>, pod: &Pod, container: &Container) -> Result<ImageFacts, ImageRefused> {
    let name = container.image.as_deref().unwrap_or_default();
    if let Err(error) = name.parse::<Reference>() {
        let message = format!("Failed to apply default image tag {name:?}: couldn't parse image name: {error}");
        host.events.pod(
            pod,
            Some(&container.name),
            Kind::Warning,
            "InspectFailed",
            message.clone(),
        );
        return Err(ImageRefused {
            reason: "InvalidImageName",
            message,
        });
    }
    let present = resolve(host, name);
    let policy = PullPolicy::of(container);
    match (policy, present) {
        (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => {
            let message = format!("Container image {name:?} already present on machine");
            host.events
                .pod(pod, Some(&container.name), Kind::Normal, "Pulled", message);
            Ok(facts(image))
        }
        (PullPolicy::Never, None) => {
            let message = format!("Container image {name:?} is not present with pull policy of Never");
            host.events.pod(
                pod,
                Some(&container.name),
                Kind::Warning,
                "ErrImageNeverPull",
                message.clone(),
            );
            Err(ImageRefused {
                reason: "ErrImageNeverPull",
                message,
            })
        }
        (_, present) => pull(host, pod, container, name, present.is_some()).await,
    }
}

async fn pull(
    host: &Arc<Host>,
    pod: &Pod,
    container: &Container,
    name: &str,
    present: bool,
) -> Result<ImageFacts, ImageRefused> {
    let tell = |kind, reason: &str, message: String| host.events.pod(pod, Some(&container.name), kind, reason, message);
    tell(Kind::Normal, "Pulling", format!("Pulling image {name:?}"));
    let begun = Instant::now();
    let credentials = credentials(host, pod, name).await;
    match host.images.pull(name, credentials).await {
        Ok(image) => {
            tell(
                Kind::Normal,
                "Pulled",
                format!("Successfully pulled image {name:?} in {:.3?}", begun.elapsed()),
            );
            Ok(facts(image))
        }
        Err(error) => {
            let mut message = format!("Failed to pull image {name:?}: {error}");
            if present {
                message.push_str(
                    "; the image is present on this node, but imagePullPolicy Always asks the registry each time: \
                     set imagePullPolicy: IfNotPresent to run the present image",
                );
            }
            tell(Kind::Warning, "Failed", message.clone());
            tell(Kind::Warning, "Failed", "Error: ErrImagePull".to_owned());
            Err(ImageRefused {
                reason: "ErrImagePull",
                message,
            })
        }
    }
}

/// Mounts the image as the root file system of the container `id`. Blocks.
pub fn mount(host: &Host, facts: &ImageFacts, id: &str) -> Result<PathBuf, String> {
    let image = facts.image.as_ref().ok_or("the image was not resolved")?;
    let root = host.images.mount(image, id).map_err(|error| error.to_string())?;
    Ok(root.path)
}

/// Unmounts it again; a container that has none is fine. Blocks.
pub fn unmount(host: &Host, id: &str) {
    if let Err(error) = host.images.unmount(id) {
        tracing::warn!(container = id, %error, "a root file system was not unmounted");
    }
}

/// The signal that the image of a container wants to be stopped with, if its image is still known.
#[must_use]
pub fn stop_signal(host: &Host, name: &str) -> Option<String> {
    facts(resolve(host, name)?).stop_signal
}

fn resolve(host: &Host, name: &str) -> Option<Image> {
    match host.images.resolve(name) {
        Ok(image) => image,
        Err(error) => {
            tracing::warn!(image = name, %error, "the image store was not read");
            None
        }
    }
}

fn facts(image: Image) -> ImageFacts {
    let config = image.config.config().clone().unwrap_or_default();
    let working_dir = config
        .working_dir()
        .clone()
        .filter(|dir| !dir.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    ImageFacts {
        id: image
            .digests
            .first()
            .map_or_else(|| image.id.to_string(), ToString::to_string),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        working_dir,
        stop_signal: config.stop_signal().clone(),
        image: Some(Arc::new(image)),
    }
}

/// What the pod's pull secrets say about the registry of `name`.
async fn credentials(host: &Host, pod: &Pod, name: &str) -> Option<Credentials> {
    let spec = pod.spec.as_ref()?;
    let names = spec
        .image_pull_secrets
        .iter()
        .flatten()
        .map(|reference| reference.name.clone());
    let references = References {
        secrets: names.collect(),
        ..References::default()
    };
    if references.secrets.is_empty() {
        return None;
    }
    let held = host
        .objects
        .fetch(pod.metadata.namespace.as_deref()?, &references)
        .await
        .ok()?;
    let registry = name.parse::<Reference>().ok()?.registry().to_owned();
    held.objects
        .secrets
        .values()
        .flatten()
        .find_map(|secret| registry_login(secret, &registry))
        .map(|(username, password)| Credentials { username, password })
}

/// User and password for `registry` in a `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg` secret.
fn registry_login(secret: &Secret, registry: &str) -> Option<(String, String)> {
    let data = secret.data.as_ref()?;
    let parsed: Value = match data.get(".dockerconfigjson") {
        Some(bytes) => serde_json::from_slice::<Value>(&bytes.0).ok()?["auths"].take(),
        None => serde_json::from_slice(&data.get(".dockercfg")?.0).ok()?,
    };
    let (_, entry) = parsed
        .as_object()?
        .iter()
        .find(|(host, _)| registry_of(host) == registry_of(registry))?;
    if let (Some(user), Some(password)) = (entry["username"].as_str(), entry["password"].as_str()) {
        return Some((user.to_owned(), password.to_owned()));
    }
    let decoded = String::from_utf8(STANDARD.decode(entry["auth"].as_str()?).ok()?).ok()?;
    decoded
        .split_once(':')
        .map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// `https://index.docker.io/v1/` and `docker.io` are the same registry.
fn registry_of(host: &str) -> &str {
    let bare = host.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or(bare) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn untagged_images_are_pulled_always() {
        let policy = |image: &str, stated: Option<&str>| {
            PullPolicy::of(&from_value(json!({"name": "c", "image": image, "imagePullPolicy": stated})).unwrap())
        };
        assert_eq!(policy("web", None), PullPolicy::Always);
        assert_eq!(policy("host:5000/web", None), PullPolicy::Always);
        assert_eq!(policy("web:latest", None), PullPolicy::Always);
        assert_eq!(policy("web:1", None), PullPolicy::IfNotPresent);
        assert_eq!(policy("web", Some("Never")), PullPolicy::Never);
    }

    #[test]
    fn pull_secrets_name_registries_in_many_ways() {
        let config = json!({"auths": {"https://index.docker.io/v1/": {"auth": STANDARD.encode("me:se:cret")},
            "reg.example:5000": {"username": "u", "password": "p"}}});
        let secret: Secret =
            from_value(json!({"data": {".dockerconfigjson": STANDARD.encode(config.to_string())}})).unwrap();
        assert_eq!(
            registry_login(&secret, "docker.io"),
            Some(("me".into(), "se:cret".into()))
        );
        assert_eq!(
            registry_login(&secret, "reg.example:5000"),
            Some(("u".into(), "p".into()))
        );
        assert_eq!(registry_login(&secret, "other"), None);
    }
}
