//! Where a process may run and take its memory from: CPU affinity of `exec`, NUMA memory policy.
//! config.md, "execCPUAffinity"; config-linux.md, "Memory policy"; set_mempolicy(2), sched_setaffinity(2), cpuset(7) for
//! the format of lists.

use crate::error::{Error, Result};
use crate::spec::{ExecCPUAffinity, LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};

const WORD: usize = u64::BITS as usize;
/// CPUs and nodes above this are a mistake: kernels are built for 8192 CPUs and 1024 nodes at most.
const MAX_NUMBER: usize = 8191;

/// A set of CPUs or memory nodes, as the kernel takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask(Vec<u64>);

impl Mask {
    /// Parse a list such as "0-3,7".
    pub fn parse(field: &str, list: &str) -> Result<Mask> {
        let wrong = || Error::invalid(format!("{field}: {list:?} is not a list of numbers such as \"0-3,7\""));
        let number = |text: &str| match text.trim().parse() {
            Ok(number) if number <= MAX_NUMBER => Ok(number),
            _ => Err(wrong()),
        };
        let mut mask = Mask(vec![0]);
        for part in list.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(wrong());
            }
            (first..=last).for_each(|number| mask.add(number));
        }
        Ok(mask)
    }

    fn add(&mut self, number: usize) {
        let word = number / WORD;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % WORD);
    }

    /// Its words, lowest numbers first.
    pub fn words(&self) -> &[u64] {
        &self.0
    }
}

/// CPUs of a process that enters a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Affinity {
    /// Before it is in the container's cgroup.
    pub initial: Option<Mask>,
    /// From then on; `None` leaves it to the kernel.
    pub last: Option<Mask>,
}

impl Affinity {
    /// Check `process.execCPUAffinity`.
    pub fn new(affinity: &ExecCPUAffinity) -> Result<Affinity> {
        let mask = |field: &str, list: &Option<String>| match list.as_deref() {
            None | Some("") => Ok(None),
            Some(list) => Mask::parse(field, list).map(Some),
        };
        Ok(Affinity {
            initial: mask("process.execCPUAffinity.initial", affinity.initial())?,
            last: mask("process.execCPUAffinity.final", affinity.cpu_affinity_final())?,
        })
    }
}

/// set_mempolicy(2)'s mode with its flags, and the nodes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    pub mode: i32,
    pub nodes: Option<Mask>,
}

impl MemoryPolicy {
    /// Check `linux.memoryPolicy`.
    pub fn new(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
        // linux/mempolicy.h
        let mode = match policy.mode() {
            Mode::MpolDefault => 0,
            Mode::MpolPreferred => 1,
            Mode::MpolBind => 2,
            Mode::MpolInterleave => 3,
            Mode::MpolLocal => 4,
            Mode::MpolPreferredMany => 5,
            Mode::MpolWeightedInterleave => 6,
        };
        let flag = |flag: &Flag| match flag {
            Flag::MpolFNumaBalancing => 1 << 13,
            Flag::MpolFRelativeNodes => 1 << 14,
            Flag::MpolFStaticNodes => 1 << 15,
        };
        let nodes = match policy.nodes().as_deref().map(str::trim) {
            None | Some("") => None,
            Some(list) => Some(Mask::parse("linux.memoryPolicy.nodes", list)?),
        };
        let takes_none = matches!(policy.mode(), Mode::MpolDefault | Mode::MpolLocal);
        let takes_either = policy.mode() == Mode::MpolPreferred;
        if nodes.is_some() == takes_none && !takes_either {
            let what = if takes_none { "takes no nodes" } else { "needs nodes" };
            return Err(Error::invalid(format!("linux.memoryPolicy: {} {what}", policy.mode())));
        }
        let flags = policy
            .flags()
            .iter()
            .flatten()
            .map(flag)
            .fold(0, |all, flag| all | flag);
        Ok(MemoryPolicy {
            mode: mode | flags,
            nodes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: serde_json::Value) -> Result<MemoryPolicy> {
        MemoryPolicy::new(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(Mask::parse("x", "0-3,7").unwrap().words(), [0x8f]);
        assert_eq!(Mask::parse("x", "64").unwrap().words(), [0, 1]);
        for list in ["", "a", "3-1", "1-", "-1", "99999", "1,,2"] {
            assert!(Mask::parse("x", list).is_err(), "{list:?}");
        }
    }

    #[test]
    fn a_policy_has_the_nodes_its_mode_wants() {
        let bind = policy(serde_json::json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}));
        assert_eq!(bind.unwrap().mode, 2 | 1 << 15);
        assert!(policy(serde_json::json!({"mode": "MPOL_INTERLEAVE"})).is_err());
        assert!(policy(serde_json::json!({"mode": "MPOL_LOCAL", "nodes": "0"})).is_err());
        assert!(
            policy(serde_json::json!({"mode": "MPOL_PREFERRED"}))
                .unwrap()
                .nodes
                .is_none()
        );
    }
}
