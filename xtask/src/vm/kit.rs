//! What a machine is made of: QEMU 10, a Debian 6.12 kernel with its modules, busybox. Fetched once into `target/vm`.
//!
//! Debian 12's own QEMU 7.2 crashes 6.12 guests under emulation, so QEMU comes from Debian's backports; the kernel is only unpacked,
//! never installed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::cpio::Archive;
use crate::host;

/// The kernels that machines boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The oldest that hull supports: Debian 12's own.
    V6_1,
    /// That of most tests.
    V6_12,
}

impl Release {
    /// Debian's package that depends on the newest such kernel.
    fn package(self) -> &'static str {
        match self {
            Release::V6_1 => "linux-image-cloud-amd64",
            Release::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    /// Where its parts are kept below `target/vm`.
    fn directory(self) -> &'static str {
        match self {
            Release::V6_1 => "6.1",
            Release::V6_12 => "",
        }
    }
}

/// Modules that jobs need, in load order (a module after those it depends on).
const MODULES: &[&str] = &[
    "virtio_blk",
    "overlay",
    "veth",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "sch_ingress",
    "cls_bpf",
];
/// First process of the guest: leaves the initramfs for a tmpfs, because pivot_root refuses to work on the initial root.
const STAGE_1: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /new && /bin/busybox mount -t tmpfs -o size=90% root /new
/bin/busybox cp -a /bin /sbin /etc /lib /job /files /new/ && cd /new && /bin/busybox mkdir -p dev proc sys tmp run var root mnt
exec /bin/busybox switch_root /new /sbin/stage2
";
/// Second stage: mounts, modules, the job; the exit code goes out as the last line of the second serial port.
const STAGE_2: &str = "#!/bin/busybox sh
export PATH=/bin:/sbin HOME=/root
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf
for m in $(cat /lib/order); do insmod /lib/$m.ko; done
ip link set lo up; hostname vm; echo 1 > /proc/sys/kernel/printk
stty -F /dev/ttyS1 raw -echo 2>/dev/null
sh /job >/dev/ttyS1 2>&1 </dev/null
echo \"@@EXIT $?\" >/dev/ttyS1
sleep 1; sync; poweroff -f
";

/// The unpacked kernel and where it is.
#[derive(Debug)]
pub struct Kit {
    dir: PathBuf,
    kernel: PathBuf,
    modules: PathBuf,
}

impl Kit {
    /// Finds the kit in `target/vm`, fetching what is missing (Debian packages: QEMU, a kernel, busybox).
    ///
    /// # Errors
    /// A package cannot be fetched; the error says which, and what apt said.
    pub fn prepare() -> Result<Self> {
        Self::with(Release::V6_12)
    }

    /// As [`Kit::prepare`], with a kernel of one's choice.
    ///
    /// # Errors
    /// As [`Kit::prepare`].
    pub fn with(release: Release) -> Result<Self> {
        let dir = host::workspace().join("target/vm").join(release.directory());
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        host::install(&[
            ("busybox-static", "user space of test VMs"),
            ("xz-utils", "unpacking kernel modules"),
        ])?;
        if !qemu_is_new_enough() {
            install_qemu(&dir)?;
        }
        if find_kernel(&dir).is_none() {
            fetch_kernel(&dir, release.package())?;
        }
        let (kernel, modules) = find_kernel(&dir).context("the kernel package holds no kernel")?;
        Ok(Self { dir, kernel, modules })
    }

    /// The compressed kernel image.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// Writes an initramfs with busybox, the modules, `files` and the job's `script`.
    ///
    /// # Errors
    /// A file cannot be read or the archive cannot be written.
    pub fn write_initramfs(&self, path: &Path, files: &[(String, PathBuf)], script: &str) -> Result<()> {
        let mut archive = Archive::new(Vec::new());
        for dir in ["bin", "sbin", "etc", "lib", "files"] {
            archive.directory(dir)?;
        }
        let busybox = fs::read("/bin/busybox").context("read /bin/busybox")?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        for applet in busybox_applets()? {
            if applet != "busybox" {
                archive.symlink(&format!("bin/{applet}"), "busybox")?;
            }
        }
        let mut order = Vec::new();
        for module in MODULES {
            if let Some(bytes) = self.module(module)? {
                archive.file(&format!("lib/{module}.ko"), 0o644, &bytes)?;
                order.push(*module);
            }
        }
        archive.file("lib/order", 0o644, order.join(" ").as_bytes())?;
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        archive.file("etc/resolv.conf", 0o644, b"")?;
        for (guest, host) in files {
            let mode = fs::metadata(host)
                .with_context(|| format!("stat {}", host.display()))?
                .permissions()
                .mode();
            let data = fs::read(host).with_context(|| format!("read {}", host.display()))?;
            archive.file(guest.trim_start_matches('/'), mode, &data)?;
        }
        archive.file("job", 0o755, script.as_bytes())?;
        archive.file("init", 0o755, STAGE_1.as_bytes())?;
        archive.file("sbin/stage2", 0o755, STAGE_2.as_bytes())?;
        let bytes = archive.finish()?;
        fs::File::create(path)
            .and_then(|mut file| file.write_all(&bytes))
            .with_context(|| format!("write {}", path.display()))
    }

    /// A module's bytes; `None` where the kernel has it built in.
    fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Some(plain) = find_file(&self.modules, &format!("{name}.ko")) {
            let bytes = fs::read(&plain).with_context(|| format!("read {}", plain.display()))?;
            return Ok(Some(bytes));
        }
        let built_in = find_file(&self.modules, "modules.builtin").and_then(|list| fs::read_to_string(list).ok());
        if built_in.is_some_and(|list| list.contains(&format!("/{name}.ko"))) {
            return Ok(None);
        }
        let cached = self.dir.join(format!("{name}.ko"));
        if !cached.exists() {
            let packed = find_file(&self.modules, &format!("{name}.ko.xz"))
                .with_context(|| format!("no module {name} in the kernel package"))?;
            let out = Command::new("xz").arg("-dc").arg(&packed).output().context("run xz")?;
            ensure!(
                out.status.success(),
                "xz -dc {}: {}",
                packed.display(),
                String::from_utf8_lossy(&out.stderr)
            );
            let partial = self.dir.join(format!("{name}.ko.{}", std::process::id()));
            fs::write(&partial, &out.stdout)
                .and_then(|()| fs::rename(&partial, &cached))
                .context("store the module")?;
        }
        let bytes = fs::read(&cached).with_context(|| format!("read {}", cached.display()))?;
        Ok(Some(bytes))
    }
}

fn busybox_applets() -> Result<Vec<String>> {
    let out = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .context("run /bin/busybox --list")?;
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

fn qemu_is_new_enough() -> bool {
    let Ok(out) = Command::new("qemu-system-x86_64").arg("--version").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&out.stdout);
    let major = text
        .split("version ")
        .nth(1)
        .and_then(|rest| rest.split('.').next())
        .and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= 8)
}

/// Installs QEMU from the release's backports with package lists of its own, so that the machine's sources stay as they are.
fn install_qemu(dir: &Path) -> Result<()> {
    host::say("installing qemu-system-x86 from Debian's backports: VMs for tests of limits, OOM and power cuts");
    let (uri, release) = debian_mirror()?;
    let parts = dir.join("apt");
    fs::create_dir_all(dir.join("lists/partial"))
        .and_then(|()| fs::create_dir_all(&parts))
        .context("make apt directories")?;
    let stanza = |suite: &str| {
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
    };
    let backports = format!("{release}-backports");
    fs::write(
        parts.join("debian.sources"),
        format!("{}\n{}", stanza(&release), stanza(&backports)),
    )
    .context("write apt source")?;
    let options = [
        format!("Dir::Etc::sourceparts={}", parts.display()),
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        format!("Dir::State::lists={}", dir.join("lists").display()),
    ];
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        for option in &options {
            command.args(["-o", option]);
        }
        host::run(command.args(args))
    };
    apt(&["update", "-qq"])?;
    apt(&[
        "install",
        "-qq",
        "-y",
        "-t",
        &backports,
        "--no-install-recommends",
        "qemu-system-x86",
    ])?;
    ensure!(
        qemu_is_new_enough(),
        "qemu-system-x86_64 is still older than 8 after the installation"
    );
    Ok(())
}

/// The archive's address and the release's code name, as apt is configured here.
fn debian_mirror() -> Result<(String, String)> {
    let out = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(CODENAME) $(COMPONENT)",
            "Created-By: Packages",
        ])
        .output()
        .context("run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for line in text.lines() {
        let mut words = line.split(' ');
        if let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next())
            && !release.contains('-')
        {
            return Ok((uri.to_owned(), release.to_owned()));
        }
    }
    bail!("no Debian main archive among apt's sources:\n{text}")
}

fn fetch_kernel(dir: &Path, metapackage: &str) -> Result<()> {
    host::say(&format!(
        "fetching {metapackage}: the kernel of test VMs (unpacked, not installed)"
    ));
    host::apt_update_once()?;
    let out = Command::new("apt-cache")
        .args(["depends", metapackage])
        .output()
        .context("run apt-cache depends")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("apt knows no {metapackage}: {text}"))?;
    let download = tempfile::tempdir().context("make a temporary directory")?;
    host::run(
        Command::new("apt-get")
            .args(["download", "-qq", package])
            .current_dir(download.path()),
    )?;
    let deb = fs::read_dir(download.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some());
    let deb = deb.context("apt-get download left no package")?;
    let partial = dir.join(format!("kernel.{}", std::process::id()));
    host::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&partial))?;
    fs::rename(&partial, dir.join("kernel")).context("put the kernel in place")
}

fn find_kernel(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let boot = fs::read_dir(dir.join("kernel/boot")).ok()?;
    let mut paths = boot.filter_map(Result::ok).map(|entry| entry.path());
    let kernel = paths.find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    })?;
    let modules = ["kernel/lib/modules", "kernel/usr/lib/modules"]
        .into_iter()
        .map(|path| dir.join(path))
        .find(|path| path.is_dir())?;
    Some((kernel, modules))
}

fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_file(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}
