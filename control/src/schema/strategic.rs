//! Strategic merge patch: lists are merged by the keys their type declares.
//!
//! Semantics of apimachinery's strategicpatch (merge of one patch into one object): `$patch: replace|delete|merge` in
//! maps and list items, `$retainKeys`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`, nulls delete.
//! Merge keys come from the type table; where a type is unknown, maps merge and lists are replaced.

use serde_json::{Map, Value};

use super::patch::PatchError;
use super::types::{Field, Kind, Type, by_name};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to an object of the type.
pub fn strategic_merge(type_name: &str, base: Value, patch: Value) -> Result<Value, PatchError> {
    let ty = by_name(type_name).ok_or_else(|| malformed(format!("no type {type_name} is known")))?;
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => merge_map(Shape::Type(ty), base, patch).map(Value::Object),
        _ => Err(malformed("a strategic merge patch must be a JSON object".to_owned())),
    }
}

fn malformed(message: String) -> PatchError {
    PatchError::Malformed(message)
}

/// What is known of a map.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Type(&'a Type),
    /// A map whose values are of one kind.
    Map(&'a Kind),
    Unknown,
}

/// What is known of a value: its kind, and the field that holds it.
#[derive(Clone, Copy)]
struct Known<'a> {
    kind: Option<&'a Kind>,
    field: Option<&'a Field>,
}

impl<'a> Shape<'a> {
    fn of(kind: Option<&'a Kind>) -> Self {
        match kind {
            Some(Kind::Object(id)) => Shape::Type(id.get()),
            Some(Kind::Map(value)) => Shape::Map(value),
            _ => Shape::Unknown,
        }
    }

    fn member(self, name: &str) -> Known<'a> {
        match self {
            Shape::Type(ty) => {
                let field = ty.field(name);
                Known {
                    kind: field.map(|field| &field.kind),
                    field,
                }
            }
            Shape::Map(kind) => Known {
                kind: Some(kind),
                field: None,
            },
            Shape::Unknown => Known {
                kind: None,
                field: None,
            },
        }
    }
}

impl<'a> Known<'a> {
    fn strategy(self, word: &str) -> bool {
        self.field.is_some_and(|field| field.patches_by(word))
    }

    fn merge_key(self) -> Option<&'static str> {
        self.field.and_then(|field| field.merge_key)
    }

    fn item(self) -> Shape<'a> {
        match self.kind {
            Some(Kind::List(item)) => Shape::of(Some(item)),
            _ => Shape::Unknown,
        }
    }
}

fn merge_map(shape: Shape<'_>, mut base: Object, mut patch: Object) -> Result<Object, PatchError> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(without_directives(patch)),
            "delete" => return Ok(Object::new()),
            "merge" => {}
            other => return Err(malformed(format!("unknown patch type {other:?} in a map"))),
        },
        Some(other) => return Err(malformed(format!("unknown patch type {other} in a map"))),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut base, &patch, &keys)?;
    }
    set_element_orders(shape, &mut base, &mut patch)?;
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(&mut base, list, change)?;
            continue;
        }
        if change.is_null() {
            base.remove(&name);
            continue;
        }
        let known = shape.member(&name);
        let old = base.remove(&name);
        base.insert(name, merge_value(known, old, change)?);
    }
    Ok(base)
}

/// Merges a change into the value it finds, if any.
fn merge_value(known: Known<'_>, old: Option<Value>, change: Value) -> Result<Value, PatchError> {
    match (old, change) {
        (Some(Value::Object(_)), Value::Object(change)) if known.strategy("replace") => {
            Ok(Value::Object(without_directives(change)))
        }
        (Some(Value::Object(old)), Value::Object(change)) => {
            merge_map(Shape::of(known.kind), old, change).map(Value::Object)
        }
        (_, Value::Object(change)) => merge_map(Shape::of(known.kind), Object::new(), change).map(Value::Object),
        (old, Value::Array(change)) if known.strategy("merge") => {
            let old = if let Some(Value::Array(old)) = old {
                old
            } else {
                Vec::new()
            };
            merge_list(known, old, change).map(Value::Array)
        }
        (_, change) => Ok(change),
    }
}

/// A replacing map: what it says, without its nulls and directives.
fn without_directives(mut map: Object) -> Object {
    map.retain(|name, value| !name.starts_with('$') && !value.is_null());
    map
}

/// `$retainKeys` lists all keys the map may have afterwards.
fn retain_keys(base: &mut Object, patch: &Object, keys: &Value) -> Result<(), PatchError> {
    let keys: Vec<&str> = match keys {
        Value::Array(keys) => keys.iter().filter_map(Value::as_str).collect(),
        other => return Err(malformed(format!("invalid patch format of retainKeys list: {other}"))),
    };
    let stray = patch
        .iter()
        .find(|(name, value)| !value.is_null() && !name.starts_with('$') && !keys.contains(&name.as_str()));
    if let Some((name, _)) = stray {
        return Err(malformed(format!(
            "retainKeys list doesn't contain all keys present in the patch: {name:?} is missing"
        )));
    }
    base.retain(|name, _| keys.contains(&name.as_str()));
    Ok(())
}

fn delete_primitives(base: &mut Object, list: &str, gone: Value) -> Result<(), PatchError> {
    let Value::Array(gone) = gone else {
        return Err(malformed(format!("{DELETE_PRIMITIVES}{list} must be a list")));
    };
    if let Some(Value::Array(items)) = base.get_mut(list) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// Merges the lists for which the patch gives an order, and puts them in that order.
fn set_element_orders(shape: Shape<'_>, base: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|name| name.starts_with(ELEMENT_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let name = &directive[ELEMENT_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed(format!("{directive} must be a list")));
        };
        let known = shape.member(name);
        let key = known.merge_key();
        let old = match base.remove(name) {
            Some(Value::Array(old)) => Some(old),
            Some(other) => {
                base.insert(name.to_owned(), other);
                continue;
            }
            None => None,
        };
        let change = match patch.remove(name) {
            Some(Value::Array(change)) => Some(change),
            Some(other) => {
                // A null, or another type: it replaces the list in the general pass.
                patch.insert(name.to_owned(), other);
                continue;
            }
            None => None,
        };
        if old.is_none() && change.is_none() {
            continue;
        }
        check_order(&order, change.as_deref().unwrap_or_default(), key, &directive)?;
        let old = old.unwrap_or_default();
        let merged = match change {
            Some(change) if known.strategy("merge") => merge_list(known, old.clone(), change)?,
            Some(change) => change,
            None => old.clone(),
        };
        base.insert(name.to_owned(), Value::Array(arrange(merged, &order, &old, key)));
    }
    Ok(())
}

/// Every item of the patch must have a place in the order.
fn check_order(order: &[Value], change: &[Value], key: Option<&str>, directive: &str) -> Result<(), PatchError> {
    for item in change {
        let deletes = item.get(DIRECTIVE).is_some();
        if !deletes && position(order, item, key).is_none() {
            return Err(malformed(format!(
                "the order in patch list {directive} does not have the item {item}"
            )));
        }
    }
    Ok(())
}

fn merge_list(known: Known<'_>, old: Vec<Value>, change: Vec<Value>) -> Result<Vec<Value>, PatchError> {
    let first = change.first().or(old.first());
    let Some(key) = known.merge_key().filter(|_| first.is_some_and(Value::is_object)) else {
        return Ok(merge_primitives(old, change));
    };
    let before = old.clone();
    let (mut merged, change) = apply_item_directives(old, change, key)?;
    let mut order = Vec::with_capacity(change.len());
    for item in change {
        let (Value::Object(item), Some(value)) = (&item, item.get(key)) else {
            return Err(malformed(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        };
        order.push(Value::Object(Map::from_iter([(key.to_owned(), value.clone())])));
        let found = merged.iter().position(|candidate| candidate.get(key) == Some(value));
        match found.map(|at| (at, merged[at].take())) {
            Some((at, Value::Object(old))) => merged[at] = Value::Object(merge_map(known.item(), old, item.clone())?),
            Some((at, _)) => merged[at] = Value::Object(item.clone()),
            None => merged.push(Value::Object(merge_map(known.item(), Object::new(), item.clone())?)),
        }
    }
    Ok(arrange(merged, &order, &before, Some(key)))
}

/// Takes out the items with `$patch`, after doing what they say: `delete` removes the item of that key; `replace` puts the
/// other items of the change in the place of all that was there, as they are: some may have one key.
fn apply_item_directives(
    mut old: Vec<Value>,
    change: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut rest = Vec::with_capacity(change.len());
    let mut replaces = false;
    for mut item in change {
        let Some(directive) = item.as_object_mut().and_then(|item| item.remove(DIRECTIVE)) else {
            rest.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let Some(value) = item.get(key) else {
                    return Err(malformed(format!(
                        "map: {item} does not contain declared merge key: {key}"
                    )));
                };
                old.retain(|candidate| candidate.get(key) != Some(value));
            }
            Some("replace") => replaces = true,
            Some("merge") => rest.push(item),
            _ => return Err(malformed(format!("unknown patch type {directive} in a list"))),
        }
    }
    Ok(if replaces { (rest, Vec::new()) } else { (old, rest) })
}

fn merge_primitives(old: Vec<Value>, change: Vec<Value>) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::with_capacity(old.len() + change.len());
    for item in old.iter().chain(&change) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    arrange(merged, &change, &old, None)
}

/// Orders a merged list: the items that `order` names in that order; the others in the order they had; and of two, one
/// from each side, the one that stood first before stays first.
fn arrange(merged: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let (mut named, mut others): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .partition(|item| position(order, item, key).is_some());
    named.sort_by_key(|item| position(order, item, key));
    others.sort_by_key(|item| position(before, item, key).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return result,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(named)) => {
                matches!((position(before, other, key), position(before, named, key)), (Some(a), Some(b)) if a < b)
            }
        };
        result.extend(if other_first { others.next() } else { named.next() });
    }
}

fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|candidate| match key {
        Some(key) => candidate.get(key).is_some() && candidate.get(key) == item.get(key),
        None => candidate == item,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod_spec(base: Value, patch: Value) -> Value {
        strategic_merge("io.k8s.api.core.v1.Pod", json!({"spec": base}), json!({"spec": patch})).unwrap()["spec"].take()
    }

    fn error(base: Value, patch: Value) -> String {
        strategic_merge("io.k8s.api.core.v1.Pod", json!({"spec": base}), json!({"spec": patch}))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn lists_of_maps_merge_by_key() {
        let base = json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]});
        let patch = json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]});
        assert_eq!(
            pod_spec(base, patch),
            json!({"containers": [
                {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
                {"name": "b", "image": "1"},
            ]})
        );
    }

    #[test]
    fn new_items_go_first_unless_an_order_says_otherwise() {
        let base = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let patch = json!({"containers": [{"name": "c"}]});
        assert_eq!(
            pod_spec(base.clone(), patch),
            json!({"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]})
        );
        let patch = json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "x"}],
        });
        assert_eq!(
            pod_spec(base, patch),
            json!({"containers": [{"name": "b"}, {"name": "c", "image": "x"}, {"name": "a"}]})
        );
    }

    #[test]
    fn an_order_alone_reorders_and_keeps_what_the_server_added() {
        let base = json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]});
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]});
        assert_eq!(
            pod_spec(base, patch),
            json!({"containers": [{"name": "server"}, {"name": "b"}, {"name": "a"}]})
        );
        let order = json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]});
        assert!(error(json!({}), order).contains("does not have the item"));
    }

    #[test]
    fn items_are_deleted_and_lists_replaced_by_directives() {
        let base = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let patch = json!({"containers": [{"name": "a", "$patch": "delete"}]});
        assert_eq!(pod_spec(base.clone(), patch), json!({"containers": [{"name": "b"}]}));
        let patch = json!({"containers": [{"name": "c"}, {"$patch": "replace"}]});
        assert_eq!(pod_spec(base.clone(), patch), json!({"containers": [{"name": "c"}]}));
        let patch = json!({"containers": [{"name": "c", "image": "1"}, {"name": "c"}, {"$patch": "replace"}]});
        let twice = json!({"containers": [{"name": "c", "image": "1"}, {"name": "c"}]});
        assert_eq!(pod_spec(base.clone(), patch), twice, "what replaces is not merged");
        let patch = json!({"containers": [{"name": "z", "$patch": "delete"}]});
        assert_eq!(pod_spec(json!({}), patch), json!({"containers": []}));
        assert!(error(base.clone(), json!({"containers": [{"image": "x"}]})).contains("merge key: name"));
        assert!(error(base, json!({"containers": [{"name": "a", "$patch": "foo"}]})).contains("unknown patch type"));
    }

    #[test]
    fn maps_are_replaced_and_deleted_by_directives() {
        let base = json!({"nodeSelector": {"a": "1", "b": "2"}, "securityContext": {"runAsUser": 1}});
        let patch = json!({"nodeSelector": {"$patch": "replace", "c": "3"}, "securityContext": {"$patch": "delete"}});
        assert_eq!(
            pod_spec(base, patch),
            json!({"nodeSelector": {"c": "3"}, "securityContext": {}})
        );
    }

    #[test]
    fn retain_keys_drops_the_other_members_of_a_union() {
        let base = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let merged = strategic_merge("io.k8s.api.apps.v1.Deployment", base, patch.clone()).unwrap();
        assert_eq!(merged, json!({"spec": {"strategy": {"type": "Recreate"}}}));
        let fresh = strategic_merge("io.k8s.api.apps.v1.Deployment", json!({}), patch).unwrap();
        assert_eq!(fresh, json!({"spec": {"strategy": {"type": "Recreate"}}}));
        let volumes = json!({"volumes": [{"name": "v", "hostPath": {"path": "/a"}}]});
        let patch = json!({"volumes": [{"$retainKeys": ["name", "emptyDir"], "name": "v", "emptyDir": {}}]});
        assert_eq!(
            pod_spec(volumes, patch),
            json!({"volumes": [{"name": "v", "emptyDir": {}}]})
        );
        let stray = json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "emptyDir": {}}]});
        assert!(error(json!({"volumes": [{"name": "v"}]}), stray).contains("retainKeys"));
    }

    #[test]
    fn lists_of_primitives_merge_or_are_replaced_as_their_field_says() {
        let merge = |base: Value, patch: Value| {
            strategic_merge(
                "io.k8s.api.core.v1.ConfigMap",
                json!({"metadata": base}),
                json!({"metadata": patch}),
            )
            .unwrap()["metadata"]
                .take()
        };
        let base = json!({"finalizers": ["a", "b"]});
        assert_eq!(
            merge(base.clone(), json!({"finalizers": ["c", "a"]})),
            json!({"finalizers": ["c", "a", "b"]})
        );
        let patch = json!({"$deleteFromPrimitiveList/finalizers": ["a"]});
        assert_eq!(merge(base.clone(), patch), json!({"finalizers": ["b"]}));
        let patch = json!({"$setElementOrder/finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]});
        assert_eq!(merge(base, patch), json!({"finalizers": ["b", "c"]}));
        let args = json!({"containers": [{"name": "a", "args": ["x", "y"]}]});
        let patch = json!({"containers": [{"name": "a", "args": ["z"]}]});
        assert_eq!(
            pod_spec(args, patch),
            json!({"containers": [{"name": "a", "args": ["z"]}]})
        );
    }

    #[test]
    fn nulls_delete_and_are_not_stored() {
        let base = json!({"nodeName": "n", "nodeSelector": {"a": "1", "b": "2"}});
        let patch = json!({"nodeName": null, "nodeSelector": {"a": null}, "affinity": {"podAffinity": null}});
        assert_eq!(
            pod_spec(base, patch),
            json!({"nodeSelector": {"b": "2"}, "affinity": {}})
        );
    }

    #[test]
    fn a_patch_must_be_an_object() {
        assert!(strategic_merge("io.k8s.api.core.v1.Pod", json!({}), json!([])).is_err());
        assert!(strategic_merge("no.such.Type", json!({}), json!({})).is_err());
    }
}
