//! Asks the cluster for a certificate: a key made here, a CertificateSigningRequest, and the wait until it is signed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use super::Pair;
use crate::client::{Client, ClientError, Watch};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How long the cluster may take to approve and sign. A person may have to.
const WAIT: Duration = Duration::from_secs(15 * 60);

/// What kind of certificate is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node.
    pub node: String,
    /// Names and addresses of a serving certificate; empty for a client certificate.
    pub names: Vec<String>,
}

impl Request {
    fn signer(&self) -> (&'static str, &'static str) {
        if self.names.is_empty() {
            ("kubernetes.io/kube-apiserver-client-kubelet", "client auth")
        } else {
            ("kubernetes.io/kubelet-serving", "server auth")
        }
    }

    /// The object, and the key that it proves to hold.
    fn object(&self) -> Result<(Value, KeyPair), rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(self.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("system:node:{}", self.node));
        let request = params.serialize_request(&key)?.pem()?;
        let (signer, usage) = self.signer();
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "csr-"},
            "spec": {"request": STANDARD.encode(request), "signerName": signer, "usages": ["digital signature", usage]},
        });
        Ok((object, key))
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The key or the request cannot be made.
    #[error("cannot make a key and a certificate request: {0}")]
    Make(#[from] rcgen::Error),
    /// The API server refuses, or cannot be reached.
    #[error("cannot ask for a certificate: {0}")]
    Api(#[from] ClientError),
    /// The cluster says no.
    #[error("certificate request {name}: {what}; see kubectl describe csr {name}")]
    Refused {
        /// Name of the request.
        name: String,
        /// The reason.
        what: String,
    },
    /// What came back is no certificate.
    #[error("certificate request {name}: the cluster's answer is not usable: {what}")]
    Unusable {
        /// Name of the request.
        name: String,
        /// Why not.
        what: String,
    },
}

/// Asks for a certificate and waits until it is there.
///
/// # Errors
/// [`RequestError`]; after 15 min without an answer, too.
pub async fn obtain(client: &Client, request: &Request) -> Result<Pair, RequestError> {
    let (object, key) = request.object()?;
    let created = client.create(REQUESTS, &object).await?;
    let name = created["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let refused = |what: String| RequestError::Refused {
        name: name.clone(),
        what,
    };
    let certificate = tokio::time::timeout(WAIT, issued(client, &name))
        .await
        .map_err(|_| {
            refused(format!(
                "not approved within {WAIT:?}: kubectl certificate approve {name}"
            ))
        })??
        .map_err(refused)?;
    let unusable = |what: String| RequestError::Unusable {
        name: name.clone(),
        what,
    };
    let mut pem = STANDARD
        .decode(certificate)
        .map_err(|error| unusable(format!("base64: {error}")))?;
    pem.extend_from_slice(key.serialize_pem().as_bytes());
    Pair::from_pem(pem).map_err(unusable)
}

/// Waits for the certificate of a request, or for its refusal.
async fn issued(client: &Client, name: &str) -> Result<Result<String, String>, ClientError> {
    loop {
        let current = client.get(&format!("{REQUESTS}/{name}")).await?;
        if let Some(outcome) = outcome(&current) {
            return Ok(outcome);
        }
        let version = current["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let path = format!("{REQUESTS}?watch=true&fieldSelector=metadata.name%3D{name}&resourceVersion={version}");
        let mut watch = client.watch(&path).await?;
        if let Some(outcome) = first_outcome(&mut watch).await {
            return Ok(outcome);
        }
    }
}

async fn first_outcome(watch: &mut Watch) -> Option<Result<String, String>> {
    while let Ok(Some(event)) = watch.next().await {
        if let Some(outcome) = outcome(&event.object) {
            return Some(outcome);
        }
    }
    None
}

/// What became of a request; `None`: nothing yet.
fn outcome(request: &Value) -> Option<Result<String, String>> {
    let status = &request["status"];
    if let Some(certificate) = status["certificate"].as_str().filter(|text| !text.is_empty()) {
        return Some(Ok(certificate.to_owned()));
    }
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut ends = conditions.filter(|condition| condition["type"] == "Denied" || condition["type"] == "Failed");
    let end = ends.next()?;
    let text = |field: &str| end[field].as_str().unwrap_or_default().to_owned();
    Some(Err(format!(
        "{} ({}: {})",
        text("type"),
        text("reason"),
        text("message")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_is_read_from_the_status() {
        assert_eq!(
            outcome(&json!({"status": {"conditions": [{"type": "Approved"}]}})),
            None
        );
        assert_eq!(
            outcome(&json!({"status": {"certificate": "eA=="}})),
            Some(Ok("eA==".to_owned()))
        );
        let denied = json!({"status": {"conditions": [{"type": "Denied", "reason": "No", "message": "not you"}]}});
        assert_eq!(outcome(&denied), Some(Err("Denied (No: not you)".to_owned())));
    }

    #[test]
    fn names_make_it_a_serving_certificate() {
        let mut request = Request {
            node: "n1".to_owned(),
            names: Vec::new(),
        };
        let (object, _) = request.object().unwrap();
        assert_eq!(object["spec"]["usages"], json!(["digital signature", "client auth"]));
        request.names = vec!["n1".to_owned(), "192.0.2.1".to_owned()];
        let (object, _) = request.object().unwrap();
        assert_eq!(object["spec"]["signerName"], "kubernetes.io/kubelet-serving");
    }
}
