//! Which ConfigMaps and Secrets a pod needs, and their content once fetched.
//!
//! Collecting the names first and fetching them together keeps everything after it pure: environment and volume
//! payloads are computed from `Objects` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};

/// Names of the objects that a pod mentions, all in its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
}

/// What was fetched; `None` when the object does not exist.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

impl Objects {
    /// A ConfigMap that exists.
    #[must_use]
    pub fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)?.as_deref()
    }

    /// A Secret that exists.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)?.as_deref()
    }
}

impl References {
    /// What the environment of `container` refers to.
    #[must_use]
    pub fn of_environment(container: &Container) -> Self {
        let mut found = References::default();
        for from in container.env_from.iter().flatten() {
            if let Some(reference) = &from.config_map_ref {
                found.config_maps.insert(reference.name.clone());
            }
            if let Some(reference) = &from.secret_ref {
                found.secrets.insert(reference.name.clone());
            }
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            if let Some(key) = &source.config_map_key_ref {
                found.config_maps.insert(key.name.clone());
            }
            if let Some(key) = &source.secret_key_ref {
                found.secrets.insert(key.name.clone());
            }
        }
        found
    }

    /// What the volumes of `pod` refer to.
    #[must_use]
    pub fn of_volumes(pod: &Pod) -> Self {
        let mut found = References::default();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            found.add_volume(volume);
        }
        found
    }

    /// Adds `other`'s names.
    pub fn extend(&mut self, other: References) {
        self.config_maps.extend(other.config_maps);
        self.secrets.extend(other.secrets);
    }

    /// Adds what one volume refers to.
    pub fn add_volume(&mut self, volume: &Volume) {
        if let Some(source) = &volume.config_map {
            self.config_maps.insert(source.name.clone());
        }
        if let Some(name) = volume.secret.as_ref().and_then(|source| source.secret_name.clone()) {
            self.secrets.insert(name);
        }
        for projection in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            if let Some(source) = &projection.config_map {
                self.config_maps.insert(source.name.clone());
            }
            if let Some(source) = &projection.secret {
                self.secrets.insert(source.name.clone());
            }
        }
    }
}
