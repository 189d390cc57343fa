//! Domain names in wire form, lower case, with the places of their labels: what questions are looked up by (RFC 1035, 3.1).
//!
//! A name never allocates; parts of it are keys of the zone's tables.

/// Bytes of the longest name, root included.
const MAX_BYTES: usize = 255;
/// Labels of the longest name.
const MAX_LABELS: usize = 127;
/// Bytes of the longest label.
const MAX_LABEL: usize = 63;

/// A domain name.
#[derive(Clone)]
pub(super) struct Name {
    bytes: [u8; MAX_BYTES],
    length: u8,
    starts: [u8; MAX_LABELS],
    count: u8,
}

impl Name {
    /// Only the root.
    pub(super) fn root() -> Name {
        Name {
            bytes: [0; MAX_BYTES],
            length: 1,
            starts: [0; MAX_LABELS],
            count: 0,
        }
    }

    /// The name at `at` of a message, and where it ends there. Compressed names are not accepted.
    pub(super) fn read(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut name = Name::root();
        let mut place = at;
        loop {
            let length = usize::from(*message.get(place)?);
            let label = message.get(place + 1..place + 1 + length)?;
            place += 1 + length;
            if length == 0 {
                return Some((name, place));
            }
            name.push(label)?;
        }
    }

    /// The name in `text`, as in `www.example.com` or `www.example.com.`; `None` when a label is empty or too long.
    pub(super) fn from_text(text: &str) -> Option<Name> {
        let mut name = Name::root();
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Some(name);
        }
        for label in text.split('.') {
            name.push(label.as_bytes()).filter(|()| !label.is_empty())?;
        }
        Some(name)
    }

    /// Appends a label, before the root.
    fn push(&mut self, label: &[u8]) -> Option<()> {
        let start = usize::from(self.length) - 1;
        let end = start + 1 + label.len();
        if label.len() > MAX_LABEL || end >= MAX_BYTES || usize::from(self.count) == MAX_LABELS {
            return None;
        }
        // All numbers are below 256: checked above.
        self.bytes[start] = label.len() as u8;
        for (to, from) in self.bytes[start + 1..end].iter_mut().zip(label) {
            *to = from.to_ascii_lowercase();
        }
        self.bytes[end] = 0;
        self.starts[usize::from(self.count)] = start as u8;
        self.count += 1;
        self.length = end as u8 + 1;
        Some(())
    }

    /// Wire form, with the root.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// How many labels, without the root.
    pub(super) fn count(&self) -> usize {
        usize::from(self.count)
    }

    fn start(&self, label: usize) -> usize {
        match label < self.count() {
            true => usize::from(self.starts[label]),
            false => usize::from(self.length) - 1,
        }
    }

    /// A label, without its length.
    pub(super) fn label(&self, label: usize) -> &[u8] {
        self.labels(label, label + 1).get(1..).unwrap_or_default()
    }

    /// The labels from `first` to before `end`, in wire form without a root.
    pub(super) fn labels(&self, first: usize, end: usize) -> &[u8] {
        &self.bytes[self.start(first)..self.start(end)]
    }

    /// How many labels stand before `domain`; `None` when the name is not in it. The root has no names in it.
    pub(super) fn relative_to(&self, domain: &Name) -> Option<usize> {
        let before = self.count().checked_sub(domain.count())?;
        let suffix = &self.as_bytes()[self.start(before)..];
        (domain.count() > 0 && suffix == domain.as_bytes()).then_some(before)
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for label in 0..self.count() {
            write!(f, "{}.", self.label(label).escape_ascii())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_lower_case() {
        let (name, end) = Name::read(b"xx\x03WeB\x04Shop\0rest", 2).unwrap();
        assert_eq!(name.as_bytes(), b"\x03web\x04shop\0");
        assert_eq!((end, name.count()), (12, 2));
        assert_eq!((name.label(0), name.label(1)), (b"web".as_slice(), b"shop".as_slice()));
        assert_eq!(name.labels(0, 2), b"\x03web\x04shop");
        assert_eq!(format!("{:?}", Name::from_text("Web.shop.").unwrap()), "web.shop.");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for junk in [b"".as_slice(), b"\x03we", b"\xc0\x0c", b"\x40aaaa", b"\x01a"] {
            assert!(Name::read(junk, 0).is_none(), "{junk:?}");
        }
        assert!(Name::from_text("a..b").is_none() && Name::from_text(&"a".repeat(64)).is_none());
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert_eq!(Name::from_text(&longest).unwrap().as_bytes().len(), 255);
        assert!(Name::from_text(&format!("{longest}d")).is_none());
        assert_eq!(Name::from_text(&vec!["a"; 127].join(".")).unwrap().count(), 127);
        assert!(Name::from_text(&vec!["a"; 128].join(".")).is_none());
    }

    #[test]
    fn a_domain_ends_at_a_label() {
        let domain = Name::from_text("cluster.local").unwrap();
        let relative = |text| Name::from_text(text).unwrap().relative_to(&domain);
        assert_eq!(relative("web.svc.cluster.local"), Some(2));
        assert_eq!(relative("cluster.local"), Some(0));
        assert_eq!(relative("mycluster.local"), None);
        assert_eq!(relative("local"), None);
        assert_eq!(Name::from_text("a").unwrap().relative_to(&Name::root()), None);
    }
}
