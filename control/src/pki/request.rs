//! PKCS#10 certificate requests (RFC 2986) as `CertificateSigningRequest` objects carry them: what they ask for, and proof
//! that the asker holds the key.

use std::net::IpAddr;

use rcgen::{CertificateSigningRequestParams, DnType, DnValue, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer as _, X509CertificationRequest};

/// A request that was parsed and whose signature holds.
pub struct CertificateRequest {
    pub(super) params: CertificateSigningRequestParams,
    /// Common name of the subject.
    pub user: String,
    /// The subject, in DER.
    pub(super) subject: Vec<u8>,
    /// Organizations of the subject.
    pub groups: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// There are alternative names of other kinds: mail addresses, URIs, …
    pub has_others: bool,
}

impl CertificateRequest {
    /// Reads a request in PEM.
    ///
    /// # Errors
    /// Why it is none, or cannot be granted as it is.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
        let params = CertificateSigningRequestParams::from_der(&der).map_err(|error| error.to_string())?;
        let (subject, groups) = subject(&der)?;
        let text = |value: &DnValue| match value {
            DnValue::PrintableString(text) => text.as_str().to_owned(),
            DnValue::Utf8String(text) => text.clone(),
            DnValue::Ia5String(text) => text.as_str().to_owned(),
            _ => String::new(),
        };
        let user = params.params.distinguished_name.get(&DnType::CommonName).map(text);
        let mut request = Self {
            user: user.unwrap_or_default(),
            subject,
            groups,
            names: Vec::new(),
            ips: Vec::new(),
            has_others: false,
            params,
        };
        for name in &request.params.params.subject_alt_names {
            match name {
                SanType::DnsName(name) => request.names.push(name.as_str().to_owned()),
                SanType::IpAddress(ip) => request.ips.push(*ip),
                _ => request.has_others = true,
            }
        }
        Ok(request)
    }
}

/// The subject as it is, and its organizations.
fn subject(der: &[u8]) -> Result<(Vec<u8>, Vec<String>), String> {
    let (_, request) = X509CertificationRequest::from_der(der).map_err(|error| error.to_string())?;
    let subject = &request.certification_request_info.subject;
    let organization = |group: &AttributeTypeAndValue<'_>| {
        let text = group.as_str().map(str::to_owned);
        text.map_err(|error| format!("organization of the subject: {error}"))
    };
    let groups: Result<_, String> = subject.iter_organization().map(organization).collect();
    Ok((subject.as_raw().to_owned(), groups?))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_request_is_read_and_its_signature_checked() {
        let mut params = CertificateParams::new(vec!["n1".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let parsed = CertificateRequest::from_pem(request.pem().unwrap().as_bytes()).unwrap();
        assert_eq!(
            (parsed.user.as_str(), &parsed.groups[..], parsed.has_others),
            ("system:node:n1", &["system:nodes".to_owned()][..], false)
        );
        assert_eq!(
            (parsed.names, parsed.ips),
            (vec!["n1".to_owned()], vec!["192.0.2.1".parse().unwrap()])
        );
        let mut damaged = request.der().to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &damaged)
        );
        assert!(CertificateRequest::from_pem(pem.as_bytes()).is_err());
        assert!(CertificateRequest::from_pem(b"no PEM").is_err());
    }
}
