//! soon
use anyhow::Result;
/// o
#[derive(clap::Args)]
pub struct Options {}
/// r
pub fn run(_: &Options) -> Result<()> { Ok(()) }
