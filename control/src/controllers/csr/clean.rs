//! Removes requests that nobody needs any more: an hour after they were decided, a day if nobody decided, and when the
//! certificate has expired.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{CertificateSigningRequest, REQUESTS, decode, has_condition, is_issued};
use crate::cache::Event;
use crate::controllers::controller::{Context, Controller, Key, Outcome};
use crate::controllers::view::View;

const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// The controller.
pub struct Cleaner;

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "csrcleaner"
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        if &*event.object.resource == REQUESTS {
            add(Key::of(&event.object));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(REQUESTS, "", &key.name) else {
            return outcome;
        };
        let Some(end) = decode(&object).and_then(|request| end(&request)) else {
            return outcome;
        };
        match Duration::try_from(end.duration_since(context.now.wall)) {
            Ok(left) if !left.is_zero() => outcome.requeue(left),
            _ => outcome.delete(&object, None),
        }
        outcome
    }
}

/// When the request is not needed any more.
fn end(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let created = Timestamp::from_second(created.as_second()).ok()?;
    let decided = has_condition(request, "Denied") || has_condition(request, "Failed") || is_issued(request);
    let usual = created + if decided { DECIDED } else { PENDING };
    Some(expiry(request).map_or(usual, |expiry| usual.min(expiry)))
}

fn expiry(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let pem = request.status.as_ref()?.certificate.as_ref()?;
    let der = CertificateDer::from_pem_slice(&pem.0).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}
