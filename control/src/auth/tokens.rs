//! Service-account tokens: JWTs signed with ES256, bound to an account and, if asked, to a pod, secret or node.
//!
//! A token says who, for whom (audience) and until when; whether its account and bound object still live is asked of
//! the cache each time (`Authenticator`). Claims are Kubernetes' (`kubernetes.io`).

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::User;

/// Issuer of all tokens, and the audience of the API server itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Shortest and longest life of a token, in seconds.
pub const LIFE_SECONDS: std::ops::RangeInclusive<i64> = 600..=(1 << 32);

/// An object named in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Name.
    pub name: String,
    /// Unique id: an object of the same name made later is another one.
    pub uid: String,
}

/// The claim `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Bound,
    /// The pod the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// The secret the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    /// The node of the pod, or the node the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom.
    pub aud: Vec<String>,
    /// Not after, in seconds.
    pub exp: i64,
    /// Issued, in seconds.
    pub iat: i64,
    /// By whom.
    pub iss: String,
    /// Unique id of the token.
    pub jti: String,
    /// Account and bound objects.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Scope,
    /// Not before, in seconds.
    pub nbf: i64,
    /// User name of the account.
    pub sub: String,
}

impl Claims {
    pub(super) fn into_user(self) -> User {
        let scope = self.kubernetes;
        let mut user = User {
            name: self.sub,
            uid: scope.serviceaccount.uid,
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", scope.namespace),
                "system:authenticated".into(),
            ],
            ..User::default()
        };
        let mut extra = |key: &str, value: String| {
            user.extra
                .insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        extra("credential-id", format!("JTI={}", self.jti));
        for (kind, bound) in [("pod", scope.pod), ("node", scope.node)] {
            if let Some(Bound { name, uid }) = bound {
                extra(&format!("{kind}-name"), name);
                extra(&format!("{kind}-uid"), uid);
            }
        }
        user
    }
}

/// Issues and verifies tokens with one key.
pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    jwk: Value,
    kid: String,
    random: RandomState,
}

impl Tokens {
    /// With the private key in a PEM file (`sa.key`).
    ///
    /// # Errors
    /// A text: the file cannot be read or holds no P-256 key in PKCS#8.
    pub fn load(key: &Path) -> Result<Self, String> {
        let pem = std::fs::read(key).map_err(|e| format!("reading {}: {e}", key.display()))?;
        Self::from_pem(&pem).map_err(|e| format!("{} holds no P-256 key: {e}", key.display()))
    }

    fn from_pem(pem: &[u8]) -> Result<Self, jsonwebtoken::errors::Error> {
        let signing = EncodingKey::from_ec_pem(pem)?;
        let key = Jwk::from_encoding_key(&signing, Algorithm::ES256)?;
        let verifying = DecodingKey::from_jwk(&key)?;
        let kid = key.thumbprint(ThumbprintHash::SHA256)?;
        let mut jwk = serde_json::to_value(&key).unwrap_or_default();
        jwk["kid"] = kid.as_str().into();
        jwk["use"] = "sig".into();
        Ok(Self {
            signing,
            verifying,
            jwk,
            kid,
            random: RandomState::new(),
        })
    }

    /// Sign a token for the account of `scope`, living `seconds` from `now`. Without audiences it is for the API server.
    ///
    /// # Errors
    /// A text, if signing fails.
    pub fn issue(
        &self,
        scope: Scope,
        audiences: &[String],
        seconds: i64,
        now: Timestamp,
    ) -> Result<(String, Timestamp), String> {
        let seconds = seconds.clamp(*LIFE_SECONDS.start(), *LIFE_SECONDS.end());
        let iat = now.as_second();
        let claims = Claims {
            aud: if audiences.is_empty() {
                vec![ISSUER.into()]
            } else {
                audiences.to_vec()
            },
            exp: iat + seconds,
            iat,
            iss: ISSUER.into(),
            jti: self.id(now),
            nbf: iat,
            sub: format!(
                "system:serviceaccount:{}:{}",
                scope.namespace, scope.serviceaccount.name
            ),
            kubernetes: scope,
        };
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(Algorithm::ES256)
        };
        let token = encode(&header, &claims, &self.signing).map_err(|e| format!("signing a token: {e}"))?;
        let expires = Timestamp::from_second(claims.exp).map_err(|e| format!("the token's expiry: {e}"))?;
        Ok((token, expires))
    }

    /// What a token says, if it is ours and in its time.
    ///
    /// # Errors
    /// A text: why not.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, String> {
        let mut validation = Validation::new(Algorithm::ES256);
        // Time and audience are checked against arguments, not against the machine's clock.
        (
            validation.validate_exp,
            validation.validate_nbf,
            validation.validate_aud,
        ) = (false, false, false);
        validation.set_issuer(&[ISSUER]);
        let decoded = decode::<Claims>(token, &self.verifying, &validation);
        let claims = decoded
            .map_err(|e| format!("the token is not one of this cluster: {e}"))?
            .claims;
        let now = now.as_second();
        if now >= claims.exp {
            return Err(format!(
                "the token of {} expired {} s ago",
                claims.sub,
                now - claims.exp
            ));
        }
        if now < claims.nbf {
            return Err(format!(
                "the token of {} is not valid for another {} s",
                claims.sub,
                claims.nbf - now
            ));
        }
        let account = &claims.kubernetes;
        if claims.sub
            != format!(
                "system:serviceaccount:{}:{}",
                account.namespace, account.serviceaccount.name
            )
        {
            return Err(format!("the token's subject {} is not its account", claims.sub));
        }
        Ok(claims)
    }

    /// The public keys, as `/openid/v1/jwks` serves them.
    pub fn jwks(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    /// What `/.well-known/openid-configuration` serves.
    pub fn openid_configuration(&self, server: &str) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// A unique id (a version 4 UUID in form): the hasher's keys are random, the inputs never repeat.
    fn id(&self, now: Timestamp) -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let part = |salt: u8| self.random.hash_one((salt, count, now.as_nanosecond()));
        let (a, b) = (part(0), part(1));
        let variant = 0x8000 | (b >> 48) & 0x3fff;
        format!(
            "{:08x}-{:04x}-4{:03x}-{variant:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            b & 0xffff_ffff_ffff
        )
    }
}

#[cfg(test)]
mod tests;
