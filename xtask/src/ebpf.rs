//! owner: N
use anyhow::Result;
/// b
pub fn build() -> Result<()> { Ok(()) }
/// c
pub fn check() -> Result<()> { Ok(()) }
