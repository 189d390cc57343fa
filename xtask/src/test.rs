//! `cargo xtask test`: every test there is, with what they need installed first.

use std::process::Command;

use anyhow::Result;

use crate::{ebpf, host, vm};

/// Debian packages that tests use, and what for.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "linker, and C parts of the TLS library"),
    ("binutils", "strip, for small images and VMs"),
    ("busybox-static", "programs inside test containers"),
    ("iproute2", "network namespaces that stand for hosts"),
    ("e2fsprogs", "file systems of limited size and scratch disks"),
    ("dnsutils", "dig: a DNS client that others wrote"),
    ("docker-registry", "a real image registry on loopback"),
    ("skopeo", "pushing images to that registry"),
    ("podman", "an engine that drives hull-runtime, with conmon"),
    ("buildah", "builds images with hull-runtime"),
    ("containerd", "drives hull-runtime through its runc shim"),
    ("uidmap", "ranges of ids for rootless containers"),
    ("systemd", "cgroups of containers as scopes"),
    ("bpftool", "listing BPF programs and maps, to prove that none is left"),
];

/// Flags of the test command.
#[derive(clap::Args)]
pub struct Options {
    /// Passed on to the test runner: names or filters of tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filters: Vec<String>,
}

/// Runs all tests; they need root, and VMs under emulation.
///
/// # Errors
/// A requirement is missing and cannot be installed, the build fails, or a test fails.
pub fn run(options: &Options) -> Result<()> {
    host::require_root("tests make namespaces, cgroups, network devices and BPF programs")?;
    host::install(PACKAGES)?;
    host::install_kubectl()?;
    vm::Kit::prepare()?;
    ebpf::check(None)?;
    host::say("building hull and its tests");
    host::run(host::cargo().args(["build", "--workspace", "--bins", "--examples"]))?;
    let mut command: Command = host::cargo();
    if host::has_program("cargo-nextest") {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        host::say("cargo-nextest is not installed: using cargo test, one test at a time");
        command
            .env("RUST_TEST_THREADS", "1")
            .args(["test", "--workspace", "--no-fail-fast"]);
    }
    host::run(command.args(&options.filters))
}
