//! Kernels that operators have, each in a machine of its own: the committed BPF objects load there, and connections to a
//! service are translated. bpffs is not mounted when hull starts, as on machines without systemd (FAULTS 58, 61).
//!
//! One boot for each kernel; it needs root to install QEMU. Emulated: nothing here is timed.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xtask::vm::{self, Job, Kit, Release};

/// Emulation is slow: a job that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(280);

/// A pod that serves its name, and a service before it; asked by the service's address, its name and its node port. And the
/// world: a network namespace that knows no pods, which a pod reaches only with the node's address, so by the packet programs.
/// (Asking from there proves nothing of them: the socket programs see every process of the machine.) Debian's static busybox
/// crashes as wget in a guest without name resolution, hence nc.
const SCRIPT: &str = r#"
set -e
trap 'code=$?; [ $code = 0 ] || { echo FAILED; tail -40 /var/lib/hull/hull.log; }; exit $code' EXIT
export KUBECONFIG=/var/lib/hull/pki/admin.kubeconfig HOME=/root
until_true() { n=0; until eval "$1"; do n=$((n+1)); [ $n -lt 120 ] || { echo "never: $1"; kubectl get pods,svc,events -A; return 1; }; sleep 1; done; }
ask() { printf 'GET / HTTP/1.0\r\n\r\n' | timeout 10 nc "$1" "$2" | grep -q served; }
echo "kernel $(uname -r)"
umount /sys/fs/bpf
mkdir -p /var/lib/hull
ip link add world type veth
peer=$(ls /sys/class/net | grep veth)
ip addr add 192.0.2.1/24 dev world; ip link set world up
hull up --detach --node-ip 192.0.2.1 || until_true 'kubectl get nodes 2>/dev/null | grep -q " Ready"'
hull image import /files/busybox.tar
grep -q 'bpf /sys/fs/bpf ' /proc/mounts || { echo "bpffs was not mounted"; exit 1; }
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: main
    image: busybox:test
    command: ["/bin/busybox", "sh", "-c", "mkdir /www; echo served > /www/index.html; exec busybox httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.77
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
Y
until_true 'ask 10.96.0.77 80'
echo "service address answers"
until_true 'ask 192.0.2.1 30080'
echo "node port answers"
nslookup web.default.svc.cluster.local 10.96.0.10 | grep 10.96.0.77
echo "name answers"
unshare -n sleep 600 &
outside=$!
until_true '[ "$(readlink /proc/$outside/ns/net)" != "$(readlink /proc/$$/ns/net)" ]'
ip link set $peer netns $outside
nsenter -t $outside -n sh -c "ip addr add 192.0.2.9/24 dev $peer; ip link set $peer up"
nsenter -t $outside -n sh -c 'while true; do echo welcome | nc -l -p 9000; done' &
until_true 'kubectl exec web -- /bin/busybox timeout 10 /bin/busybox nc 192.0.2.9 9000 </dev/null | grep -q welcome'
echo "the world answers a pod"
kill $outside
if grep -E "packet programs|packets from outside are not" /var/lib/hull/hull.log; then exit 1; fi
hull down --purge
"#;

fn check(name: &str, release: Release, version: &str) {
    let image = std::env::temp_dir().join(format!("hull-kernels-{}-{name}.tar", std::process::id()));
    hull_agent::image::build::of_binary(&image, support::IMAGE, Path::new("/bin/busybox"), "/bin/busybox")
        .expect("make the image");
    let script = "readlink -f $(command -v kubectl)";
    let kubectl = Command::new("sh").args(["-c", script]).output().expect("find kubectl");
    let kubectl = PathBuf::from(String::from_utf8_lossy(&kubectl.stdout).trim());
    let mut files = vm::hull_binaries().expect("the built binaries");
    files.extend([
        ("/files/busybox.tar".to_owned(), image.clone()),
        ("/bin/kubectl".to_owned(), kubectl),
    ]);
    let job = Job {
        name: name.to_owned(),
        files,
        script: SCRIPT.to_owned(),
        disk: None,
        memory_mib: 1536,
        timeout: TIMEOUT,
    };
    let output = vm::check(&Kit::with(release).expect("VM kit"), &job);
    // Left behind it is a file in a temporary directory.
    let _ = std::fs::remove_file(image);
    let output = output.expect("the job");
    for line in [
        &format!("kernel {version}."),
        "service address answers",
        "node port answers",
        "name answers",
        "the world answers a pod",
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
}

#[test]
fn debian_12s_kernel_runs_the_programs() {
    check("linux-6-1", Release::V6_1, "6.1");
}

#[test]
fn debian_13s_kernel_runs_the_programs() {
    check("linux-6-12", Release::V6_12, "6.12");
}
