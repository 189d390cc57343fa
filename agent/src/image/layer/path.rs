//! What an archive entry's name means: a path inside the layer, or a whiteout (OCI image-spec, layer.md).
//!
//! Pure. A name with `..` is refused rather than resolved; a leading `/` means the layer's root.

use crate::image::error::Error;

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are aufs's own files, of no use to anybody else.
const AUFS: &[u8] = b".wh..wh.";
/// Longest path, and longest component, that Linux takes.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;
const DEPTH_MAX: usize = 256;

/// A path inside the layer: components without `.`, `..`, slashes and NUL. Empty is the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Inside(Vec<Vec<u8>>);

impl Inside {
    /// Takes an entry's name or a hard link's target apart.
    pub(super) fn parse(name: &[u8]) -> Result<Self, Error> {
        let refuse = |reason| Err(refused(name, reason));
        if name.len() > PATH_MAX {
            return refuse("the path is longer than 4095 bytes");
        }
        let mut components = Vec::new();
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return refuse("it contains `..`"),
                long if long.len() > NAME_MAX => return refuse("a component is longer than 255 bytes"),
                zero if zero.contains(&0) => return refuse("it contains a NUL"),
                component => components.push(component.to_vec()),
            }
        }
        if components.len() > DEPTH_MAX {
            return refuse("it is nested deeper than 256 directories");
        }
        Ok(Self(components))
    }

    /// The directory and the name in it; None for the root.
    pub(super) fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0.split_last().map(|(name, parent)| (parent, name.as_slice()))
    }

    /// All components.
    pub(super) fn components(&self) -> &[Vec<u8>] {
        &self.0
    }
}

/// What to do with an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Make it.
    Make(Inside),
    /// Hide this path of the layers below.
    Whiteout(Inside),
    /// Hide everything in this directory of the layers below.
    Opaque(Inside),
    /// Nothing.
    Ignore,
}

/// Reads an entry's name.
pub(super) fn meaning(name: &[u8]) -> Result<Meaning, Error> {
    let inside = Inside::parse(name)?;
    let Some((parent, last)) = inside.split() else {
        return Ok(Meaning::Make(inside));
    };
    let parent = || parent.to_vec();
    if parent().iter().any(|component| component.starts_with(PREFIX)) {
        return Err(refused(name, "a whiteout has nothing inside"));
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Meaning::Make(inside)),
        Some(_) if last == OPAQUE => Ok(Meaning::Opaque(Inside(parent()))),
        Some(_) if last.starts_with(AUFS) => Ok(Meaning::Ignore),
        Some(b"" | b"." | b"..") => Err(refused(name, "a whiteout must name a file")),
        Some(hidden) => {
            let mut path = parent();
            path.push(hidden.to_vec());
            Ok(Meaning::Whiteout(Inside(path)))
        }
    }
}

pub(super) fn refused(name: &[u8], reason: &'static str) -> Error {
    const SHOWN_MAX: usize = 200;
    let shown = &name[..name.len().min(SHOWN_MAX)];
    Error::Unsafe {
        path: String::from_utf8_lossy(shown).into_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inside(path: &str) -> Inside {
        Inside::parse(path.as_bytes()).unwrap()
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(inside("./a//b/."), Inside(vec![b"a".to_vec(), b"b".to_vec()]));
        assert_eq!(inside("/etc/passwd"), inside("etc/passwd"));
        assert_eq!(inside("./").split(), None);
        for bad in [
            "..",
            "a/../b",
            "../x",
            "/..",
            "a/..",
            "a\0b",
            &"x/".repeat(300),
            &"x".repeat(256),
            &"x/".repeat(2100),
        ] {
            assert!(
                matches!(Inside::parse(bad.as_bytes()), Err(Error::Unsafe { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn whiteouts_are_recognised() {
        assert_eq!(meaning(b"a/b").unwrap(), Meaning::Make(inside("a/b")));
        assert_eq!(meaning(b"a/.wh.b").unwrap(), Meaning::Whiteout(inside("a/b")));
        assert_eq!(meaning(b".wh.b").unwrap(), Meaning::Whiteout(inside("b")));
        assert_eq!(meaning(b"a/.wh..wh..opq").unwrap(), Meaning::Opaque(inside("a")));
        assert_eq!(meaning(b".wh..wh..opq").unwrap(), Meaning::Opaque(inside("")));
        assert_eq!(meaning(b".wh..wh.plnk").unwrap(), Meaning::Ignore);
        assert_eq!(meaning(b"a.wh.b").unwrap(), Meaning::Make(inside("a.wh.b")));
    }

    #[test]
    fn a_whiteout_of_dot_dot_or_nothing_is_refused() {
        for bad in [
            ".wh.",
            ".wh..",
            ".wh...",
            "a/.wh...",
            "a/.wh..",
            "a/.wh.",
            ".wh.x/y",
            "a/.wh.b/.wh.c",
        ] {
            assert!(matches!(meaning(bad.as_bytes()), Err(Error::Unsafe { .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_outside(name in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'w'), Just(b'h'), any::<u8>()], 0..40)) {
            let components = match meaning(&name) {
                Ok(Meaning::Make(path) | Meaning::Whiteout(path) | Meaning::Opaque(path)) => path.0,
                _ => Vec::new(),
            };
            for component in components {
                prop_assert!(component != b".." && component != b"." && !component.is_empty());
                prop_assert!(!component.contains(&b'/') && !component.contains(&0));
            }
        }
    }
}
