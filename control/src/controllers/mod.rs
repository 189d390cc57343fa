//! Controllers.
pub mod controller;
pub mod deployment;
pub mod execute;
pub mod intstr;
pub mod labels;
#[cfg(test)]
pub mod memory;
pub mod metadata;
pub mod pods;
pub mod queue;
pub mod recorder;
pub mod replicaset;
pub mod runner;
pub mod view;

/// The identity that controllers write with.
pub fn system_user(name: &str) -> crate::auth::User {
    crate::auth::User { name: name.to_owned(), groups: vec!["system:masters".to_owned()], ..Default::default() }
}
