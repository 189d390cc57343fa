//! Certificates are kept while good, replaced when not, and rustls accepts them for a mutual handshake.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use jiff::ToSpan as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};

use super::*;

fn config() -> PkiConfig {
    PkiConfig {
        node_name: "n1".into(),
        server: "https://127.0.0.1:6443".into(),
        ips: vec![
            "127.0.0.1".parse().unwrap(),
            "10.96.0.1".parse().unwrap(),
            "::1".parse().unwrap(),
        ],
        names: vec!["n1".into(), "localhost".into()],
        life: LEAF_LIFE,
    }
}

fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                fs::read_to_string(e.path()).unwrap(),
            )
        })
        .collect()
}

fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    after
        .iter()
        .filter(|(name, text)| before.get(*name) != Some(text))
        .map(|(name, _)| name.clone())
        .collect()
}

#[test]
fn good_files_are_kept_and_others_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    ensure_at(dir.path(), &config(), now).unwrap();
    let first = files(dir.path());
    for name in first.keys() {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    ensure_at(dir.path(), &config(), now + (300 * 24).hours()).unwrap();
    assert_eq!(changed(&first, &files(dir.path())), Vec::<String>::new());

    let mut moved = config();
    moved.ips.push("192.0.2.7".parse().unwrap());
    ensure_at(dir.path(), &moved, now).unwrap();
    let second = files(dir.path());
    assert_eq!(
        changed(&first, &second),
        ["agent.crt", "agent.key", "apiserver.crt", "apiserver.key"]
    );

    ensure_at(dir.path(), &moved, now + (340 * 24).hours()).unwrap();
    let third = files(dir.path());
    let renewed = changed(&second, &third);
    assert!(
        !renewed
            .iter()
            .any(|name| name.starts_with("ca.") || name.starts_with("sa.")),
        "{renewed:?}"
    );
    assert_eq!(renewed.len(), 5 * 2 + 2, "{renewed:?}");

    // A crash between the renames of a key and its certificate.
    fs::write(dir.path().join("admin.key"), &first["apiserver.key"]).unwrap();
    ensure_at(dir.path(), &moved, now + (340 * 24).hours()).unwrap();
    assert_eq!(
        changed(&third, &files(dir.path())),
        ["admin.crt", "admin.key", "admin.kubeconfig"]
    );

    fs::remove_file(dir.path().join("ca.key")).unwrap();
    ensure_at(dir.path(), &moved, now + (340 * 24).hours()).unwrap();
    assert_eq!(
        changed(&third, &files(dir.path())).len(),
        2 + 5 * 2 + 2,
        "everything the lost CA had signed"
    );
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn rustls_shakes_hands_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ensure(dir.path(), &config()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates(&pki.ca).remove(0)).unwrap();
    let roots = Arc::new(roots);
    let key = |file: &str| PrivateKeyDer::from_pem_file(dir.path().join(file)).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&dir.path().join("apiserver.crt")), key("apiserver.key"))
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            certificates(&dir.path().join("agent-client.crt")),
            key("agent-client.key"),
        )
        .unwrap();
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let serving = std::thread::spawn(move || {
        let mut connection = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        let mut far = far;
        let mut stream = rustls::Stream::new(&mut connection, &mut far);
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        let certificate = connection.peer_certificates().unwrap()[0].clone().into_owned();
        (byte, certificate)
    });
    let name = ServerName::try_from("10.96.0.1").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut near = near;
    rustls::Stream::new(&mut connection, &mut near).write_all(b"x").unwrap();
    let (byte, certificate) = serving.join().unwrap();
    assert_eq!(byte, *b"x");
    let user = crate::auth::certificate_user(&certificate).unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups[0].as_str()),
        ("system:node:n1", "system:nodes")
    );
}

#[test]
fn kubeconfigs_hold_everything_inline() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ensure(dir.path(), &config()).unwrap();
    let text = fs::read_to_string(&pki.admin_kubeconfig).unwrap();
    let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(value["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
    let decode = |value: &serde_json::Value| BASE64.decode(value.as_str().unwrap()).unwrap();
    let user = &value["users"][0]["user"];
    assert_eq!(
        decode(&value["clusters"][0]["cluster"]["certificate-authority-data"]),
        fs::read(&pki.ca).unwrap()
    );
    assert_eq!(
        decode(&user["client-certificate-data"]),
        fs::read(dir.path().join("admin.crt")).unwrap()
    );
    assert_eq!(
        decode(&user["client-key-data"]),
        fs::read(dir.path().join("admin.key")).unwrap()
    );
}
