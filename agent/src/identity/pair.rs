//! A certificate and its key in one file, so that no crash can leave one without the other.
//!
//! The file appears whole (rename), is durable, and readable by its owner only.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A file could not be read or written, or does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {what}")]
pub struct PairError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What was wrong.
    pub what: String,
}

/// A certificate chain and its key.
#[derive(Clone)]
pub struct Pair {
    pem: Vec<u8>,
    /// Valid from, in seconds since 1970.
    pub not_before: i64,
    /// Valid until, in seconds since 1970.
    pub not_after: i64,
    /// Key identifier of the authority that signed it; empty if it does not say.
    pub authority: Vec<u8>,
    /// Names and addresses in it, sorted, as text.
    pub names: Vec<String>,
}

impl Pair {
    /// From PEM texts, the certificate first.
    ///
    /// # Errors
    /// What does not parse.
    pub fn from_pem(pem: Vec<u8>) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(&pem).map_err(|error| format!("certificate: {error}"))?;
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| format!("key: {error}"))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| format!("certificate: {error}"))?;
        Ok(Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            authority: authority(&certificate),
            names: names(&certificate),
            pem,
        })
    }

    /// Reads a pair; `None` if there is no such file.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn read(path: &Path) -> Result<Option<Self>, PairError> {
        let failed = |what: String| PairError {
            action: "read",
            path: path.to_owned(),
            what,
        };
        match fs::read(path) {
            Ok(pem) => Self::from_pem(pem).map(Some).map_err(failed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Writes it over what was there.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn write(&self, path: &Path) -> Result<(), PairError> {
        replace(path, &self.pem)
    }

    /// Chain and key in PEM.
    #[must_use]
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// Whether it holds at a moment.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        now.as_second() < self.not_after
    }
}

/// Replaces a file as a whole, durably, for its owner only.
///
/// # Errors
/// [`PairError`].
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), PairError> {
    let partial = path.with_extension("new");
    let written = (|| {
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)?;
        let _ = fs::remove_file(&partial);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        fs::File::open(parent)?.sync_all()
    })();
    written.map_err(|error: std::io::Error| PairError {
        action: "write",
        path: path.to_owned(),
        what: error.to_string(),
    })
}

/// The key identifier that a certificate says its authority has.
fn authority(certificate: &X509Certificate<'_>) -> Vec<u8> {
    use x509_parser::extensions::ParsedExtension;
    let ids = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        });
    ids.into_iter().next().unwrap_or_default()
}

/// The key identifier of an authority's own certificate (PEM); empty if it has none.
#[must_use]
pub(crate) fn own_identifier(ca: &[u8]) -> Vec<u8> {
    use x509_parser::extensions::ParsedExtension;
    let Ok(der) = CertificateDer::from_pem_slice(ca) else {
        return Vec::new();
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
        return Vec::new();
    };
    let ids = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
    ids.into_iter().next().unwrap_or_default()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let mut names: Vec<String> = alternatives
        .into_iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect();
    names.sort();
    names
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
    v4.or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_pair_is_kept_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent/client.pem");
        assert!(Pair::read(&path).unwrap().is_none());
        let key = KeyPair::generate().unwrap();
        let names = vec!["n1".to_owned(), "2001:db8::1".to_owned(), "192.0.2.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let pem = certificate.pem() + &key.serialize_pem();
        let pair = Pair::from_pem(pem.clone().into_bytes()).unwrap();
        pair.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Pair::read(&path).unwrap().unwrap();
        assert_eq!((read.pem(), read.not_after), (pem.as_bytes(), pair.not_after));
        assert_eq!(read.names, ["192.0.2.1", "2001:db8::1", "n1"]);
        assert!(read.is_valid(Timestamp::now()));
        fs::write(&path, certificate.pem()).unwrap();
        let error = Pair::read(&path).err().unwrap().to_string();
        assert!(error.contains("key:") && error.contains("client.pem"), "{error}");
    }
}
