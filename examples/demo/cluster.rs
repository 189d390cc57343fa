//! The demo's own cluster: started and stopped through the `hull` binary, in directories of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use hull_agent::client::Client;

const DATA_DIR: &str = "/var/lib/hull-demo";
const RUN_DIR: &str = "/run/hull-demo";
const BPF_DIR: &str = "/sys/fs/bpf/hull-demo";
/// Name of the cgroup that holds the demo's pods.
pub const CGROUP: &str = "hull-demo";
/// The workload's image.
const IMAGE: &str = "web:demo";

/// A running cluster; [`DemoCluster::stop`] removes it.
pub struct DemoCluster {
    hull: PathBuf,
}

impl DemoCluster {
    /// Removes what an interrupted demo left, then starts.
    ///
    /// # Errors
    /// The cluster does not get ready.
    pub fn start(binaries: &Path) -> Result<Self> {
        let demo = Self {
            hull: binaries.join("hull"),
        };
        if Path::new(RUN_DIR).exists() || Path::new(DATA_DIR).exists() {
            println!("an earlier demo left a cluster: removing it");
            demo.stop()?;
        }
        let began = Instant::now();
        println!("starting a one-node cluster (hull up)");
        let mut command = demo.hull(&["up", "--detach"]);
        command.args(["--cgroup", CGROUP, "--bpf-dir", BPF_DIR]);
        if let Err(error) = run(command) {
            let _ = demo.stop();
            return Err(error);
        }
        println!("  ready after {} ms", began.elapsed().as_millis());
        Ok(demo)
    }

    /// A client with the administrator's credentials.
    ///
    /// # Errors
    /// The kubeconfig cannot be read.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::from_kubeconfig(
            &Path::new(DATA_DIR).join("pki/admin.kubeconfig"),
        )?)
    }

    /// Packs `binary` as the only file of an image and imports it.
    ///
    /// # Errors
    /// The binary cannot be read or the image not be imported.
    pub fn import_image(&self, binary: &Path) -> Result<()> {
        let began = Instant::now();
        let archive = tempfile::NamedTempFile::new().context("make a temporary file")?;
        let stripped = tempfile::NamedTempFile::new().context("make a temporary file")?;
        run({
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(stripped.path()).arg(binary);
            strip
        })?;
        hull_agent::image::build::of_binary(archive.path(), IMAGE, stripped.path(), "/web")?;
        let mut command = self.hull(&["image", "import"]);
        command.arg(archive.path());
        run(command)?;
        println!(
            "made and imported the image {IMAGE} from {} ({} ms)",
            binary.display(),
            began.elapsed().as_millis()
        );
        Ok(())
    }

    /// Stops everything and checks that nothing is left.
    ///
    /// # Errors
    /// Something could not be stopped, or is still there.
    pub fn stop(&self) -> Result<()> {
        let began = Instant::now();
        run(self.hull(&["down", "--purge", "--grace", "2"]))?;
        let left = [DATA_DIR, RUN_DIR, BPF_DIR]
            .into_iter()
            .filter(|path| Path::new(path).exists())
            .collect::<Vec<_>>();
        ensure!(left.is_empty(), "hull down --purge left {left:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        if let Some(mount) = mounts
            .lines()
            .find(|line| line.contains(RUN_DIR) || line.contains(DATA_DIR))
        {
            bail!("hull down --purge left a mount: {mount}");
        }
        println!("stopped, all data removed ({} ms)", began.elapsed().as_millis());
        Ok(())
    }

    /// Says what can be tried on a cluster that is left running.
    pub fn keep(&self) {
        let hull = self.hull.display();
        println!("\nthe cluster is still running. Try:\n");
        println!("  export KUBECONFIG={DATA_DIR}/pki/admin.kubeconfig");
        println!("  kubectl get pods -n web -o wide");
        println!("  kubectl logs -n web deployment/web");
        println!("  kubectl scale -n web deployment/web --replicas 10");
        println!("  {hull} --data-dir {DATA_DIR} --run-dir {RUN_DIR} status\n");
        println!("and, to remove it:\n\n  {hull} --data-dir {DATA_DIR} --run-dir {RUN_DIR} down --purge");
    }

    fn hull(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.hull);
        command
            .args(["--data-dir", DATA_DIR, "--run-dir", RUN_DIR])
            .args(arguments);
        command
    }
}

/// Runs a command whose output is shown only if it fails.
fn run(mut command: Command) -> Result<()> {
    let out = command.output().with_context(|| format!("start {command:?}"))?;
    let said = || {
        format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    };
    ensure!(out.status.success(), "{command:?}: {}\n{}", out.status, said());
    Ok(())
}
