//! The service proxy's user-space half: it decides, the kernel looks up.
//!
//! [`compute()`] turns a service into [`Group`]s of backends; [`Proxy`] writes what differs into maps that are pinned
//! on bpffs together with the links of the programs, so that services work while no agent runs.
//! Invariants: a service in the maps always has its complete set of backends; nothing is ever flushed; a restarted
//! agent finds in the maps what its predecessor wrote; a change costs what changed, not what there is. All calls block
//! briefly: keep them off the async threads.

mod bpffs;
mod compute;
mod config;
mod destroy;
pub mod edge;
mod error;
mod installed;
mod load;
mod maglev;
mod maps;
mod plan;
mod report;
mod slices;
mod status;
mod tables;
mod verify;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::Ebpf;
use hull_ebpf_types as bpf;

pub(crate) use bpffs::ensure as prepare;
pub use compute::{BALANCE, DnsRedirect, FORWARDING, NodeView, algorithm, asks_direct_return, compute, dns};
pub use config::{Limits, ProxyConfig};
pub use error::{Error, Rejected};
pub use load::unload;
use report::Round;
pub use report::{Counters, Report, Usage};
pub(crate) use slices::service_of;
pub use slices::{MAX_WEIGHT, Slice, WEIGHTS};
pub use status::Status;
pub use tables::{Algorithm, Backend, Exposed, Frontend, Group, GroupName, Protocol, Scope, ServiceName};

pub use crate::bpf::Fill;
use crate::network::Cidr;
use installed::{Installed, Op};
use maps::Maps;
use plan::Change;

/// The proxy of this node: the pinned maps, and a mirror of what is in them. Dropping it leaves everything in force.
pub struct Proxy {
    config: ProxyConfig,
    maps: Maps,
    installed: Installed,
    strays: Vec<Op>,
    sources: BTreeMap<u32, Vec<Cidr>>,
    /// What could not be put in force; it is tried again with every change.
    waiting_groups: HashMap<ServiceName, Vec<Group>>,
    /// Programs of a new map layout wait here until their maps are filled.
    waiting: Option<Ebpf>,
    /// [`Usage::untold`], as it was said last.
    untold: u64,
}

impl Proxy {
    /// Loads the programs, adopts pinned maps and links of the same layout, attaches what is missing. With maps of
    /// another layout in place, these stay in force until the first [`Proxy::apply`] has filled the new ones.
    pub fn load(config: ProxyConfig) -> Result<Proxy, Error> {
        bpffs::ensure(&config.bpf_dir)?;
        let mut ebpf = load::load(&config)?;
        let mut maps = Maps::take(&mut ebpf, &config.limits)?;
        load::give_memory_back();
        let (installed, strays) = Installed::rebuild(&maps.read()?);
        let waiting = if load::other_layouts(&config.bpf_dir, config.layout)?.is_empty() {
            load::attach(&config, &mut ebpf)?;
            None
        } else {
            Some(ebpf)
        };
        Ok(Proxy {
            config,
            maps,
            installed,
            strays,
            sources: BTreeMap::new(),
            waiting_groups: HashMap::new(),
            waiting,
            untold: 0,
        })
    }

    /// Serves node ports on these of the node's addresses; loopback addresses only for processes of the host itself.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let kind = |address: &IpAddr| if address.is_loopback() { bpf::HOST_ONLY } else { 0 };
        let of_family = |address: &IpAddr| match address {
            // All of 127.0.0.0/8 is the host's own: one stands for it.
            IpAddr::V4(v4) if v4.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            other => *other,
        };
        let desired = addresses
            .iter()
            .map(|address| (tables::words(of_family(address)), kind(address)));
        self.maps.set_addresses(&desired.collect())
    }

    /// Brings the maps to `desired` by writing what differs. Call it with everything only, that is after the first
    /// full list of services **and** endpoint slices: what is missing is removed.
    pub fn apply(&mut self, desired: &BTreeMap<ServiceName, Vec<Group>>) -> Result<Report, Error> {
        for op in self.strays.drain(..) {
            self.maps.execute(&op)?;
        }
        let mut round = Round::default();
        self.waiting_groups.clear();
        for (service, groups) in desired {
            for group in groups {
                self.installed.claim(service, group);
            }
        }
        self.make_room(desired);
        for (service, groups) in desired {
            self.replace(service, groups, &mut round);
        }
        let gone = self.installed.names.keys().filter(|name| !desired.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.replace(&name, &[], &mut round);
        }
        let unclaimed = self
            .installed
            .sets
            .keys()
            .filter(|id| !self.installed.claimed.contains(id));
        for id in unclaimed.copied().collect::<Vec<_>>() {
            let change = plan::removal(&self.installed, id);
            self.carry_out(change, None, &mut round);
        }
        let installed = &self.installed;
        self.maps.sweep_load(|member| {
            let set = installed.sets.get(&member.service);
            set.is_some_and(|set| set.backends.iter().any(|backend| backend.endpoint == member.endpoint))
        })?;
        self.retry(&mut round);
        if let Some(mut ebpf) = self.waiting.take() {
            load::attach(&self.config, &mut ebpf)?;
            load::remove(&load::other_layouts(&self.config.bpf_dir, self.config.layout)?)?;
        }
        self.finish(round)
    }

    /// Gives some services other groups, none to remove one. Costs what these services cost, whatever else there is.
    pub fn update<'a>(
        &mut self,
        changes: impl IntoIterator<Item = (&'a ServiceName, &'a [Group])>,
    ) -> Result<Report, Error> {
        let mut round = Round::default();
        for (service, groups) in changes {
            self.replace(service, groups, &mut round);
        }
        self.retry(&mut round);
        self.finish(round)
    }

    /// The frontends in force, and where their clients are sent.
    pub fn services(&self) -> impl Iterator<Item = (Frontend, &[Backend])> {
        self.installed.services.iter().filter_map(|(key, service)| {
            let set = self.installed.sets.get(&service.id)?;
            Some((Frontend::from_bpf(key)?, set.backends.as_slice()))
        })
    }

    /// Which sets of source ranges there are, by [`bpf::Service::sources`].
    pub fn source_ranges(&self) -> &BTreeMap<u32, Vec<Cidr>> {
        &self.sources
    }

    /// The counters of a frontend in force; it shares them with the others of its group.
    pub fn counters(&self, frontend: &Frontend) -> Result<Option<Counters>, Error> {
        let Some(service) = self.installed.services.get(&frontend.to_bpf()) else {
            return Ok(None);
        };
        let counters = self.maps.counters(service.id)?;
        Ok(Some(Counters {
            translated: counters.translated,
            refused: counters.refused,
        }))
    }

    /// How much of the maps is in use.
    pub fn usage(&self) -> Usage {
        Usage {
            frontends: self.installed.services.len(),
            backends: self.installed.sets.values().map(|set| set.backends.len()).sum(),
            rejected: self.waiting_groups.len(),
            maps: self.maps.fill(),
            // What cannot be read is not known to have happened.
            untold: self.maps.untold().unwrap_or_default(),
        }
    }

    /// Exchanges maps once for everything that is new.
    fn make_room(&mut self, desired: &BTreeMap<ServiceName, Vec<Group>>) {
        let (mut sets, mut services, mut slots, mut members) = (self.installed.sets.len(), 0, 0, 0);
        for (service, groups) in desired {
            for group in groups {
                let set = self.installed.find(service, group);
                if set.is_none_or(|id| !self.installed.sets.contains_key(&id)) {
                    sets += 1;
                    services += group.frontends.len();
                    slots += plan::slot_count(group);
                    members += plan::member_count(group);
                }
            }
        }
        self.maps.reserve(services, slots, members);
        // What is not counted is said set by set.
        let _ = self.maps.count(sets);
    }

    /// Brings one service to these groups.
    fn replace(&mut self, service: &ServiceName, groups: &[Group], round: &mut Round) {
        self.waiting_groups.remove(service);
        let wanted: HashSet<bpf::Frontend> = groups
            .iter()
            .flat_map(|group| group.frontends.iter().map(|exposed| exposed.frontend.to_bpf()))
            .collect();
        let mut waits = false;
        for group in groups {
            waits |= !self.put(service, group, &wanted, round);
        }
        // What only moves from one group to another has moved by now.
        let before = self.installed.names.get(service).cloned().unwrap_or_default();
        for (name, id) in before {
            if !groups.iter().any(|group| group.name == name) {
                let change = plan::removal(&self.installed, id);
                self.carry_out(change, None, round);
                self.installed.release(service, id);
            }
        }
        if waits {
            self.waiting_groups.insert(service.clone(), groups.to_vec());
        }
    }

    /// Puts one group in force; false when something of it could not be. `wanted` is what all groups of the service
    /// have.
    fn put(
        &mut self,
        service: &ServiceName,
        group: &Group,
        wanted: &HashSet<bpf::Frontend>,
        round: &mut Round,
    ) -> bool {
        let id = self.installed.claim(service, group);
        let (free, taken): (Vec<Exposed>, Vec<Exposed>) = group.frontends.iter().partition(|exposed| {
            let holder = self.installed.services.get(&exposed.frontend.to_bpf());
            holder.is_none_or(|holder| !self.installed.is_others(service, holder.id))
        });
        for exposed in &taken {
            round.reject(
                service,
                exposed.frontend,
                "another service has this address and port".to_owned(),
            );
        }
        let change = plan::change(&self.installed, id, group, &free, wanted);
        let restricted = free.iter().any(|exposed| exposed.restricted);
        let sources = restricted.then(|| group.sources.clone());
        if self.sources.get(&id) != sources.as_ref() {
            round.report.sources_changed = true;
            match sources {
                Some(ranges) => self.sources.insert(id, ranges),
                None => self.sources.remove(&id),
            };
        }
        self.carry_out(change, Some((service, group)), round) && taken.is_empty()
    }

    /// Tries again what did not fit or was taken, now that something has changed.
    fn retry(&mut self, round: &mut Round) {
        if self.waiting_groups.is_empty() || round.report.changed == 0 {
            return;
        }
        round.report.rejected.clear();
        for (service, groups) in std::mem::take(&mut self.waiting_groups) {
            self.replace(&service, &groups, round);
        }
    }

    fn finish(&mut self, round: Round) -> Result<Report, Error> {
        let Round { mut report, gone } = round;
        if !gone.is_empty() {
            report.destroyed = destroy::destroy(&gone, &self.config.netns_dir, self.maps.origins())?;
        }
        let untold = self.maps.untold()?;
        if untold > self.untold {
            tracing::error!(
                sockets = untold,
                "datagram sockets of services will not be told when their backend goes: the map strays is full"
            );
            self.untold = untold;
        }
        Ok(report)
    }

    /// Prepares, commits, cleans up; false when something of it could not be put in force. What was prepared is taken
    /// back when nothing can be committed; a failed clean-up only leaves entries that nobody reads, which the next
    /// start removes.
    fn carry_out(&mut self, mut change: Change, of: Option<(&ServiceName, &Group)>, round: &mut Round) -> bool {
        if change.is_empty() {
            return true;
        }
        if let Some((service, _)) = of
            && !self.installed.sets.contains_key(&change.id)
            && let Err(error) = self.maps.count(self.installed.sets.len() + 1)
        {
            tracing::error!(%service, %error, "clients of services are not counted");
        }
        for (done, op) in change.prepare.iter().enumerate() {
            if let Err(error) = self.maps.execute(op) {
                for op in change.prepare[..done].iter().filter_map(Op::inverse) {
                    let _ = self.maps.execute(&op);
                }
                if let Some((service, group)) = of
                    && let Some(exposed) = group.frontends.first()
                {
                    round.reject(service, exposed.frontend, error.to_string());
                }
                return false;
            }
        }
        let mut failed = Vec::new();
        for op in &change.commits {
            let (frontend, result) = (op.frontend(), self.maps.execute(op));
            match (op, result) {
                (Op::PutService(offer), Ok(())) => {
                    self.installed.services.insert(offer.service.frontend, offer.service);
                }
                (Op::RemoveService(frontend), Ok(())) => drop(self.installed.services.remove(frontend)),
                (_, Err(error)) => {
                    failed.extend(frontend);
                    if let (Some((service, _)), Some(frontend)) = (of, frontend.as_ref().and_then(Frontend::from_bpf)) {
                        round.reject(service, frontend, error.to_string());
                    }
                }
                _ => {}
            }
        }
        let held = |frontend: &bpf::Frontend| {
            let service = self.installed.services.get(frontend);
            service.is_some_and(|service| service.id == change.id)
        };
        change.result.frontends.retain(held);
        // A frontend that could not be switched still needs the old set.
        if failed.iter().any(held) {
            change.result.intact = false;
            let old = self.installed.sets.get(&change.id);
            change
                .result
                .extents
                .extend(old.into_iter().flat_map(|old| &old.extents));
        } else {
            self.clean_up(&change, round);
        }
        round.report.changed += 1;
        if change.result.frontends.is_empty() && of.is_none() {
            self.installed.sets.remove(&change.id);
            round.report.sources_changed |= self.sources.remove(&change.id).is_some();
        } else {
            self.installed.sets.insert(change.id, change.result);
        }
        failed.is_empty()
    }

    fn clean_up(&mut self, change: &Change, round: &mut Round) {
        for op in &change.cleanup {
            if let Err(error) = self.maps.execute(op) {
                tracing::warn!(id = change.id, %error, "could not remove what a service no longer uses");
            }
        }
        let udp = change
            .left
            .iter()
            .filter(|frontend| Frontend::from_bpf(frontend).is_some_and(is_udp));
        round.gone.extend(udp.flat_map(|frontend| {
            change.gone.iter().map(|endpoint| bpf::Translation {
                frontend: *frontend,
                endpoint: *endpoint,
            })
        }));
    }
}

fn is_udp(frontend: Frontend) -> bool {
    frontend.protocol == Protocol::Udp && frontend.scope == Scope::Inside
}
