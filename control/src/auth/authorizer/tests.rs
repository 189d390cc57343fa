//! The RBAC matrix (FAULTS 48) and the node authorizer (FAULTS 49) as tables.

use serde_json::json;

use super::*;
use crate::auth::bootstrap;
use crate::cache::tests::{change, empty, put, run};

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups
        .iter()
        .map(|g| (*g).to_owned())
        .chain(["system:authenticated".to_owned()])
        .collect();
    User {
        name: name.into(),
        groups,
        ..User::default()
    }
}

fn install(cache: &Cache, object: Value) {
    let plural = format!(
        "rbac.authorization.k8s.io/{}s",
        object["kind"].as_str().unwrap().to_lowercase()
    );
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    put(cache, &plural, &text("namespace"), &text("name"), object);
}

fn role(kind: &str, namespace: &str, name: &str, rules: Value) -> Value {
    json!({"kind": kind, "metadata": {"namespace": namespace, "name": name}, "rules": rules})
}

fn binding(namespace: &str, role_kind: &str, role: &str, subject: Value) -> Value {
    let kind = if namespace.is_empty() {
        "ClusterRoleBinding"
    } else {
        "RoleBinding"
    };
    json!({
        "kind": kind, "metadata": {"namespace": namespace, "name": format!("{role}-{}", subject["name"].as_str().unwrap())},
        "roleRef": {"kind": role_kind, "name": role}, "subjects": [subject],
    })
}

fn person(name: &str) -> Value {
    json!({"kind": "User", "name": name})
}

/// `verb group/resource/sub namespace/name`, or `verb path:/path`.
fn asked(text: &str) -> Attributes<'_> {
    let parts: Vec<&str> = text.split(' ').collect();
    if let Some(path) = parts[1].strip_prefix("path:") {
        return Attributes {
            verb: parts[0],
            non_resource_path: Some(path),
            ..Attributes::default()
        };
    }
    let mut what = parts[1].split('/');
    let (group, resource, subresource) = (
        what.next().unwrap(),
        what.next().unwrap(),
        what.next().unwrap_or_default(),
    );
    let (namespace, name) = parts.get(2).unwrap_or(&"/").split_once('/').unwrap();
    Attributes {
        verb: parts[0],
        group,
        resource,
        subresource,
        namespace,
        name,
        ..Attributes::default()
    }
}

fn check(authorizer: &Authorizer, user: &User, table: &[(&str, bool)]) {
    for (text, allowed) in table {
        let decision = authorizer.authorize(user, &asked(text));
        assert_eq!(
            matches!(decision, Decision::Allow(_)),
            *allowed,
            "{}: {text}: {decision:?}",
            user.name
        );
    }
}

fn standard() -> (Arc<Cache>, Authorizer) {
    let cache = empty();
    for object in bootstrap() {
        install(&cache, object);
    }
    let authorizer = Authorizer::new(cache.clone());
    (cache, authorizer)
}

#[test]
fn rules_match_as_specified() {
    let (cache, authorizer) = standard();
    let rules = json!([
        {"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "deployments", "pods/log"]},
        {"verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one", "two"]},
        {"verbs": ["patch"], "apiGroups": ["*"], "resources": ["*/scale"]},
        {"verbs": ["*"], "apiGroups": ["batch"], "resources": ["*"]},
        {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/debug/*"]},
    ]);
    install(&cache, role("ClusterRole", "", "mixed", rules));
    install(&cache, binding("", "ClusterRole", "mixed", person("ann")));
    check(
        &authorizer,
        &user("ann", &[]),
        &[
            ("get /pods d/a", true),
            ("list apps/deployments d/", true),
            ("list /pods", true),
            ("watch /pods d/a", false),
            ("get /pods/log d/a", true),
            ("get /pods/exec d/a", false),
            ("get batch/pods d/a", true),
            ("update /configmaps d/one", true),
            ("update /configmaps d/three", false),
            ("update /configmaps d/", false),
            ("patch apps/deployments/scale d/a", true),
            ("patch apps/deployments d/a", false),
            ("delete batch/jobs/status d/a", true),
            ("get path:/metrics", true),
            ("get path:/debug/pprof/heap", true),
            ("get path:/debug", false),
            ("post path:/metrics", false),
            ("get /secrets d/a", false),
        ],
    );
    check(
        &authorizer,
        &user("bob", &[]),
        &[("get /pods d/a", false), ("get path:/metrics", false)],
    );
}

#[test]
fn bindings_reach_as_far_as_they_say_and_no_longer_than_they_exist() {
    let (cache, authorizer) = standard();
    let reader = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    install(&cache, role("Role", "d", "reader", reader.clone()));
    install(&cache, role("Role", "other", "reader", json!([])));
    install(&cache, binding("d", "Role", "reader", person("ann")));
    install(
        &cache,
        binding("d", "ClusterRole", "view", json!({"kind": "Group", "name": "viewers"})),
    );
    install(
        &cache,
        binding(
            "d",
            "Role",
            "reader",
            json!({"kind": "ServiceAccount", "name": "bot", "namespace": "e"}),
        ),
    );
    install(&cache, binding("other", "Role", "absent", person("ann")));
    check(
        &authorizer,
        &user("ann", &[]),
        &[
            ("get /pods d/a", true),
            ("get /pods other/a", false),
            ("get /pods", false),
            ("get path:/healthz", true),
            ("get path:/metrics", false),
        ],
    );
    check(
        &authorizer,
        &user("system:serviceaccount:e:bot", &[]),
        &[("get /pods d/a", true)],
    );
    check(
        &authorizer,
        &user("system:serviceaccount:d:bot", &[]),
        &[("get /pods d/a", false)],
    );
    check(
        &authorizer,
        &user("v", &["viewers"]),
        &[
            ("list apps/deployments d/", true),
            ("get /secrets d/a", false),
            ("list apps/deployments e/", false),
        ],
    );
    install(&cache, role("Role", "other", "absent", reader));
    check(&authorizer, &user("ann", &[]), &[("get /pods other/a", true)]);
    run(cache.commit(vec![change(
        "rbac.authorization.k8s.io/rolebindings",
        "d",
        "reader-ann",
        None,
    )]))
    .unwrap();
    check(&authorizer, &user("ann", &[]), &[("get /pods d/a", false)]);
}

#[test]
fn the_default_roles_are_nested() {
    let (cache, authorizer) = standard();
    for name in ["admin", "edit", "view"] {
        install(&cache, binding("d", "ClusterRole", name, person(name)));
    }
    let table = [
        // view, edit, admin
        ("get /pods d/a", [true, true, true]),
        ("get /pods/log d/a", [true, true, true]),
        ("get /secrets d/a", [false, true, true]),
        ("create apps/deployments d/", [false, true, true]),
        ("create /pods/exec d/a", [false, true, true]),
        ("create rbac.authorization.k8s.io/rolebindings d/", [false, false, true]),
        ("update /namespaces d/d", [false, false, false]),
        ("delete /nodes", [false, false, false]),
    ];
    for (text, expected) in table {
        for (name, expected) in ["view", "edit", "admin"].into_iter().zip(expected) {
            check(&authorizer, &user(name, &[]), &[(text, expected)]);
        }
    }
    // A role that adds itself to `view` by its label.
    let mut extra = role(
        "ClusterRole",
        "",
        "crd-viewer",
        json!([{"verbs": ["get"], "apiGroups": ["x.io"], "resources": ["*"]}]),
    );
    extra["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    check(&authorizer, &user("view", &[]), &[("get x.io/things d/a", false)]);
    install(&cache, extra);
    check(&authorizer, &user("view", &[]), &[("get x.io/things d/a", true)]);
    check(
        &authorizer,
        &user("root", &["system:masters"]),
        &[("delete /nodes", true), ("get path:/anything", true)],
    );
    check(
        &authorizer,
        &User::default(),
        &[("get /pods d/a", false), ("get path:/healthz", false)],
    );
    let anonymous = User {
        name: "system:anonymous".into(),
        groups: vec!["system:unauthenticated".into()],
        ..User::default()
    };
    check(
        &authorizer,
        &anonymous,
        &[
            ("get path:/healthz", true),
            ("get path:/version", true),
            ("get path:/api", false),
            ("get /pods d/a", false),
        ],
    );
    check(
        &authorizer,
        &user("nobody", &[]),
        &[
            ("get path:/apis/apps/v1", true),
            ("create authorization.k8s.io/selfsubjectaccessreviews", true),
            ("create authorization.k8s.io/subjectaccessreviews", false),
        ],
    );
}

#[test]
fn nobody_grants_what_they_do_not_have() {
    let (cache, authorizer) = standard();
    install(&cache, binding("d", "ClusterRole", "admin", person("ann")));
    let ann = user("ann", &[]);
    let rule = |verb: &str, resource: &str| json!([{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]);
    let new_role = |rules: Value| role("Role", "d", "new", rules);
    let may = |new: &Value, old: Option<&Value>, resource: &str| authorizer.check_escalation(&ann, resource, new, old);
    assert_eq!(may(&new_role(rule("get", "pods")), None, "roles"), Ok(()));
    let refused = may(&new_role(rule("get", "nodes")), None, "roles").unwrap_err();
    assert!(
        refused.contains("not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"),
        "{refused}"
    );
    assert!(
        may(&new_role(rule("*", "pods")), None, "roles").is_err(),
        "a wildcard is more than its members"
    );
    assert!(may(&new_role(rule("get", "*")), None, "roles").is_err());
    let held = new_role(rule("get", "nodes"));
    assert_eq!(
        may(&held, Some(&held), "roles"),
        Ok(()),
        "unchanged rules grant nothing new"
    );
    let elsewhere = role("Role", "e", "new", rule("get", "pods"));
    assert!(may(&elsewhere, None, "roles").is_err());
    assert!(
        may(
            &role("ClusterRole", "", "new", rule("get", "pods")),
            None,
            "clusterroles"
        )
        .is_err()
    );

    assert_eq!(
        may(
            &binding("d", "ClusterRole", "view", person("bob")),
            None,
            "rolebindings"
        ),
        Ok(())
    );
    assert!(
        may(
            &binding("d", "ClusterRole", "cluster-admin", person("ann")),
            None,
            "rolebindings"
        )
        .is_err()
    );
    assert!(
        may(
            &binding("", "ClusterRole", "view", person("bob")),
            None,
            "clusterrolebindings"
        )
        .is_err()
    );
    let absent = may(
        &binding("d", "ClusterRole", "absent", person("bob")),
        None,
        "rolebindings",
    )
    .unwrap_err();
    assert!(absent.contains("\"absent\" not found"), "{absent}");

    let bind = json!([{"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"]}]);
    install(&cache, role("ClusterRole", "", "binder", bind));
    install(&cache, binding("d", "ClusterRole", "binder", person("ann")));
    assert_eq!(
        may(
            &binding("d", "ClusterRole", "cluster-admin", person("ann")),
            None,
            "rolebindings"
        ),
        Ok(())
    );
    let escalate = json!([{"verbs": ["escalate"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"]}]);
    install(&cache, role("ClusterRole", "", "escalator", escalate));
    install(&cache, binding("d", "ClusterRole", "escalator", person("ann")));
    assert_eq!(may(&new_role(rule("get", "nodes")), None, "roles"), Ok(()));
    let masters = user("root", &["system:masters"]);
    assert_eq!(
        authorizer.check_escalation(
            &masters,
            "clusterroles",
            &role("ClusterRole", "", "x", rule("*", "*")),
            None
        ),
        Ok(())
    );
}

#[test]
fn a_rules_review_lists_what_one_may() {
    let (cache, authorizer) = standard();
    install(
        &cache,
        role(
            "Role",
            "d",
            "reader",
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}]),
        ),
    );
    install(&cache, binding("d", "Role", "reader", person("ann")));
    let review = authorizer.rules(&user("ann", &[]), "d");
    let expected = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]});
    assert!(
        review["resourceRules"].as_array().unwrap().contains(&expected),
        "{review}"
    );
    assert!(review["nonResourceRules"][0]["nonResourceURLs"].is_array());
    assert!(
        !authorizer.rules(&user("ann", &[]), "e")["resourceRules"]
            .as_array()
            .unwrap()
            .contains(&expected)
    );
    assert_eq!(
        authorizer.rules(&user("r", &["system:masters"]), "d")["resourceRules"][0]["verbs"],
        json!(["*"])
    );
}

#[test]
fn a_node_reaches_its_own_only() {
    let (cache, authorizer) = standard();
    let pod = |node: &str, suffix: &str| {
        json!({"metadata": {}, "spec": {
            "nodeName": node,
            "serviceAccountName": format!("account-{suffix}"),
            "imagePullSecrets": [{"name": format!("pull-{suffix}")}],
            "volumes": [
                {"name": "s", "secret": {"secretName": format!("volume-{suffix}")}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": format!("projected-{suffix}")}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": format!("claim-{suffix}")}},
            ],
            "initContainers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": format!("env-{suffix}"), "key": "k"}}}]}],
            "containers": [{"envFrom": [{"secretRef": {"name": format!("from-{suffix}")}}, {"configMapRef": {"name": format!("config-{suffix}")}}]}],
        }})
    };
    put(&cache, "pods", "d", "mine", pod("n1", "mine"));
    put(&cache, "pods", "d", "theirs", pod("n2", "theirs"));
    put(&cache, "pods", "d", "nobodys", json!({"metadata": {}, "spec": {}}));
    put(
        &cache,
        "persistentvolumeclaims",
        "d",
        "claim-mine",
        json!({"metadata": {}, "spec": {"volumeName": "pv1"}}),
    );
    let node = user("system:node:n1", &["system:nodes"]);
    for kind in ["pull", "volume", "projected", "env", "from"] {
        check(
            &authorizer,
            &node,
            &[
                (&format!("get /secrets d/{kind}-mine"), true),
                (&format!("watch /secrets d/{kind}-mine"), true),
                (&format!("get /secrets d/{kind}-theirs"), false),
                (&format!("get /secrets e/{kind}-mine"), false),
                (&format!("update /secrets d/{kind}-mine"), false),
            ],
        );
    }
    check(
        &authorizer,
        &node,
        &[
            ("list /secrets d/", false),
            ("list /secrets", false),
            ("get /configmaps d/config-mine", true),
            ("get /configmaps d/kube-root-ca.crt", true),
            ("get /configmaps d/config-theirs", false),
            ("get /persistentvolumeclaims d/claim-mine", true),
            ("get /persistentvolumes /pv1", true),
            ("get /persistentvolumes /pv2", false),
            ("create /serviceaccounts/token d/account-mine", true),
            ("create /serviceaccounts/token d/account-theirs", false),
            ("get /pods d/mine", true),
            ("get /pods d/theirs", false),
            ("delete /pods d/mine", true),
            ("delete /pods d/theirs", false),
            ("delete /pods d/nobodys", false),
            ("patch /pods/status d/mine", true),
            ("patch /pods/status d/theirs", false),
            ("patch /pods d/mine", false),
            ("create /pods d/", false),
            ("create /pods/eviction d/mine", true),
            ("create /pods/eviction d/theirs", false),
            ("create /pods/binding d/nobodys", false),
            ("create /pods/exec d/mine", false),
            ("list /pods", true),
            ("patch /nodes/status /n1", true),
            ("patch /nodes/status /n2", false),
            ("update /nodes /n2", false),
            ("delete /nodes /n2", false),
            ("get /nodes /n2", true),
            ("create /nodes", true),
            ("update coordination.k8s.io/leases kube-node-lease/n1", true),
            ("update coordination.k8s.io/leases kube-node-lease/n2", false),
            ("create coordination.k8s.io/leases kube-node-lease/", true),
            ("update coordination.k8s.io/leases kube-system/n1", false),
            ("create /events d/", true),
            ("list /services", true),
            ("update /services d/a", false),
            ("watch discovery.k8s.io/endpointslices", true),
            ("create rbac.authorization.k8s.io/clusterrolebindings", false),
            ("create /serviceaccounts d/", false),
        ],
    );
    let pods = |field_selector| Attributes {
        verb: "watch",
        resource: "pods",
        field_selector: Some(field_selector),
        ..Attributes::default()
    };
    assert!(matches!(
        authorizer.authorize(&node, &pods("spec.nodeName=n1")),
        Decision::Allow(_)
    ));
    assert!(matches!(
        authorizer.authorize(&node, &pods("spec.nodeName=n2")),
        Decision::Deny(_)
    ));
    assert!(matches!(authorizer.authorize(&node, &pods("")), Decision::Deny(_)));
    for impostor in [
        user("system:node:n1", &[]),
        user("system:node:", &["system:nodes"]),
        user("n1", &["system:nodes"]),
    ] {
        check(
            &authorizer,
            &impostor,
            &[
                ("get /secrets d/volume-mine", false),
                ("patch /nodes/status /n1", false),
            ],
        );
    }
}
