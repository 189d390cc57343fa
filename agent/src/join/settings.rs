//! What holds for all nodes of the cluster, told by the control plane (`kube-system/hull-node-settings`). Kept on disk, so
//! that a restarted agent need not wait for the API server.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::AgentConfig;
use crate::identity::{self, PairError};
use crate::network::Transport;

const FILE: &str = "settings.json";
/// Where the API has them.
pub const SETTINGS_PATH: &str = "/api/v1/namespaces/kube-system/configmaps/hull-node-settings";

/// What the node was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Ranges of all pods.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// Ranges of services.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    /// Address that pods ask for names.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: String,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// How packets get to other nodes' pods.
    pub pod_network: String,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A value makes no sense.
    #[error("the cluster's settings for nodes ({SETTINGS_PATH}): {0}")]
    Value(String),
    /// They cannot be kept.
    #[error(transparent)]
    File(#[from] PairError),
}

fn file(config: &AgentConfig) -> PathBuf {
    config.identity_dir().join(FILE)
}

impl Settings {
    /// Those of an earlier run, if there are any that can be read.
    #[must_use]
    pub fn kept(config: &AgentConfig) -> Option<Self> {
        let text = fs::read(file(config)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Reads the ConfigMap.
    ///
    /// # Errors
    /// What is missing in it.
    pub fn from_object(object: &Value) -> Result<Self, SettingsError> {
        serde_json::from_value(object["data"].clone()).map_err(|error| SettingsError::Value(error.to_string()))
    }

    /// Keeps them for the next run.
    ///
    /// # Errors
    /// [`SettingsError::File`].
    pub fn keep(&self, config: &AgentConfig) -> Result<(), SettingsError> {
        let text = serde_json::to_vec(self).map_err(|error| SettingsError::Value(error.to_string()))?;
        let path = file(config);
        if fs::read(&path).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        Ok(identity::replace(Path::new(&path), &text)?)
    }

    /// Fills in the configuration.
    ///
    /// # Errors
    /// The value that makes no sense.
    pub fn apply(&self, config: &mut AgentConfig) -> Result<(), SettingsError> {
        let wrong = |what: &str, value: &str| SettingsError::Value(format!("{what} {value:?} is not valid"));
        let dns: IpAddr = self
            .cluster_dns
            .parse()
            .map_err(|_| wrong("clusterDNS", &self.cluster_dns))?;
        let transport: Transport = self
            .pod_network
            .parse()
            .map_err(|_| wrong("podNetwork", &self.pod_network))?;
        config.cluster_cidr.clone_from(&self.cluster_cidr);
        config.service_cidr.clone_from(&self.service_cidr);
        config.cluster_domain.clone_from(&self.cluster_domain);
        config.pod_network = transport;
        // That of IPv6 follows from the range of services.
        if let IpAddr::V4(dns) = dns {
            config.cluster_dns = dns;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_told_kept_and_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = AgentConfig::new("n2");
        dir.path().clone_into(&mut config.data_dir);
        assert_eq!(Settings::kept(&config), None);
        let object = json!({"data": {"clusterCIDR": "10.1.0.0/16", "serviceCIDR": "10.2.0.0/16", "clusterDNS": "10.2.0.10",
            "clusterDomain": "example.org", "podNetwork": "vxlan"}});
        let mut settings = Settings::from_object(&object).unwrap();
        settings.keep(&config).unwrap();
        assert_eq!(Settings::kept(&config), Some(settings.clone()));
        settings.apply(&mut config).unwrap();
        assert_eq!(
            (config.service_cidr.as_str(), config.pod_network),
            ("10.2.0.0/16", Transport::Vxlan)
        );
        settings.cluster_dns = "somewhere".to_owned();
        let error = settings.apply(&mut config).unwrap_err().to_string();
        assert!(error.contains("clusterDNS \"somewhere\""), "{error}");
        assert!(Settings::from_object(&json!({"data": {}})).is_err());
    }
}
