//! The container's end of a notification socket: a directory beside its state that it sees as /run/notify. sd_notify(3).

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::spec;

/// Name of the socket in its directory.
const NAME: &str = "notify.sock";
/// Where the container sees the directory.
const TARGET: &str = "/run/notify";

/// The directory on the host.
fn directory(root: &Path, id: &str) -> PathBuf {
    root.join(id).join("notify")
}

/// Listen for a container that was created with `notify`; `None` if it was not.
pub fn listen_for(root: &Path, id: &str) -> Result<Option<UnixDatagram>> {
    let directory = directory(root, id);
    if !directory.is_dir() {
        return Ok(None);
    }
    let path = directory.join(NAME);
    let listen = || {
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        // Whatever user the container runs as.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        Ok(socket)
    };
    listen()
        .map(Some)
        .map_err(|e: std::io::Error| Error::os(format!("listen on {}", path.display()), e))
}

/// Make the directory.
pub(super) fn prepare(root: &Path, id: &str) -> Result<()> {
    let directory = directory(root, id);
    std::fs::create_dir(&directory).map_err(|e| Error::os(format!("make {}", directory.display()), e))
}

/// The mount and the variable that tell the container.
pub(super) fn announce(root: &Path, id: &str) -> (spec::Mount, String) {
    let mut mount = spec::Mount::default();
    mount
        .set_destination(TARGET.into())
        .set_typ(Some("bind".into()))
        .set_source(Some(directory(root, id)))
        .set_options(Some(
            ["bind", "nosuid", "nodev", "noexec", "rprivate"]
                .map(str::to_owned)
                .to_vec(),
        ));
    (mount, format!("NOTIFY_SOCKET={TARGET}/{NAME}"))
}
