//! Makes writes happen, through the registry like any client: the thin shell around the controllers.
//!
//! All operations of one outcome run at the same time, so that one group commit serves them; many creates start slowly
//! (16, then twice as many), so that a quota is met with a few refusals instead of five hundred.

use std::sync::Arc;

use futures_util::future::{join, join_all};

use super::controller::{Announce, Operation, Outcome, Write};
use super::recorder::Recorder;
use super::system_user;
use crate::auth::User;
use crate::registry::{DeleteOptions, Registry, Status, WriteOptions};
use crate::schema;

/// Creates in the first batch.
const SLOW_START: usize = 16;

/// Why an outcome was not carried out completely.
#[derive(Debug)]
pub struct Failure {
    /// The registry's words.
    pub message: String,
    /// Someone else wrote first: looking again is all it takes.
    pub conflict: bool,
}

/// Carries out outcomes.
pub struct Executor {
    registry: Arc<Registry>,
    recorder: Recorder,
    user: User,
}

impl Executor {
    /// An executor that writes as the controller manager.
    pub fn new(registry: Arc<Registry>, recorder: Recorder) -> Self {
        Self {
            registry,
            recorder,
            user: system_user("system:kube-controller-manager"),
        }
    }

    /// Carry out everything; the first failure is returned, after everything has ended.
    pub async fn run(&self, component: &'static str, outcome: Outcome) -> Result<(), Failure> {
        for notice in outcome.notices {
            self.recorder.record(component, notice);
        }
        let is_create = |operation: &Operation| matches!(operation.write, Write::Create { .. });
        let (creates, others): (Vec<_>, Vec<_>) = outcome.operations.into_iter().partition(is_create);
        let others = join_all(others.into_iter().map(|operation| self.perform(component, operation)));
        let (created, others) = join(self.create_all(component, creates), others).await;
        created.and(others.into_iter().collect())
    }

    async fn create_all(&self, component: &'static str, mut creates: Vec<Operation>) -> Result<(), Failure> {
        let mut size = SLOW_START;
        while !creates.is_empty() {
            let rest = creates.split_off(size.min(creates.len()));
            let results = join_all(creates.into_iter().map(|operation| self.perform(component, operation))).await;
            results.into_iter().collect::<Result<(), Failure>>()?;
            (creates, size) = (rest, size * 2);
        }
        Ok(())
    }

    async fn perform(&self, component: &'static str, operation: Operation) -> Result<(), Failure> {
        let result = self.write(operation.write).await;
        if let Some(announce) = operation.announce {
            self.announce(component, *announce, &result);
        }
        result.map(drop).map_err(|status| {
            let conflict = status.code == 409;
            if !conflict {
                tracing::warn!(controller = component, reason = status.reason, "{}", status.message);
            }
            Failure {
                message: status.message,
                conflict,
            }
        })
    }

    fn announce(&self, component: &'static str, announce: Announce, result: &Result<String, Status>) {
        let (mut notice, detail) = match result {
            Ok(name) => (announce.success, name.as_str()),
            Err(status) => (announce.failure, status.message.as_str()),
        };
        notice.message = notice.message.replacen("{}", detail, 1);
        self.recorder.record(component, notice);
    }

    /// Returns the name of the object written.
    async fn write(&self, write: Write) -> Result<String, Status> {
        match write {
            Write::Create {
                resource,
                namespace,
                object,
            } => {
                let resource = schema::by_key(&resource).ok_or_else(Status::no_route)?;
                let options = WriteOptions::default();
                let created = self
                    .registry
                    .create(&self.user, resource, &namespace, object, options)
                    .await?;
                Ok(created.name.to_string())
            }
            Write::Update {
                key,
                subresource,
                object,
            } => {
                let resource = schema::by_key(&key.resource).ok_or_else(Status::no_route)?;
                let (namespace, name) = (&*key.namespace, &*key.name);
                let options = WriteOptions::default();
                self.registry
                    .update(&self.user, resource, subresource, namespace, name, object, options)
                    .await?;
                Ok(name.to_owned())
            }
            Write::Delete {
                key,
                uid,
                grace_period_seconds,
                propagation,
            } => {
                let options = DeleteOptions {
                    grace_period_seconds,
                    propagation,
                    uid: Some(uid.to_string()),
                    ..DeleteOptions::default()
                };
                let resource = schema::by_key(&key.resource).ok_or_else(Status::no_route)?;
                match self
                    .registry
                    .delete(&self.user, resource, &key.namespace, &key.name, options)
                    .await
                {
                    Err(status) if status.code != 404 => Err(status),
                    _ => Ok(key.name.to_string()),
                }
            }
        }
    }
}
