//! Where a field of a kernel struct is, from the kernel's own type information (BTF).
//!
//! Only as much of the format is read as that takes; Documentation/bpf/btf.rst of Linux describes it.

use std::path::Path;
use std::sync::OnceLock;

/// The running kernel's types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u32 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
/// In a struct whose members may be bit fields, the offset has so many bits.
const OFFSET_BITS: u32 = 24;

/// Where the running kernel's sockets keep why they failed. Found out once: the thread that loads programs may be kept from
/// reading the kernel's types.
pub(crate) fn sk_err() -> Option<u32> {
    static OFFSET: OnceLock<Option<u32>> = OnceLock::new();
    *OFFSET.get_or_init(|| offset_in_kernel("sock", "sk_err"))
}

/// Offset in bytes of a field of a struct of the running kernel; `None` where the kernel does not tell.
fn offset_in_kernel(structure: &str, field: &str) -> Option<u32> {
    let bytes = std::fs::read(Path::new(VMLINUX)).ok()?;
    offset(&bytes, structure, field)
}

/// Offset in bytes of a field that is no bit field.
fn offset(btf: &[u8], structure: &str, field: &str) -> Option<u32> {
    let word = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(btf.get(at..at + 4)?.try_into().ok()?)) };
    if word(0)? & 0xffff != MAGIC {
        return None;
    }
    let size = |at: usize| word(at).map(|value| value as usize);
    let header = size(4)?;
    let (types, end) = (header + size(8)?, header + size(8)? + size(12)?);
    let strings = header + size(16)?;
    let is = |name: u32, text: &str| {
        let rest = btf.get(strings + name as usize..).unwrap_or_default();
        rest.starts_with(text.as_bytes()) && rest.get(text.len()) == Some(&0)
    };
    let mut at = types;
    while at + 12 <= end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
        let members = at + 12;
        if kind == KIND_STRUCT && is(name, structure) {
            let found = (0..count).find_map(|index| {
                let member = members + index * 12;
                is(word(member)?, field).then(|| word(member + 8)).flatten()
            });
            let bits = found?
                & if info >> 31 == 1 {
                    (1 << OFFSET_BITS) - 1
                } else {
                    u32::MAX
                };
            return (bits % 8 == 0).then_some(bits / 8);
        }
        at = members + behind(kind, count)?;
    }
    None
}

/// Bytes that follow the head of a type.
fn behind(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => count * 12,
        6 | 13 => count * 8,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct pad { int x; }; struct sock { int a; int sk_err; }`, with members that may be bit fields.
    fn btf() -> Vec<u8> {
        let strings = b"\0int\0pad\0x\0sock\0a\0sk_err\0";
        let name = |text: &[u8]| {
            let found = strings
                .windows(text.len() + 2)
                .position(|at| at[0] == 0 && &at[1..=text.len()] == text && at[text.len() + 1] == 0);
            u32::try_from(found.unwrap() + 1).unwrap()
        };
        let structure = |count: u32| 1 << 31 | KIND_STRUCT << 24 | count;
        let types: Vec<u32> = vec![
            name(b"int"),
            1 << 24,
            4,
            32,
            name(b"pad"),
            structure(1),
            4,
            name(b"x"),
            1,
            0,
            name(b"sock"),
            structure(2),
            8,
            name(b"a"),
            1,
            32 << 24,
            name(b"sk_err"),
            1,
            32 << 24 | 32,
        ];
        let length = u32::try_from(types.len() * 4).unwrap();
        let header = [0x1_eb9f, 24, 0, length, length, u32::try_from(strings.len()).unwrap()];
        let mut bytes: Vec<u8> = header
            .iter()
            .chain(&types)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_field_is_found_behind_other_types() {
        assert_eq!(offset(&btf(), "sock", "sk_err"), Some(4));
        assert_eq!(offset(&btf(), "sock", "sk"), None);
        assert_eq!(offset(&btf(), "soc", "sk_err"), None);
        assert_eq!(offset(&btf(), "pad", "x"), Some(0));
    }

    #[test]
    fn what_is_cut_short_says_nothing() {
        let whole = btf();
        for length in 0..whole.len() - 1 {
            assert_eq!(offset(&whole[..length], "sock", "sk_err"), None, "{length}");
        }
    }
}
