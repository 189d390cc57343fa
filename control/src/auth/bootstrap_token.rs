//! Bootstrap tokens, `id.secret`: what a machine shows before it has a certificate. Kubernetes: "Authenticating with
//! Bootstrap Tokens". They are secrets `bootstrap-token-<id>` in kube-system; the id is public, the secret is compared in
//! constant time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::User;
use crate::cache::{Cache, Object};
use crate::registry::Environment;

/// Namespace of the secrets.
pub const NAMESPACE: &str = "kube-system";
/// Begins the secrets' names.
pub const PREFIX: &str = "bootstrap-token-";
/// Type of the secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of every user that such a token stands for.
pub const GROUP: &str = "system:bootstrappers";

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const MAX_GROUP: usize = 256;

/// A token in its two parts.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    /// Names it.
    pub id: String,
    secret: String,
}

impl BootstrapToken {
    /// A new random token: 80 bits of secret.
    pub fn generate(environment: &Environment) -> Self {
        Self {
            id: environment.lower_alphanumeric(ID_LENGTH),
            secret: environment.lower_alphanumeric(SECRET_LENGTH),
        }
    }

    /// The secret object that makes the token known, good until `expires` (`None`: for ever).
    pub fn to_secret(&self, expires: Option<Timestamp>, description: &str) -> Value {
        let mut data = json!({
            "token-id": self.id,
            "token-secret": self.secret,
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
        });
        if let Some(expires) = expires {
            data["expiration"] = json!(crate::registry::time_text(expires));
        }
        if !description.is_empty() {
            data["description"] = json!(description);
        }
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE,
            "metadata": {"name": format!("{PREFIX}{}", self.id), "namespace": NAMESPACE},
            "stringData": data,
        })
    }

    /// The part that nobody else may know.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    fn is_secret(&self, other: &str) -> bool {
        let (ours, other) = (self.secret.as_bytes(), other.as_bytes());
        // Every byte is looked at, whether or not an earlier one differs: the time tells nothing.
        let difference = ours.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
        ours.len() == other.len() && std::hint::black_box(difference) == 0
    }
}

impl std::str::FromStr for BootstrapToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |part: &str, length: usize| {
            part.len() == length
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if fits(id, ID_LENGTH) && fits(secret, SECRET_LENGTH) => Ok(Self {
                id: id.to_owned(),
                secret: secret.to_owned(),
            }),
            _ => Err("a bootstrap token has the form [a-z0-9]{6}.[a-z0-9]{16}".to_owned()),
        }
    }
}

impl std::fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

/// When a token ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiration {
    /// Not at all.
    Never,
    /// Then.
    At(Timestamp),
    /// What is written there is no time: the token is not good, and is not removed either.
    Unreadable,
}

/// What the secret of a token says.
pub struct TokenSecret(Value);

impl TokenSecret {
    /// Of a secret object; `None` if it is another kind of secret.
    pub fn of(object: &Object) -> Option<Self> {
        if &*object.resource != "secrets" || &*object.namespace != NAMESPACE || !object.name.starts_with(PREFIX) {
            return None;
        }
        let value = object.value();
        (value["type"] == TYPE).then_some(Self(value))
    }

    /// A value; empty if there is none, or it is no text.
    pub fn text(&self, name: &str) -> String {
        let encoded = self.0["data"][name].as_str().unwrap_or_default();
        let bytes = STANDARD.decode(encoded).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    }

    /// The whole token, if its parts are those of one and its name fits.
    pub fn token(&self) -> Option<BootstrapToken> {
        let (id, secret) = (self.text("token-id"), self.text("token-secret"));
        let named = self.0["metadata"]["name"].as_str()?.strip_prefix(PREFIX)? == id;
        format!("{id}.{secret}").parse().ok().filter(|_| named)
    }

    /// When it ends.
    pub fn expiration(&self) -> Expiration {
        match self.text("expiration") {
            text if text.is_empty() => Expiration::Never,
            text => text.parse().map_or(Expiration::Unreadable, Expiration::At),
        }
    }

    /// Whether it is good at a moment.
    pub fn is_good(&self, now: Timestamp) -> bool {
        let lasts = match self.expiration() {
            Expiration::Never => true,
            Expiration::At(end) => now < end,
            Expiration::Unreadable => false,
        };
        lasts && self.0["metadata"]["deletionTimestamp"].is_null()
    }

    /// Whether it is for `authentication` or `signing`.
    pub fn is_for(&self, usage: &str) -> bool {
        self.text(&format!("usage-bootstrap-{usage}")) == "true"
    }

    /// Groups beside the one of all; `None` if one of them is not a bootstrapper's.
    fn extra_groups(&self) -> Option<Vec<String>> {
        let text = self.text("auth-extra-groups");
        let groups = text.split(',').filter(|group| !group.is_empty());
        groups
            .map(|group| is_extra_group(group).then(|| group.to_owned()))
            .collect()
    }
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else {
        return false;
    };
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    rest.len() <= MAX_GROUP
        && rest.bytes().last().is_some_and(fits)
        && rest.bytes().all(|byte| fits(byte) || byte == b':' || byte == b'-')
}

/// The user a token stands for.
///
/// # Errors
/// Why it stands for nobody.
pub(super) fn authenticate(cache: &Cache, token: &BootstrapToken, now: Timestamp) -> Result<User, String> {
    let name = format!("{PREFIX}{}", token.id);
    let secret = cache.get("secrets", NAMESPACE, &name);
    let Some(secret) = secret.and_then(|object| TokenSecret::of(&object)) else {
        return Err(format!("there is no bootstrap token {}", token.id));
    };
    let known = secret.token();
    if !known.is_some_and(|known| known.id == token.id && token.is_secret(&known.secret)) {
        return Err(format!("the secret of bootstrap token {} is wrong", token.id));
    }
    if !secret.is_good(now) {
        return Err(format!("bootstrap token {} has expired", token.id));
    }
    if !secret.is_for("authentication") {
        return Err(format!("bootstrap token {} is not for authentication", token.id));
    }
    let Some(extra) = secret.extra_groups() else {
        return Err(format!(
            "bootstrap token {} has a group that is no bootstrappers'",
            token.id
        ));
    };
    let mut groups = vec![GROUP.to_owned()];
    groups.extend(extra);
    groups.push("system:authenticated".to_owned());
    Ok(User {
        name: format!("system:bootstrap:{}", token.id),
        groups,
        ..User::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Index;

    fn stored(token: &str, change: Value) -> TokenSecret {
        let token: BootstrapToken = token.parse().unwrap();
        let mut object = token.to_secret("2026-01-02T00:00:00Z".parse().ok(), "for a test");
        json_patch::merge(&mut object["stringData"], &change);
        let strings = object["stringData"].take();
        let encoded = strings.as_object().unwrap().iter();
        object["data"] = encoded
            .map(|(key, value)| (key.clone(), json!(STANDARD.encode(value.as_str().unwrap()))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let object = Object::new(("secrets", NAMESPACE, &name), 1, 1, Index::default(), &object);
        TokenSecret::of(&object).unwrap()
    }

    #[test]
    fn a_token_has_six_and_sixteen_characters() {
        let token = BootstrapToken::generate(&Environment::system());
        assert_eq!(
            token.to_string().parse::<BootstrapToken>().unwrap().to_string(),
            token.to_string()
        );
        for wrong in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "abcde.f0123456789abcdef",
            "abcdef.0123456789abcdef.",
        ] {
            assert!(wrong.parse::<BootstrapToken>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_very_secret_is_the_secret() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().unwrap();
        assert!(token.is_secret("0123456789abcdef"));
        for wrong in ["0123456789abcdeg", "0123456789abcde", "0123456789abcdeff", ""] {
            assert!(!token.is_secret(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_secret_tells_until_when_and_for_what() {
        let secret = stored(
            "abcdef.0123456789abcdef",
            json!({"auth-extra-groups": "system:bootstrappers:a:b"}),
        );
        assert_eq!(secret.token().unwrap().to_string(), "abcdef.0123456789abcdef");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(secret.is_good(at("2026-01-01T23:59:59Z")) && !secret.is_good(at("2026-01-02T00:00:00Z")));
        assert!(secret.is_for("signing") && secret.is_for("authentication") && !secret.is_for("x"));
        assert_eq!(secret.extra_groups().unwrap(), ["system:bootstrappers:a:b"]);
        let odd = stored(
            "abcdef.0123456789abcdef",
            json!({"expiration": "soon", "auth-extra-groups": "system:masters"}),
        );
        assert!(!odd.is_good(Timestamp::UNIX_EPOCH));
        assert_eq!(odd.extra_groups(), None);
        assert!(
            stored("abcdef.0123456789abcdef", json!({"token-id": "bcdefg"}))
                .token()
                .is_none()
        );
    }
}
