//! One build for all: the commands that build hull ask for every crate with the same features, so that none of them compiles
//! anew what another one has built.

use std::collections::{BTreeMap, BTreeSet};

use xtask::host;

/// The features that each crate is built with.
type Features = BTreeMap<String, BTreeSet<String>>;

/// As `cargo build` with these arguments selects them; `dev` as it does when examples are built.
fn features(packages: &[&str], dev: bool) -> Features {
    let edges = if dev { "normal,build,dev" } else { "normal,build" };
    let mut command = host::cargo();
    command.args([
        "tree",
        "--offline",
        "--locked",
        "--prefix=none",
        "--format={p}\t{f}",
        "--edges",
        edges,
    ]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    let mut features = Features::new();
    for line in host::output(command).expect("cargo tree").lines() {
        // A crate that was listed before is marked with an asterisk.
        let line = line.trim_end_matches(" (*)");
        if let Some((name, set)) = line.split_once('\t') {
            features.entry(name.to_owned()).or_default().insert(set.to_owned());
        }
    }
    features
}

/// `cargo build --release`, then the examples of `cargo xtask demo` and `cargo xtask bench`.
#[test]
fn examples_are_built_on_top_of_what_a_user_has_built() {
    let user = features(&[], false);
    let examples = features(&["hull"], true);
    assert!(user.len() > 100, "{}", user.len());
    let differ: Vec<_> = user
        .iter()
        .filter_map(|(name, set)| Some((name, set, examples.get(name)?)))
        .filter(|(_, set, other)| !other.is_superset(set))
        .collect();
    assert!(differ.is_empty(), "built twice: {differ:#?}");
}
