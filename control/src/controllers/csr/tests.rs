//! Requests of agents and others, through all three controllers.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use super::approve::Approver;
use super::clean::Cleaner;
use super::sign::Signer;
use super::*;
use crate::controllers::memory::World;
use crate::controllers::node::NODES;
use crate::controllers::view::View;
use crate::pki::{Authority, PkiConfig, ensure};

fn world() -> (World, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    ensure(dir.path(), &PkiConfig::new("n1", "https://192.0.2.1:6443")).unwrap();
    // As RBAC has it: bootstrappers may have agents' certificates, nodes only their own.
    let may = |who: &User, what: &str| match what {
        "nodeclient" => who.is_in("system:bootstrappers"),
        "selfnodeclient" => who.is_in("system:nodes"),
        _ => false,
    };
    let world = World::new(vec![
        Box::new(Approver::new(Box::new(may))),
        Box::new(Signer {
            authority: Arc::new(Authority::load(dir.path()).unwrap()),
            life: SignedDuration::from_hours(1),
        }),
        Box::new(Cleaner),
    ]);
    (world, dir)
}

struct Asked<'a> {
    signer: &'a str,
    usage: &'a str,
    /// Common name, organization, alternative names.
    subject: (&'a str, &'a str, &'a [&'a str]),
    /// Name and groups of the asker.
    asker: (&'a str, &'a [&'a str]),
}

fn ask(world: &mut World, name: &str, asked: &Asked<'_>) -> Value {
    let (user, group, names) = asked.subject;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let (username, groups) = asked.asker;
    world.memory.put(
        REQUESTS,
        "",
        json!({"metadata": {"name": name}, "spec": {
            "request": STANDARD.encode(request.pem().unwrap()), "signerName": asked.signer,
            "usages": ["digital signature", asked.usage], "username": username, "groups": groups}}),
    );
    world.settle();
    world.memory.get(REQUESTS, "", name).unwrap().value()
}

fn conditions(request: &Value) -> Vec<&str> {
    let list = request["status"]["conditions"].as_array().into_iter().flatten();
    list.filter_map(|condition| condition["type"].as_str()).collect()
}

const BOOTSTRAPPER: (&str, &[&str]) = ("system:bootstrap:abcdef", &["system:bootstrappers"]);
const NODE_1: (&str, &[&str]) = ("system:node:n1", &["system:nodes"]);

#[test]
fn an_agents_client_certificate_is_granted_to_bootstrappers_and_itself() {
    let (mut world, _dir) = world();
    let subject = ("system:node:n1", "system:nodes", &[][..]);
    let client = |asker| Asked {
        signer: KUBELET_CLIENT,
        usage: "client auth",
        subject,
        asker,
    };
    for (name, asker, granted) in [
        ("first", BOOTSTRAPPER, true),
        ("renewal", NODE_1, true),
        ("other-node", ("system:node:n2", &["system:nodes"][..]), false),
        ("somebody", ("jane", &["system:authenticated"][..]), false),
    ] {
        let request = ask(&mut world, name, &client(asker));
        assert_eq!(conditions(&request).contains(&"Approved"), granted, "{name}");
        assert_eq!(request["status"]["certificate"].is_string(), granted, "{name}");
    }
    for (name, usage, subject) in [
        ("server", "server auth", subject),
        ("named", "client auth", ("system:node:n1", "system:nodes", &["n1"][..])),
        ("masters", "client auth", ("system:node:n1", "system:masters", &[][..])),
        ("no-node", "client auth", ("admin", "system:nodes", &[][..])),
    ] {
        let asked = Asked {
            signer: KUBELET_CLIENT,
            usage,
            subject,
            asker: BOOTSTRAPPER,
        };
        assert_eq!(conditions(&ask(&mut world, name, &asked)), [""; 0], "{name}");
    }
}

#[test]
fn a_serving_certificate_is_for_the_nodes_own_addresses_only() {
    let (mut world, _dir) = world();
    let node = |name: &str, ips: &[&str]| {
        let addresses: Vec<Value> = ips
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        json!({"metadata": {"name": name}, "status": {"addresses": addresses}})
    };
    world.memory.put(NODES, "", node("n2", &["192.0.2.2", "192.0.2.9"]));
    let serving = |names, asker| Asked {
        signer: KUBELET_SERVING,
        usage: "server auth",
        subject: ("system:node:n1", "system:nodes", names),
        asker,
    };
    let early = ask(
        &mut world,
        "early",
        &serving(&["n1", "192.0.2.1", "2001:db8::1"], NODE_1),
    );
    assert_eq!(conditions(&early), [""; 0], "the node is not known yet");
    world
        .memory
        .put(NODES, "", node("n1", &["192.0.2.1", "2001:db8:0::1", "192.0.2.9"]));
    world.settle();
    let early = world.memory.get(REQUESTS, "", "early").unwrap().value();
    assert!(
        early["status"]["certificate"].is_string(),
        "its addresses are known now: {early}"
    );
    for (name, names, asker) in [
        ("foreign", &["192.0.2.1", "192.0.2.2"][..], NODE_1),
        ("shared", &["192.0.2.9"], NODE_1),
        ("stranger", &["192.0.2.1"], BOOTSTRAPPER),
        ("nameless", &[], NODE_1),
    ] {
        assert_eq!(
            conditions(&ask(&mut world, name, &serving(names, asker))),
            [""; 0],
            "{name}"
        );
    }
}

#[test]
fn approved_by_hand_is_signed_or_failed() {
    let (mut world, _dir) = world();
    let approve = |world: &mut World, name: &str| {
        let condition = json!([{"type": "Approved", "status": "True"}]);
        let patch = json!({"status": {"conditions": condition}});
        world.memory.patch(REQUESTS, "", name, &patch);
        world.settle();
        world.memory.get(REQUESTS, "", name).unwrap().value()
    };
    let asked = |usage| Asked {
        signer: CLIENT,
        usage,
        subject: ("jane", "dev", &[]),
        asker: ("jane", &[]),
    };
    assert_eq!(conditions(&ask(&mut world, "good", &asked("client auth"))), [""; 0]);
    let good = approve(&mut world, "good");
    let pem = STANDARD
        .decode(good["status"]["certificate"].as_str().unwrap())
        .unwrap();
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    ask(&mut world, "bad", &asked("server auth"));
    assert_eq!(conditions(&approve(&mut world, "bad")), ["Approved", "Failed"]);
    world.advance(Duration::from_secs(3599));
    assert_eq!(world.memory.objects(REQUESTS).len(), 2);
    world.advance(Duration::from_secs(2));
    assert!(world.memory.objects(REQUESTS).is_empty(), "done with after an hour");
}
