//! Builds the eBPF object that is committed as `ebpf/hull.bpf.o`, or checks that the committed one is current.
//!
//! Building needs nightly features and bpf-linker; checking compares digests and needs neither, so that `cargo build`
//! and CI get by with a stable toolchain. The digest file names what the object was built from, and the object itself.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

const OBJECT: &str = "hull.bpf.o";
const DIGESTS: &str = "hull.bpf.sha256";
const TARGET: &str = "bpfel-unknown-none";
/// Where distributions keep LLVM's tools, when they are not on PATH.
const LLVM_DIRS: &str = "/usr/lib";

const NO_COMPILER: &str = "no Rust compiler with the core sources was found. Install one of:\n\
    - rustup toolchain install nightly --component rust-src\n\
    - on Debian: apt-get install rustc-web rust-web-src llvm-22";
const NO_LINKER: &str = "bpf-linker was not found on PATH. Install it with `cargo install bpf-linker` or, on Debian with\n\
    llvm-22-dev and libpolly-22-dev, `LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --no-default-features --features llvm-22`";
const NO_OBJCOPY: &str = "llvm-objcopy was not found on PATH, under /usr/lib/llvm-* or in the toolchain. Install the package llvm,\n\
    or `rustup component add llvm-tools`";

/// Builds the object and records the digests.
pub fn build() -> Result<()> {
    let dir = directory();
    let compiler = Compiler::find()?;
    on_path("bpf-linker").context(NO_LINKER)?;
    let objcopy = objcopy(&compiler).context(NO_OBJCOPY)?;
    let target_dir = dir.join("target");
    run(compiler
        .cargo()
        .current_dir(&dir)
        .args([
            "build",
            "--locked",
            "--release",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
        ])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", compiler.flags(&dir)))?;
    // Debug information and BTF's line table are useless at run time; BTF's types are needed for socket storage.
    run(Command::new(objcopy)
        .args(["--strip-debug", "-R", ".BTF.ext", "-R", ".rel.BTF.ext"])
        .arg(target_dir.join(TARGET).join("release/hull"))
        .arg(dir.join(OBJECT)))?;
    let digests = digests(&dir)?;
    let path = dir.join(DIGESTS);
    fs::write(&path, digests).with_context(|| format!("write {}", path.display()))?;
    println!("built {}", dir.join(OBJECT).display());
    Ok(())
}

/// Fails unless the committed object is the one that was built from the sources as they are.
pub fn check() -> Result<()> {
    let dir = directory();
    let path = dir.join(DIGESTS);
    let recorded = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let present = digests(&dir)?;
    let differing: Vec<&str> = present
        .lines()
        .filter(|line| !recorded.lines().any(|other| other == *line))
        .chain(
            recorded
                .lines()
                .filter(|line| !present.lines().any(|other| other == *line)),
        )
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    if !differing.is_empty() {
        bail!(
            "ebpf/{OBJECT} does not belong to its sources ({}): run `cargo xtask ebpf`",
            differing.join(", ")
        );
    }
    println!("ebpf/{OBJECT} belongs to its sources");
    Ok(())
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf")
}

/// One line a file, as sha256sum(1) prints: the sources, what pins their dependencies, and the object.
fn digests(dir: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = ["Cargo.toml", "Cargo.lock", "types/Cargo.toml", OBJECT]
        .map(PathBuf::from)
        .into();
    for sources in ["src", "types/src"] {
        let path = dir.join(sources);
        for entry in fs::read_dir(&path).with_context(|| format!("read {}", path.display()))? {
            files.push(Path::new(sources).join(entry?.file_name()));
        }
    }
    files.sort();
    let mut text = String::new();
    for file in files {
        let path = dir.join(&file);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        text.push_str(&format!("{digest}  {}\n", file.display()));
    }
    Ok(text)
}

/// A compiler that can build `core` itself.
struct Compiler {
    rustc: PathBuf,
    sysroot: PathBuf,
}

impl Compiler {
    /// The compiler named by HULL_EBPF_RUSTC, that of rustup's nightly, or a distribution's, whichever comes with the sources.
    fn find() -> Result<Compiler> {
        let named = std::env::var_os("HULL_EBPF_RUSTC").map(PathBuf::from);
        let nightly =
            output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"])).map(PathBuf::from);
        let candidates = [named, nightly, Some("/usr/bin/rustc".into())];
        candidates
            .into_iter()
            .flatten()
            .find_map(|rustc| {
                let sysroot = PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?);
                let has_sources = sysroot.join("lib/rustlib/src/rust/library/core").exists();
                has_sources.then_some(Compiler { rustc, sysroot })
            })
            .context(NO_COMPILER)
    }

    /// Cargo told to use this compiler; the variable lets a stable one take nightly options.
    fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTFLAGS");
        command
    }

    /// BTF is made from debug information; its file names must not depend on who builds.
    fn flags(&self, dir: &Path) -> OsString {
        let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
        let mut remap = |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        remap(&self.sysroot.join("lib/rustlib/src/rust"), "rust");
        for registry in registries() {
            remap(&registry, "crates");
        }
        remap(dir, "ebpf");
        if let Ok(resolved) = dir.canonicalize() {
            remap(&resolved, "ebpf");
        }
        flags.join("\u{1f}").into()
    }
}

fn registries() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let sources = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    sources
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn objcopy(compiler: &Compiler) -> Option<PathBuf> {
    let name = "llvm-objcopy";
    on_path(name)
        .or_else(|| {
            let versions = fs::read_dir(LLVM_DIRS).ok()?.flatten().map(|entry| entry.path());
            let named = versions.filter(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("llvm-"))
            });
            named
                .map(|path| path.join("bin").join(name))
                .filter(|path| path.exists())
                .max()
        })
        .or_else(|| {
            let tool = compiler
                .sysroot
                .join("lib/rustlib/x86_64-unknown-linux-gnu/bin")
                .join(name);
            tool.exists().then_some(tool)
        })
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
