//! `hull bench service`: measures the ways to a service from this node, side by side.
//!
//! [`plan`] is what is asked and its limits, [`run`] measures, [`report`] is the answer for programs and people,
//! [`plot`] its picture. All but `run` and `exchange` is pure.

mod exchange;
mod hdr;
pub mod plan;
pub mod plot;
pub mod report;
pub mod resolve;
mod run;
mod stats;

pub use exchange::Exchange;
pub use run::{Job, Measured, Target, run};
pub use stats::{Overhead, overhead};
