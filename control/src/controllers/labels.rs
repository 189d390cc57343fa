//! `metav1.LabelSelector` against the labels in an object's index.
//!
//! A missing selector matches nothing, an empty one everything (API reference, LabelSelector).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cache::Object;

/// Anything with labels.
pub trait Labelled {
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for Object {
    fn label(&self, key: &str) -> Option<&str> {
        Object::label(self, key)
    }
}

impl Labelled for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// Whether a selector matches. Unknown operators match nothing.
pub fn matches(selector: Option<&LabelSelector>, labels: &impl Labelled) -> bool {
    let Some(selector) = selector else { return false };
    contains(selector.match_labels.iter().flatten(), labels)
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = labels.label(&requirement.key);
            let listed = |v: &str| requirement.values.iter().flatten().any(|candidate| candidate == v);
            match requirement.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether all of `wanted` are among the labels.
pub fn contains<'a>(wanted: impl IntoIterator<Item = (&'a String, &'a String)>, labels: &impl Labelled) -> bool {
    wanted.into_iter().all(|(key, value)| labels.label(key) == Some(value))
}

/// Whether a selector is present but selects everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(value: serde_json::Value) -> LabelSelector {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_operator() {
        let labels: BTreeMap<String, String> = [("app".to_owned(), "web".to_owned())].into();
        for (expression, expected) in [
            (
                serde_json::json!({"key": "app", "operator": "In", "values": ["web", "x"]}),
                true,
            ),
            (
                serde_json::json!({"key": "app", "operator": "In", "values": ["x"]}),
                false,
            ),
            (
                serde_json::json!({"key": "app", "operator": "NotIn", "values": ["x"]}),
                true,
            ),
            (
                serde_json::json!({"key": "tier", "operator": "NotIn", "values": ["x"]}),
                true,
            ),
            (serde_json::json!({"key": "app", "operator": "Exists"}), true),
            (serde_json::json!({"key": "app", "operator": "DoesNotExist"}), false),
            (serde_json::json!({"key": "app", "operator": "Near"}), false),
        ] {
            let s = selector(serde_json::json!({"matchExpressions": [expression]}));
            assert_eq!(matches(Some(&s), &labels), expected, "{s:?}");
        }
        assert!(!matches(None, &labels));
        assert!(matches(Some(&LabelSelector::default()), &labels));
        assert!(!matches(
            Some(&selector(serde_json::json!({"matchLabels": {"app": "db"}}))),
            &labels
        ));
    }
}
