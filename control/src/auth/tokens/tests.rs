//! Tokens: what they say, when they end, and that they die with what they are bound to (FAULTS 47).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::json;

use super::*;
use crate::auth::Authenticator;
use crate::cache::tests::{change, empty, put, run};

fn tokens() -> Tokens {
    Tokens::from_pem(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap()
}

fn bound(name: &str, uid: &str) -> Bound {
    Bound {
        name: name.into(),
        uid: uid.into(),
    }
}

fn scope(pod: Option<Bound>) -> Scope {
    Scope {
        namespace: "d".into(),
        serviceaccount: bound("robot", "u-sa"),
        pod,
        secret: None,
        node: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_token_holds_for_its_time_only() {
    let tokens = tokens();
    let (token, expires) = tokens.issue(scope(None), &["vault".into()], 3600, at(1000)).unwrap();
    assert_eq!(expires, at(4600));
    let claims = tokens.verify(&token, at(4599)).unwrap();
    assert_eq!(
        (claims.sub.as_str(), claims.aud.as_slice()),
        ("system:serviceaccount:d:robot", &["vault".to_owned()][..])
    );
    assert!(tokens.verify(&token, at(4600)).unwrap_err().contains("expired 0 s ago"));
    assert!(
        tokens
            .verify(&token, at(999))
            .unwrap_err()
            .contains("not valid for another 1 s")
    );
    assert_eq!(
        tokens.issue(scope(None), &[], 1, at(0)).unwrap().1,
        at(600),
        "the shortest life"
    );
}

#[test]
fn only_this_clusters_key_signs() {
    let (tokens, other) = (tokens(), tokens());
    let (token, _) = other.issue(scope(None), &[], 3600, at(1000)).unwrap();
    assert!(
        tokens
            .verify(&token, at(1001))
            .unwrap_err()
            .contains("InvalidSignature")
    );
    let (token, _) = tokens.issue(scope(None), &[], 3600, at(1000)).unwrap();
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[1] = other
        .issue(scope(None), &[], 7200, at(1000))
        .unwrap()
        .0
        .split('.')
        .nth(1)
        .unwrap()
        .to_owned();
    assert!(tokens.verify(&parts.join("."), at(1001)).is_err());
    for junk in ["", "a.b.c", "....", &token[..token.len() - 5]] {
        assert!(tokens.verify(junk, at(1001)).is_err(), "{junk}");
    }
}

#[test]
fn others_can_verify_with_the_published_keys() {
    let tokens = tokens();
    let (token, _) = tokens.issue(scope(None), &[], 3600, at(1000)).unwrap();
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_value(tokens.jwks()).unwrap();
    let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    (validation.validate_exp, validation.validate_aud) = (false, false);
    assert_eq!(
        decode::<Value>(&token, &key, &validation).unwrap().claims["iss"],
        ISSUER
    );
    assert!(
        tokens.openid_configuration("https://h:6443")["jwks_uri"]
            .as_str()
            .unwrap()
            .starts_with("https://h:6443/")
    );
}

#[test]
fn ids_of_tokens_are_unique() {
    let tokens = tokens();
    let ids: std::collections::HashSet<String> = (0..1000).map(|_| tokens.id(at(5))).collect();
    assert_eq!(ids.len(), 1000);
    assert!(
        ids.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'4'),
        "{ids:?}"
    );
}

#[test]
fn tokens_die_with_what_they_are_bound_to() {
    let cache = empty();
    let tokens = Arc::new(tokens());
    let now = Arc::new(AtomicI64::new(1000));
    let clock = now.clone();
    let authenticator =
        Authenticator::with_clock(cache.clone(), tokens.clone(), move || at(clock.load(Ordering::Relaxed)));
    let authenticate = |token: &str| authenticator.authenticate(None, Some(token)).map_err(|e| e.to_string());
    put(
        &cache,
        "serviceaccounts",
        "d",
        "robot",
        json!({"metadata": {"uid": "u-sa"}}),
    );
    put(&cache, "pods", "d", "p", json!({"metadata": {"uid": "u-pod"}}));
    let issue = |pod| tokens.issue(scope(pod), &[], 3600, at(1000)).unwrap().0;
    let (plain, of_pod) = (issue(None), issue(Some(bound("p", "u-pod"))));
    let user = authenticate(&of_pod).unwrap();
    assert_eq!(user.name, "system:serviceaccount:d:robot");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:d",
            "system:authenticated"
        ]
    );
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert!(
        authenticate(&issue(Some(bound("p", "another"))))
            .unwrap_err()
            .contains("is gone")
    );

    let deleting = json!({"metadata": {"uid": "u-pod", "deletionTimestamp": at(1010).to_string()}});
    put(&cache, "pods", "d", "p", deleting);
    now.store(1069, Ordering::Relaxed);
    assert!(authenticate(&of_pod).is_ok(), "a pod may end in order");
    now.store(1071, Ordering::Relaxed);
    assert!(authenticate(&of_pod).unwrap_err().contains("was deleted"));
    now.store(1000, Ordering::Relaxed);
    run(cache.commit(vec![change("pods", "d", "p", None)])).unwrap();
    assert!(authenticate(&of_pod).unwrap_err().contains("is gone"));

    assert!(authenticate(&plain).is_ok());
    now.store(4600, Ordering::Relaxed);
    assert!(authenticate(&plain).unwrap_err().contains("expired"));
    now.store(1000, Ordering::Relaxed);
    put(
        &cache,
        "serviceaccounts",
        "d",
        "robot",
        json!({"metadata": {"uid": "made again"}}),
    );
    assert!(authenticate(&plain).unwrap_err().contains("is gone"));
}

#[test]
fn a_token_for_another_audience_is_none_for_the_api() {
    let cache = empty();
    let tokens = Arc::new(tokens());
    put(
        &cache,
        "serviceaccounts",
        "d",
        "robot",
        json!({"metadata": {"uid": "u-sa"}}),
    );
    let authenticator = Authenticator::with_clock(cache, tokens.clone(), || at(1001));
    let (token, _) = tokens
        .issue(scope(None), &["vault".into(), "db".into()], 3600, at(1000))
        .unwrap();
    assert!(authenticator.authenticate(None, Some(&token)).is_err());
    let (_, audiences) = authenticator.review(&token, &["db", "x"]).unwrap();
    assert_eq!(audiences, ["db"]);
    assert!(authenticator.authenticate(None, None).is_err());
    assert!(authenticator.authenticate(Some(b"no certificate"), None).is_err());
}
