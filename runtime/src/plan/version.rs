//! `ociVersion`: a Semantic Version 2.0.0 whose major number is ours. config.md, "Specification version".

use crate::error::{Error, Result};

const MAJOR: u64 = 1;

/// A configuration of another major version may mean something else by the same names. Minor versions only add.
pub(super) fn check(version: &str) -> Result<()> {
    if version.is_empty() {
        return Err(Error::invalid(
            "config.json has no ociVersion, which it must have, e.g. \"1.2.0\"",
        ));
    }
    let major = major(version).ok_or_else(|| {
        Error::invalid(format!(
            "ociVersion {version:?} is no Semantic Version (MAJOR.MINOR.PATCH, e.g. \"1.2.0\")"
        ))
    })?;
    match major == MAJOR {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "ociVersion is {version:?}; this runtime understands version {MAJOR}"
        ))),
    }
}

/// The major number, if all of the version is well formed.
fn major(version: &str) -> Option<u64> {
    let (rest, build) = match version.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (version, None),
    };
    let (core, pre) = match rest.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (rest, None),
    };
    let identifiers = |text: &str| {
        text.split('.')
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
    };
    if ![build, pre].into_iter().flatten().all(identifiers) {
        return None;
    }
    let number = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse::<u64>().ok().filter(|_| plain)
    };
    match core.split('.').map(number).collect::<Option<Vec<_>>>()?[..] {
        [major, _, _] => Some(major),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_version_1_is_taken() {
        for version in [
            "1.0.0",
            "1.0.2-dev",
            "1.3.0",
            "1.99.0",
            "1.0.0-rc.5+build.1",
            "1.1.0+dev",
        ] {
            assert!(check(version).is_ok(), "{version}");
        }
    }

    #[test]
    fn others_and_nonsense_are_refused() {
        for version in ["0.2.0", "2.0.0", "10.0.0"] {
            assert!(
                check(version)
                    .unwrap_err()
                    .to_string()
                    .contains("understands version 1"),
                "{version}"
            );
        }
        for version in [
            "",
            "1",
            "1.0",
            "1.0.0.0",
            "1.x.0",
            "v1.0.0",
            "01.0.0",
            "1.0.0-",
            "1.0.0-a..b",
            " 1.0.0",
        ] {
            assert!(check(version).is_err(), "{version}");
        }
    }
}
