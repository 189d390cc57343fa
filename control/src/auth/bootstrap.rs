//! The ClusterRoles and ClusterRoleBindings every cluster begins with ("Default roles and role bindings").

use serde_json::{Value, json};

type Rules = &'static [(&'static str, &'static str, &'static str)];

const READ: &str = "get,list,watch";
const EDIT: &str = "create,delete,deletecollection,patch,update";

/// Group, resources, verbs: what one may see in a namespace. Secrets are not among it.
const VIEW: Rules = &[
    (
        "",
        "bindings,configmaps,endpoints,events,limitranges,namespaces,namespaces/status,persistentvolumeclaims,\
         persistentvolumeclaims/status,pods,pods/log,pods/status,replicationcontrollers,\
         replicationcontrollers/scale,replicationcontrollers/status,resourcequotas,resourcequotas/status,\
         serviceaccounts,services,services/status",
        READ,
    ),
    (
        "apps",
        "controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,\
         replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
        READ,
    ),
    (
        "autoscaling",
        "horizontalpodautoscalers,horizontalpodautoscalers/status",
        READ,
    ),
    ("batch", "cronjobs,cronjobs/status,jobs,jobs/status", READ),
    ("discovery.k8s.io", "endpointslices", READ),
    ("networking.k8s.io", "ingresses,ingresses/status,networkpolicies", READ),
    ("policy", "poddisruptionbudgets,poddisruptionbudgets/status", READ),
];

/// What one may change in a namespace, and the secrets.
const EDITOR: Rules = &[
    (
        "",
        "pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
        READ,
    ),
    ("", "serviceaccounts", "impersonate"),
    ("", "pods,pods/attach,pods/exec,pods/portforward,pods/proxy", EDIT),
    ("", "pods/eviction,serviceaccounts/token", "create"),
    (
        "",
        "configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,\
         serviceaccounts,services,services/proxy",
        EDIT,
    ),
    (
        "apps",
        "daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,\
         statefulsets/scale",
        EDIT,
    ),
    ("autoscaling", "horizontalpodautoscalers", EDIT),
    ("batch", "cronjobs,jobs", EDIT),
    ("networking.k8s.io", "ingresses,networkpolicies", EDIT),
    ("policy", "poddisruptionbudgets", EDIT),
    (
        "coordination.k8s.io",
        "leases",
        "create,delete,deletecollection,get,list,patch,update,watch",
    ),
];

/// What an administrator of a namespace may beyond that.
const ADMIN: Rules = &[
    ("authorization.k8s.io", "localsubjectaccessreviews", "create"),
    (
        "rbac.authorization.k8s.io",
        "rolebindings,roles",
        "create,delete,deletecollection,get,list,patch,update,watch",
    ),
];

const SCHEDULER: Rules = &[
    ("", "events", "create,patch,update"),
    ("events.k8s.io", "events", "create,patch,update"),
    ("coordination.k8s.io", "leases", "create,get,list,update,watch"),
    (
        "",
        "nodes,namespaces,services,replicationcontrollers,persistentvolumeclaims,persistentvolumes",
        READ,
    ),
    ("", "pods", "delete,get,list,watch"),
    ("", "bindings,pods/binding", "create"),
    ("", "pods/status", "patch,update"),
    ("apps", "replicasets,statefulsets", READ),
    ("policy", "poddisruptionbudgets", READ),
    (
        "storage.k8s.io",
        "csinodes,csidrivers,csistoragecapacities,storageclasses,volumeattachments",
        READ,
    ),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
];

const CONTROLLER_MANAGER: Rules = &[
    ("", "events", "create,patch,update"),
    ("events.k8s.io", "events", "create,patch,update"),
    ("coordination.k8s.io", "leases", "create,get,update,watch"),
    ("", "secrets,serviceaccounts", "create,get,update"),
    ("", "serviceaccounts/token", "create"),
    ("", "secrets", "delete"),
    ("", "configmaps,namespaces", "get"),
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
    ("*", "*", "list,watch"),
];

/// What the node authorizer grants, for people to read; nobody is bound to it.
const NODE: Rules = &[
    ("authentication.k8s.io", "tokenreviews", "create"),
    (
        "authorization.k8s.io",
        "localsubjectaccessreviews,subjectaccessreviews",
        "create",
    ),
    ("", "services", READ),
    ("", "nodes", "create,get,list,watch"),
    ("", "nodes/status", "patch,update"),
    ("", "nodes", "patch,update"),
    ("", "events", "create,patch,update"),
    ("", "pods", READ),
    ("", "pods", "delete"),
    ("", "pods/status", "patch,update"),
    ("", "pods/eviction", "create"),
    ("", "configmaps,secrets", READ),
    ("", "persistentvolumeclaims,persistentvolumes", "get"),
    ("", "endpoints", "get"),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        "create,get,list,watch",
    ),
    ("coordination.k8s.io", "leases", "create,delete,get,patch,update"),
    ("storage.k8s.io", "volumeattachments", "get"),
    ("", "serviceaccounts/token", "create"),
    ("storage.k8s.io", "csidrivers", READ),
    ("storage.k8s.io", "csinodes", "create,delete,get,patch,update"),
    ("node.k8s.io", "runtimeclasses", READ),
    ("discovery.k8s.io", "endpointslices", READ),
];

/// What a machine with a bootstrap token may: ask for a certificate, and see whether it was granted.
const NODE_BOOTSTRAPPER: Rules = &[(
    "certificates.k8s.io",
    "certificatesigningrequests",
    "create,get,list,watch",
)];

const NODE_PROXIER: Rules = &[
    ("", "endpoints,services", "list,watch"),
    ("", "nodes", READ),
    ("", "events", "create,patch,update"),
    ("events.k8s.io", "events", "create,patch,update"),
    ("discovery.k8s.io", "endpointslices", "list,watch"),
    ("networking.k8s.io", "servicecidrs", "list,watch"),
];

const BASIC_USER: Rules = &[
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews,selfsubjectrulesreviews",
        "create",
    ),
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
];

const AUTH_DELEGATOR: Rules = &[
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
];

const KUBELET_API: Rules = &[
    ("", "nodes", "get,list,watch,proxy"),
    (
        "",
        "nodes/log,nodes/metrics,nodes/proxy,nodes/stats,nodes/healthz,nodes/configz,nodes/pods",
        "*",
    ),
];

const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];

/// The objects, as a client would create them.
pub fn bootstrap() -> Vec<Value> {
    let all = json!([
        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
        {"verbs": ["*"], "nonResourceURLs": ["*"]},
    ]);
    let mut objects = vec![role("cluster-admin", all)];
    for (name, parts) in [
        ("admin", &[ADMIN, EDITOR, VIEW][..]),
        ("edit", &[EDITOR, VIEW]),
        ("view", &[VIEW]),
    ] {
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
        let mut aggregate = role(name, rules(parts));
        aggregate["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        objects.push(aggregate);
    }
    for (to, own) in [("admin", ADMIN), ("edit", EDITOR), ("view", VIEW)] {
        let mut part = role(&format!("system:aggregate-to-{to}"), rules(&[own]));
        part["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{to}")] = "true".into();
        objects.push(part);
    }
    // Who may edit may view, who administers may edit: the same chain of labels as Kubernetes'.
    objects[2]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] = "true".into();
    objects[3]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] = "true".into();
    for (name, own) in [
        ("system:basic-user", BASIC_USER),
        ("system:auth-delegator", AUTH_DELEGATOR),
        ("system:kube-scheduler", SCHEDULER),
        ("system:kube-controller-manager", CONTROLLER_MANAGER),
        ("system:node", NODE),
        ("system:node-proxier", NODE_PROXIER),
        ("system:node-bootstrapper", NODE_BOOTSTRAPPER),
        ("system:kubelet-api-admin", KUBELET_API),
    ] {
        objects.push(role(name, rules(&[own])));
    }
    for (name, urls) in [
        ("system:discovery", DISCOVERY),
        (
            "system:public-info-viewer",
            &["/healthz", "/livez", "/readyz", "/version", "/version/"],
        ),
        (
            "system:service-account-issuer-discovery",
            &["/.well-known/openid-configuration", "/openid/v1/jwks"],
        ),
        (
            "system:monitoring",
            &[
                "/healthz",
                "/healthz/*",
                "/livez",
                "/livez/*",
                "/metrics",
                "/readyz",
                "/readyz/*",
            ],
        ),
    ] {
        objects.push(role(name, json!([{"verbs": ["get"], "nonResourceURLs": urls}])));
    }
    for (name, kind, subjects) in [
        ("cluster-admin", "Group", &["system:masters"][..]),
        ("system:basic-user", "Group", &["system:authenticated"]),
        ("system:discovery", "Group", &["system:authenticated"]),
        (
            "system:public-info-viewer",
            "Group",
            &["system:authenticated", "system:unauthenticated"],
        ),
        (
            "system:service-account-issuer-discovery",
            "Group",
            &["system:serviceaccounts"],
        ),
        ("system:monitoring", "Group", &["system:monitoring"]),
        ("system:kube-scheduler", "User", &["system:kube-scheduler"]),
        (
            "system:kube-controller-manager",
            "User",
            &["system:kube-controller-manager"],
        ),
        ("system:node-proxier", "User", &["system:kube-proxy"]),
        ("system:node-bootstrapper", "Group", &["system:bootstrappers"]),
    ] {
        objects.push(binding(name, kind, subjects));
    }
    for (request, group) in [
        ("nodeclient", "system:bootstrappers"),
        ("selfnodeclient", "system:nodes"),
    ] {
        let name = format!("system:certificates.k8s.io:certificatesigningrequests:{request}");
        let resource = format!("certificatesigningrequests/{request}");
        objects.push(role(
            &name,
            json!([{"apiGroups": ["certificates.k8s.io"], "resources": [resource], "verbs": ["create"]}]),
        ));
        objects.push(binding(&name, "Group", &[group]));
    }
    for (signer, name) in [
        ("kubernetes.io/kube-apiserver-client", "kube-apiserver-client"),
        (
            "kubernetes.io/kube-apiserver-client-kubelet",
            "kube-apiserver-client-kubelet",
        ),
        ("kubernetes.io/kubelet-serving", "kubelet-serving"),
    ] {
        objects.push(role(
            &format!("system:certificates.k8s.io:{name}-approver"),
            json!([{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [signer],
                "verbs": ["approve"]}]),
        ));
    }
    objects.extend(readable(
        "kube-public",
        "system:hull:cluster-info",
        "cluster-info",
        &[("User", super::ANONYMOUS), ("Group", "system:bootstrappers")],
    ));
    objects.extend(readable(
        "kube-system",
        "system:hull:node-settings",
        NODE_SETTINGS,
        &[("Group", "system:nodes"), ("Group", "system:bootstrappers")],
    ));
    objects
}

/// The ConfigMap that tells nodes what holds for all of the cluster.
pub const NODE_SETTINGS: &str = "hull-node-settings";

/// A role and its binding that let some read one ConfigMap.
fn readable(namespace: &str, name: &str, config_map: &str, subjects: &[(&str, &str)]) -> [Value; 2] {
    let group = "rbac.authorization.k8s.io";
    let mut meta = metadata(name);
    meta["namespace"] = json!(namespace);
    let subject = |(kind, name): &(&str, &str)| json!({"apiGroup": group, "kind": kind, "name": name});
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta,
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [config_map], "verbs": ["get"]}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": subjects.iter().map(subject).collect::<Vec<_>>(),
        }),
    ]
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": metadata(name), "rules": rules,
    })
}

fn rules(parts: &[Rules]) -> Value {
    let list = |text: &str| text.split(',').map(Value::from).collect::<Vec<_>>();
    let rule = |(group, resources, verbs): &(&str, &str, &str)| json!({"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)});
    parts.iter().copied().flatten().map(rule).collect()
}

fn binding(name: &str, kind: &str, subjects: &[&str]) -> Value {
    let group = "rbac.authorization.k8s.io";
    let subject = |name: &&str| json!({"apiGroup": group, "kind": kind, "name": name});
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": metadata(name),
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": subjects.iter().map(subject).collect::<Vec<_>>(),
    })
}
