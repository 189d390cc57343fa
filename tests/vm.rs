//! What needs a machine of its own: the OOM killer, a fork bomb, a power cut. Runs under emulation; needs root to install QEMU.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xtask::vm::{self, Job, Kit, Verdict};

/// Emulation is slow: a job that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(280);

fn job(name: &str, script: &str) -> Job {
    let image = std::env::temp_dir().join(format!("hull-vm-image-{}-{name}.tar", std::process::id()));
    hull_agent::image::build::of_binary(&image, support::IMAGE, Path::new("/bin/busybox"), "/bin/busybox")
        .expect("make the image");
    let kubectl = Command::new("sh")
        .args(["-c", "readlink -f $(command -v kubectl)"])
        .output()
        .expect("find kubectl");
    let kubectl = PathBuf::from(String::from_utf8_lossy(&kubectl.stdout).trim());
    let mut files = vm::hull_binaries().expect("the built binaries");
    files.extend([
        ("/files/busybox.tar".to_owned(), image),
        ("/bin/kubectl".to_owned(), kubectl),
    ]);
    Job {
        name: name.to_owned(),
        files,
        script: format!("{PRELUDE}\n{script}"),
        disk: None,
        memory_mib: 1536,
        timeout: TIMEOUT,
    }
}

/// Starts a cluster in the guest.
const PRELUDE: &str = r#"
set -e
trap 'code=$?; [ $code = 0 ] || { echo FAILED; tail -40 /var/lib/hull/hull.log; }; exit $code' EXIT
export KUBECONFIG=/var/lib/hull/pki/admin.kubeconfig HOME=/root
mkdir -p /var/lib/hull
until_true() { n=0; until eval "$1"; do n=$((n+1)); [ $n -lt 120 ] || { echo "never: $1"; kubectl get pods,events -A; return 1; }; sleep 1; done; }
start() { hull up --detach || hull up --detach; hull image import /files/busybox.tar; }
"#;

#[test]
fn a_container_over_its_memory_limit_is_oom_killed() {
    let script = r#"
start
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: ["/bin/busybox", "sh", "-c", "x=a; while true; do x=$x$x; done"]
    resources: {limits: {memory: 32Mi}}
  - name: modest
    image: busybox:test
    command: ["/bin/busybox", "sleep", "1000"]
Y
until_true '[ -n "$(kubectl get pod hungry -o jsonpath={.status.containerStatuses[?\(@.name==\"main\"\)].state.terminated.reason})" ]'
kubectl get pod hungry -o 'jsonpath={range .status.containerStatuses[*]}{.name} {.state.terminated.reason} {.state.terminated.exitCode}{"\n"}{end}'
hull down --purge
"#;
    let output = vm::check(&Kit::prepare().expect("VM kit"), &job("oom", script)).expect("the job");
    assert!(output.contains("main OOMKilled 137"), "{output}");
    assert!(
        output.lines().any(|line| line.trim_end() == "modest"),
        "only the container over its limit is killed: {output}"
    );
}

#[test]
fn a_fork_bomb_stays_inside_its_pids_limit() {
    let script = r#"
start
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: bomb}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: ["/bin/busybox", "sh", "-c", "f() { f | f & }; f; while true; do sleep 1; done"]
    resources: {limits: {memory: 256Mi}}
Y
until_true '[ "$(kubectl get pod bomb -o jsonpath={.status.phase})" = Running ]'
sleep 5
max=$(cat /sys/fs/cgroup/hull/pod*/*/pids.max | sort -n | tail -1); now=$(cat /sys/fs/cgroup/hull/pod*/pids.current)
echo "pids $now of $max"; [ "$max" != max ] && [ "$now" -le "$max" ]
kubectl get nodes
kubectl delete pod bomb
[ -z "$(kubectl get pods -o name)" ]
hull down --purge
echo survived
"#;
    let output = vm::check(&Kit::prepare().expect("VM kit"), &job("bomb", script)).expect("the job");
    assert!(output.contains("survived"), "{output}");
}

#[test]
fn acknowledged_writes_survive_a_power_cut() {
    let kit = Kit::prepare().expect("VM kit");
    let disk = tempfile::NamedTempFile::new().expect("temporary file");
    disk.as_file().set_len(512 << 20).expect("size the disk");
    let made = support::output(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.path()));
    assert!(made.status.success(), "mkfs.ext4: {}", support::text(&made));
    let mount = "mount -t ext4 /dev/vda /var/lib/hull 2>/dev/null || { insmod /lib/ext4.ko; mount -t ext4 /dev/vda /var/lib/hull; }\n";
    let write = format!(
        "{mount}start\ni=0; while true; do kubectl create configmap c$i --from-literal=n=$i >/dev/null && echo \"ack c$i\"; i=$((i+1)); done"
    );
    let mut first = job("power-1", &write);
    first.disk = Some(disk.path().to_path_buf());
    let mut acknowledged = Vec::new();
    vm::run(&kit, &first, |line| {
        acknowledged.extend(line.strip_prefix("ack ").map(str::to_owned));
        if acknowledged.len() >= 12 {
            Verdict::CutPower
        } else {
            Verdict::Continue
        }
    })
    .expect("the first boot");
    let read = format!(
        "{mount}start\nkubectl get configmaps -o 'jsonpath={{range .items[*]}}have {{.metadata.name}} {{.data.n}}{{\"\\n\"}}{{end}}'\nhull down"
    );
    let mut second = job("power-2", &read);
    second.disk = first.disk.clone();
    let output = vm::check(&kit, &second).expect("the second boot");
    let have: BTreeMap<&str, &str> = output
        .lines()
        .filter_map(|line| line.strip_prefix("have ")?.split_once(' '))
        .collect();
    for name in &acknowledged {
        assert_eq!(
            have.get(name.as_str()).map(|n| format!("c{n}")),
            Some(name.clone()),
            "lost an acknowledged write: {output}"
        );
    }
}
