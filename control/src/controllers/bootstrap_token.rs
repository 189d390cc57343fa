//! Bootstrap tokens: removed when they expire; and the config map that machines verify the cluster by before they join,
//! signed with every token that is for signing (Kubernetes: "Authenticating with Bootstrap Tokens", ConfigMap signing).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Map, Value, json};

use super::controller::{Context, Controller, Key, Outcome, Write};
use super::view::View;
use crate::auth::bootstrap_token::{BootstrapToken, Expiration, NAMESPACE, PREFIX, TokenSecret};
use crate::cache::{Event, Object};

const SECRETS: &str = "secrets";
const CONFIG_MAPS: &str = "configmaps";
const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

fn is_token(object: &Object) -> bool {
    &*object.resource == SECRETS && &*object.namespace == NAMESPACE && object.name.starts_with(PREFIX)
}

/// Removes expired tokens.
pub struct TokenCleaner;

impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        "tokencleaner"
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        if is_token(&event.object) {
            add(Key::of(&event.object));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(SECRETS, NAMESPACE, &key.name) else {
            return outcome;
        };
        let end = TokenSecret::of(&object).map(|secret| secret.expiration());
        if let Some(Expiration::At(end)) = end {
            match Duration::try_from(end.duration_since(context.now.wall)) {
                Ok(left) if !left.is_zero() => outcome.requeue(left),
                _ => outcome.delete(&object, None),
            }
        }
        outcome
    }
}

/// Keeps `kube-public/cluster-info` and its signatures.
pub struct ClusterInfo {
    /// A kubeconfig without credentials: where the API is, and its authority.
    pub kubeconfig: Arc<str>,
}

impl Controller for ClusterInfo {
    fn name(&self) -> &'static str {
        "bootstrapsigner"
    }

    fn start(&self) -> Vec<Key> {
        vec![Key::new(CONFIG_MAPS, PUBLIC, CLUSTER_INFO)]
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        let name = (&*object.resource, &*object.namespace, &*object.name);
        if is_token(object) || name == (CONFIG_MAPS, PUBLIC, CLUSTER_INFO) || name == ("namespaces", "", PUBLIC) {
            add(Key::new(CONFIG_MAPS, PUBLIC, CLUSTER_INFO));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, _key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        if context.view.get("namespaces", "", PUBLIC).is_none() {
            return outcome;
        }
        let data = self.data(context);
        match context.view.get(CONFIG_MAPS, PUBLIC, CLUSTER_INFO) {
            None => outcome.write(Write::Create {
                resource: CONFIG_MAPS.into(),
                namespace: PUBLIC.into(),
                object: json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": CLUSTER_INFO, "namespace": PUBLIC}, "data": data}),
            }),
            Some(stored) => {
                let mut value = stored.value();
                if value["data"] != data {
                    value["data"] = data;
                    outcome.update(&stored, None, value);
                }
            }
        }
        outcome
    }
}

impl ClusterInfo {
    fn data(&self, context: &Context<'_>) -> Value {
        let mut data = Map::new();
        data.insert(KUBECONFIG.into(), json!(&*self.kubeconfig));
        let secrets = context.view.list(SECRETS, Some(NAMESPACE));
        let tokens = secrets.iter().filter_map(|object| TokenSecret::of(object));
        let signing = tokens.filter(|secret| secret.is_for("signing") && secret.is_good(context.now.wall));
        for token in signing.filter_map(|secret| secret.token()) {
            match sign(&self.kubeconfig, &token) {
                Ok(signature) => drop(data.insert(format!("{SIGNATURE}{}", token.id), json!(signature))),
                Err(error) => tracing::error!(token = token.id, %error, "cluster-info was not signed"),
            }
        }
        Value::Object(data)
    }
}

/// A JWS over `content`, which it leaves out (RFC 7515, appendix F), with the token's secret as the key (HS256).
fn sign(content: &str, token: &BootstrapToken) -> Result<String, jsonwebtoken::errors::Error> {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": token.id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(token.secret().as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256)?;
    Ok(format!("{header}..{signature}"))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::controllers::memory::World;

    fn token(world: &mut World, token: &str, change: &[(&str, &str)]) {
        let parsed: BootstrapToken = token.parse().unwrap();
        let end = world.memory.wall + jiff::SignedDuration::from_hours(1);
        let mut secret = parsed.to_secret(Some(end), "");
        let mut strings = secret["stringData"].take();
        for (name, value) in change {
            strings[*name] = json!(value);
        }
        let encoded = strings.as_object().unwrap().iter();
        secret["data"] = encoded
            .map(|(key, value)| (key.clone(), json!(STANDARD.encode(value.as_str().unwrap()))))
            .collect::<Map<_, _>>()
            .into();
        world.memory.put(SECRETS, NAMESPACE, secret);
        world.settle();
    }

    fn signatures(world: &World) -> Vec<String> {
        let info = world.memory.get(CONFIG_MAPS, PUBLIC, CLUSTER_INFO).unwrap().value();
        let data = info["data"].as_object().unwrap();
        data.keys().filter(|key| key.starts_with(SIGNATURE)).cloned().collect()
    }

    #[test]
    fn cluster_info_is_signed_by_each_good_token_until_it_ends() {
        let info = ClusterInfo {
            kubeconfig: "text".into(),
        };
        let mut world = World::new(vec![Box::new(info), Box::new(TokenCleaner)]);
        world
            .memory
            .put("namespaces", "", json!({"metadata": {"name": PUBLIC}}));
        world.settle();
        assert!(signatures(&world).is_empty());
        token(&mut world, "abcdef.0123456789abcdef", &[]);
        token(
            &mut world,
            "bbbbbb.0123456789abcdef",
            &[("usage-bootstrap-signing", "false")],
        );
        token(&mut world, "cccccc.0123456789abcdef", &[("token-secret", "damaged")]);
        assert_eq!(signatures(&world), ["jws-kubeconfig-abcdef"]);
        world.memory.patch(
            CONFIG_MAPS,
            PUBLIC,
            CLUSTER_INFO,
            &json!({"data": {"kubeconfig": "forged"}}),
        );
        world.settle();
        let info = world.memory.get(CONFIG_MAPS, PUBLIC, CLUSTER_INFO).unwrap().value();
        assert_eq!(info["data"]["kubeconfig"], "text");
        world.advance(Duration::from_secs(3601));
        assert!(signatures(&world).is_empty());
        assert!(world.memory.objects(SECRETS).is_empty(), "expired tokens are removed");
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        // From Python: hmac.new(b"0123456789abcdef", header + b"." + payload, "sha256").
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().unwrap();
        let signed = sign("text", &token).unwrap();
        let (header, signature) = signed.split_once("..").unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.decode(header).unwrap(),
            br#"{"alg":"HS256","kid":"abcdef"}"#
        );
        assert_eq!(signature, EXPECTED);
    }

    const EXPECTED: &str = "v28Ea_KqmHOtFWksJ_4tbV6AFRNzMkrRUG_jsuLJz-4";
}
