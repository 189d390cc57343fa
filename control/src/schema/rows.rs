//! The resource table itself: one row for every resource of every group-version that hull serves.
//!
//! Order matters for discovery (groups appear in order of first mention) and for two views of one storage: the first
//! row with a key owns it.

use super::default;
use super::event;
use super::resource::{Conversion, NameRule, Resource, Subresource};
use super::strategy::Strategy;
use super::validate;

const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];

const fn sub(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        group,
        version,
        kind,
        verbs,
    }
}

const CONNECT: &[&str] = &["create", "get"];
/// What a proxy passes on: any request there is a verb for.
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
/// Changes are counted, and there is no status.
const COUNTED: Strategy = Strategy {
    generation: true,
    ..Strategy::PLAIN
};
const APPS_SCALE: Subresource = sub("scale", "autoscaling", "v1", "Scale", READ_WRITE);

/// What most rows have in common.
const ROW: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL,
    subresources: &[],
    type_name: "",
    selectable_fields: &[],
    key: "",
    storage: true,
    name_rule: NameRule::Subdomain,
    default: default::nothing,
    validate: validate::metadata_only,
    strategy: Strategy::PLAIN,
    conversion: None,
};

/// A resource that is only answered, never stored.
const REVIEW: Resource = Resource {
    namespaced: false,
    verbs: CREATE,
    storage: false,
    validate: validate::nothing,
    ..ROW
};

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// All rows.
pub(super) static ROWS: &[Resource] = &[
    Resource {
        kind: "Binding",
        plural: "bindings",
        singular: "binding",
        namespaced: true,
        type_name: "io.k8s.api.core.v1.Binding",
        key: "bindings",
        validate: validate::pod::binding,
        ..REVIEW
    },
    Resource {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        type_name: "io.k8s.api.core.v1.ConfigMap",
        key: "configmaps",
        validate: validate::config::config_map,
        ..ROW
    },
    Resource {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        type_name: "io.k8s.api.core.v1.Endpoints",
        key: "endpoints",
        default: default::endpoint::endpoints,
        validate: validate::endpoint::endpoints,
        ..ROW
    },
    Resource {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "io.k8s.api.core.v1.Event",
        selectable_fields: EVENT_FIELDS,
        key: "events",
        validate: validate::node::event,
        strategy: Strategy {
            create_on_update: true,
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: NO_COLLECTION,
        subresources: &[
            sub("finalize", "", "v1", "Namespace", &["update"]),
            sub("status", "", "v1", "Namespace", READ_WRITE),
        ],
        type_name: "io.k8s.api.core.v1.Namespace",
        selectable_fields: &["status.phase"],
        key: "namespaces",
        name_rule: NameRule::Label,
        default: default::namespace,
        validate: validate::node::namespace,
        strategy: Strategy {
            status: true,
            on_create: Some(default::namespace_create),
            on_update: Some(default::namespace_update),
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &[
            sub("proxy", "", "v1", "NodeProxyOptions", PROXY),
            sub("status", "", "v1", "Node", READ_WRITE),
        ],
        type_name: "io.k8s.api.core.v1.Node",
        selectable_fields: &["spec.unschedulable"],
        key: "nodes",
        default: default::node,
        validate: validate::node::node,
        strategy: Strategy {
            status: true,
            create_with_status: true,
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", "", "v1", "PodAttachOptions", CONNECT),
            sub("binding", "", "v1", "Binding", CREATE),
            sub("ephemeralcontainers", "", "v1", "Pod", READ_WRITE),
            sub("eviction", "policy", "v1", "Eviction", CREATE),
            sub("exec", "", "v1", "PodExecOptions", CONNECT),
            sub("log", "", "v1", "Pod", &["get"]),
            sub("portforward", "", "v1", "PodPortForwardOptions", CONNECT),
            sub("proxy", "", "v1", "PodProxyOptions", PROXY),
            sub("status", "", "v1", "Pod", READ_WRITE),
        ],
        type_name: "io.k8s.api.core.v1.Pod",
        selectable_fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        key: "pods",
        default: default::pod::pod,
        validate: validate::pod::pod,
        strategy: Strategy {
            generation: true,
            graceful: true,
            on_create: Some(default::pod::on_create),
            ..Strategy::WORKLOAD
        },
        ..ROW
    },
    Resource {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        type_name: "io.k8s.api.core.v1.PodTemplate",
        key: "podtemplates",
        default: default::pod::pod_template,
        validate: validate::workload::pod_template,
        strategy: Strategy {
            generation: true,
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[APPS_SCALE, sub("status", "", "v1", "ReplicationController", READ_WRITE)],
        type_name: "io.k8s.api.core.v1.ReplicationController",
        selectable_fields: &["status.replicas"],
        key: "replicationcontrollers",
        default: default::workload::replication_controller,
        validate: validate::workload::replication_controller,
        strategy: Strategy::WORKLOAD,
        ..ROW
    },
    Resource {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        type_name: "io.k8s.api.core.v1.Secret",
        selectable_fields: &["type"],
        key: "secrets",
        default: default::secret,
        validate: validate::config::secret,
        ..ROW
    },
    Resource {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &[sub("token", "authentication.k8s.io", "v1", "TokenRequest", CREATE)],
        type_name: "io.k8s.api.core.v1.ServiceAccount",
        key: "serviceaccounts",
        ..ROW
    },
    Resource {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[
            sub("proxy", "", "v1", "ServiceProxyOptions", PROXY),
            sub("status", "", "v1", "Service", READ_WRITE),
        ],
        type_name: "io.k8s.api.core.v1.Service",
        selectable_fields: &["spec.clusterIP", "spec.type"],
        key: "services",
        name_rule: NameRule::Label1035,
        default: default::service::service,
        validate: validate::service::service,
        strategy: Strategy {
            status: true,
            on_create: Some(default::service::on_create),
            on_update: Some(default::service::on_update),
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[APPS_SCALE, sub("status", "apps", "v1", "Deployment", READ_WRITE)],
        type_name: "io.k8s.api.apps.v1.Deployment",
        key: "apps/deployments",
        default: default::workload::deployment,
        validate: validate::workload::deployment,
        strategy: Strategy::WORKLOAD,
        ..ROW
    },
    Resource {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[APPS_SCALE, sub("status", "apps", "v1", "ReplicaSet", READ_WRITE)],
        type_name: "io.k8s.api.apps.v1.ReplicaSet",
        selectable_fields: &["status.replicas"],
        key: "apps/replicasets",
        default: default::workload::replica_set,
        validate: validate::workload::replica_set,
        strategy: Strategy::WORKLOAD,
        ..ROW
    },
    Resource {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "io.k8s.api.events.v1.Event",
        selectable_fields: EVENT_FIELDS,
        key: "events",
        validate: validate::node::event,
        strategy: Strategy {
            create_on_update: true,
            ..Strategy::PLAIN
        },
        conversion: Some(Conversion {
            to_storage: event::to_core,
            from_storage: event::from_core,
        }),
        ..ROW
    },
    Resource {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        type_name: "io.k8s.api.authentication.v1.SelfSubjectReview",
        key: "authentication.k8s.io/selfsubjectreviews",
        ..REVIEW
    },
    Resource {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        type_name: "io.k8s.api.authentication.v1.TokenReview",
        key: "authentication.k8s.io/tokenreviews",
        ..REVIEW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        type_name: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        key: "authorization.k8s.io/localsubjectaccessreviews",
        ..REVIEW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        type_name: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        key: "authorization.k8s.io/selfsubjectaccessreviews",
        ..REVIEW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        type_name: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        key: "authorization.k8s.io/selfsubjectrulesreviews",
        ..REVIEW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        type_name: "io.k8s.api.authorization.v1.SubjectAccessReview",
        key: "authorization.k8s.io/subjectaccessreviews",
        ..REVIEW
    },
    Resource {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        namespaced: false,
        subresources: &[
            sub(
                "approval",
                "certificates.k8s.io",
                "v1",
                "CertificateSigningRequest",
                READ_WRITE,
            ),
            sub(
                "status",
                "certificates.k8s.io",
                "v1",
                "CertificateSigningRequest",
                READ_WRITE,
            ),
        ],
        type_name: "io.k8s.api.certificates.v1.CertificateSigningRequest",
        selectable_fields: &["spec.signerName"],
        key: "certificates.k8s.io/certificatesigningrequests",
        validate: validate::certificate::signing_request,
        strategy: Strategy {
            status: true,
            on_update: Some(default::certificate::on_update),
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        type_name: "io.k8s.api.coordination.v1.Lease",
        key: "coordination.k8s.io/leases",
        validate: validate::node::lease,
        strategy: Strategy {
            create_on_update: true,
            unconditional_update: false,
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        type_name: "io.k8s.api.discovery.v1.EndpointSlice",
        key: "discovery.k8s.io/endpointslices",
        default: default::endpoint::endpoint_slice,
        validate: validate::endpoint::endpoint_slice,
        strategy: Strategy {
            generation: true,
            ..Strategy::PLAIN
        },
        ..ROW
    },
    Resource {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        type_name: "io.k8s.api.networking.v1.IngressClass",
        key: "networking.k8s.io/ingressclasses",
        default: default::networking::ingress_class,
        validate: validate::ingress::ingress_class,
        strategy: COUNTED,
        ..ROW
    },
    Resource {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        subresources: &[sub("status", "networking.k8s.io", "v1", "Ingress", READ_WRITE)],
        type_name: "io.k8s.api.networking.v1.Ingress",
        key: "networking.k8s.io/ingresses",
        validate: validate::ingress::ingress,
        strategy: Strategy::WORKLOAD,
        ..ROW
    },
    Resource {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        namespaced: false,
        type_name: "io.k8s.api.networking.v1.IPAddress",
        selectable_fields: &[
            "spec.parentRef.group",
            "spec.parentRef.resource",
            "spec.parentRef.namespace",
            "spec.parentRef.name",
        ],
        key: "networking.k8s.io/ipaddresses",
        name_rule: NameRule::PathSegment,
        validate: validate::networking::ip_address,
        strategy: COUNTED,
        ..ROW
    },
    Resource {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        type_name: "io.k8s.api.networking.v1.NetworkPolicy",
        key: "networking.k8s.io/networkpolicies",
        default: default::networking::network_policy,
        validate: validate::networking::network_policy,
        strategy: COUNTED,
        ..ROW
    },
    Resource {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        subresources: &[sub("status", "networking.k8s.io", "v1", "ServiceCIDR", READ_WRITE)],
        type_name: "io.k8s.api.networking.v1.ServiceCIDR",
        key: "networking.k8s.io/servicecidrs",
        validate: validate::networking::service_cidr,
        strategy: Strategy::WORKLOAD,
        ..ROW
    },
    Resource {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        subresources: &[sub("status", "policy", "v1", "PodDisruptionBudget", READ_WRITE)],
        type_name: "io.k8s.api.policy.v1.PodDisruptionBudget",
        key: "policy/poddisruptionbudgets",
        validate: validate::disruption::budget,
        strategy: Strategy::WORKLOAD,
        ..ROW
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        type_name: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        key: "rbac.authorization.k8s.io/clusterrolebindings",
        name_rule: NameRule::PathSegment,
        default: default::rbac::binding,
        validate: validate::rbac::cluster_role_binding,
        ..ROW
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        namespaced: false,
        type_name: "io.k8s.api.rbac.v1.ClusterRole",
        key: "rbac.authorization.k8s.io/clusterroles",
        name_rule: NameRule::PathSegment,
        validate: validate::rbac::cluster_role,
        ..ROW
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        type_name: "io.k8s.api.rbac.v1.RoleBinding",
        key: "rbac.authorization.k8s.io/rolebindings",
        name_rule: NameRule::PathSegment,
        default: default::rbac::binding,
        validate: validate::rbac::role_binding,
        ..ROW
    },
    Resource {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        type_name: "io.k8s.api.rbac.v1.Role",
        key: "rbac.authorization.k8s.io/roles",
        name_rule: NameRule::PathSegment,
        validate: validate::rbac::role,
        ..ROW
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_names_a_known_type_of_its_own_kind() {
        for row in ROWS {
            assert_eq!(
                super::super::type_for(row.group, row.version, row.kind),
                Some(row.type_name),
                "{}",
                row.plural
            );
            for sub in row.subresources {
                let streaming = sub.kind.ends_with("Options");
                assert!(streaming || !sub.type_name().is_empty(), "{}/{}", row.plural, sub.name);
            }
        }
    }

    #[test]
    fn group_version_and_plural_are_unique() {
        let mut seen = HashSet::new();
        for row in ROWS {
            assert!(seen.insert((row.group, row.version, row.plural)), "{}", row.key);
        }
    }

    #[test]
    fn the_first_row_owns_a_shared_storage() {
        assert_eq!(super::super::by_key("events").map(|row| row.group), Some(""));
    }
}
