//! hostPath volumes: what the path must be, and making it where the type says so.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;

/// Checks or makes the path of `source` and returns it.
pub fn set_up(volume: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(VolumeError::refused(
            volume,
            format!("hostPath {:?} must be absolute and without ..", source.path),
        ));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(&path);
            made.map_err(VolumeError::system(volume, "make the directory", &path))?;
        }
        "FileOrCreate" if !path.exists() => {
            let made = OpenOptions::new().create(true).append(true).mode(0o644).open(&path);
            made.map_err(VolumeError::system(volume, "make the file", &path))?;
        }
        _ => {}
    }
    check(volume, &path, kind)?;
    Ok(path)
}

fn check(volume: &str, path: &Path, kind: &str) -> Result<(), VolumeError> {
    let Ok(metadata) = fs::metadata(path) else {
        let expected = if kind.is_empty() { "path" } else { kind };
        return Err(VolumeError::refused(
            volume,
            format!(
                "hostPath type check failed: {} does not exist, expected: {expected}",
                path.display()
            ),
        ));
    };
    let found = metadata.file_type();
    let fits = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        other => return Err(VolumeError::refused(volume, format!("unknown hostPath type {other:?}"))),
    };
    if fits {
        Ok(())
    } else {
        Err(VolumeError::refused(
            volume,
            format!("hostPath type check failed: {} is not a {kind}", path.display()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &Path, kind: &str) -> HostPathVolumeSource {
        HostPathVolumeSource {
            path: path.to_str().unwrap().to_owned(),
            type_: Some(kind.to_owned()),
        }
    }

    #[test]
    fn types_are_checked_and_made_where_asked() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("a/b");
        assert!(set_up("v", &source(&absent, "Directory")).is_err());
        assert!(set_up("v", &source(&absent, "")).is_err());
        assert_eq!(set_up("v", &source(&absent, "DirectoryOrCreate")).unwrap(), absent);
        assert!(set_up("v", &source(&absent, "File")).is_err());
        let file = dir.path().join("f");
        assert!(set_up("v", &source(&file, "FileOrCreate")).is_ok());
        assert!(set_up("v", &source(&file, "File")).is_ok());
        assert!(set_up("v", &source(&file, "Socket")).is_err());
        assert!(set_up("v", &source(Path::new("/tmp/../etc"), "")).is_err());
    }
}
