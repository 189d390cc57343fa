//! placeholder: helper P owns this file. The integrator's `src/process.rs` calls exactly this:
//! `run(config: AgentConfig, on_ready: impl FnOnce() + Send, shutdown: impl Future<Output = ()> + Send) -> Result<(), AgentError>`
//! (on_ready is called once the Node object is registered and Ready; on shutdown pods go on running)
