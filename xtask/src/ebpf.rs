//! Builds the eBPF objects that are committed as `ebpf/<program>.bpf.o`, or checks that the committed ones are current.
//!
//! Building needs nightly features and bpf-linker; checking compares digests and needs neither, so that `cargo build`
//! and CI get by with a stable toolchain. A digest file names what its object was built from, and the object itself.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

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

/// One eBPF program of the workspace `ebpf/`: a binary of its own, with an object and a digest file of its own.
struct Program {
    name: &'static str,
    /// The directory of its sources, and the files besides: types it shares with the agent, code with other programs.
    sources: &'static str,
    shared: &'static [&'static str],
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "hull",
        sources: "src",
        shared: &["types/src/lib.rs", "types/src/observe.rs"],
    },
    Program {
        name: "edge",
        sources: "edge",
        shared: &[
            "types/src/lib.rs",
            "types/src/observe.rs",
            "types/src/edge.rs",
            "src/choice.rs",
            "src/growing.rs",
        ],
    },
    Program {
        name: "observe",
        sources: "observe",
        shared: &[
            "types/src/lib.rs",
            "types/src/observe.rs",
            "src/growing.rs",
            "src/origin.rs",
        ],
    },
];

impl Program {
    fn object(&self) -> String {
        format!("{}.bpf.o", self.name)
    }

    fn digests(&self) -> String {
        format!("{}.bpf.sha256", self.name)
    }

    /// One line a file: the sources, what pins their dependencies, and the object.
    fn digest(&self, dir: &Path) -> Result<String> {
        let mut files: Vec<PathBuf> = ["Cargo.toml", "Cargo.lock", "types/Cargo.toml"]
            .map(PathBuf::from)
            .into();
        files.push(self.object().into());
        files.extend(self.shared.iter().map(PathBuf::from));
        let path = dir.join(self.sources);
        for entry in fs::read_dir(&path).with_context(|| format!("read {}", path.display()))? {
            files.push(Path::new(self.sources).join(entry?.file_name()));
        }
        files.sort();
        let mut text = String::new();
        for file in files {
            let path = dir.join(&file);
            let mut bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            if file == Path::new("Cargo.toml") {
                bytes = without_programs(&bytes);
            }
            let digest: String = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            text.push_str(&format!("{digest}  {}\n", file.display()));
        }
        Ok(text)
    }
}

/// The manifest without its list of programs: a program that comes or goes changes no other's object.
fn without_programs(manifest: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(manifest);
    let sections = text.split("\n\n").filter(|section| !section.starts_with("[[bin]]"));
    sections.collect::<Vec<_>>().join("\n\n").into_bytes()
}

/// The programs to work on: all of them, or the one named.
fn chosen(only: Option<&str>) -> Result<Vec<&'static Program>> {
    let programs: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| only.is_none_or(|name| name == program.name))
        .collect();
    if programs.is_empty() {
        let names = PROGRAMS.map(|program| program.name).join(", ");
        bail!(
            "there is no eBPF program {:?}; there are {names}",
            only.unwrap_or_default()
        );
    }
    Ok(programs)
}

/// Builds the objects and records their digests.
pub fn build(only: Option<&str>) -> Result<()> {
    let programs = chosen(only)?;
    let dir = directory();
    let compiler = Compiler::find()?;
    on_path("bpf-linker").context(NO_LINKER)?;
    let objcopy = objcopy(&compiler).context(NO_OBJCOPY)?;
    for program in programs {
        build_one(program, &dir, &compiler, &objcopy)?;
    }
    Ok(())
}

fn build_one(program: &Program, dir: &Path, compiler: &Compiler, objcopy: &Path) -> Result<()> {
    let target_dir = target_directory(dir);
    run(compiler
        .cargo()
        .current_dir(dir)
        .args(["build", "--locked", "--release", "--bin", program.name])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", compiler.flags(dir)))?;
    // Debug information and BTF's line table are useless at run time; BTF's types are needed for socket storage.
    run(Command::new(objcopy)
        .args(["--strip-debug", "-R", ".BTF.ext", "-R", ".rel.BTF.ext"])
        .arg(target_dir.join(TARGET).join("release").join(program.name))
        .arg(dir.join(program.object())))?;
    let path = dir.join(program.digests());
    fs::write(&path, program.digest(dir)?).with_context(|| format!("write {}", path.display()))?;
    println!("built {}", dir.join(program.object()).display());
    Ok(())
}

/// Fails unless the committed objects are those that were built from the sources as they are.
pub fn check(only: Option<&str>) -> Result<()> {
    let dir = directory();
    for program in chosen(only)? {
        check_one(program, &dir)?;
    }
    Ok(())
}

fn check_one(program: &Program, dir: &Path) -> Result<()> {
    let path = dir.join(program.digests());
    let recorded = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let present = program.digest(dir)?;
    let lacks = |text: &str, line: &str| !text.lines().any(|other| other == line);
    let differing: Vec<&str> = present
        .lines()
        .filter(|line| lacks(&recorded, line))
        .chain(recorded.lines().filter(|line| lacks(&present, line)))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    if !differing.is_empty() {
        bail!(
            "ebpf/{} does not belong to its sources ({}): run `cargo xtask ebpf --only {}`",
            program.object(),
            differing.join(", "),
            program.name
        );
    }
    println!("ebpf/{} belongs to its sources", program.object());
    Ok(())
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf")
}

/// Beside the target directory of everything else, where that is chosen: the flags differ, and builds would undo each other.
fn target_directory(dir: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(mut chosen) => {
            chosen.push("-ebpf");
            chosen.into()
        }
        None => dir.join("target"),
    }
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
