//! RBAC: rules, what they match, whether one set covers another, and the bindings of each subject, compiled.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Attributes, User};
use crate::cache::{Cache, Object};
use crate::selector::Selector;

/// One PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    verbs: Box<[Box<str>]>,
    groups: Box<[Box<str>]>,
    resources: Box<[Box<str>]>,
    names: Box<[Box<str>]>,
    urls: Box<[Box<str>]>,
}

fn has(list: &[Box<str>], wanted: &str) -> bool {
    list.iter().any(|item| **item == *"*" || **item == *wanted)
}

fn strings(value: &Value) -> Box<[Box<str>]> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Box::from)
        .collect()
}

/// The rules of a role.
pub(super) fn rules(role: &Value) -> Vec<Rule> {
    let rule = |rule: &Value| Rule {
        verbs: strings(&rule["verbs"]),
        groups: strings(&rule["apiGroups"]),
        resources: strings(&rule["resources"]),
        names: strings(&rule["resourceNames"]),
        urls: strings(&rule["nonResourceURLs"]),
    };
    role["rules"].as_array().into_iter().flatten().map(rule).collect()
}

impl Rule {
    pub(super) fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        match asked.non_resource_path {
            Some(path) => self.urls.iter().any(|url| url_matches(url, path)),
            None => {
                has(&self.groups, asked.group)
                    && self
                        .resources
                        .iter()
                        .any(|r| resource_matches(r, asked.resource, asked.subresource))
                    && (self.names.is_empty() || self.names.iter().any(|name| **name == *asked.name))
            }
        }
    }

    /// This rule split into rules of one verb and one thing each.
    fn atoms(&self) -> Vec<Rule> {
        let mut atoms = Vec::new();
        let one = |text: &str| -> Box<[Box<str>]> { Box::new([text.into()]) };
        for verb in &self.verbs {
            for url in &self.urls {
                atoms.push(Rule {
                    verbs: one(verb),
                    urls: one(url),
                    ..Rule::default()
                });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let atom = Rule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    match &*self.names {
                        [] => atoms.push(atom),
                        names => atoms.extend(names.iter().map(|name| Rule {
                            names: one(name),
                            ..atom.clone()
                        })),
                    }
                }
            }
        }
        atoms
    }

    /// Whether this rule grants all of a rule of one verb and one thing.
    fn covers(&self, atom: &Rule) -> bool {
        let all = |own: &[Box<str>], wanted: &[Box<str>]| wanted.iter().all(|wanted| has(own, wanted));
        let resource = |wanted: &str| {
            let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources
                .iter()
                .any(|own| resource_matches(own, resource, subresource))
        };
        let names = self.names.is_empty()
            || (!atom.names.is_empty() && atom.names.iter().all(|name| self.names.contains(name)));
        all(&self.verbs, &atom.verbs)
            && all(&self.groups, &atom.groups)
            && atom.resources.iter().all(|wanted| resource(wanted))
            && names
            && atom
                .urls
                .iter()
                .all(|wanted| self.urls.iter().any(|own| url_matches(own, wanted)))
    }

    fn is_for_urls(&self) -> bool {
        !self.urls.is_empty()
    }

    fn to_json(&self) -> Value {
        let mut value = json!({"verbs": self.verbs});
        let lists = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            value[key] = json!(list);
        }
        value
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let lists: Vec<String> = lists.map(|(key, list)| format!("{key}:{list:?}")).collect();
        write!(f, "{{{}}}", lists.join(", "))
    }
}

/// `pods`, `pods/log`, `*/scale`, `*`.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    match rule.split_once('/') {
        _ if rule == "*" => true,
        None => rule == resource && subresource.is_empty(),
        Some((own, sub)) => sub == subresource && !sub.is_empty() && (own == "*" || own == resource),
    }
}

/// `/healthz`, `/healthz/*`, `*`.
fn url_matches(rule: &str, path: &str) -> bool {
    rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// The atoms of `wanted` that `owned` does not grant.
pub(super) fn missing(owned: &[&Rule], wanted: &[Rule]) -> Vec<Rule> {
    let atoms = wanted.iter().flat_map(Rule::atoms);
    atoms
        .filter(|atom| !owned.iter().any(|rule| rule.covers(atom)))
        .collect()
}

/// Rules by namespace (empty: a ClusterRole's) and name of their role.
type Roles = HashMap<(Arc<str>, Arc<str>), Arc<[Rule]>>;

/// A binding of a subject to a role's rules.
struct Grant {
    /// Only in this namespace; `None`: everywhere, and paths.
    namespace: Option<Arc<str>>,
    rules: Arc<[Rule]>,
    /// `ClusterRoleBinding "a" of ClusterRole "b" to Group "c"`.
    origin: Box<str>,
}

/// Every binding, by subject: `u:<user>` or `g:<group>`.
#[derive(Default)]
pub(super) struct Grants {
    subjects: HashMap<Box<str>, Vec<Grant>>,
}

/// The resources [`Grants`] are made of.
pub(super) const RESOURCES: [&str; 4] = [
    "rbac.authorization.k8s.io/clusterroles",
    "rbac.authorization.k8s.io/roles",
    "rbac.authorization.k8s.io/clusterrolebindings",
    "rbac.authorization.k8s.io/rolebindings",
];

impl Grants {
    pub(super) fn compile(cache: &Cache) -> Self {
        let [cluster_roles, roles, cluster_bindings, bindings] = RESOURCES.map(|resource| cache.snapshot(resource));
        let decoded: Vec<(Arc<Object>, Value)> =
            cluster_roles.iter().map(|role| (role.clone(), role.value())).collect();
        let mut known = Roles::new();
        for (role, value) in &decoded {
            let rules = with_aggregated(value, &decoded);
            known.insert((role.namespace.clone(), role.name.clone()), rules.into());
        }
        for role in roles.iter() {
            known.insert((role.namespace.clone(), role.name.clone()), rules(&role.value()).into());
        }
        let mut grants = Self::default();
        for binding in cluster_bindings.iter() {
            grants.add(binding, None, &known);
        }
        for binding in bindings.iter() {
            grants.add(binding, Some(binding.namespace.clone()), &known);
        }
        grants
    }

    fn add(&mut self, binding: &Object, namespace: Option<Arc<str>>, roles: &Roles) {
        let value = binding.value();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&value["roleRef"]["kind"]), text(&value["roleRef"]["name"]));
        let home = if kind == "Role" {
            binding.namespace.clone()
        } else {
            "".into()
        };
        // A binding to a role that does not exist grants nothing, until it does.
        let Some(rules) = roles.get(&(home, name.as_str().into())) else {
            return;
        };
        for subject in value["subjects"].as_array().into_iter().flatten() {
            let subject_name = text(&subject["name"]);
            let key = match subject["kind"].as_str() {
                Some("User") => format!("u:{subject_name}"),
                Some("Group") => format!("g:{subject_name}"),
                Some("ServiceAccount") => {
                    let own = subject["namespace"]
                        .as_str()
                        .filter(|n| !n.is_empty())
                        .unwrap_or(&binding.namespace);
                    format!("u:system:serviceaccount:{own}:{subject_name}")
                }
                _ => continue,
            };
            let (kind_of_binding, place) = match &namespace {
                Some(namespace) => ("RoleBinding", format!("{}/{namespace}", binding.name)),
                None => ("ClusterRoleBinding", binding.name.to_string()),
            };
            let subject_kind = text(&subject["kind"]);
            let origin =
                format!("{kind_of_binding} \"{place}\" of {kind} \"{name}\" to {subject_kind} \"{subject_name}\"");
            let grant = Grant {
                namespace: namespace.clone(),
                rules: rules.clone(),
                origin: origin.into(),
            };
            self.subjects.entry(key.into()).or_default().push(grant);
        }
    }

    /// What applies to a user in a namespace (empty: only what is granted everywhere).
    fn of<'g>(&'g self, user: &User, namespace: &str) -> impl Iterator<Item = &'g Grant> {
        let keys = user.groups.iter().map(|group| format!("g:{group}"));
        let keys = [format!("u:{}", user.name)].into_iter().chain(keys);
        let grants = keys.filter_map(|key| self.subjects.get(&*key)).flatten();
        grants.filter(move |grant| grant.namespace.as_ref().is_none_or(|own| **own == *namespace))
    }

    /// The binding that allows it, if one does.
    pub(super) fn allows(&self, user: &User, asked: &Attributes<'_>) -> Option<&str> {
        let namespace = if asked.non_resource_path.is_some() {
            ""
        } else {
            asked.namespace
        };
        self.of(user, namespace)
            .find(|grant| grant.rules.iter().any(|rule| rule.allows(asked)))
            .map(|grant| &*grant.origin)
    }

    /// All rules of a user in a namespace.
    pub(super) fn rules(&self, user: &User, namespace: &str) -> Vec<&Rule> {
        self.of(user, namespace).flat_map(|grant| grant.rules.iter()).collect()
    }
}

/// A ClusterRole's rules, and those of the ClusterRoles its aggregationRule selects.
pub(super) fn with_aggregated(role: &Value, all: &[(Arc<Object>, Value)]) -> Vec<Rule> {
    let mut own = rules(role);
    for selector in role["aggregationRule"]["clusterRoleSelectors"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let Ok(selector) = Selector::from_label_selector(selector) else {
            continue;
        };
        for (_, value) in all.iter().filter(|(object, _)| selector.matches(&object.index)) {
            for rule in rules(value) {
                if !own.contains(&rule) {
                    own.push(rule);
                }
            }
        }
    }
    own
}

/// The status of a SelfSubjectRulesReview.
pub(super) fn review(rules: &[&Rule]) -> Value {
    let (urls, resources): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| rule.is_for_urls());
    let json = |rules: Vec<&Rule>| rules.into_iter().map(Rule::to_json).collect::<Vec<_>>();
    json!({"resourceRules": json(resources), "nonResourceRules": json(urls), "incomplete": false})
}
