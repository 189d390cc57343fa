//! Who asks and whether they may: credentials, impersonation, and Kubernetes' words for a refusal.

use http::{HeaderMap, Method, header};

use super::query::Params;
use super::route::ResourceRoute;
use super::{Api, Peer};
use crate::auth::{ANONYMOUS, Attributes, Decision, User};
use crate::registry::{Status, qualified};
use crate::schema::Resource;

/// What joining machines read before they have credentials: the authority's certificate, signed with each bootstrap token.
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// The user behind a request. There is no anonymous access beyond health, version and [`CLUSTER_INFO`].
///
/// # Errors
/// 401; 403 when impersonating without the right to.
pub fn authenticate(api: &Api, headers: &HeaderMap, path: &str, peer: &Peer) -> Result<User, Status> {
    if path == CLUSTER_INFO && peer.certificate.is_none() && !headers.contains_key(header::AUTHORIZATION) {
        return Ok(User {
            name: ANONYMOUS.to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..User::default()
        });
    }
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(bearer_token);
    let user = api
        .authenticator
        .authenticate(peer.certificate.as_deref(), bearer)
        .map_err(|_| Status::unauthorized())?;
    impersonate(api, headers, user)
}

fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// `Impersonate-User`, `-Group`, `-Uid`, for those who have the verb `impersonate` (`kubectl --as`).
fn impersonate(api: &Api, headers: &HeaderMap, user: User) -> Result<User, Status> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let name = text("impersonate-user");
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    if name.is_empty() {
        return if groups.is_empty() {
            Ok(user)
        } else {
            Err(Status::bad_request(
                "requested impersonation of groups without impersonating a user",
            ))
        };
    }
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    let (namespace, resource, short) = match account {
        Some((namespace, account)) => (namespace, "serviceaccounts", account),
        None => ("", "users", name.as_str()),
    };
    may_impersonate(api, &user, resource, namespace, short)?;
    for group in &groups {
        may_impersonate(api, &user, "groups", "", group)?;
    }
    let mut groups = groups;
    if groups.is_empty()
        && let Some((namespace, _)) = account
    {
        groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    if !groups.iter().any(|group| group == "system:authenticated") {
        groups.push("system:authenticated".into());
    }
    Ok(User {
        name,
        uid: text("impersonate-uid"),
        groups,
        ..User::default()
    })
}

fn may_impersonate(api: &Api, user: &User, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
    let attributes = Attributes {
        verb: "impersonate",
        resource,
        namespace,
        name,
        ..Attributes::default()
    };
    match api.authorizer.authorize(user, &attributes) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) => {
            let message = format!(
                "{resource} \"{name}\" is forbidden: {}",
                refusal_text(user, &attributes, resource, &reason)
            );
            Err(Status::new(403, "Forbidden", message))
        }
    }
}

/// Whether the user may do this to that resource.
///
/// # Errors
/// 403 with Kubernetes' message.
pub fn authorize(api: &Api, user: &User, route: &ResourceRoute, params: &Params) -> Result<(), Status> {
    let attributes = attributes(route, params);
    match api.authorizer.authorize(user, &attributes) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) => Err(denied(route.resource, user, &attributes, &route.qualified(), &reason)),
    }
}

/// What the authorizer is asked about a request.
fn attributes<'a>(route: &'a ResourceRoute, params: &'a Params) -> Attributes<'a> {
    // Streams into a pod are creations whatever the method: a WebSocket can only begin with GET.
    let verb = match route.sub() {
        Some("exec" | "attach" | "portforward") => "create",
        // So are those that begin at the agent itself.
        Some("proxy") if route.verb == "get" && super::proxy::runs_something(route) => "create",
        _ => route.verb,
    };
    let selects = matches!(verb, "list" | "watch" | "deletecollection");
    let namespace_itself = route.resource.key == "namespaces";
    Attributes {
        verb,
        group: route.resource.group,
        resource: route.resource.plural,
        subresource: route.sub().unwrap_or_default(),
        namespace: if namespace_itself {
            &route.name
        } else {
            &route.namespace
        },
        name: if route.name.is_empty() && selects {
            named_by(params)
        } else {
            &route.name
        },
        field_selector: selects.then(|| params.text("fieldSelector")),
        ..Attributes::default()
    }
}

/// The one name a field selector asks for, if it asks for one.
fn named_by(params: &Params) -> &str {
    let terms = params.text("fieldSelector").split(',');
    let mut names = terms
        .filter_map(|term| term.strip_prefix("metadata.name="))
        .map(|name| name.trim_start_matches('='));
    names.next().unwrap_or_default()
}

fn denied(resource: &'static Resource, user: &User, attributes: &Attributes<'_>, asked: &str, reason: &str) -> Status {
    let text = refusal_text(user, attributes, asked, reason);
    let mut status = Status::forbidden(resource, attributes.name, &text);
    if attributes.name.is_empty() {
        status.message = format!("{} is forbidden: {text}", qualified(resource));
    }
    status
}

fn refusal_text(user: &User, attributes: &Attributes<'_>, asked: &str, reason: &str) -> String {
    let scope = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", attributes.namespace)
    };
    let mut text = format!(
        "User \"{}\" cannot {} resource \"{asked}\" in API group \"{}\" {scope}",
        user.name, attributes.verb, attributes.group
    );
    if !reason.is_empty() {
        text = format!("{text}: {reason}");
    }
    text
}

/// Whether the user may ask for a path that is no resource.
///
/// # Errors
/// 403.
pub fn authorize_path(api: &Api, user: &User, method: &Method, path: &str) -> Result<(), Status> {
    let verb = method.as_str().to_ascii_lowercase();
    let attributes = Attributes {
        verb: &verb,
        non_resource_path: Some(path),
        ..Attributes::default()
    };
    match api.authorizer.authorize(user, &attributes) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) => {
            let suffix = if reason.is_empty() {
                String::new()
            } else {
                format!(": {reason}")
            };
            let message = format!(
                "forbidden: User \"{}\" cannot {verb} path \"{path}\"{suffix}",
                user.name
            );
            Err(Status::new(403, "Forbidden", message))
        }
    }
}
