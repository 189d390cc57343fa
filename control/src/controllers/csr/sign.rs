//! Signs approved requests with the cluster's authority, if they are what their signer gives; says `Failed` if not.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use serde_json::json;

use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, REQUESTS, decode, fits_signer, has_condition, is_issued};
use crate::cache::Event;
use crate::controllers::controller::{Context, Controller, Key, Now, Outcome};
use crate::controllers::view::View;
use crate::pki::{Authority, CertificateRequest};
use crate::registry::time_text;

/// The controller.
pub struct Signer {
    /// The cluster's authority.
    pub authority: Arc<Authority>,
    /// Longest life of what it signs (`--cluster-signing-duration`).
    pub life: SignedDuration,
}

impl Controller for Signer {
    fn name(&self) -> &'static str {
        "csrsigning"
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        if &*event.object.resource == REQUESTS {
            add(Key::of(&event.object));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(REQUESTS, "", &key.name) else {
            return outcome;
        };
        let Some(request) = decode(&object) else { return outcome };
        let ours = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&request.spec.signer_name.as_str());
        let ready = has_condition(&request, "Approved") && !has_condition(&request, "Failed") && !is_issued(&request);
        if !ours || !ready {
            return outcome;
        }
        let usages = request.spec.usages.unwrap_or_default();
        let asked = request
            .spec
            .expiration_seconds
            .map(|seconds| SignedDuration::from_secs(seconds.into()));
        let life = asked.map_or(self.life, |asked| asked.min(self.life));
        let mut value = object.value();
        match self.sign(
            &request.spec.request.0,
            &request.spec.signer_name,
            &usages,
            life,
            &context.now,
        ) {
            Ok(certificate) => value["status"]["certificate"] = json!(STANDARD.encode(certificate)),
            Err(why) => {
                let now = time_text(context.now.wall);
                let failed = json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure",
                    "message": why, "lastUpdateTime": now, "lastTransitionTime": now});
                match value["status"]["conditions"].as_array_mut() {
                    Some(conditions) => conditions.push(failed),
                    None => value["status"]["conditions"] = json!([failed]),
                }
            }
        }
        outcome.update(&object, Some("status"), value);
        outcome
    }
}

impl Signer {
    fn sign(
        &self,
        pem: &[u8],
        signer: &str,
        usages: &[String],
        life: SignedDuration,
        now: &Now,
    ) -> Result<String, String> {
        let request = CertificateRequest::from_pem(pem)?;
        fits_signer(signer, &request, usages)?;
        let usages: Vec<&str> = usages.iter().map(String::as_str).collect();
        self.authority.sign(request, &usages, life, now.wall)
    }
}
