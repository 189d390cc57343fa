//! Kernels that operators have, each in a machine of its own: the committed BPF objects load there, and a connection to a
//! service is translated. bpffs is not mounted when hull starts, as on machines without systemd (FAULTS 58, 61).
//!
//! One boot for each kernel; it needs root to install QEMU. Emulated: nothing here is timed.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xtask::vm::{self, Job, Kit, Release};

/// Emulation is slow: a job that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(280);

/// A pod that serves its name, and a service before it; asked by the service's address, its name and its node port.
const SCRIPT: &str = r#"
set -e
trap 'code=$?; [ $code = 0 ] || { echo FAILED; tail -40 /var/lib/hull/hull.log; }; exit $code' EXIT
export KUBECONFIG=/var/lib/hull/pki/admin.kubeconfig HOME=/root
until_true() { n=0; until eval "$1"; do n=$((n+1)); [ $n -lt 120 ] || { echo "never: $1"; kubectl get pods,svc,events -A; return 1; }; sleep 1; done; }
echo "kernel $(uname -r)"
umount /sys/fs/bpf
mkdir -p /var/lib/hull
hull up --detach || until_true 'kubectl get nodes 2>/dev/null | grep -q " Ready"'
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
until_true 'wget -q -T 5 -O - http://10.96.0.77/ | grep served'
echo "service address answers"
until_true 'wget -q -T 5 -O - http://127.0.0.1:30080/ | grep served || wget -q -T 5 -O - http://$(kubectl get node -o jsonpath="{.items[0].status.addresses[0].address}"):30080/ | grep served'
echo "node port answers"
nslookup web.default.svc.cluster.local 10.96.0.10 | grep 10.96.0.77
echo "name answers"
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
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
}

#[test]
fn debian_13s_kernel_runs_the_programs() {
    check("linux-6-12", Release::V6_12, "6.12");
}
