//! Get and list, from memory.

use super::Context;
use super::body::Response;
use super::encode::ListMeta;
use super::list_options::{Continue, Freshness, ListOptions};
use crate::cache::{Expired, Revision};
use crate::registry::{Registry, Status, scale_of};

/// One object, or its scale.
///
/// # Errors
/// 404; 504 if the client has seen a newer state than this server.
pub fn get(registry: &Registry, context: &Context) -> Result<Response, Status> {
    let route = &context.route;
    if let Some(revision) = context
        .params
        .text("resourceVersion")
        .parse()
        .ok()
        .filter(|revision| *revision > 0)
    {
        reached(registry, revision)?;
    }
    let object = registry.get(route.resource, &route.namespace, &route.name)?;
    if route.sub() == Some("scale") {
        return Ok(super::body::value(200, &scale_of(&object.value())));
    }
    Ok(context.encoder(registry)?.one(200, &object))
}

/// A page of a collection.
///
/// # Errors
/// 400 for bad parameters, 410 for a state no longer kept, 504 for one not reached yet.
pub fn list(registry: &Registry, context: &Context) -> Result<Response, Status> {
    let options = ListOptions::parse(&context.route, &context.params)?;
    let encoder = context.encoder(registry)?;
    let (after, at) = match &options.resume {
        Some(resume) => (Some(resume.after.as_str()), Revision::try_from(resume.revision).ok()),
        None => (None, exact(registry, options.freshness)?),
    };
    let page = registry
        .cache()
        .list(&options.query, options.limit, after, at)
        .map_err(|expired| too_old(&expired, options.resume.as_ref()))?;
    let token = page.next.map(|next| {
        let revision = i64::try_from(page.revision).unwrap_or(i64::MAX);
        Continue::new(revision, next).encode()
    });
    let meta = ListMeta {
        revision: page.revision,
        token: token.unwrap_or_default(),
        remaining: page.remaining.filter(|_| options.query.selector.is_everything()),
    };
    Ok(encoder.list(&meta, page.items))
}

fn exact(registry: &Registry, freshness: Freshness) -> Result<Option<Revision>, Status> {
    match freshness {
        Freshness::Latest | Freshness::Any => Ok(None),
        Freshness::NotOlderThan(revision) => reached(registry, revision).map(|()| None),
        Freshness::Exact(revision) => reached(registry, revision).map(|()| Some(revision)),
    }
}

/// What this server acknowledged it shows at once, so a revision from the future is never worth waiting for.
pub fn reached(registry: &Registry, revision: Revision) -> Result<(), Status> {
    let current = registry.cache().revision();
    if revision <= current {
        Ok(())
    } else {
        Err(Status::too_large_revision(revision, current))
    }
}

fn too_old(expired: &Expired, resume: Option<&Continue>) -> Status {
    let Some(resume) = resume else {
        return Status::expired(expired.to_string());
    };
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.details_mut().continue_token = Continue::new(-1, resume.after.clone()).encode();
    status
}
