//! What the files of configMap, secret, downwardAPI and projected volumes contain.
//!
//! Pure: the objects and tokens were fetched before. A projected volume is the union of its sources, the later one
//! winning where two name the same path.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume,
};

use super::atomic::{File, Payload};
use crate::pod::env::find_container;
use crate::pod::fields::{self, NodeFacts};
use crate::pod::references::Objects;

/// Mode of files for which nothing is said.
const DEFAULT_MODE: i32 = 0o644;
/// How long a token lives when nothing is said, in seconds.
pub const TOKEN_SECONDS: i64 = 3600;

/// A token that a volume needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    /// Audience; empty for the API server's own.
    pub audience: String,
    /// Asked-for life in seconds.
    pub seconds: i64,
}

impl TokenKey {
    /// The token that `projection` asks for.
    #[must_use]
    pub fn of(projection: &ServiceAccountTokenProjection) -> Self {
        TokenKey {
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        }
    }
}

/// Every token that the pod's volumes need.
pub fn tokens(pod: &Pod) -> impl Iterator<Item = TokenKey> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projections = volumes.flat_map(|volume| volume.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    projections
        .filter_map(|projection| projection.service_account_token.as_ref())
        .map(TokenKey::of)
}

/// What payloads are computed from.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The node.
    pub node: &'a NodeFacts,
    /// Fetched ConfigMaps and Secrets.
    pub objects: &'a Objects,
    /// Fetched tokens.
    pub tokens: &'a BTreeMap<TokenKey, String>,
}

/// Whether `volume` is one of those computed here.
#[must_use]
pub fn is_payload(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The files of `volume`.
pub fn compute(volume: &Volume, sources: &Sources<'_>) -> Result<Payload, String> {
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let selection = Selection::new(source.items.as_deref(), source.default_mode, source.optional);
        config_map(&mut files, &source.name, &selection, sources)?;
    } else if let Some(source) = &volume.secret {
        let selection = Selection::new(source.items.as_deref(), source.default_mode, source.optional);
        secret(
            &mut files,
            source.secret_name.as_deref().unwrap_or_default(),
            &selection,
            sources,
        )?;
    } else if let Some(source) = &volume.downward_api {
        downward(
            &mut files,
            source.items.as_deref().unwrap_or_default(),
            source.default_mode,
            sources,
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for projection in projected.sources.iter().flatten() {
            if let Some(source) = &projection.config_map {
                let selection = Selection::new(source.items.as_deref(), mode, source.optional);
                config_map(&mut files, &source.name, &selection, sources)?;
            }
            if let Some(source) = &projection.secret {
                let selection = Selection::new(source.items.as_deref(), mode, source.optional);
                secret(&mut files, &source.name, &selection, sources)?;
            }
            if let Some(source) = &projection.downward_api {
                downward(&mut files, source.items.as_deref().unwrap_or_default(), mode, sources)?;
            }
            if let Some(source) = &projection.service_account_token {
                token(&mut files, source, mode, sources)?;
            }
            if projection.cluster_trust_bundle.is_some() || projection.pod_certificate.is_some() {
                return Err(
                    "clusterTrustBundle and podCertificate projections are not supported by this node".to_owned(),
                );
            }
        }
    }
    Ok(files)
}

struct Selection<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: i32,
    optional: bool,
}

impl<'a> Selection<'a> {
    fn new(items: Option<&'a [KeyToPath]>, mode: Option<i32>, optional: Option<bool>) -> Self {
        let items = items.filter(|items| !items.is_empty());
        Selection {
            items,
            mode: mode.unwrap_or(DEFAULT_MODE),
            optional: optional == Some(true),
        }
    }

    fn apply(&self, files: &mut Payload, what: &str, entries: &BTreeMap<&str, &[u8]>) -> Result<(), String> {
        let Some(items) = self.items else {
            files.extend(
                entries
                    .iter()
                    .map(|(key, data)| ((*key).to_owned(), file(data.to_vec(), self.mode))),
            );
            return Ok(());
        };
        for item in items {
            match entries.get(item.key.as_str()) {
                Some(data) => {
                    files.insert(item.path.clone(), file(data.to_vec(), item.mode.unwrap_or(self.mode)));
                }
                None if self.optional => {}
                None => return Err(format!("{what} references non-existent key: {}", item.key)),
            }
        }
        Ok(())
    }
}

fn file(data: Vec<u8>, mode: i32) -> File {
    File {
        data,
        mode: u32::try_from(mode).unwrap_or(0o644) & 0o777,
        uid: None,
    }
}

fn config_map(files: &mut Payload, name: &str, selection: &Selection<'_>, sources: &Sources<'_>) -> Result<(), String> {
    let Some(map) = sources.objects.config_map(name) else {
        return if selection.optional {
            Ok(())
        } else {
            Err(format!("configmap {name:?} not found"))
        };
    };
    selection.apply(files, "configmap", &config_map_entries(map))
}

fn config_map_entries(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let texts = map
        .data
        .iter()
        .flatten()
        .map(|(key, text)| (key.as_str(), text.as_bytes()));
    let bytes = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, ByteString(data))| (key.as_str(), data.as_slice()));
    texts.chain(bytes).collect()
}

fn secret(files: &mut Payload, name: &str, selection: &Selection<'_>, sources: &Sources<'_>) -> Result<(), String> {
    let Some(secret) = sources.objects.secret(name) else {
        return if selection.optional {
            Ok(())
        } else {
            Err(format!("secret {name:?} not found"))
        };
    };
    selection.apply(files, "secret", &secret_entries(secret))
}

fn secret_entries(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    secret
        .data
        .iter()
        .flatten()
        .map(|(key, ByteString(data))| (key.as_str(), data.as_slice()))
        .collect()
}

fn downward(
    files: &mut Payload,
    items: &[DownwardAPIVolumeFile],
    mode: Option<i32>,
    sources: &Sources<'_>,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(reference) = &item.field_ref {
            fields::field(sources.pod, sources.node, &[], &reference.field_path)?
        } else if let Some(reference) = &item.resource_field_ref {
            let name = reference.container_name.as_deref().unwrap_or_default();
            let container =
                find_container(sources.pod, name).ok_or_else(|| format!("the pod has no container {name:?}"))?;
            fields::resource(container, sources.node, reference)?
        } else {
            return Err(format!("the downwardAPI item {:?} refers to nothing", item.path));
        };
        files.insert(
            item.path.clone(),
            file(text.into_bytes(), item.mode.or(mode).unwrap_or(DEFAULT_MODE)),
        );
    }
    Ok(())
}

/// A token can be read by everyone in the pod only where nothing says who its containers run as.
fn token(
    files: &mut Payload,
    projection: &ServiceAccountTokenProjection,
    mode: Option<i32>,
    sources: &Sources<'_>,
) -> Result<(), String> {
    let token = sources
        .tokens
        .get(&TokenKey::of(projection))
        .ok_or("the service account token was not fetched")?;
    let mut entry = file(token.clone().into_bytes(), mode.unwrap_or(DEFAULT_MODE));
    if let Some(uid) = common_user(sources.pod) {
        (entry.mode, entry.uid) = (0o600, Some(uid));
    }
    files.insert(projection.path.clone(), entry);
    Ok(())
}

/// The uid that all containers of the pod are told to run as, if it is the same and no `fsGroup` shares files.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let outer = spec.security_context.as_ref();
    if outer.is_some_and(|outer| outer.fs_group.is_some()) {
        return None;
    }
    let default = outer.and_then(|outer| outer.run_as_user);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = all.map(|c| c.security_context.as_ref().and_then(|own| own.run_as_user).or(default));
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};
    use std::sync::Arc;

    fn computed(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let pod: Pod = from_value(
            json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "c", "securityContext": {"runAsUser": 7}}]}}),
        )
        .unwrap();
        let map = from_value(json!({"metadata": {"name": "conf"}, "data": {"k": "v", "l": "w"}})).unwrap();
        let secret = from_value(json!({"metadata": {"name": "key"}, "data": {"token": "c2VjcmV0"}})).unwrap();
        let objects = Objects {
            config_maps: [("conf".to_owned(), Some(Arc::new(map)))].into(),
            secrets: [("key".to_owned(), Some(Arc::new(secret)))].into(),
        };
        let tokens = [(
            TokenKey {
                audience: String::new(),
                seconds: 3607,
            },
            "jwt".to_owned(),
        )]
        .into();
        let sources = Sources {
            pod: &pod,
            node: &NodeFacts::default(),
            objects: &objects,
            tokens: &tokens,
        };
        let files = compute(&from_value(volume).unwrap(), &sources)?;
        Ok(files
            .into_iter()
            .map(|(path, file)| (path, String::from_utf8(file.data).unwrap(), file.mode))
            .collect())
    }

    #[test]
    fn items_select_and_rename_keys() {
        let all = computed(json!({"name": "v", "configMap": {"name": "conf", "defaultMode": 256}})).unwrap();
        assert_eq!(all, [("k".into(), "v".into(), 0o400), ("l".into(), "w".into(), 0o400)]);
        let some =
            json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "k", "path": "d/f", "mode": 384}]}});
        assert_eq!(computed(some).unwrap(), [("d/f".into(), "v".into(), 0o600)]);
        let missing = json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "x", "path": "f"}]}});
        assert_eq!(
            computed(missing).unwrap_err(),
            "configmap references non-existent key: x"
        );
    }

    #[test]
    fn absent_objects_are_errors_unless_optional() {
        let volume =
            |optional: bool| computed(json!({"name": "v", "secret": {"secretName": "no", "optional": optional}}));
        assert_eq!(volume(false).unwrap_err(), "secret \"no\" not found");
        assert!(volume(true).unwrap().is_empty());
    }

    #[test]
    fn projections_are_united() {
        let volume = json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "conf", "items": [{"key": "k", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"secret": {"name": "key"}},
        ]}});
        let files = computed(volume).unwrap();
        let paths: Vec<&str> = files.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(
            paths,
            ["ca.crt", "labels", "token", "token"]
                .iter()
                .copied()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
        assert!(
            files.contains(&("token".into(), "secret".into(), 0o644)),
            "the later source wins"
        );
    }

    #[test]
    fn a_token_belongs_to_the_one_user() {
        let volume = json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}});
        assert_eq!(computed(volume).unwrap(), [("token".into(), "jwt".into(), 0o600)]);
    }
}
