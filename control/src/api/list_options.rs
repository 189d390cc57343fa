//! `metav1.ListOptions`: parameters of list and watch, with the rules on resourceVersion and how it is matched.
//!
//! Spec: <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::query::Params;
use super::route::ResourceRoute;
use crate::cache::{Query, Revision};
use crate::registry::Status;
use crate::selector::Selector;

/// Which state a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The newest.
    Latest,
    /// Any; the newest is at hand anyway.
    Any,
    /// At least this new.
    NotOlderThan(Revision),
    /// Exactly this.
    Exact(Revision),
}

/// Parameters of list and watch.
#[derive(Debug)]
pub struct ListOptions {
    /// Resource, namespace, selectors.
    pub query: Query,
    /// Page size.
    pub limit: Option<usize>,
    /// Where to go on.
    pub resume: Option<Continue>,
    /// Which state.
    pub freshness: Freshness,
    /// Watch: bookmarks are welcome.
    pub bookmarks: bool,
    /// Watch: begin with the state, and mark its end with a bookmark.
    pub send_initial_events: Option<bool>,
    /// Watch or list: give up after so many seconds.
    pub timeout_seconds: Option<u64>,
}

/// A continue token: the revision of the list and the key after which it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continue {
    #[serde(rename = "v")]
    version: String,
    /// The list's revision; -1: whatever is the newest.
    #[serde(rename = "rv")]
    pub revision: i64,
    /// The last key of the page before.
    #[serde(rename = "start")]
    pub after: String,
}

impl Continue {
    /// A token for the next page.
    pub fn new(revision: i64, after: String) -> Self {
        Self {
            version: "meta.k8s.io/v1".into(),
            revision,
            after,
        }
    }

    /// As sent to the client.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|error| Status::bad_request(format!("continue key is not valid: {error}")))?;
        let decoded: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Status::bad_request(format!("continue key is not valid: {error}")))?;
        if decoded.version != "meta.k8s.io/v1" {
            return Err(Status::bad_request(
                "continue key is not valid: server does not recognize this encoded version",
            ));
        }
        if decoded.revision == 0 || decoded.revision < -1 || decoded.after.is_empty() {
            return Err(Status::bad_request(
                "continue key is not valid: incorrect encoded start resourceVersion",
            ));
        }
        Ok(decoded)
    }
}

impl ListOptions {
    /// Reads and checks the parameters.
    ///
    /// # Errors
    /// 400 for selectors, tokens and numbers that do not parse, 422 for combinations Kubernetes forbids.
    pub fn parse(route: &ResourceRoute, params: &Params) -> Result<Self, Status> {
        let watch = route.verb == "watch";
        check_combination(params, watch)?;
        let resume = match params.text("continue") {
            "" => None,
            token if watch => {
                return Err(Status::bad_request(format!(
                    "continue is not allowed for a watch (got {token:?})"
                )));
            }
            token => Some(Continue::decode(token)?),
        };
        let limit = params
            .number("limit")?
            .and_then(|limit| usize::try_from(limit).ok())
            .filter(|limit| *limit > 0);
        let timeout_seconds = params
            .number("timeoutSeconds")?
            .and_then(|seconds| u64::try_from(seconds).ok());
        Ok(Self {
            query: query(route, params)?,
            limit,
            resume,
            freshness: freshness(params)?,
            bookmarks: params.flag("allowWatchBookmarks") == Some(true),
            send_initial_events: params.flag("sendInitialEvents"),
            timeout_seconds: timeout_seconds.filter(|seconds| *seconds > 0),
        })
    }
}

/// Resource, namespace and selectors of a request on a collection (or of a watch on one name).
pub fn query(route: &ResourceRoute, params: &Params) -> Result<Query, Status> {
    let mut selector = Selector::parse(params.text("labelSelector"), params.text("fieldSelector"))
        .map_err(|error| Status::bad_request(error.to_string()))?;
    if let Some(path) = selector.field_paths().find(|path| !route.resource.is_selectable(path)) {
        let (version, kind) = (route.resource.api_version(), route.resource.kind);
        return Err(Status::bad_request(format!(
            "Unable to find \"{version}, Kind={kind}\" that match label selector {:?}, field selector {:?}: field label not supported: {path}",
            params.text("labelSelector"),
            params.text("fieldSelector"),
        )));
    }
    if !route.name.is_empty() {
        selector = selector.and_field("metadata.name", &route.name);
    }
    let namespace = (!route.namespace.is_empty()).then(|| route.namespace.as_str().into());
    Ok(Query {
        resource: route.resource.key.into(),
        namespace,
        selector,
    })
}

fn freshness(params: &Params) -> Result<Freshness, Status> {
    let version = params.text("resourceVersion");
    if version.is_empty() {
        return Ok(Freshness::Latest);
    }
    let revision: Revision = version.parse().map_err(|_| {
        Status::bad_request(format!(
            "Invalid value: {version:?}: resourceVersion must be an unsigned integer"
        ))
    })?;
    Ok(match (revision, params.text("resourceVersionMatch")) {
        (0, _) => Freshness::Any,
        (revision, "Exact") => Freshness::Exact(revision),
        // Without a match, a paged list at a revision is exact (for compatibility, as in Kubernetes).
        (revision, "") if params.get("limit").is_some_and(|limit| limit != "0") => Freshness::Exact(revision),
        (revision, _) => Freshness::NotOlderThan(revision),
    })
}

fn check_combination(params: &Params, watch: bool) -> Result<(), Status> {
    let matching = params.text("resourceVersionMatch");
    let version = params.text("resourceVersion");
    let initial = params.get("sendInitialEvents").is_some();
    let fault = if initial && !watch {
        Some("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")
    } else if initial && matching != "NotOlderThan" {
        Some("resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
    } else if matching.is_empty() {
        None
    } else if watch && !initial {
        Some(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )
    } else if version.is_empty() && !watch {
        Some("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided")
    } else if !params.text("continue").is_empty() {
        Some("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided")
    } else if !matches!(matching, "Exact" | "NotOlderThan") {
        Some("resourceVersionMatch: Unsupported value: supported values: \"Exact\", \"NotOlderThan\"")
    } else if matching == "Exact" && version == "0" {
        Some("resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
    } else {
        None
    };
    match fault {
        None => Ok(()),
        Some(fault) => Err(Status::new(
            422,
            "Invalid",
            format!("ListOptions.meta.k8s.io \"\" is invalid: {fault}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_go_round_and_nonsense_is_refused() {
        let token = Continue::new(7, "default/web".into());
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        for bad in [
            "x",
            "%%%",
            "e30",
            &URL_SAFE_NO_PAD.encode(r#"{"v":"other","rv":1,"start":"a"}"#),
        ] {
            assert_eq!(Continue::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn revisions_match_as_documented() {
        let read = |query: &str| freshness(&Params::parse(query)).map_err(|status| status.code);
        assert_eq!(read(""), Ok(Freshness::Latest));
        assert_eq!(read("resourceVersion=0"), Ok(Freshness::Any));
        assert_eq!(read("resourceVersion=9"), Ok(Freshness::NotOlderThan(9)));
        assert_eq!(read("resourceVersion=9&limit=5"), Ok(Freshness::Exact(9)));
        assert_eq!(
            read("resourceVersion=9&resourceVersionMatch=Exact"),
            Ok(Freshness::Exact(9))
        );
        assert_eq!(read("resourceVersion=-1"), Err(400));
        for (query, watch) in [
            ("resourceVersionMatch=Exact", false),
            ("resourceVersion=0&resourceVersionMatch=Exact", false),
            ("resourceVersion=1&resourceVersionMatch=Most", false),
            ("sendInitialEvents=true", true),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", false),
        ] {
            assert_eq!(
                check_combination(&Params::parse(query), watch).unwrap_err().code,
                422,
                "{query}"
            );
        }
    }
}
