//! The OCI runtime alone, beside others and beside the bare floor: the same bundles, in turn, in a private mount namespace
//! with one cgroup2.

mod bundle;
mod crowd;
mod process;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::quantile;
use bundle::Spec;

/// Peers that are measured if they are on the PATH.
const PEERS: &[&str] = &["crun", "runc", "youki"];
const WARM_UP: usize = 3;

/// What is measured, and how it is shown.
#[derive(clap::Args)]
pub struct Options {
    /// Counted rounds
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Containers that are started at once
    #[arg(long, default_value_t = 500)]
    crowd: usize,
    /// How to print the figures
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Set in the private mount namespace
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// A runtime, and its samples for the current spec, in milliseconds.
struct Runtime {
    name: String,
    path: PathBuf,
    samples: Samples,
}

#[derive(Default)]
struct Samples {
    run: Vec<f64>,
    run_cpu: Vec<f64>,
    steps: Vec<f64>,
    exec: Vec<f64>,
    exec_cpu: Vec<f64>,
    state: Vec<f64>,
}

/// Runs the runtime benchmark.
///
/// # Errors
/// The namespace or a bundle cannot be made, or a runtime fails.
pub fn run(binaries: &Path, options: &Options) -> Result<()> {
    if !options.inside {
        return inside();
    }
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let rootfs = bundle::rootfs(directory.path())?;
    let ours = binaries.join("hull-runtime");
    let default = default_spec(&ours)?;
    let mut runtimes = runtimes(&ours);
    let mut report = Vec::new();
    for spec in Spec::ALL {
        let floor = (spec == Spec::Default).then(|| binaries.join("examples/floor"));
        let bundles = Bundles {
            once: directory.path().join("once"),
            resident: directory.path().join("resident"),
        };
        bundle::write(
            &default,
            spec,
            &bundles.once,
            &rootfs,
            &["/bin/true"],
            "/hull-bench/once",
        )?;
        report.push(measure(
            spec,
            floor,
            &mut runtimes,
            &bundles,
            &rootfs,
            options.rounds,
            &default,
        )?);
    }
    let crowds = crowd::all(&runtimes, &default, directory.path(), &rootfs, options.crowd)?;
    let warden = crowd::warden(&ours, &default, directory.path(), &rootfs, options.crowd)?;
    let report = json!({"rounds": options.rounds, "specs": report, "crowd": crowds, "warden": warden});
    match options.output {
        Format::Json => println!("{report:#}"),
        Format::Table => print_table(&report),
    }
    Ok(())
}

struct Bundles {
    once: PathBuf,
    resident: PathBuf,
}

/// Executes this program again, where /sys/fs/cgroup is one cgroup2 of its own.
fn inside() -> Result<()> {
    let script = "mount --make-rprivate / && umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().context("path of the benchmark")?)
        .args(std::env::args_os().skip(1))
        .arg("--inside");
    Err(command.exec()).context("start unshare")
}

fn runtimes(ours: &Path) -> Vec<Runtime> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |peer: &&str| {
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join(peer))
            .find(|path| path.is_file())?;
        Some(((*peer).to_owned(), found))
    };
    std::iter::once(("hull-runtime".to_owned(), ours.to_owned()))
        .chain(PEERS.iter().filter_map(find))
        .map(|(name, path)| Runtime {
            name,
            path,
            samples: Samples::default(),
        })
        .collect()
}

fn default_spec(ours: &Path) -> Result<Value> {
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let bundle = directory.path().to_string_lossy();
    process::run(ours, &["spec", "-b", &bundle])?;
    let bytes = std::fs::read(directory.path().join("config.json")).context("read config.json")?;
    serde_json::from_slice(&bytes).context("config.json")
}

/// All rounds for one spec: run; create, start, delete; exec and state of a container that is there all the time.
fn measure(
    spec: Spec,
    floor: Option<PathBuf>,
    runtimes: &mut [Runtime],
    bundles: &Bundles,
    rootfs: &Path,
    rounds: usize,
    default: &Value,
) -> Result<Value> {
    let mut floors = (Vec::new(), Vec::new());
    for runtime in runtimes.iter_mut() {
        runtime.samples = Samples::default();
        let cgroup = format!("/hull-bench/{}", runtime.name);
        bundle::write(
            default,
            spec,
            &bundles.resident,
            rootfs,
            &["/bin/sleep", "100000"],
            &cgroup,
        )?;
        let bundle = bundles.resident.to_string_lossy();
        process::run(&runtime.path, &["run", "-d", "-b", &bundle, "bench-resident"])?;
    }
    let rounds = (0..rounds + WARM_UP).try_for_each(|round| {
        if let Some(floor) = &floor {
            let root = rootfs.to_string_lossy();
            let cost = process::run(floor, &[&root, "/bin/true", "/sys/fs/cgroup/hull-bench/floor"])?;
            if round >= WARM_UP {
                floors.0.push(cost.wall);
                floors.1.push(cost.cpu);
            }
        }
        runtimes
            .iter_mut()
            .try_for_each(|runtime| runtime.round(&bundles.once, round, round >= WARM_UP))
    });
    for runtime in runtimes.iter() {
        process::run(&runtime.path, &["delete", "--force", "bench-resident"])?;
    }
    rounds?;
    let median = |samples: &[f64]| quantile(samples, 0.5);
    let rows = runtimes.iter().map(|runtime| {
        let samples = &runtime.samples;
        json!({
            "name": runtime.name, "run": median(&samples.run), "runCpu": median(&samples.run_cpu),
            "createStartDelete": median(&samples.steps), "exec": median(&samples.exec),
            "execCpu": median(&samples.exec_cpu), "state": median(&samples.state)
        })
    });
    let mut rows: Vec<Value> = rows.collect();
    if floor.is_some() {
        rows.insert(
            0,
            json!({"name": "floor", "run": median(&floors.0), "runCpu": median(&floors.1)}),
        );
    }
    Ok(json!({"spec": spec.name(), "runtimes": rows}))
}

impl Runtime {
    fn round(&mut self, bundle: &Path, round: usize, count: bool) -> Result<()> {
        let id = format!("bench-{round}");
        let bundle = bundle.to_string_lossy();
        let run = process::run(&self.path, &["run", "-b", &bundle, &id])?;
        let steps = process::run(&self.path, &["create", "-b", &bundle, &id])?.wall
            + process::run(&self.path, &["start", &id])?.wall
            + process::run(&self.path, &["delete", "--force", &id])?.wall;
        let exec = process::run(&self.path, &["exec", "bench-resident", "/bin/true"])?;
        let state = process::run(&self.path, &["state", "bench-resident"])?;
        if count {
            let samples = &mut self.samples;
            samples.run.push(run.wall);
            samples.run_cpu.push(run.cpu);
            samples.steps.push(steps);
            samples.exec.push(exec.wall);
            samples.exec_cpu.push(exec.cpu);
            samples.state.push(state.wall);
        }
        Ok(())
    }
}

fn print_table(report: &Value) {
    let number = |value: &Value, key: &str| value[key].as_f64();
    let cell = |value: Option<f64>, base: Option<f64>| match (value, base) {
        (Some(value), Some(base)) => format!("{value:8.2} ({:5.2}x)", value / base),
        (Some(value), None) => format!("{value:8.2}         "),
        _ => " ".repeat(17),
    };
    println!(
        "medians of {} rounds in milliseconds; in brackets the ratio to hull-runtime\n",
        report["rounds"]
    );
    for spec in report["specs"].as_array().into_iter().flatten() {
        println!(
            "{:14} {:>17} {:>17} {:>17} {:>17} {:>17}",
            spec["spec"].as_str().unwrap_or_default(),
            "run",
            "cpu of it",
            "create+start+del.",
            "exec",
            "state"
        );
        let rows: Vec<&Value> = spec["runtimes"].as_array().into_iter().flatten().collect();
        let base = rows.iter().find(|row| row["name"] == "hull-runtime");
        for row in &rows {
            let cells = ["run", "runCpu", "createStartDelete", "exec", "state"]
                .map(|key| cell(number(row, key), base.and_then(|base| number(base, key))));
            println!("{:14} {}", row["name"].as_str().unwrap_or_default(), cells.join(" "));
        }
        let floor = rows.iter().find(|row| row["name"] == "floor");
        let runs = floor
            .and_then(|floor| number(floor, "run"))
            .zip(base.and_then(|base| number(base, "run")));
        if let Some((floor, ours)) = runs {
            println!("run: hull-runtime takes {:.2}x the floor", ours / floor);
        }
        println!();
    }
    println!(
        "{} containers at once        per second   failed   cpu each",
        report["crowd"][0]["containers"]
    );
    for row in report["crowd"].as_array().into_iter().flatten() {
        let label = ["name", "spec"].map(|key| row[key].as_str().unwrap_or_default());
        println!(
            "{:27} {:10.0} {:8} {:7.2} ms",
            label.join(", "),
            row["perSecond"].as_f64().unwrap_or(f64::NAN),
            row["failed"],
            row["cpuEach"].as_f64().unwrap_or(f64::NAN)
        );
    }
    println!(
        "\nmemory: hull-runtime while it runs a container {} KiB at most, a kubelet's {} KiB; the warden with {} containers {} KiB",
        report["warden"]["runtimePeak"],
        report["warden"]["runtimePeakKubelet"],
        report["warden"]["containers"],
        report["warden"]["resident"]
    );
}
