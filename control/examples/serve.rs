//! A control plane without agents, for driving it by hand: `serve DIR PORT`.
use std::path::Path;

use hull_control::server::{ControlConfig, Server};
use rcgen::*;

fn pki(dir: &Path, port: u16) {
    std::fs::create_dir_all(dir).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut p = CertificateParams::new(vec![]).unwrap();
    p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    p.distinguished_name.push(DnType::CommonName, "hull-ca");
    let ca = p.self_signed(&ca_key).unwrap();
    let issuer = Issuer::from_params(&p, &ca_key);
    std::fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
    for (name, cn, org, server) in [("apiserver", "kube-apiserver", "", true), ("kubelet-client", "kube-apiserver-kubelet-client", "system:masters", false), ("admin", "kubernetes-admin", "system:masters", false)] {
        let key = KeyPair::generate().unwrap();
        let mut q = CertificateParams::new(if server { vec!["localhost".into(), "127.0.0.1".into(), "kubernetes".into()] } else { vec![] }).unwrap();
        q.distinguished_name.push(DnType::CommonName, cn);
        if !org.is_empty() { q.distinguished_name.push(DnType::OrganizationName, org); }
        q.extended_key_usages = vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
        let cert = q.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.crt")), cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let d = dir.display();
    std::fs::write(dir.join("admin.kubeconfig"), format!("apiVersion: v1\nkind: Config\ncurrent-context: hull\nclusters:\n- name: hull\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority: {d}/ca.crt\ncontexts:\n- name: hull\n  context: {{cluster: hull, user: admin}}\nusers:\n- name: admin\n  user:\n    client-certificate: {d}/admin.crt\n    client-key: {d}/admin.key\n")).unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let port: u16 = std::env::args().nth(2).unwrap().parse().unwrap();
    let pki_dir = dir.join("pki");
    if !pki_dir.join("ca.crt").exists() { pki(&pki_dir, port); }
    let begin = std::time::Instant::now();
    let server = Server::start(ControlConfig { data_dir: dir, pki_dir, listen: ([127,0,0,1], port).into(), advertise: [192,0,2,1].into(), service_cidr: "10.96.0.0/16".into(), pod_cidr: "10.244.0.0/16".into() }).await.unwrap();
    println!("ready on {} after {:?}", server.address(), begin.elapsed());
    tokio::signal::ctrl_c().await.unwrap();
    server.stop().await;
}
