//! Validation of certificate signing requests (pkg/apis/certificates/validation).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::{is_name, is_qualified_name};
use super::super::resource::NameRule;
use super::{Errors, IMMUTABLE, list, meta, same, text};
use crate::pki::CertificateRequest;

/// Shortest life that may be asked for, in seconds.
const MIN_SECONDS: i64 = 600;
/// Name of the signer, and longest name of what it signs for.
const MAX_SIGNER: usize = 571;
const LEGACY: &str = "kubernetes.io/legacy-unknown";
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Validates a CertificateSigningRequest.
pub(in super::super) fn signing_request(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, false);
    let spec = &object["spec"];
    match old {
        None => new_spec(spec, &mut errors),
        Some(old) if !same(spec, &old["spec"]) => {
            errors.push(FieldError::invalid("spec", spec.clone(), IMMUTABLE));
        }
        Some(_) => {}
    }
    status(&object["status"], old.map(|old| &old["status"]), &mut errors);
    errors
}

fn new_spec(spec: &Value, errors: &mut Errors) {
    let request = STANDARD.decode(text(spec, "request")).unwrap_or_default();
    if let Err(why) = CertificateRequest::from_pem(&request) {
        errors.push(FieldError::invalid("spec.request", text(spec, "request"), why));
    }
    let usages = list(spec, "usages");
    if usages.is_empty() {
        errors.push(FieldError::required("spec.usages", ""));
    }
    for (index, usage) in usages.iter().enumerate() {
        let (path, name) = (format!("spec.usages[{index}]"), usage.as_str().unwrap_or_default());
        if !USAGES.contains(&name) {
            errors.push(FieldError::not_supported(path.as_str(), name, USAGES));
        }
        if usages[..index].contains(usage) {
            errors.push(FieldError::duplicate(path, name));
        }
    }
    signer_name(text(spec, "signerName"), errors);
    if let Some(seconds) = spec["expirationSeconds"]
        .as_i64()
        .filter(|seconds| *seconds < MIN_SECONDS)
    {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, detail));
    }
}

/// `domain/path`.
fn signer_name(name: &str, errors: &mut Errors) {
    let path = "spec.signerName";
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name == LEGACY {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.push(FieldError::invalid(path, name, detail));
        return;
    }
    let Some((domain, rest)) = name.split_once('/') else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path, name, detail));
        return;
    };
    let fits = domain.contains('.') && is_name(NameRule::Subdomain, domain).is_ok();
    let rest_fits = rest
        .split('.')
        .all(|part| !part.is_empty() && is_qualified_name(part).is_ok());
    if !fits || !rest_fits || name.len() > MAX_SIGNER {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path, name, detail));
    }
}

fn status(status: &Value, old: Option<&Value>, errors: &mut Errors) {
    let conditions = list(status, "conditions");
    let has = |kind: &str| conditions.iter().any(|condition| condition["type"] == kind);
    for (index, condition) in conditions.iter().enumerate() {
        let path = format!("status.conditions[{index}]");
        let kind = text(condition, "type");
        if kind.is_empty() {
            errors.push(FieldError::required(format!("{path}.type"), ""));
        }
        let state = text(condition, "status");
        let fixed = ["Approved", "Denied", "Failed"].contains(&kind);
        if state.is_empty() {
            errors.push(FieldError::required(format!("{path}.status"), ""));
        } else if fixed && state != "True" {
            errors.push(FieldError::not_supported(format!("{path}.status"), state, &["True"]));
        }
        if conditions[..index].iter().any(|earlier| earlier["type"] == kind) {
            errors.push(FieldError::duplicate(format!("{path}.type"), kind));
        }
    }
    if has("Approved") && has("Denied") {
        let detail = "Approved and Denied conditions are mutually exclusive";
        errors.push(FieldError::invalid("status.conditions", "Denied", detail));
    }
    for condition in old.map(|old| list(old, "conditions")).unwrap_or_default() {
        let kind = text(condition, "type");
        if ["Approved", "Denied", "Failed"].contains(&kind) && !has(kind) {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden("status.conditions", detail));
        }
    }
    certificate(
        text(status, "certificate"),
        old.map_or("", |old| text(old, "certificate")),
        errors,
    );
}

fn certificate(new: &str, old: &str, errors: &mut Errors) {
    if !old.is_empty() && new != old {
        let detail = "updates may not change a set certificate";
        errors.push(FieldError::forbidden("status.certificate", detail));
    } else if !new.is_empty() {
        let pem = STANDARD.decode(new).unwrap_or_default();
        let mut blocks = CertificateDer::pem_slice_iter(&pem).peekable();
        if blocks.peek().is_none() || !blocks.all(|block| block.is_ok()) {
            let detail = "must contain at least one CERTIFICATE PEM block";
            errors.push(FieldError::invalid("status.certificate", "<certificate data>", detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn request(signer: &str, usages: &[&str]) -> Value {
        let params = rcgen::CertificateParams::default();
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
        json!({"metadata": {"name": "c"}, "spec": {"request": STANDARD.encode(pem.pem().unwrap()),
            "signerName": signer, "usages": usages}})
    }

    #[test]
    fn what_is_asked_must_be_whole() {
        let good = request("example.com/signer", &["client auth"]);
        assert_eq!(texts(signing_request(&good, None)), Vec::<String>::new());
        for (signer, usages, field) in [
            ("", &["client auth"][..], "spec.signerName: Required"),
            ("kubernetes.io", &["client auth"], "spec.signerName: Invalid"),
            (
                "kubernetes.io/legacy-unknown",
                &["client auth"],
                "spec.signerName: Invalid",
            ),
            ("example.com/s", &[], "spec.usages: Required"),
            ("example.com/s", &["world rule"], "spec.usages[0]: Unsupported"),
            (
                "example.com/s",
                &["client auth", "client auth"],
                "spec.usages[1]: Duplicate",
            ),
        ] {
            let errors = texts(signing_request(&request(signer, usages), None));
            assert!(errors.len() == 1 && errors[0].starts_with(field), "{signer} {errors:?}");
        }
        let mut short = good.clone();
        short["spec"]["expirationSeconds"] = json!(10);
        short["spec"]["request"] = json!("bm90aGluZw==");
        let errors = texts(signing_request(&short, None));
        assert!(errors[0].starts_with("spec.request: Invalid") && errors[1].starts_with("spec.expirationSeconds"));
    }

    #[test]
    fn what_was_decided_stays() {
        let mut old = request("example.com/signer", &["client auth"]);
        old["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        let mut new = old.clone();
        new["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]});
        new["spec"]["usages"] = json!(["server auth"]);
        let errors = texts(signing_request(&new, Some(&old)));
        assert!(errors[0].starts_with("spec: Invalid"), "{errors:?}");
        assert!(
            errors[1].contains("may not remove a condition of type \"Approved\""),
            "{errors:?}"
        );
        new = old.clone();
        new["status"]["conditions"] =
            json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]);
        assert!(texts(signing_request(&new, Some(&old)))[0].contains("mutually exclusive"));
        new["status"] = json!({"conditions": old["status"]["conditions"], "certificate": "bm90aGluZw=="});
        assert!(texts(signing_request(&new, Some(&old)))[0].starts_with("status.certificate: Invalid"));
    }
}
