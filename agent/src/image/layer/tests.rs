//! Hostile and ordinary layers (FAULTS 24 to 29). They run as root, as the agent does: owners, devices and trusted
//! attributes need it.

use super::*;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tar::{Builder, Header};

/// Builds archives entry by entry, with names and types that the tar crate itself would refuse.
#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn entry(self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        self.push(header, content)
    }

    fn push(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A layer's directory inside one that must stay as it is.
struct Sandbox {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("fs");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        Self { dir, root }
    }

    fn unpack(&self, layer: Layer) -> Result<Unpacked, Error> {
        unpack(&layer.end()[..], &self.root, Limits::default())
    }

    fn check_canary(&self) {
        assert_eq!(fs::read_to_string(self.dir.path().join("canary")).unwrap(), "alive");
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 100];
        match rustix::fs::lgetxattr(self.root.join(path), name, &mut value) {
            Ok(length) => {
                value.truncate(length);
                Some(value)
            }
            Err(Errno::NODATA) => None,
            Err(errno) => panic!("{errno}"),
        }
    }
}

fn is_unsafe(result: Result<Unpacked, Error>) -> bool {
    matches!(result, Err(Error::Unsafe { .. }))
}

#[test]
fn an_ordinary_layer_is_unpacked_with_its_attributes() {
    let sandbox = Sandbox::new();
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o4755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_000_000_000);
    header.set_size(2);
    let long = format!("{}/su", "deep".repeat(30));
    builder.append_data(&mut header, &long, &b"su"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let unpacked = unpack(&archive[..], &sandbox.root, Limits::default()).unwrap();
    assert_eq!(
        unpacked,
        Unpacked {
            diff_id: Digest::of(&archive),
            size: archive.len() as u64
        }
    );
    let metadata = fs::metadata(sandbox.root.join(long)).unwrap();
    assert_eq!(
        (
            metadata.mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.mtime()
        ),
        (0o4755, 7, 8, 1_000_000_000)
    );
}

#[test]
fn directories_links_and_fifos_are_made() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .dir("bin/")
        .file("bin/busybox", "x")
        .hard_link("bin/sh", "bin/busybox")
        .symlink("lib", "usr/lib")
        .dir("usr/lib")
        .file("lib/libc.so", "c")
        .entry(EntryType::Fifo, "run/pipe", "", b"");
    sandbox.unpack(layer).unwrap();
    let ino = |path: &str| fs::metadata(sandbox.root.join(path)).unwrap().ino();
    assert_eq!(ino("bin/sh"), ino("bin/busybox"));
    assert_eq!(sandbox.read("usr/lib/libc.so"), "c", "through the layer's own symlink");
    assert!(
        fs::metadata(sandbox.root.join("run/pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::metadata(sandbox.root.join("bin")).unwrap().mtime(),
        1_000_000_000,
        "after the files in it"
    );
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .file("a", "one")
        .hard_link("b", "a")
        .file("a", "two")
        .dir("d/")
        .file("d/x", "x")
        .file("d", "now a file")
        .file("e", "e")
        .file("e/below", "now a directory? no");
    let result = sandbox.unpack(layer);
    assert!(result.is_err(), "a file cannot be a parent");
    assert_eq!(
        (sandbox.read("a"), sandbox.read("b"), sandbox.read("d")),
        ("two".into(), "one".into(), "now a file".into())
    );
}

#[test]
fn gzip_and_zstd_give_the_same_layer() {
    let archive = Layer::default().file("hello", &"world ".repeat(1000)).end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&archive).unwrap();
    for packed in [gzip.finish().unwrap(), zstd::encode_all(&archive[..], 3).unwrap()] {
        assert!(packed.len() < archive.len());
        let sandbox = Sandbox::new();
        let unpacked = unpack(&packed[..], &sandbox.root, Limits::default()).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&archive));
        assert_eq!(sandbox.read("hello").len(), 6000);
    }
}

#[test]
fn a_truncated_layer_is_an_error() {
    let archive = Layer::default().file("hello", &"x".repeat(5000)).end();
    let sandbox = Sandbox::new();
    assert!(unpack(&archive[..3000], &sandbox.root, Limits::default()).is_err());
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in ["../canary", "a/../../canary", "/../canary", "..", "a/.."] {
        let sandbox = Sandbox::new();
        assert!(is_unsafe(sandbox.unpack(Layer::default().file(name, "dead"))), "{name}");
        sandbox.check_canary();
    }
}

#[test]
fn absolute_names_and_symlinks_stay_inside() {
    let sandbox = Sandbox::new();
    let outside = sandbox.dir.path().to_str().unwrap().to_owned();
    let layer = Layer::default()
        .file("/etc/passwd", "mine")
        .symlink("up", "..")
        .file("up/canary", "inside")
        .symlink("abs", &outside)
        .file("abs/canary", "inside too")
        .symlink("chain1", "chain2")
        .symlink("chain2", "../../../..")
        .file("chain1/canary2", "inside");
    // `abs` points nowhere inside the layer, so its directories cannot be made through it.
    let _ = sandbox.unpack(layer);
    sandbox.check_canary();
    assert_eq!(sandbox.read("etc/passwd"), "mine");
    assert_eq!(sandbox.read("canary"), "inside");
}

#[test]
fn a_symlink_is_replaced_not_followed() {
    let sandbox = Sandbox::new();
    let canary = sandbox.dir.path().join("canary");
    let target = canary.to_str().unwrap();
    let layer = Layer::default()
        .symlink("link", target)
        .file("link", "dead")
        .symlink("dirlink", "..")
        .dir("dirlink")
        .file("dirlink/canary", "inside");
    sandbox.unpack(layer).unwrap();
    sandbox.check_canary();
    assert_eq!(sandbox.read("link"), "dead");
    assert_eq!(sandbox.read("dirlink/canary"), "inside");
}

#[test]
fn hard_links_reach_only_files_of_the_layer() {
    let sandbox = Sandbox::new();
    let outside = sandbox.dir.path().join("canary");
    let cases = [
        Layer::default().hard_link("x", outside.to_str().unwrap()),
        Layer::default().hard_link("x", "../canary"),
        Layer::default().symlink("up", "..").hard_link("x", "up/../canary"),
        Layer::default().hard_link("x", "missing"),
        Layer::default().hard_link("x", "x"),
        Layer::default().dir("d").hard_link("x", "d"),
    ];
    for (case, layer) in cases.into_iter().enumerate() {
        assert!(is_unsafe(sandbox.unpack(layer)), "case {case}");
        assert!(!sandbox.root.join("x").exists(), "case {case}");
    }
    sandbox.check_canary();
    assert_eq!(fs::metadata(outside).unwrap().nlink(), 1);
}

#[test]
fn a_mount_inside_the_layer_is_not_crossed() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    let sandbox = Sandbox::new();
    let mounted = Mounted(sandbox.root.join("mnt"));
    fs::create_dir(&mounted.0).unwrap();
    rustix::mount::mount("none", &mounted.0, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    fs::write(mounted.0.join("secret"), "host").unwrap();
    assert!(is_unsafe(
        sandbox.unpack(Layer::default().hard_link("stolen", "mnt/secret"))
    ));
    assert!(sandbox.unpack(Layer::default().file("mnt/new", "x")).is_err());
    assert!(!mounted.0.join("new").exists() && !sandbox.root.join("stolen").exists());
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let sandbox = Sandbox::new();
    let layer = Layer::default()
        .file("a/.wh.gone", "")
        .dir("d")
        .file("d/.wh..wh..opq", "")
        .file("both", "stays")
        .file(".wh.both", "")
        .dir("remade")
        .file(".wh.remade", "")
        .file(".wh.again", "")
        .dir("again");
    sandbox.unpack(layer).unwrap();
    let gone = fs::symlink_metadata(sandbox.root.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(sandbox.read("both"), "stays");
    for opaque in ["d", "remade", "again"] {
        assert_eq!(
            sandbox.xattr(opaque, "trusted.overlay.opaque").as_deref(),
            Some(&b"y"[..]),
            "{opaque}"
        );
    }
    assert!(!sandbox.root.join("a/.wh.gone").exists());
}

#[test]
fn a_whiteout_of_dot_dot_is_refused() {
    for name in [".wh...", "a/.wh..", ".wh."] {
        let sandbox = Sandbox::new();
        assert!(is_unsafe(sandbox.unpack(Layer::default().file(name, ""))), "{name}");
        sandbox.check_canary();
    }
}

#[test]
fn devices_are_left_out_also_those_that_would_be_whiteouts() {
    let sandbox = Sandbox::new();
    let device = |layer: Layer, name: &str, kind, major, minor| {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        layer.push(header, b"")
    };
    let layer = device(Layer::default(), "dev/sda", EntryType::Block, 8, 0);
    let layer = device(
        device(layer, "dev/mem", EntryType::Char, 1, 1),
        "etc",
        EntryType::Char,
        0,
        0,
    );
    sandbox.unpack(layer.file("after", "x")).unwrap();
    assert!(!sandbox.root.join("dev/sda").exists() && !sandbox.root.join("dev/mem").exists());
    assert!(fs::symlink_metadata(sandbox.root.join("etc")).is_err());
    assert_eq!(sandbox.read("after"), "x");
}

#[test]
fn only_listed_extended_attributes_are_kept() {
    let sandbox = Sandbox::new();
    let mut builder = Builder::new(Vec::new());
    // VFS_CAP_REVISION_2 with CAP_NET_RAW.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"kept".as_slice()),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice()),
            ("SCHILY.xattr.user.overlay.opaque", b"y".as_slice()),
            ("SCHILY.xattr.security.selinux", b"label".as_slice()),
        ])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o755);
    header.set_size(0);
    header.set_uid(1);
    header.set_gid(1);
    header.set_mtime(0);
    builder.append_data(&mut header, "ping", &b""[..]).unwrap();
    unpack(&builder.into_inner().unwrap()[..], &sandbox.root, Limits::default()).unwrap();
    assert_eq!(
        sandbox.xattr("ping", "security.capability").as_deref(),
        Some(capability)
    );
    assert_eq!(sandbox.xattr("ping", "user.note").as_deref(), Some(&b"kept"[..]));
    for dropped in ["trusted.overlay.redirect", "user.overlay.opaque"] {
        assert_eq!(sandbox.xattr("ping", dropped), None, "{dropped}");
    }
}

fn limited(archive: &[u8], change: impl FnOnce(&mut Limits)) -> (Sandbox, Result<Unpacked, Error>) {
    let sandbox = Sandbox::new();
    let mut limits = Limits::default();
    change(&mut limits);
    let result = unpack(archive, &sandbox.root, limits);
    (sandbox, result)
}

fn exceeds(result: &Result<Unpacked, Error>, of: &str) -> bool {
    matches!(result, Err(Error::Limit { what, .. }) if *what == of)
}

#[test]
fn a_gzip_bomb_is_stopped_by_its_ratio() {
    let archive = Layer::default()
        .entry(EntryType::Regular, "zeros", "", &vec![0; 4 << 20])
        .end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&archive).unwrap();
    let bomb = gzip.finish().unwrap();
    let (_, result) = limited(&bomb, |limits| limits.ratio_from = 1 << 20);
    assert!(exceeds(&result, "bytes for each compressed byte"), "{result:?}");
    let (_, result) = limited(&bomb, |limits| limits.bytes = 1 << 20);
    assert!(exceeds(&result, "bytes"), "{result:?}");
}

#[test]
fn a_bomb_behind_the_end_of_the_archive_is_stopped_too() {
    let mut archive = Layer::default().file("a", "a").end();
    archive.resize(8 << 20, 0);
    let bomb = zstd::encode_all(&archive[..], 3).unwrap();
    let (_, result) = limited(&bomb, |limits| limits.bytes = 4 << 20);
    assert!(exceeds(&result, "uncompressed bytes"), "{result:?}");
}

#[test]
fn a_sparse_terabyte_is_refused_before_it_is_written() {
    let mut header = Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(512);
    let size = 1u64 << 40;
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.sparse[0].set_offset(size - 512);
    gnu.sparse[0].set_length(512);
    let archive = Layer::default().push(header, &[1; 512]).end();
    let (sandbox, result) = limited(&archive, |_| {});
    assert!(exceeds(&result, "bytes"), "{result:?}");
    assert!(!sandbox.root.join("huge").exists());
}

#[test]
fn too_many_entries_are_refused() {
    let layer = (0..20).fold(Layer::default(), |layer, n| layer.dir(&format!("d{n}")));
    let (_, result) = limited(&layer.end(), |limits| limits.entries = 10);
    assert!(exceeds(&result, "entries"), "{result:?}");
}

#[test]
fn endless_headers_are_stopped() {
    let name = vec![b'x'; 5 << 20];
    let archive = Layer::default()
        .entry(EntryType::GNULongName, "././@LongLink", "", &name)
        .file("x", "x")
        .end();
    let (_, result) = limited(&archive, |_| {});
    assert!(exceeds(&result, "bytes in one entry's headers"), "{result:?}");
}

#[test]
fn time_is_bounded() {
    struct Slow(Vec<u8>);
    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_millis(1100));
            let count = buffer.len().min(self.0.len()).min(512);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    let sandbox = Sandbox::new();
    let archive = Layer::default().file("a", "a").end();
    let limits = Limits {
        time: Duration::ZERO,
        ..Limits::default()
    };
    let result = unpack(Slow(archive), &sandbox.root, limits);
    assert!(exceeds(&result, "seconds to unpack"), "{result:?}");
}

#[derive(Debug, Clone)]
struct AnyEntry {
    kind: u8,
    name: String,
    link: String,
}

fn hostile_name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just("".to_owned()),
        Just("canary".to_owned()),
        Just(".wh.a".to_owned()),
        Just(".wh..".to_owned()),
        Just(".wh...".to_owned()),
        Just(".wh..wh..opq".to_owned()),
        "[a-c]",
    ];
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn any_entry() -> impl Strategy<Value = AnyEntry> {
    (0u8..8, hostile_name(), hostile_name()).prop_map(|(kind, name, link)| AnyEntry { kind, name, link })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_archive_touches_anything_outside(entries in proptest::collection::vec(any_entry(), 1..10)) {
        let sandbox = Sandbox::new();
        let mut layer = Layer::default();
        for AnyEntry { kind, name, link } in entries {
            let kind = EntryType::new(b'0' + kind);
            let content: &[u8] = if kind == EntryType::Regular { b"dead" } else { b"" };
            layer = layer.entry(kind, &name, &link, content);
        }
        let _ = unpack(&layer.end()[..], &sandbox.root, Limits::default());
        sandbox.check_canary();
        let canary = fs::metadata(sandbox.dir.path().join("canary")).unwrap();
        prop_assert_eq!((canary.nlink(), canary.permissions().mode() & 0o777), (1, 0o644));
        for entry in fs::read_dir(&sandbox.root).unwrap() {
            let name = entry.unwrap().file_name();
            prop_assert!(!name.as_bytes().starts_with(b".wh."));
        }
    }
}
