//! The cluster's authority as its signer controller uses it: grants requests, nothing more than what it is told to.
//!
//! Extensions, usages and validity are the signer's; from the request come the key, the subject and the alternative names.

use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::{CertificateRequest, PkiError, error, load_pair, parse, set_validity};

/// Certificates hold from a little before they are made, for clocks that are behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// A certificate and the key to sign with.
pub struct Authority {
    pem: Arc<str>,
    issuer: Issuer<'static, KeyPair>,
    /// In seconds: nothing it signs outlives it.
    not_after: i64,
}

impl Authority {
    /// Loads `ca.crt` and `ca.key`.
    ///
    /// # Errors
    /// They are missing, damaged, or do not belong together.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let (path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let (der, pem, key) = load_pair(&path, &key_path)
            .ok_or_else(|| error("reading", &path, &"no certificate with the key that is beside it"))?;
        let not_after = parse(&der).map_or(0, |certificate| certificate.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| error("reading", &path, &e))?;
        Ok(Self {
            pem: pem.into(),
            issuer,
            not_after,
        })
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> &Arc<str> {
        &self.pem
    }

    /// Signs for `life` from `now`, for the named usages (`client auth`, `server auth`, `digital signature`, …).
    ///
    /// # Errors
    /// What of it cannot be granted.
    pub fn sign(
        &self,
        request: CertificateRequest,
        usages: &[&str],
        life: SignedDuration,
        now: Timestamp,
    ) -> Result<String, String> {
        if request.groups.len() > 1 {
            return Err("a subject with more than one organization cannot be signed by this authority".to_owned());
        }
        let mut granted = request.params;
        let params = &mut granted.params;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = usages.iter().filter_map(|usage| key_usage(usage)).collect();
        params.extended_key_usages = usages.iter().filter_map(|usage| extended_usage(usage)).collect();
        let backdate = if life < BACKDATE {
            SignedDuration::ZERO
        } else {
            BACKDATE
        };
        let end = (now + life).as_second().min(self.not_after);
        set_validity(params, (now - backdate).as_second(), end);
        granted
            .signed_by(&self.issuer)
            .map(|certificate| certificate.pem())
            .map_err(|error| error.to_string())
    }
}

fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    match name {
        "digital signature" => Some(KeyUsagePurpose::DigitalSignature),
        "key encipherment" => Some(KeyUsagePurpose::KeyEncipherment),
        _ => None,
    }
}

fn extended_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    match name {
        "client auth" => Some(ExtendedKeyUsagePurpose::ClientAuth),
        "server auth" => Some(ExtendedKeyUsagePurpose::ServerAuth),
        _ => None,
    }
}

/// `sha256:` and the digest of a certificate's public key (`SubjectPublicKeyInfo`, RFC 7469): what joining machines pin.
///
/// # Errors
/// The text holds no certificate.
pub fn pin(certificate: &str) -> Result<String, String> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| error.to_string())?;
    let parsed = parse(&der).ok_or("the certificate does not parse")?;
    let digest = Sha256::digest(parsed.public_key().raw);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType};

    use super::super::{PkiConfig, ensure};
    use super::*;

    #[test]
    fn what_it_grants_is_the_signers_not_the_requests() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &PkiConfig::new("n1", "https://192.0.2.1:6443")).unwrap();
        let authority = Authority::load(dir.path()).unwrap();
        let mut asked = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
        asked.distinguished_name.push(DnType::CommonName, "system:node:n1");
        asked.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        asked.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = asked.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let request = CertificateRequest::from_pem(request.pem().unwrap().as_bytes()).unwrap();
        let now = Timestamp::now();
        let life = SignedDuration::from_mins(10);
        let usages = ["digital signature", "server auth"];
        let pem = authority.sign(request, &usages, life, now).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let made = parse(&der).unwrap();
        assert!(!made.is_ca());
        assert!(!made.key_usage().unwrap().unwrap().value.key_cert_sign());
        assert!(made.extended_key_usage().unwrap().unwrap().value.server_auth);
        assert_eq!(made.validity().not_after.timestamp(), (now + life).as_second());
        let ca = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        let ca = parse(&ca).unwrap();
        assert_eq!(made.issuer(), ca.subject());
        assert!(pin(authority.pem()).unwrap().len() == "sha256:".len() + 64 && pin("x").is_err());
    }
}
