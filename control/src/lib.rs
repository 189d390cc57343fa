//! hull's control plane: durable store, watch cache, API server, controllers and scheduler.
//!
//! Data flows one way: `api` (HTTP) -> `registry` (what a verb means) -> `cache` (serves reads and watches from memory)
//! -> `store` (durable, revisioned). Controllers and the scheduler read the same cache and write through the same
//! registry; nothing speaks HTTP to itself. This crate needs no root and must never know of the agent or the runtime.

pub mod api;
pub mod auth;
pub mod cache;
pub mod controllers;
pub mod pki;
pub mod registry;
pub mod scheduler;
pub mod schema;
pub mod selector;
pub mod server;
pub mod store;
