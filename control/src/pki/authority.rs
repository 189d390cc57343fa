//! The cluster's authority as its signer controller uses it: grants requests, nothing more than what it is told to.
//!
//! Extensions, usages and validity are the signer's; from the request come the key, the subject and the alternative names.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::{CertificateRequest, PkiError, error, load_pair, parse, set_validity, subject};

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
        let (subject, mut granted) = (request.subject, request.params);
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
        let made = granted.signed_by(&self.issuer).map_err(|error| error.to_string())?;
        let sign = |body: &[u8]| self.issuer.key().sign(body).map_err(|error| error.to_string());
        subject::exchange(made.der(), subject::OF_CERTIFICATE, &subject, sign).map(|exact| pem("CERTIFICATE", &exact))
    }
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut rest = text.as_str();
    let mut lines = format!("-----BEGIN {label}-----\n");
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        lines.push_str(line);
        lines.push('\n');
        rest = more;
    }
    lines.push_str(&format!("-----END {label}-----\n"));
    lines
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

    /// `Name`: SEQUENCE of SET of SEQUENCE of attribute (2.5.4.3, 2.5.4.10) and UTF8String.
    fn name(attributes: &[(u8, &str)]) -> Vec<u8> {
        let wrap = |tag: u8, content: Vec<u8>| [vec![tag, u8::try_from(content.len()).unwrap()], content].concat();
        let attribute = |(kind, text): &(u8, &str)| {
            let value = wrap(0x0c, text.as_bytes().to_vec());
            wrap(0x31, wrap(0x30, [wrap(0x06, vec![0x55, 4, *kind]), value].concat()))
        };
        wrap(0x30, attributes.iter().flat_map(attribute).collect())
    }

    #[test]
    fn a_user_of_many_groups_gets_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &PkiConfig::new("n1", "https://192.0.2.1:6443")).unwrap();
        let authority = Authority::load(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let plain = CertificateParams::new(Vec::new())
            .unwrap()
            .serialize_request(&key)
            .unwrap();
        let wanted = name(&[(10, "developers"), (10, "operators"), (10, "night watch"), (3, "jane")]);
        let sign = |body: &[u8]| key.sign(body).map_err(|error| error.to_string());
        let request = subject::exchange(plain.der(), 1, &wanted, sign).unwrap();
        let request = CertificateRequest::from_pem(pem("CERTIFICATE REQUEST", &request).as_bytes()).unwrap();
        assert_eq!(request.groups, ["developers", "operators", "night watch"]);
        let life = SignedDuration::from_mins(10);
        let signed = authority
            .sign(request, &["client auth"], life, Timestamp::now())
            .unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let made = parse(&der).unwrap();
        assert_eq!(made.subject().as_raw(), wanted);
        let ca = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        let trusted = rustls_pki_types::CertificateDer::from(ca.to_vec());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let now = rustls_pki_types::UnixTime::now();
        let verified = verifier.build().unwrap().verify_client_cert(&der, &[], now);
        assert!(verified.is_ok(), "{verified:?}");
    }

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
