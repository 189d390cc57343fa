//! Readiness messages between hull's processes, in systemd's protocol (sd_notify(3)): a datagram `READY=1` to `$NOTIFY_SOCKET`.

use std::os::unix::net::UnixDatagram;

/// Name of the environment variable that holds the socket's path.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// Tells whoever started this process (the supervisor or systemd) that it is ready. Nobody listening is no error.
pub fn ready() {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", &path));
    if let Err(error) = sent {
        tracing::debug!(%error, ?path, "telling readiness");
    }
}
