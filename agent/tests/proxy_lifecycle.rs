//! The service proxy over time: agents that die, restart, upgrade; maps that fill up; what is left at the end.

mod support;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::PinnedLink;
use hull_agent::proxy::{Limits, Proxy, unload};
use support::proxy::{apply, balanced, tables, tcp};
use support::{Host, Server, ask_tcp, loopback};

#[test]
fn services_outlive_the_agent_and_are_adopted() {
    let host = Host::enter();
    let (one, two) = (Server::tcp(loopback(2), "one"), Server::tcp(loopback(3), "two"));
    let (kept, dropped) = (tcp("10.96.0.1:80"), tcp("10.96.0.2:80"));
    let mut proxy = host.proxy();
    apply(&mut proxy, [(kept, balanced(&[&one])), (dropped, balanced(&[&one]))]);
    let programs = program_ids(&host.bpf_dir());
    assert_eq!(programs.len(), 11);

    // As after kill -9: the descriptors are closed, nothing is undone.
    drop(proxy);
    assert_eq!(ask_tcp(kept.address).unwrap(), "one");

    let mut proxy = host.proxy();
    assert_eq!(ask_tcp(kept.address).unwrap(), "one", "before the first apply");
    assert!(
        program_ids(&host.bpf_dir()).is_disjoint(&programs),
        "the links run the new agent's programs"
    );
    let same = tables([(kept, balanced(&[&one])), (dropped, balanced(&[&one]))]);
    assert_eq!(proxy.apply(&same).unwrap().changed, 0, "all is known from the maps");
    assert_eq!(proxy.counters(&kept).unwrap().unwrap().translated, 2, "counters go on");
    apply(&mut proxy, [(kept, balanced(&[&two]))]);
    assert_eq!(ask_tcp(kept.address).unwrap(), "two");
    assert_eq!(proxy.services().count(), 1);
}

#[test]
fn no_connection_fails_while_backends_change_and_agents_come_and_go() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..8).map(|last| Server::tcp(loopback(last), "x")).collect();
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&servers[0]]))]);
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let stop = stop.clone();
        // The thread inherits the test's namespace and cgroup.
        thread::spawn(move || {
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                TcpStream::connect(service.address).map_err(|error| (connections, error))?;
                connections += 1;
            }
            Ok::<_, (u32, std::io::Error)>(connections)
        })
    };
    for round in 0..200 {
        if round % 20 == 19 {
            drop(proxy);
            proxy = host.proxy();
        }
        let some: Vec<&Server> = servers.iter().cycle().skip(round % 6).take(1 + round % 4).collect();
        apply(&mut proxy, [(service, balanced(&some))]);
    }
    stop.store(true, Ordering::Relaxed);
    let connections = client.join().unwrap().unwrap();
    assert!(connections > 0);
}

#[test]
fn a_full_map_costs_only_the_service_that_does_not_fit() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..8).map(|last| Server::tcp(loopback(last), "x")).collect();
    let all: Vec<&Server> = servers.iter().collect();
    let mut config = host.proxy_config();
    config.limits = Limits {
        services: 8,
        backends: 4,
        ..Limits::default()
    };
    let mut proxy = Proxy::load(config).unwrap();
    let (small, large) = (tcp("10.96.0.1:80"), tcp("10.96.0.2:80"));
    let report = proxy
        .apply(&tables([(small, balanced(&all[..1])), (large, balanced(&all))]))
        .unwrap();
    assert_eq!(report.rejected.len(), 1);
    assert_eq!(report.rejected[0].frontend, large);
    assert!(
        report.rejected[0].reason.contains("full"),
        "{}",
        report.rejected[0].reason
    );
    assert_eq!(ask_tcp(small.address).unwrap(), "x");

    // What was written of it is gone again: there is room for what fits.
    apply(&mut proxy, [(small, balanced(&all[..1])), (large, balanced(&all[..3]))]);
    assert_eq!(ask_tcp(large.address).unwrap(), "x");
}

#[test]
fn an_upgrade_with_another_layout_hands_over_without_a_gap() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    let mut old = host.proxy();
    apply(&mut old, [(service, balanced(&[&server]))]);
    drop(old);
    let mut config = host.proxy_config();
    let layout = config.layout;
    config.layout += 1;
    let mut new = Proxy::load(config).unwrap();
    assert_eq!(new.services().count(), 0, "maps of another layout are not read");
    assert_eq!(ask_tcp(service.address).unwrap(), "one", "the old programs go on");
    apply(&mut new, [(service, balanced(&[&server]))]);
    assert_eq!(ask_tcp(service.address).unwrap(), "one");
    assert_eq!(
        new.counters(&service).unwrap().unwrap().translated,
        1,
        "now through the new maps"
    );
    let old_pins = std::fs::read_dir(host.bpf_dir()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .ends_with(&format!("_v{layout}"))
    });
    assert_eq!(old_pins.count(), 0);
}

#[test]
fn unload_leaves_nothing() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&server]))]);
    let programs = program_ids(&host.bpf_dir());
    drop(proxy);
    unload(&host.bpf_dir()).unwrap();
    assert!(!host.bpf_dir().exists());
    let direct = TcpStream::connect_timeout(&service.address, Duration::from_millis(200));
    assert!(direct.is_err(), "nothing is translated any more");
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let left: BTreeSet<u32> = aya::programs::loaded_programs()
            .flatten()
            .map(|program| program.id())
            .collect();
        if left.is_disjoint(&programs) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "programs left: {:?}",
            left.intersection(&programs)
        );
        thread::sleep(Duration::from_millis(10));
    }
    unload(&host.bpf_dir()).unwrap();
}

/// The programs that the pinned links run.
fn program_ids(bpf_dir: &Path) -> BTreeSet<u32> {
    let entries = std::fs::read_dir(bpf_dir).unwrap().map(|entry| entry.unwrap().path());
    let links = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("link_"));
    links
        .map(|path| {
            let link: aya::programs::links::FdLink = PinnedLink::from_pin(&path).unwrap().into();
            link.info().unwrap().program_id()
        })
        .collect()
}
