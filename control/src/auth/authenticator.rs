//! From credentials to a [`User`]: the subject of a verified client certificate, a service-account token, or a bootstrap
//! token.

use std::sync::Arc;

use jiff::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tokens::{Bound, Claims, ISSUER, Tokens};
use super::{User, bootstrap_token};
use crate::cache::Cache;

/// How long the token of a pod that is being deleted still holds, so that it can end in order.
const LEEWAY_SECONDS: i64 = 60;

/// The credentials are not good; the text says why, for the log. Clients are told `Unauthorized` only.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unauthenticated(pub String);

/// Turns credentials into users.
pub struct Authenticator {
    cache: Arc<Cache>,
    tokens: Arc<Tokens>,
    clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Authenticator {
    /// Accounts and bound objects are looked up in `cache`.
    pub fn new(cache: Arc<Cache>, tokens: Arc<Tokens>) -> Self {
        Self::with_clock(cache, tokens, Timestamp::now)
    }

    /// With another clock, for tests and simulations.
    pub fn with_clock(
        cache: Arc<Cache>,
        tokens: Arc<Tokens>,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> Self {
        Self {
            cache,
            tokens,
            clock: Box::new(clock),
        }
    }

    /// The user behind a certificate (DER; its chain has been verified by TLS) or a bearer token, which goes first.
    /// Bootstrap tokens are told by their form: no other token has it.
    ///
    /// # Errors
    /// [`Unauthenticated`] if there are no credentials or they are not, or no longer, good.
    pub fn authenticate(&self, cert: Option<&[u8]>, bearer: Option<&str>) -> Result<User, Unauthenticated> {
        match (bearer, cert) {
            (Some(token), _) => match token.parse() {
                Ok(token) => {
                    bootstrap_token::authenticate(&self.cache, &token, (self.clock)()).map_err(Unauthenticated)
                }
                Err(_) => self.review(token, &[ISSUER]).map(|(user, _)| user),
            },
            (None, Some(certificate)) => {
                let user = certificate_user(certificate)?;
                let (_, parsed) = X509Certificate::from_der(certificate).map_err(malformed)?;
                // The handshake checked it; the connection may have outlived it.
                if parsed.validity().not_after.timestamp() < (self.clock)().as_second() {
                    return Err(Unauthenticated(format!("the certificate of {} has expired", user.name)));
                }
                Ok(user)
            }
            (None, None) => Err(Unauthenticated("there are no credentials".into())),
        }
    }

    /// The user behind a token that is for at least one of `audiences`, and which of them it is for (TokenReview).
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub fn review(&self, token: &str, audiences: &[&str]) -> Result<(User, Vec<String>), Unauthenticated> {
        let now = (self.clock)();
        let claims = self.tokens.verify(token, now).map_err(Unauthenticated)?;
        let common: Vec<String> = claims
            .aud
            .iter()
            .filter(|a| audiences.contains(&a.as_str()))
            .cloned()
            .collect();
        if common.is_empty() {
            return Err(Unauthenticated(format!(
                "the token is for {:?}, not for {audiences:?}",
                claims.aud
            )));
        }
        self.check_bound(&claims, now)?;
        Ok((claims.into_user(), common))
    }

    /// A token dies with its account and with what it is bound to.
    fn check_bound(&self, claims: &Claims, now: Timestamp) -> Result<(), Unauthenticated> {
        let scope = &claims.kubernetes;
        let namespace = scope.namespace.as_str();
        let bound = [
            ("serviceaccounts", namespace, Some(&scope.serviceaccount)),
            ("pods", namespace, scope.pod.as_ref()),
            ("secrets", namespace, scope.secret.as_ref()),
        ];
        // A token of a pod names its node for information only; one bound to the node alone dies with it.
        let node = scope.node.as_ref().filter(|_| scope.pod.is_none());
        for (resource, namespace, bound) in bound.into_iter().chain([("nodes", "", node)]) {
            let Some(Bound { name, uid }) = bound else { continue };
            let object = self
                .cache
                .get(resource, namespace, name)
                .filter(|object| object.uid() == uid);
            let Some(object) = object else {
                return Err(Unauthenticated(format!(
                    "{resource} {namespace}/{name} of the token is gone"
                )));
            };
            let ended = object.value()["metadata"]["deletionTimestamp"]
                .as_str()
                .and_then(|at| at.parse::<Timestamp>().ok())
                .is_some_and(|at| at.as_second() + LEEWAY_SECONDS < now.as_second());
            if ended {
                return Err(Unauthenticated(format!(
                    "{resource} {namespace}/{name} of the token was deleted"
                )));
            }
        }
        Ok(())
    }
}

/// The user a client certificate names: common name and organizations.
///
/// # Errors
/// [`Unauthenticated`] if it is no certificate or names nobody.
pub fn certificate_user(der: &[u8]) -> Result<User, Unauthenticated> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .find_map(|name| name.as_str().ok())
        .unwrap_or_default();
    if name.is_empty() {
        return Err(Unauthenticated("the certificate has no common name".into()));
    }
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok())
        .map(str::to_owned)
        .collect();
    if !groups.iter().any(|group| group == "system:authenticated") {
        groups.push("system:authenticated".into());
    }
    Ok(User {
        name: name.into(),
        groups,
        ..User::default()
    })
}

fn malformed(error: x509_parser::nom::Err<x509_parser::error::X509Error>) -> Unauthenticated {
    Unauthenticated(format!("the certificate does not parse: {error}"))
}
