//! The binary begins at `hull_runtime_entry` (src/entry.rs) instead of the C library's `_start`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("ARCH") == "x86_64" && target("OS") == "linux" {
        println!("cargo::rustc-link-arg-bins=-Wl,-e,hull_runtime_entry");
    }
}
