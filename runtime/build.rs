//! How the binary is linked: it begins at `hull_runtime_entry` (src/entry.rs) instead of the C library's `_start`, and with
//! lld it is laid out so that a command touches few pages.

use std::path::Path;
use std::process::Command;

/// Where `cargo xtask layout` wants the addresses of all functions.
const MAP: &str = "HULL_LINK_MAP";

fn main() {
    // Set by the fuzzers, see fuzz/.
    println!("cargo::rustc-check-cfg=cfg(fuzzing)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link-order.txt");
    println!("cargo::rerun-if-changed=link-order.ld");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_ARCH") != "x86_64" || variable("CARGO_CFG_TARGET_OS") != "linux" {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-e,hull_runtime_entry");
    if variable("PROFILE") == "release" && links_with_lld(&variable("RUSTC"), &variable("TARGET")) {
        // Many functions differ in their types only.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        let order = Path::new(&variable("CARGO_MANIFEST_DIR")).join("link-order.txt");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
        println!(
            "cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={}",
            order.display()
        );
        println!(
            "cargo::rustc-link-arg-bins=-Wl,-T,{}",
            order.with_extension("ld").display()
        );
        println!("cargo::rerun-if-env-changed={MAP}");
        if let Some(map) = std::env::var_os(MAP) {
            println!(
                "cargo::rustc-link-arg-bins=-Wl,--no-demangle,-Map={}",
                Path::new(&map).display()
            );
        }
    }
}

/// rustc brings its lld along, and uses it, where this file is. Other linkers do not know the flags.
fn links_with_lld(rustc: &str, target: &str) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Path::new(&sysroot)
        .join("lib/rustlib")
        .join(target)
        .join("bin/gcc-ld/ld.lld")
        .exists()
}
