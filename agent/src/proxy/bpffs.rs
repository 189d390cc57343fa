//! The BPF file system that maps and links are pinned on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Error;

/// `f_type` of bpffs: BPF_FS_MAGIC of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where bpffs belongs; a directory elsewhere gets a mount of its own.
const USUAL: &str = "/sys/fs/bpf";

/// Makes `dir` on a BPF file system, mounting one when there is none.
pub(crate) fn ensure(dir: &Path) -> Result<(), Error> {
    if dir.starts_with(USUAL) {
        mount_unless_present(Path::new(USUAL))?;
        return create(dir);
    }
    create(dir)?;
    mount_unless_present(dir)
}

fn create(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| Error::file("create directory", dir, source))
}

fn mount_unless_present(path: &Path) -> Result<(), Error> {
    if is_bpffs(path) {
        return Ok(());
    }
    mount(
        "bpf",
        path,
        "bpf",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"mode=0700",
    )
    .map_err(|error| Error::Bpffs {
        path: path.to_owned(),
        source: error.into(),
    })?;
    tracing::info!(path = %path.display(), "mounted a BPF file system");
    Ok(())
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

/// Removes an emptied directory, and the mount that [`ensure`] made for it.
pub(super) fn release(dir: &Path) -> Result<(), Error> {
    if is_mount_point(dir) && is_bpffs(dir) && !Path::new(USUAL).starts_with(dir) {
        unmount(dir, UnmountFlags::DETACH).map_err(|error| Error::file("unmount", dir, error.into()))?;
    }
    match fs::remove_dir(dir) {
        Err(source)
            if !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Error::file("remove directory", dir, source))
        }
        _ => Ok(()),
    }
}

fn is_mount_point(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    dir.parent().is_some_and(|parent| device(dir) != device(parent))
}
