//! From method and path to what is asked: Kubernetes' RequestInfo, resolved against the resource table.

use http::Method;

use super::query::{Params, decode};
use crate::registry::Status;
use crate::schema::{self, Resource, Subresource};

/// What a request asks for.
#[derive(Debug)]
pub enum Route {
    /// A resource.
    Resource(ResourceRoute),
    /// Anything else, by path.
    Path(String),
}

/// A request on a resource.
#[derive(Clone, Debug)]
pub struct ResourceRoute {
    /// The row.
    pub resource: &'static Resource,
    /// The subresource.
    pub subresource: Option<&'static Subresource>,
    /// Namespace; empty: cluster-scoped, or all namespaces.
    pub namespace: String,
    /// Name; empty for collections.
    pub name: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'static str,
    /// What follows `proxy` in the path, as the client wrote it: empty, or beginning with a slash.
    pub rest: String,
}

impl ResourceRoute {
    /// The subresource's name.
    pub fn sub(&self) -> Option<&'static str> {
        self.subresource.map(|sub| sub.name)
    }

    /// `pods` or `pods/log`.
    pub fn qualified(&self) -> String {
        match self.subresource {
            Some(sub) => format!("{}/{}", self.resource.plural, sub.name),
            None => self.resource.plural.to_owned(),
        }
    }
}

impl Route {
    /// Resolves a request.
    ///
    /// # Errors
    /// 404 for a resource that is not served, 405 for a verb that it does not have.
    pub fn parse(method: &Method, path: &str, params: &Params) -> Result<Self, Status> {
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| decode(part, false))
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(Self::Path(path.to_owned())),
        };
        let (watch_prefix, rest) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            _ => (false, rest),
        };
        let (namespace, plural, name, sub) = split(rest)?;
        let rest = if sub == "proxy" { behind_proxy(path) } else { "" };
        let resource = schema::by_gvr(group, version, plural).ok_or_else(Status::no_route)?;
        let subresource = match sub {
            "" => None,
            name => Some(resource.subresource(name).ok_or_else(Status::no_route)?),
        };
        check_scope(resource, namespace, name, method)?;
        let watch = watch_prefix || (params.flag("watch") == Some(true) && name.is_empty());
        // What a target lets one do is read, as far as access goes.
        let options = sub == "proxy" && *method == Method::OPTIONS;
        let verb = options
            .then_some("get")
            .or_else(|| verb(method, name, watch))
            .ok_or_else(|| Status::method_not_allowed(resource, &method.as_str().to_ascii_lowercase()))?;
        let verbs = subresource.map_or(resource.verbs, |sub| sub.verbs);
        if !verbs.contains(&verb) {
            return Err(Status::method_not_allowed(resource, verb));
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Ok(Self::Resource(ResourceRoute {
            resource,
            subresource,
            namespace,
            name,
            verb,
            rest: rest.to_owned(),
        }))
    }
}

/// Namespace, plural, name, subresource.
fn split<'a>(parts: &[&'a str]) -> Result<(&'a str, &'a str, &'a str, &'a str), Status> {
    match *parts {
        ["namespaces", name, sub @ ("status" | "finalize")] => Ok(("", "namespaces", name, sub)),
        ["nodes", name, "proxy", ..] => Ok(("", "nodes", name, "proxy")),
        [
            "namespaces",
            namespace,
            plural @ ("pods" | "services"),
            name,
            "proxy",
            ..,
        ] => Ok((namespace, plural, name, "proxy")),
        ["namespaces", namespace, plural] => Ok((namespace, plural, "", "")),
        ["namespaces", namespace, plural, name] => Ok((namespace, plural, name, "")),
        ["namespaces", namespace, plural, name, sub] => Ok((namespace, plural, name, sub)),
        [plural] => Ok(("", plural, "", "")),
        [plural, name] => Ok(("", plural, name, "")),
        [plural, name, sub] => Ok(("", plural, name, sub)),
        _ => Err(Status::no_route()),
    }
}

/// The part of a proxy's path that is the target's business, as it was sent: no segment is decoded or left out.
fn behind_proxy(path: &str) -> &str {
    // /api/v1/nodes/<name>/proxy, or with namespaces/<namespace> before; the word itself may be a name, too.
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let depth = if parts.nth(2) == Some("nodes") { 5 } else { 7 };
    let mut segments = 0;
    let end = path.char_indices().find(|&(at, character)| {
        let begins = character == '/' && !path[at + 1..].starts_with('/');
        segments += usize::from(begins);
        begins && segments > depth
    });
    end.map_or("", |(at, _)| &path[at..])
}

fn check_scope(resource: &'static Resource, namespace: &str, name: &str, method: &Method) -> Result<(), Status> {
    if !resource.namespaced && !namespace.is_empty() {
        return Err(Status::no_route());
    }
    let collection_read = name.is_empty() && matches!(*method, Method::GET | Method::HEAD);
    if resource.namespaced && namespace.is_empty() && !collection_read {
        return Err(if name.is_empty() {
            Status::method_not_allowed(resource, &method.as_str().to_ascii_lowercase())
        } else {
            Status::no_route()
        });
    }
    Ok(())
}

fn verb(method: &Method, name: &str, watch: bool) -> Option<&'static str> {
    Some(match (method.as_str(), name.is_empty()) {
        ("GET" | "HEAD", _) if watch => "watch",
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) => "get",
        ("POST", _) => "create",
        ("PUT", false) => "update",
        ("PATCH", false) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(method: &str, target: &str) -> Result<String, u16> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match Route::parse(&method.parse().unwrap(), path, &Params::parse(query)) {
            Ok(Route::Resource(r)) => {
                Ok(format!("{} {} {:?} {:?}", r.verb, r.qualified(), r.namespace, r.name) + &r.rest)
            }
            Ok(Route::Path(path)) => Ok(path),
            Err(status) => Err(status.code),
        }
    }

    #[test]
    fn paths_resolve_as_in_kubernetes() {
        let cases = [
            ("GET", "/api/v1/pods", Ok(r#"list pods "" """#)),
            ("GET", "/api/v1/pods?watch=true", Ok(r#"watch pods "" """#)),
            ("GET", "/api/v1/watch/namespaces/d/pods", Ok(r#"watch pods "d" """#)),
            ("GET", "/api/v1/namespaces/d/pods/p", Ok(r#"get pods "d" "p""#)),
            ("GET", "/api/v1/namespaces/d/pods/p/log", Ok(r#"get pods/log "d" "p""#)),
            ("GET", "/api/v1/namespaces/d", Ok(r#"get namespaces "" "d""#)),
            (
                "PUT",
                "/api/v1/namespaces/d/finalize",
                Ok(r#"update namespaces/finalize "" "d""#),
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/d/deployments/w/scale",
                Ok(r#"patch deployments/scale "d" "w""#),
            ),
            (
                "DELETE",
                "/api/v1/namespaces/d/configmaps",
                Ok(r#"deletecollection configmaps "d" """#),
            ),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                Ok(r#"get clusterroles "" "system:node""#),
            ),
            ("GET", "/apis/apps/v1", Ok("/apis/apps/v1")),
            ("GET", "/healthz", Ok("/healthz")),
            ("GET", "/api/v1/nodes/n/proxy", Ok(r#"get nodes/proxy "" "n""#)),
            (
                "GET",
                "/api/v1/nodes/n:10250/proxy/metrics",
                Ok(r#"get nodes/proxy "" "n:10250"/metrics"#),
            ),
            (
                "POST",
                "/api/v1/nodes/proxy/proxy/a%2Fb//c/",
                Ok(r#"create nodes/proxy "" "proxy"/a%2Fb//c/"#),
            ),
            (
                "DELETE",
                "/api/v1/namespaces/d/services/http:web:http/proxy/",
                Ok(r#"delete services/proxy "d" "http:web:http"/"#),
            ),
            (
                "OPTIONS",
                "/api/v1/namespaces/d/pods/p/proxy/x",
                Ok(r#"get pods/proxy "d" "p"/x"#),
            ),
            ("OPTIONS", "/api/v1/namespaces/d/pods/p", Err(405)),
            ("GET", "/api/v1/namespaces/d/secrets/s/proxy", Err(404)),
            ("GET", "/api/v1/gadgets", Err(404)),
            ("GET", "/api/v1/namespaces/d/pods/p/nonsense", Err(404)),
            ("GET", "/api/v1/namespaces/d/nodes", Err(404)),
            ("POST", "/api/v1/pods", Err(405)),
            ("PATCH", "/api/v1/namespaces/d/pods", Err(405)),
            ("GET", "/api/v1/a/b/c/d/e/f", Err(404)),
        ];
        for (method, target, expected) in cases {
            assert_eq!(
                resolve(method, target),
                expected.map(str::to_owned),
                "{method} {target}"
            );
        }
    }
}
