//! Certificate signing requests: approved where nothing speaks against it, signed once approved, removed when done with.
//! Kubernetes: "Certificates and Certificate Signing Requests", "TLS bootstrapping".

pub mod approve;
pub mod clean;
pub mod sign;
#[cfg(test)]
mod tests;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use crate::auth::User;
use crate::cache::Object;
use crate::pki::CertificateRequest;

/// The resource.
pub const REQUESTS: &str = "certificates.k8s.io/certificatesigningrequests";
/// Signs certificates of users and programs.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs what agents show to the API server.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs what agents show to those who call them.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";

/// Decodes a request; `None` if the body is none.
fn decode(object: &Object) -> Option<CertificateSigningRequest> {
    object.typed().ok()
}

fn has_condition(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == kind)
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

/// Who asked.
fn asker(request: &CertificateSigningRequest) -> User {
    let spec = &request.spec;
    User {
        name: spec.username.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    }
}

/// Whether what is asked for is what the signer gives.
fn fits_signer(signer: &str, request: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    let only = |kind: &str| {
        let allowed = ["digital signature", "key encipherment", kind];
        let fits = usages.iter().all(|usage| allowed.contains(&usage.as_str()));
        let needed = usages.iter().any(|usage| usage == kind);
        if fits && needed {
            Ok(())
        } else {
            Err(format!(
                "usages must be {kind:?} with digital signature or key encipherment, got {usages:?}"
            ))
        }
    };
    match signer {
        CLIENT => only("client auth"),
        KUBELET_CLIENT => {
            is_node(request)?;
            if !request.names.is_empty() || !request.ips.is_empty() || request.has_others {
                return Err("subject alternative names are not allowed".to_owned());
            }
            only("client auth")
        }
        KUBELET_SERVING => {
            is_node(request)?;
            if request.has_others {
                return Err("only DNS names and IP addresses are allowed".to_owned());
            }
            if request.names.is_empty() && request.ips.is_empty() {
                return Err("at least one DNS name or IP address is required".to_owned());
            }
            only("server auth")
        }
        other => Err(format!("there is no signer {other:?} here")),
    }
}

fn is_node(request: &CertificateRequest) -> Result<(), String> {
    if request.groups != [NODES_GROUP] {
        return Err(format!("subject organization is not {NODES_GROUP}"));
    }
    match request.user.strip_prefix(NODE_PREFIX) {
        Some(name) if !name.is_empty() => Ok(()),
        _ => Err(format!("subject common name does not begin with {NODE_PREFIX}")),
    }
}
