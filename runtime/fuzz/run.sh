#!/bin/sh
# Runs one fuzzer without cargo-fuzz and without nightly: ./run.sh plan|process|cgroup|seccomp [seconds]. What cargo-fuzz would
# pass for coverage, less AddressSanitizer (nightly only; the code under test is safe Rust, so panics and broken properties are
# what there is to find). RUSTFLAGS replaces the workspace's: libFuzzer cannot be linked statically.
set -e
cd "$(dirname "$0")"
target=${1:?plan, process, cgroup or seccomp}
export RUSTFLAGS="--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
 -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
 -C llvm-args=-sanitizer-coverage-trace-compares"
cargo build --release --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
exec cargo run --quiet --release --bin "$target" -- -max_total_time="${2:-60}" -artifact_prefix="artifacts/$target/" \
    "corpus/$target" "seeds/$target"
