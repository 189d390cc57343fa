//! Node ports and the health-check port of load balancers.
//!
//! One port of a node belongs to one service; within it, TCP and UDP on the same service port share a number. What is
//! given without being asked for comes from the upper part of the range first (KEP-3668).

use std::collections::hash_map::Entry;

use serde_json::{Map, Value, json};

use super::{Refusal, Reservation};
use crate::schema::FieldError;

const FIRST_PORT: u16 = 30000;
const LAST_PORT: u16 = 32767;
const COUNT: u16 = LAST_PORT - FIRST_PORT + 1;
/// The lowest part of the range, for ports chosen by hand: a 32nd, 16 to 128.
const BAND: u16 = COUNT / 32;

type Fields = Map<String, Value>;

impl Reservation<'_> {
    pub(super) fn fill_ports(&mut self, before: Option<&Fields>, spec: &mut Fields, seed: u32) -> Result<(), Refusal> {
        if uses_node_ports(spec) {
            self.fill_node_ports(before, spec, seed)?;
        }
        if needs_health_check(spec) {
            self.fill_health_check(spec, seed)?;
        }
        let now: Vec<u16> = of_fields(spec).collect();
        let held = before.into_iter().flat_map(of_fields);
        self.freed_ports = held.filter(|port| !now.contains(port)).collect();
        Ok(())
    }

    fn fill_node_ports(&mut self, before: Option<&Fields>, spec: &mut Fields, seed: u32) -> Result<(), Refusal> {
        let allocate =
            text(spec, "type") == "NodePort" || spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
        let update = before.is_some();
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        let ports = ports.map(Vec::as_mut_slice).unwrap_or_default();
        for (index, port) in ports.iter().enumerate() {
            if let Some(number) = node_port(port) {
                self.this_port(number, &format!("spec.ports[{index}].nodePort"))?;
            }
        }
        if !allocate {
            return Ok(());
        }
        let mut given: Vec<(i64, u16)> = Vec::new();
        for index in 0..ports.len() {
            if node_port(&ports[index]).is_some() {
                continue;
            }
            let number = ports[index]["port"].as_i64().unwrap_or(0);
            let twin = ports.iter().filter(|other| other["port"] == number).find_map(node_port);
            let twin = given
                .iter()
                .find(|(port, _)| *port == number)
                .map(|(_, node_port)| *node_port)
                .or(twin);
            let chosen = match twin.filter(|_| !update) {
                Some(shared) => shared,
                None => self.any_port(seed)?,
            };
            given.push((number, chosen));
            ports[index]["nodePort"] = json!(chosen);
        }
        Ok(())
    }

    fn fill_health_check(&mut self, spec: &mut Fields, seed: u32) -> Result<(), Refusal> {
        let asked = spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0);
        if asked == 0 {
            let port = self.any_port(seed)?;
            spec.insert("healthCheckNodePort".into(), json!(port));
            return Ok(());
        }
        self.this_port(u16::try_from(asked).unwrap_or(0), "spec.healthCheckNodePort")
    }

    fn this_port(&mut self, port: u16, path: &str) -> Result<(), Refusal> {
        let refuse = |detail: String| Err(FieldError::invalid(path, port, detail).into());
        let mut held = self.allocator.held.lock();
        match held.ports.get(&port) {
            Some(holder) if *holder == self.owner => return Ok(()),
            Some(_) => return refuse("provided port is already allocated".into()),
            None => {}
        }
        if !(FIRST_PORT..=LAST_PORT).contains(&port) {
            return refuse(format!(
                "provided port is not in the valid range. The range of valid ports is {FIRST_PORT}-{LAST_PORT}"
            ));
        }
        held.ports.insert(port, self.owner.clone());
        self.ports.push(port);
        Ok(())
    }

    fn any_port(&mut self, seed: u32) -> Result<u16, Refusal> {
        let upper = COUNT - BAND;
        let start = u16::try_from(seed % u32::from(upper)).unwrap_or(0);
        let mut held = self.allocator.held.lock();
        let offsets = (0..upper).map(|step| BAND + (start + step) % upper).chain(0..BAND);
        for port in offsets.map(|offset| FIRST_PORT + offset) {
            if let Entry::Vacant(free) = held.ports.entry(port) {
                free.insert(self.owner.clone());
                self.ports.push(port);
                return Ok(port);
            }
        }
        Err(Refusal::Exhausted(
            "failed to allocate a nodePort: range is full".into(),
        ))
    }
}

/// All ports of nodes that a spec has.
pub(super) fn of(spec: &Value) -> impl Iterator<Item = u16> + use<> {
    let ports: Vec<u16> = spec.as_object().into_iter().flat_map(of_fields).collect();
    ports.into_iter()
}

fn of_fields(spec: &Fields) -> impl Iterator<Item = u16> {
    let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
    let health = spec.get("healthCheckNodePort").and_then(Value::as_u64);
    let health = health
        .filter(|port| *port != 0)
        .and_then(|port| u16::try_from(port).ok());
    ports.filter_map(node_port).chain(health)
}

fn node_port(port: &Value) -> Option<u16> {
    let number = port["nodePort"].as_u64().filter(|number| *number != 0)?;
    Some(u16::try_from(number).unwrap_or(u16::MAX))
}

fn uses_node_ports(spec: &Fields) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
}

/// A load balancer in front of nodes of which only those with endpoints are to get traffic asks them on a port.
fn needs_health_check(spec: &Fields) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}
