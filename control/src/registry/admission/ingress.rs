//! An ingress that names no class gets the default one (the plugin DefaultIngressClass): of those that are marked the newest,
//! and of two of one age the first by name.

use serde_json::{Value, json};

use crate::cache::{Cache, Object};

const CLASSES: &str = "networking.k8s.io/ingressclasses";
/// Marks a class that ingresses get if they do not choose.
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How a class was chosen before there was a field for it.
const ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Fills in the class.
pub(super) fn default_class(cache: &Cache, ingress: &mut Value) {
    let chosen = !ingress["spec"]["ingressClassName"].is_null();
    if chosen || !ingress["metadata"]["annotations"][ANNOTATION].is_null() {
        return;
    }
    let classes = cache.snapshot(CLASSES);
    if let Some(name) = newest(classes.iter().map(|class| &**class))
        && let Some(spec) = ingress["spec"].as_object_mut()
    {
        spec.insert("ingressClassName".into(), json!(name));
    }
}

fn newest<'a>(classes: impl Iterator<Item = &'a Object>) -> Option<String> {
    let marked = classes.filter_map(|class| {
        let value = class.value();
        let is_default = value["metadata"]["annotations"][DEFAULT] == "true";
        let created = value["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        is_default.then(|| (created, std::cmp::Reverse(class.name.to_string())))
    });
    marked.max().map(|(_, name)| name.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Index;

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, created: &str, default: &str| {
            let meta = json!({"name": name, "creationTimestamp": created, "annotations": {DEFAULT: default}});
            Object::new((CLASSES, "", name), 1, 1, Index::default(), &json!({"metadata": meta}))
        };
        let all = [
            class("a", "2026-01-01T00:00:00Z", "true"),
            class("c", "2026-01-02T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("d", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(newest(all.iter()).as_deref(), Some("b"));
        assert_eq!(newest(all[3..].iter()), None);
    }
}
