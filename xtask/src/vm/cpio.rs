//! Writer of the initramfs format: cpio "newc" (kernel documentation, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

/// Kind and permission bits of an entry.
const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

/// Appends entries to an archive; [`Archive::finish`] ends it.
pub struct Archive<W: Write> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// A directory, `path` without a leading slash.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, &[])
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// A regular file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | (mode & 0o7777), data)
    }

    /// Writes the trailer and returns the stream.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(data.len()).map_err(|_| io::Error::other(format!("{path}: larger than 4 GiB")))?;
        let name_size = path.len() as u32 + 1;
        write!(
            self.out,
            "070701{:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{size:08X}",
            self.entries, 0, 0, 1, 0
        )?;
        write!(
            self.out,
            "{:08X}{:08X}{:08X}{:08X}{name_size:08X}{:08X}{path}\0",
            0, 0, 0, 0, 0
        )?;
        // The header is 110 bytes; header and name together, and the data, are padded to four bytes.
        self.pad(110 + path.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_trailer_ends_them() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("d").expect("write");
        archive.file("d/f", 0o755, b"hello").expect("write");
        let bytes = archive.finish().expect("write");
        assert_eq!(bytes.len() % 4, 0);
        let headers: Vec<usize> = (0..bytes.len() - 5)
            .filter(|&at| &bytes[at..at + 6] == b"070701")
            .collect();
        assert_eq!(headers.len(), 3);
        assert!(headers.iter().all(|at| at % 4 == 0), "{headers:?}");
        assert_eq!(&bytes[headers[1] + 14..headers[1] + 22], b"000081ED");
    }
}
