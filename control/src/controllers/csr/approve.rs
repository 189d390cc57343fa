//! Approves the requests of agents: for a client certificate if the asker may have one, for a serving certificate if all
//! names and addresses in it are those of the asker's own node.
//!
//! Whatever is not recognized is left for people (`kubectl certificate approve`), never denied.

use std::net::IpAddr;

use serde_json::json;

use super::{KUBELET_CLIENT, KUBELET_SERVING, NODE_PREFIX, REQUESTS, asker, decode, fits_signer, has_condition};
use crate::auth::User;
use crate::cache::{Event, Object};
use crate::controllers::controller::{Context, Controller, Key, Outcome};
use crate::controllers::node::{NODES, Node, node};
use crate::controllers::view::View;
use crate::pki::CertificateRequest;
use crate::registry::time_text;

/// Whether a user may create a subresource of certificatesigningrequests: `nodeclient` or `selfnodeclient`.
pub type MayCreate = Box<dyn Fn(&User, &str) -> bool + Send>;

/// The controller.
pub struct Approver {
    may: MayCreate,
}

impl Approver {
    /// Asks `may` (a SubjectAccessReview) about askers.
    pub fn new(may: MayCreate) -> Self {
        Self { may }
    }

    /// Why the request is approved; `None`: it is not ours to decide.
    fn decide(&self, view: &dyn View, object: &Object) -> Option<&'static str> {
        let request = decode(object)?;
        if has_condition(&request, "Approved") || has_condition(&request, "Denied") {
            return None;
        }
        let (spec, who) = (&request.spec, asker(&request));
        let asked = CertificateRequest::from_pem(&spec.request.0).ok()?;
        let usages = spec.usages.as_deref().unwrap_or_default();
        fits_signer(&spec.signer_name, &asked, usages).ok()?;
        match spec.signer_name.as_str() {
            KUBELET_CLIENT if asked.user == who.name => (self.may)(&who, "selfnodeclient")
                .then_some("Auto approving self kubelet client certificate after SubjectAccessReview."),
            KUBELET_CLIENT => (self.may)(&who, "nodeclient")
                .then_some("Auto approving kubelet client certificate after SubjectAccessReview."),
            KUBELET_SERVING if asked.user == who.name && who.is_in(super::NODES_GROUP) => is_all_of_node(view, &asked)
                .then_some("Auto approving kubelet serving certificate of the node's own addresses."),
            _ => None,
        }
    }
}

/// Whether every name and address is one of the asker's node, and of no other.
fn is_all_of_node(view: &dyn View, asked: &CertificateRequest) -> bool {
    let name = asked.user.strip_prefix(NODE_PREFIX).unwrap_or_default();
    let nodes = view.list(NODES, None);
    let decoded: Vec<(bool, Node)> = nodes
        .iter()
        .filter_map(|object| Some((&*object.name == name, node(object)?)))
        .collect();
    let wanted = asked
        .names
        .iter()
        .cloned()
        .chain(asked.ips.iter().map(ToString::to_string));
    wanted.into_iter().all(|wanted| {
        let has = |node: &Node| {
            let same = |address: &str| match (address.parse::<IpAddr>(), wanted.parse::<IpAddr>()) {
                (Ok(ours), Ok(theirs)) => ours == theirs,
                _ => address == wanted,
            };
            node.metadata.name == wanted || node.status.addresses.iter().any(|entry| same(&entry.address))
        };
        let owners: Vec<bool> = decoded
            .iter()
            .filter(|(_, node)| has(node))
            .map(|(own, _)| *own)
            .collect();
        owners == [true]
    })
}

impl Controller for Approver {
    fn name(&self) -> &'static str {
        "csrapproving"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        if &*object.resource == REQUESTS {
            add(Key::of(object));
        } else if &*object.resource == NODES && addresses(Some(object)) != addresses(event.previous.as_deref()) {
            // A request may have come before the addresses it names.
            let waiting = view.list(REQUESTS, None);
            waiting.iter().for_each(|request| add(Key::of(request)));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(REQUESTS, "", &key.name) else {
            return outcome;
        };
        if let Some(message) = self.decide(context.view, &object) {
            let mut value = object.value();
            let now = time_text(context.now.wall);
            let approved = json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message,
                "lastUpdateTime": now, "lastTransitionTime": now});
            match value["status"]["conditions"].as_array_mut() {
                Some(conditions) => conditions.push(approved),
                None => value["status"]["conditions"] = json!([approved]),
            }
            outcome.update(&object, Some("approval"), value);
        }
        outcome
    }
}

fn addresses(object: Option<&Object>) -> Vec<String> {
    let node = object.and_then(node);
    let addresses = node.map(|node| node.status.addresses).unwrap_or_default();
    addresses.into_iter().map(|entry| entry.address).collect()
}
