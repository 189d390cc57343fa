//! The cluster's own public-key infrastructure: a CA, the certificates it signs, the service-account key, kubeconfigs.
//!
//! [`ensure`] makes what is missing, expired soon, no longer fitting the configuration, or half-written, and leaves the
//! rest alone. ECDSA P-256; the CA lives 10 years, everything else a year. Every file is 0600 and appears whole, by a
//! rename; certificate and key are two files, so a pair that does not match (a crash in between) is made anew.
//! Layout and users are Kubernetes' ("PKI certificates and requirements").

mod authority;
mod request;
mod subject;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

pub use self::authority::{Authority, pin};
pub use self::request::CertificateRequest;

const CA_NAME: &str = "hull-ca";
const CA_LIFE: SignedDuration = SignedDuration::from_hours(3650 * 24);
/// How long a certificate lives unless told otherwise.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// A certificate is made anew when less than this part of its life is left.
const RENEW_PART: i32 = 6;

/// Files of the certificates that the authority signed here.
const LEAVES: [&str; 5] = ["apiserver", "agent", "kubelet-client", "admin", "agent-client"];

/// What the certificates must say.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// Name of the first node: the agent's user is `system:node:<name>`.
    pub node_name: String,
    /// The API server's URL in the kubeconfigs.
    pub server: String,
    /// IP addresses of the API server's (and the agent's) certificate.
    pub ips: Vec<IpAddr>,
    /// Further DNS names; `kubernetes`, `kubernetes.default`, … are always there.
    pub names: Vec<String>,
    /// How long certificates live; the authority's is not concerned.
    pub life: SignedDuration,
}

impl PkiConfig {
    /// For a node and the URL of its API server, without further names.
    pub fn new(node_name: &str, server: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            server: server.to_owned(),
            ips: Vec::new(),
            names: Vec::new(),
            life: LEAF_LIFE,
        }
    }
}

/// Where [`ensure`] put what others need by path.
#[derive(Clone, Debug)]
pub struct Pki {
    /// The CA certificate.
    pub ca: PathBuf,
    /// The administrator's kubeconfig.
    pub admin_kubeconfig: PathBuf,
    /// The agent's kubeconfig.
    pub agent_kubeconfig: PathBuf,
}

/// A certificate, key or kubeconfig could not be made.
#[derive(Debug, thiserror::Error)]
#[error("certificates: {tried} {path}: {what}")]
pub struct PkiError {
    /// What was tried.
    pub tried: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What was wrong.
    pub what: String,
}

/// Make the directory complete and current.
///
/// # Errors
/// [`PkiError`] if a file cannot be read or written.
pub fn ensure(dir: &Path, config: &PkiConfig) -> Result<Pki, PkiError> {
    ensure_at(dir, config, Timestamp::now())
}

fn ensure_at(dir: &Path, config: &PkiConfig, now: Timestamp) -> Result<Pki, PkiError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| error("creating", dir, &e))?;
    let authority = Root::ensure(dir, now, config.life)?;
    let key_path = dir.join("sa.key");
    if load_key(&key_path).is_none() {
        let key = KeyPair::generate().map_err(|e| error("generating", &key_path, &e))?;
        write(&dir.join("sa.pub"), &key.public_key_pem())?;
        write(&key_path, &key.serialize_pem())?;
    }
    let node = format!("system:node:{}", config.node_name);
    let mut names: Vec<String> = ["", ".default", ".default.svc", ".default.svc.cluster.local"]
        .iter()
        .map(|suffix| format!("kubernetes{suffix}"))
        .chain(["localhost".to_owned()])
        .collect();
    names.extend(config.names.iter().cloned());
    let client = |file, user, group| Leaf {
        file,
        user,
        group,
        names: Vec::new(),
        ips: Vec::new(),
    };
    let server = |file, user, group, mut names: Vec<String>| {
        names.sort();
        names.dedup();
        Leaf {
            file,
            user,
            group,
            names,
            ips: config.ips.clone(),
        }
    };
    let mut node_names = config.names.clone();
    node_names.push(config.node_name.clone());
    authority.ensure_leaf(&server("apiserver", "kube-apiserver", "", names))?;
    authority.ensure_leaf(&server("agent", &node, "system:nodes", node_names))?;
    authority.ensure_leaf(&client(
        "kubelet-client",
        "kube-apiserver-kubelet-client",
        "system:masters",
    ))?;
    let admin = authority.ensure_leaf(&client("admin", "kubernetes-admin", "system:masters"))?;
    let agent = authority.ensure_leaf(&client("agent-client", &node, "system:nodes"))?;
    let pki = Pki {
        ca: dir.join("ca.crt"),
        admin_kubeconfig: dir.join("admin.kubeconfig"),
        agent_kubeconfig: dir.join("agent.kubeconfig"),
    };
    for (path, user, pair) in [
        (&pki.admin_kubeconfig, "admin", &admin),
        (&pki.agent_kubeconfig, "agent", &agent),
    ] {
        let text = kubeconfig(&config.server, &authority.certificate, user, pair);
        if fs::read_to_string(path).ok().as_ref() != Some(&text) {
            write(path, &text)?;
        }
    }
    Ok(pki)
}

/// A certificate and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

/// What a certificate is to say.
struct Leaf<'a> {
    file: &'a str,
    user: &'a str,
    group: &'a str,
    /// With names or addresses it is a server's, else a client's.
    names: Vec<String>,
    ips: Vec<IpAddr>,
}

/// The authority and what its own certificates need.
struct Root<'a> {
    dir: &'a Path,
    now: Timestamp,
    life: SignedDuration,
    certificate: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Root<'a> {
    fn ensure(dir: &'a Path, now: Timestamp, life: SignedDuration) -> Result<Self, PkiError> {
        let path = dir.join("ca.crt");
        let key_path = dir.join("ca.key");
        let current = load_pair(&path, &key_path).filter(|(der, _, _)| lasts(der, now, CA_LIFE));
        let (certificate, key) = match current {
            Some((_, pem, key)) => (pem, key),
            None => {
                let key = KeyPair::generate().map_err(|e| error("generating", &key_path, &e))?;
                let mut parameters = parameters(CA_NAME, "", now, CA_LIFE);
                parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
                let certificate = parameters.self_signed(&key).map_err(|e| error("signing", &path, &e))?;
                write(&key_path, &key.serialize_pem())?;
                write(&path, &certificate.pem())?;
                (certificate.pem(), key)
            }
        };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| error("reading", &path, &e))?;
        // The issuer of a certificate is named by its CA's subject, which never changes, and its key.
        let issuer = Issuer::new(parameters(CA_NAME, "", now, CA_LIFE), key);
        Ok(Self {
            dir,
            now,
            life,
            certificate,
            der,
            issuer,
        })
    }

    fn ensure_leaf(&self, leaf: &Leaf<'_>) -> Result<Pair, PkiError> {
        let path = self.dir.join(format!("{}.crt", leaf.file));
        let key_path = self.dir.join(format!("{}.key", leaf.file));
        if let Some((der, certificate, key)) = load_pair(&path, &key_path)
            && lasts(&der, self.now, self.life)
            && self.signed(&der)
            && says(&der, leaf)
        {
            return Ok(Pair {
                certificate,
                key: key.serialize_pem(),
            });
        }
        let key = KeyPair::generate().map_err(|e| error("generating", &key_path, &e))?;
        let mut parameters = parameters(leaf.user, leaf.group, self.now, self.life);
        let names = leaf.names.iter().cloned().chain(leaf.ips.iter().map(IpAddr::to_string));
        parameters.subject_alt_names = CertificateParams::new(names.collect::<Vec<_>>())
            .map_err(|e| error("naming", &path, &e))?
            .subject_alt_names;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.use_authority_key_identifier_extension = true;
        parameters.extended_key_usages.push(match leaf.is_server() {
            true => ExtendedKeyUsagePurpose::ServerAuth,
            false => ExtendedKeyUsagePurpose::ClientAuth,
        });
        let certificate = parameters
            .signed_by(&key, &self.issuer)
            .map_err(|e| error("signing", &path, &e))?;
        let pair = Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        };
        write(&key_path, &pair.key)?;
        write(&path, &pair.certificate)?;
        Ok(pair)
    }

    /// Whether a certificate is of this CA, not of one before it.
    fn signed(&self, der: &CertificateDer<'_>) -> bool {
        let (Some(own), Some(leaf)) = (parse(&self.der), parse(der)) else {
            return false;
        };
        let own = own
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        let leaf = leaf
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
                _ => None,
            });
        own.is_some() && own == leaf
    }
}

impl Leaf<'_> {
    fn is_server(&self) -> bool {
        !self.names.is_empty() || !self.ips.is_empty()
    }
}

fn parameters(user: &str, group: &str, now: Timestamp, life: SignedDuration) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    // From yesterday, so that clocks a little behind agree.
    let from = now - SignedDuration::from_hours(24);
    set_validity(&mut parameters, from.as_second(), (now + life).as_second());
    parameters.distinguished_name = DistinguishedName::new();
    if !group.is_empty() {
        parameters.distinguished_name.push(DnType::OrganizationName, group);
    }
    parameters.distinguished_name.push(DnType::CommonName, user);
    parameters
}

/// From one moment to another, in seconds since 1970.
fn set_validity(parameters: &mut CertificateParams, from: i64, to: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    (parameters.not_before, parameters.not_after) = (epoch + since(from), epoch + since(to));
}

fn parse<'d>(der: &'d CertificateDer<'_>) -> Option<X509Certificate<'d>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

fn lasts(der: &CertificateDer<'_>, now: Timestamp, life: SignedDuration) -> bool {
    let needed = (now + life / RENEW_PART).as_second();
    parse(der).is_some_and(|certificate| certificate.validity().not_after.timestamp() > needed)
}

/// When [`ensure`] should be called next: the first of its certificates is due then. `None`: there is none.
pub fn renewal(dir: &Path, life: SignedDuration) -> Option<Timestamp> {
    let due = LEAVES.iter().filter_map(|file| {
        let pem = fs::read(dir.join(format!("{file}.crt"))).ok()?;
        let der = CertificateDer::from_pem_slice(&pem).ok()?;
        Timestamp::from_second(parse(&der)?.validity().not_after.timestamp()).ok()
    });
    due.min().map(|end| end - life / RENEW_PART)
}

/// Whether a certificate is for the user, names and addresses asked for.
fn says(der: &CertificateDer<'_>, leaf: &Leaf<'_>) -> bool {
    let Some(certificate) = parse(der) else { return false };
    let first = |mut values: Box<dyn Iterator<Item = String> + '_>| values.next().unwrap_or_default();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().unwrap_or_default().to_owned();
    let user = first(Box::new(certificate.subject().iter_common_name().map(text)));
    let group = first(Box::new(certificate.subject().iter_organization().map(text)));
    let mut alternatives: Vec<String> = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .into_iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            },
            _ => None,
        })
        .collect();
    let mut wanted: Vec<String> = leaf
        .names
        .iter()
        .cloned()
        .chain(leaf.ips.iter().map(IpAddr::to_string))
        .collect();
    alternatives.sort();
    wanted.sort();
    wanted.dedup();
    alternatives.dedup();
    user == leaf.user && group == leaf.group && alternatives == wanted
}

fn load_key(path: &Path) -> Option<KeyPair> {
    KeyPair::from_pem(&fs::read_to_string(path).ok()?).ok()
}

/// A certificate and the key it belongs to; `None` if one is missing, damaged, or belongs to something else.
fn load_pair(path: &Path, key_path: &Path) -> Option<(CertificateDer<'static>, String, KeyPair)> {
    let pem = fs::read_to_string(path).ok()?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let key = load_key(key_path)?;
    let certified = parse(&der)?.public_key().subject_public_key.data.to_vec();
    (certified == key.public_key_raw()).then_some((der, pem, key))
}

fn kubeconfig(server: &str, ca: &str, user: &str, pair: &Pair) -> String {
    format!(
        "{}users:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
         contexts:\n- name: hull\n  context:\n    cluster: hull\n    user: {user}\ncurrent-context: hull\n",
        kubeconfig_cluster(server, ca),
        BASE64.encode(&pair.certificate),
        BASE64.encode(&pair.key),
    )
}

fn kubeconfig_cluster(server: &str, ca: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: hull\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\n",
        BASE64.encode(ca)
    )
}

/// A kubeconfig that tells where the API is and whom to trust, for those who have no credentials yet.
pub fn kubeconfig_without_user(server: &str, ca: &str) -> String {
    let cluster = kubeconfig_cluster(server, ca).replace("- name: hull\n", "- name: \"\"\n");
    format!("{cluster}contexts: null\ncurrent-context: \"\"\nusers: null\n")
}

/// Replace a file as a whole, durably, readable by its owner only.
fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let unfinished = path.with_extension(format!(
        "{}.new",
        path.extension().unwrap_or_default().to_string_lossy()
    ));
    let written = (|| {
        let _ = fs::remove_file(&unfinished);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|e| error("writing", path, &e))
}

fn error(tried: &'static str, path: &Path, what: &dyn std::fmt::Display) -> PkiError {
    PkiError {
        tried,
        path: path.to_owned(),
        what: what.to_string(),
    }
}
