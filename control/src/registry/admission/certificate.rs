//! CertificateSigningRequests: who asks is written down by the server, who decides must be allowed to for that signer.
//!
//! The plugins CertificateSubjectRestriction, CertificateApproval and CertificateSigning of Kubernetes, and what its
//! storage strategies do. Invariant: `/approval` changes conditions only, `/status` never an approval or a denial.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::metadata::{child_mut, text};
use super::super::{Registry, Status};
use crate::auth::{Attributes, Decision, MASTERS, User};
use crate::pki::CertificateRequest;
use crate::schema::Resource;

/// Storage key of the requests.
pub(in super::super) const KEY: &str = "certificates.k8s.io/certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Fills in who asks; what would make its owner an administrator is refused.
pub(super) fn create(who: &User, resource: &'static Resource, object: &mut Value) -> Result<(), Status> {
    let spec = child_mut(object, "spec");
    spec.insert("username".into(), json!(who.name));
    spec.insert("groups".into(), json!(who.groups));
    spec.remove("uid");
    spec.remove("extra");
    if !who.uid.is_empty() {
        spec.insert("uid".into(), json!(who.uid));
    }
    if !who.extra.is_empty() {
        spec.insert("extra".into(), json!(who.extra));
    }
    if text(object, "/spec/signerName") != CLIENT_SIGNER {
        return Ok(());
    }
    let pem = STANDARD.decode(text(object, "/spec/request")).unwrap_or_default();
    match CertificateRequest::from_pem(&pem) {
        Ok(request) if request.groups.iter().any(|group| group == MASTERS) => {
            let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            Err(Status::forbidden(resource, text(object, "/metadata/name"), why))
        }
        _ => Ok(()),
    }
}

/// Whether `who` may approve or sign, when that is what an update does.
pub(super) fn update(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    subresource: Option<&str>,
    new: &Value,
    old: &Value,
) -> Result<(), Status> {
    let (verb, word) = match subresource {
        Some("approval") => ("approve", "approve"),
        Some("status") if new["status"] != old["status"] => ("sign", "sign"),
        _ => return Ok(()),
    };
    let signer = text(old, "/spec/signerName");
    let domain = signer.split('/').next().unwrap_or_default();
    let any_of_domain = format!("{domain}/*");
    let may = |name: &str| {
        let asked = Attributes {
            verb,
            group: "certificates.k8s.io",
            resource: "signers",
            name,
            ..Attributes::default()
        };
        matches!(registry.authorizer.authorize(who, &asked), Decision::Allow(_))
    };
    if may(signer) || may(&any_of_domain) {
        return Ok(());
    }
    let why = format!("user not permitted to {word} requests with signerName {signer:?}");
    Err(Status::forbidden(resource, text(old, "/metadata/name"), why))
}

/// What a write to `/approval` or `/status` makes of the request, at the time `now`.
pub(in super::super) fn merge(subresource: &str, new: &mut Value, old: &Value, now: &str) {
    let mut status = new["status"].take();
    let decisions = |status: &Value| -> Vec<Value> { conditions(status, is_decision) };
    let (kept, set) = if subresource == "approval" {
        match old["status"].get("certificate") {
            Some(certificate) => status["certificate"] = certificate.clone(),
            None => drop(status.as_object_mut().map(|status| status.remove("certificate"))),
        }
        (Vec::new(), conditions(&status, |_| true))
    } else {
        (
            decisions(&old["status"]),
            conditions(&status, |kind| !is_decision(kind)),
        )
    };
    let mut all: Vec<Value> = kept.into_iter().chain(set).collect();
    for condition in &mut all {
        stamp(condition, old, now);
    }
    if !all.is_empty() || !status["conditions"].is_null() {
        status["conditions"] = Value::Array(all);
    }
    let labels = new["metadata"].take();
    *new = old.clone();
    new["metadata"] = labels;
    if !status.is_null() {
        new["status"] = status;
    }
}

fn is_decision(kind: &str) -> bool {
    matches!(kind, "Approved" | "Denied")
}

fn conditions(status: &Value, wanted: impl Fn(&str) -> bool) -> Vec<Value> {
    let list = status["conditions"].as_array().into_iter().flatten();
    let of_kind = |condition: &&Value| wanted(condition["type"].as_str().unwrap_or_default());
    list.filter(of_kind).cloned().collect()
}

/// Fills in the times that the client left open.
fn stamp(condition: &mut Value, old: &Value, now: &str) {
    if !condition.is_object() {
        return;
    }
    let before = conditions(&old["status"], |kind| condition["type"] == kind);
    if condition["lastUpdateTime"].is_null() {
        condition["lastUpdateTime"] = json!(now);
    }
    if condition["lastTransitionTime"].is_null() {
        let same = before.iter().find(|earlier| earlier["status"] == condition["status"]);
        condition["lastTransitionTime"] = same.map_or(json!(now), |earlier| earlier["lastTransitionTime"].clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subresource_writes_its_part_only() {
        let old = json!({"metadata": {"name": "c"}, "spec": {"usages": ["client auth"]},
            "status": {"conditions": [{"type": "Approved", "status": "True", "lastUpdateTime": "t", "lastTransitionTime": "t"}]}});
        let mut signed = json!({"metadata": {"name": "c"}, "spec": {"usages": []},
            "status": {"certificate": "x", "conditions": [{"type": "Denied", "status": "True"}, {"type": "Failed", "status": "True"}]}});
        merge("status", &mut signed, &old, "now");
        let kinds = |object: &Value| -> Vec<String> {
            let list = object["status"]["conditions"].as_array().unwrap();
            list.iter()
                .map(|condition| condition["type"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(kinds(&signed), ["Approved", "Failed"]);
        assert_eq!(
            (&signed["status"]["certificate"], &signed["spec"]),
            (&json!("x"), &old["spec"])
        );
        assert_eq!(signed["status"]["conditions"][1]["lastUpdateTime"], "now");
        let mut approved = signed.clone();
        approved["status"] = json!({"certificate": "forged", "conditions": [{"type": "Approved", "status": "True"}]});
        merge("approval", &mut approved, &signed, "later");
        assert_eq!(kinds(&approved), ["Approved"]);
        assert_eq!(approved["status"]["certificate"], "x");
        assert_eq!(approved["status"]["conditions"][0]["lastTransitionTime"], "t");
    }
}
