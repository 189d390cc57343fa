//! A container's root file system: overlayfs over the image's layers, with a directory of its own for what it writes.
//!
//! Mounted through fsopen(2) with one `lowerdir+` for each layer, so their number is not bounded by a page of options (Linux
//! 6.8; before that through mount(2) with short names). `volatile`: what a container writes to its root dies with it, so its
//! sync(2) need not reach the disk, and unmounting does not wait for one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use super::digest::Digest;
use super::error::{Context, Error};
use super::store::{Image, ImageStore, names_in, remove_any};

/// Longest value that fsconfig(2) takes.
const VALUE_MAX: usize = 255;

/// A mounted root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl ImageStore {
    /// Mounts a writable root file system of the image for a container. It is the container's until [`ImageStore::unmount`].
    pub fn mount(&self, image: &Image, container_id: &str) -> Result<Rootfs, Error> {
        let dir = self.container_dir(container_id)?;
        let path = dir.join("rootfs");
        if is_mounted(&path) {
            return Ok(Rootfs { path });
        }
        // What a crash left of an earlier attempt is of no use.
        remove_any(&dir)?;
        for part in ["upper", "work", "rootfs"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).context(|| format!("making {}", part.display()))?;
        }
        {
            let _use = self.begin_use()?;
            note_layers(&dir, &image.layers)?;
        }
        let mounted = self.mount_layers(image, &dir, &path);
        if mounted.is_err() {
            remove_any(&dir)?;
        }
        mounted.map(|()| Rootfs { path })
    }

    /// Where a container's root file system is mounted, if it is.
    pub fn mounted(&self, container_id: &str) -> Result<Option<Rootfs>, Error> {
        let path = self.container_dir(container_id)?.join("rootfs");
        Ok(is_mounted(&path).then_some(Rootfs { path }))
    }

    /// Unmounts a container's root file system and removes what the container wrote. One that is gone is no error.
    pub fn unmount(&self, container_id: &str) -> Result<(), Error> {
        let dir = self.container_dir(container_id)?;
        let path = dir.join("rootfs");
        loop {
            match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Mounted twice, perhaps: until nothing is.
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => break,
                Err(errno) => return Err(Error::io(format!("unmounting {}", path.display()), errno)),
            }
        }
        remove_any(&dir)
    }

    /// Containers that have a root file system here.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        names_in(&self.containers_dir())
    }

    /// Hex digests of the layers below mounted root file systems.
    pub(super) fn layers_in_use(&self) -> Result<BTreeSet<String>, Error> {
        let mut used = BTreeSet::new();
        for container in self.containers()? {
            let path = self.containers_dir().join(container).join("layers.json");
            // Without a whole file nothing was mounted yet, or not since the machine last started.
            let layers: Vec<Digest> = fs::read(path)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default();
            used.extend(layers.iter().map(|layer| layer.hex().to_owned()));
        }
        Ok(used)
    }

    fn container_dir(&self, id: &str) -> Result<PathBuf, Error> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.+".contains(&b);
        if id.is_empty() || id.starts_with('.') || !id.bytes().all(good) {
            return Err(Error::malformed(
                format!("container id {id:?}"),
                "expected letters, digits and _ - . +",
            ));
        }
        Ok(self.containers_dir().join(id))
    }

    fn mount_layers(&self, image: &Image, dir: &Path, target: &Path) -> Result<(), Error> {
        let mut lower: Vec<PathBuf> = image.layers.iter().rev().map(|layer| self.layer_dir(layer)).collect();
        if let Some(missing) = lower.iter().find(|path| !path.is_dir()) {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io(
                format!("mounting image {}: layer {}", image.id, missing.display()),
                gone,
            ));
        }
        if lower.is_empty() {
            let empty = dir.join("empty");
            fs::create_dir_all(&empty).context(|| format!("making {}", empty.display()))?;
            lower.push(empty);
        }
        let overlay = Overlay {
            lower,
            upper: dir.join("upper"),
            work: dir.join("work"),
        };
        copy_root_attributes(&overlay.lower[0], &overlay.upper)?;
        match overlay.mount_by_parts(target) {
            Err(Errno::INVAL | Errno::NOSYS) => overlay.mount_by_options(target),
            result => result,
        }
        .context(|| format!("mounting the root file system {}", target.display()))
    }
}

/// Notes which layers a container uses. No mount outlives the machine, so this need not outlive it either: no fsync.
fn note_layers(dir: &Path, layers: &[Digest]) -> Result<(), Error> {
    let (path, new) = (dir.join("layers.json"), dir.join("layers.new"));
    let text = serde_json::to_vec(layers).map_err(|error| Error::malformed("the list of layers", error))?;
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
    written.context(|| format!("writing {}", path.display()))
}

/// The root directory of an overlay is its upper one: without this it would not be the image's.
fn copy_root_attributes(from: &Path, to: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let copied = fs::metadata(from).and_then(|metadata| {
        chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
    });
    copied.context(|| format!("preparing {}", to.display()))
}

/// Directories of an overlay, the uppermost layer first.
struct Overlay {
    lower: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
}

impl Overlay {
    fn mount_by_parts(&self, target: &Path) -> Result<(), Errno> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let mut opened = Vec::new();
        let mut set = |key: &str, path: &Path| match path.as_os_str().len() {
            0..=VALUE_MAX => fsconfig_set_string(context.as_fd(), key, path),
            _ => {
                let (fd, short) = short_name(path)?;
                opened.push(fd);
                fsconfig_set_string(context.as_fd(), key, short)
            }
        };
        for layer in &self.lower {
            set("lowerdir+", layer)?;
        }
        set("upperdir", &self.upper)?;
        set("workdir", &self.work)?;
        fsconfig_set_string(context.as_fd(), "source", "hull")?;
        fsconfig_set_flag(context.as_fd(), "volatile")?;
        fsconfig_create(context.as_fd())?;
        let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        move_mount(
            mounted.as_fd(),
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    }

    fn mount_by_options(&self, target: &Path) -> Result<(), Errno> {
        let mut opened = Vec::new();
        let mut short = |path: &Path| {
            let (fd, name) = short_name(path)?;
            opened.push(fd);
            Ok::<_, Errno>(name)
        };
        let lower: Vec<String> = self.lower.iter().map(|layer| short(layer)).collect::<Result<_, _>>()?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            lower.join(":"),
            short(&self.upper)?,
            short(&self.work)?
        );
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        mount("hull", target, "overlay", MountFlags::empty(), options.as_c_str())
    }
}

/// A name of 20 bytes for any directory, good while the descriptor is open.
fn short_name(path: &Path) -> Result<(OwnedFd, String), Errno> {
    let fd = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok((fd, name))
}

/// Whether a directory is an overlay's root, by what it lies on: a mount changes the device.
fn is_mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| {
        File::open(path)
            .and_then(|file| file.metadata())
            .map(|metadata| metadata.dev())
            .ok()
    };
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}
