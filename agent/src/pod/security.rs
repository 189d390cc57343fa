//! The effective security settings of a container: its own securityContext over the pod's, over safe defaults.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};

use super::user::Wanted;

/// Which system calls are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The engines' default list; also what a pod gets that says nothing.
    Default,
    /// All.
    Unconfined,
    /// A profile file below the node's seccomp directory.
    Localhost(String),
}

/// The effective settings.
#[derive(Clone, Debug)]
pub struct Security {
    /// What decides the user.
    pub user: Wanted,
    /// Capability names with the `CAP_` prefix.
    pub capabilities: BTreeSet<String>,
    /// No isolation of devices, capabilities, system calls, /proc and /sys.
    pub privileged: bool,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Read-only root file system.
    pub read_only_root: bool,
    /// Paths below /proc and /sys are hidden or read-only.
    pub masked: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
}

impl Security {
    /// The settings of `container` in `pod`.
    #[must_use]
    pub fn of(pod: &Pod, container: &Container) -> Self {
        let outer = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let inner = container.security_context.as_ref();
        let privileged = inner.and_then(|own| own.privileged).unwrap_or(false);
        let id = |value: Option<i64>| value.and_then(|id| u32::try_from(id).ok());
        let mut groups: Vec<u32> = outer
            .iter()
            .flat_map(|o| o.supplemental_groups.iter().flatten())
            .filter_map(|g| id(Some(*g)))
            .collect();
        groups.extend(id(outer.and_then(|outer| outer.fs_group)));
        let user = Wanted {
            uid: id(inner
                .and_then(|own| own.run_as_user)
                .or(outer.and_then(|o| o.run_as_user))),
            gid: id(inner
                .and_then(|own| own.run_as_group)
                .or(outer.and_then(|o| o.run_as_group))),
            groups,
            non_root: inner
                .and_then(|own| own.run_as_non_root)
                .or(outer.and_then(|o| o.run_as_non_root))
                == Some(true),
            strict_groups: outer.and_then(|o| o.supplemental_groups_policy.as_deref()) == Some("Strict"),
        };
        let profile = inner
            .and_then(|own| own.seccomp_profile.as_ref())
            .or(outer.and_then(|o| o.seccomp_profile.as_ref()));
        let sysctls = outer.iter().flat_map(|o| o.sysctls.iter().flatten());
        Security {
            user,
            capabilities: capabilities(container, privileged),
            privileged,
            no_new_privileges: inner.and_then(|own| own.allow_privilege_escalation) == Some(false),
            read_only_root: inner.and_then(|own| own.read_only_root_filesystem).unwrap_or(false),
            masked: !privileged && inner.and_then(|own| own.proc_mount.as_deref()) != Some("Unmasked"),
            seccomp: if privileged {
                Seccomp::Unconfined
            } else {
                seccomp(profile)
            },
            sysctls: sysctls
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
        }
    }
}

fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.clone())) {
        Some(("Unconfined", _)) => Seccomp::Unconfined,
        Some(("Localhost", Some(path))) => Seccomp::Localhost(path),
        _ => Seccomp::Default,
    }
}

/// The default set, changed by `add` and `drop`; `ALL` stands for every one.
fn capabilities(container: &Container, privileged: bool) -> BTreeSet<String> {
    let names = |list: &[_]| -> BTreeSet<String> { list.iter().map(|c| hull_runtime::caps::name(*c)).collect() };
    let all = || names(&hull_runtime::caps::ALL);
    if privileged {
        return all();
    }
    let change = container
        .security_context
        .as_ref()
        .and_then(|own| own.capabilities.as_ref());
    let list = |chosen: Option<&Option<Vec<String>>>| -> Vec<String> {
        chosen
            .into_iter()
            .flatten()
            .flatten()
            .map(|name| canonical(name))
            .collect()
    };
    let (add, drop) = (list(change.map(|c| &c.add)), list(change.map(|c| &c.drop)));
    let is_all = |name: &String| name == "CAP_ALL";
    let mut set = if add.iter().any(is_all) {
        all()
    } else if drop.iter().any(is_all) {
        BTreeSet::new()
    } else {
        names(&hull_runtime::caps::DEFAULT)
    };
    set.extend(add.iter().filter(|name| !is_all(name)).cloned());
    for name in &drop {
        set.remove(name);
    }
    set
}

fn canonical(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn of(outer: Value, inner: Value) -> Security {
        let pod: Pod = from_value(json!({"spec": {"securityContext": outer,
            "containers": [{"name": "a", "securityContext": inner}]}}))
        .unwrap();
        Security::of(&pod, &pod.spec.as_ref().unwrap().containers[0])
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let both = of(
            json!({"runAsUser": 1, "fsGroup": 9, "supplementalGroups": [8]}),
            json!({"runAsUser": 2}),
        );
        assert_eq!(both.user.uid, Some(2));
        assert_eq!(both.user.groups, [8, 9]);
        assert_eq!(both.seccomp, Seccomp::Default);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let with = |change: Value| of(json!({}), json!({"capabilities": change})).capabilities;
        assert_eq!(with(json!({})).len(), 14);
        assert_eq!(with(json!({"drop": ["ALL"]})).len(), 0);
        let one = with(json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}));
        assert_eq!(one.into_iter().collect::<Vec<_>>(), ["CAP_NET_BIND_SERVICE"]);
        assert!(!with(json!({"drop": ["net_raw"]})).contains("CAP_NET_RAW"));
        assert_eq!(with(json!({"add": ["ALL"]})).len(), hull_runtime::caps::ALL.len());
    }

    #[test]
    fn privileged_lifts_every_fence() {
        let security = of(json!({}), json!({"privileged": true}));
        assert!(!security.masked && security.seccomp == Seccomp::Unconfined);
        assert_eq!(security.capabilities.len(), hull_runtime::caps::ALL.len());
    }
}
