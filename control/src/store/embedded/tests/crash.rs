//! kill -9 at any moment (FAULTS 4, 8), and an fsync that fails (FAULTS 11): run in a child process of this test binary.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;

pub(super) const DIRECTORY: &str = "HULL_TEST_STORE";
const TASKS: u64 = 8;
const ROUNDS: u64 = 60;

/// Kills its process when the test ends, also when it fails.
pub(super) struct Killed(pub(super) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Run one ignored test, named from `tests` on, in a process of its own.
pub(super) fn child(test: &str, dir: &Path) -> Killed {
    let parent = module_path!()
        .strip_suffix("::crash")
        .and_then(|path| path.split_once("::"));
    let name = format!("{}::{test}", parent.unwrap().1);
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Killed(child.unwrap())
}

/// What a task's nth transaction writes: its counter, and one of ten keys put or deleted.
fn transaction(task: u64, n: u64, live: bool) -> Vec<Write> {
    let value = format!(
        "{task} {n} {}",
        "x".repeat(((task * 7919 + n * 104_729) % 20_000) as usize)
    );
    let key = format!("/data/{task}/{}", n % 10);
    vec![
        put(&format!("/counter/{task}"), n.to_string().as_bytes(), Expect::Any),
        if n.is_multiple_of(3) && live {
            delete(&key, Expect::Any)
        } else {
            put(&key, value.as_bytes(), Expect::Any)
        },
    ]
}

/// A task's keys after its first `n` transactions.
fn state(task: u64, n: u64) -> BTreeMap<String, Vec<u8>> {
    let mut state = BTreeMap::new();
    for n in 1..=n {
        let live = state.contains_key(&format!("/data/{task}/{}", n % 10));
        for write in transaction(task, n, live) {
            match write.value {
                Some(value) => _ = state.insert(write.key.to_string(), value.to_vec()),
                None => _ = state.remove(&*write.key),
            }
        }
    }
    state
}

#[test]
#[ignore = "the child of the crash test"]
fn child_writes_until_killed() {
    let store = Arc::new(open(Path::new(&std::env::var(DIRECTORY).unwrap())));
    run(async {
        let (values, _) = store.load().await.unwrap();
        let found: BTreeMap<String, Vec<u8>> = values
            .iter()
            .map(|kv| (kv.key.to_string(), kv.value.to_vec()))
            .collect();
        let tasks = (0..TASKS).map(|task| {
            let mut n = found
                .get(&format!("/counter/{task}"))
                .map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap());
            let mut live: std::collections::BTreeSet<u64> = (0..10)
                .filter(|key| found.contains_key(&format!("/data/{task}/{key}")))
                .collect();
            let store = store.clone();
            tokio::spawn(async move {
                loop {
                    n += 1;
                    let was = live.contains(&(n % 10));
                    if n.is_multiple_of(3) && was {
                        live.remove(&(n % 10))
                    } else {
                        live.insert(n % 10)
                    };
                    let revision = store.commit(transaction(task, n, was)).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {task} {n} {revision}")
                        .and_then(|()| out.flush())
                        .unwrap();
                }
            })
        });
        // They end only with the process.
        futures_util::future::join_all(tasks.collect::<Vec<_>>()).await;
    });
}

/// Read acknowledgements until the pipe ends; a torn last line was not read by a client either.
fn acknowledged(output: impl Read, counters: &mut [u64], revision: &mut u64) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8(line).unwrap();
        let Some((_, ack)) = line.split_once("ack ") else {
            continue;
        };
        let numbers: Vec<u64> = ack.split(' ').filter_map(|n| n.parse().ok()).collect();
        if let [task, n, at] = numbers[..] {
            counters[task as usize] = n;
            *revision = at.max(*revision);
        }
    }
}

#[test]
fn no_acknowledged_write_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut acks = vec![0; TASKS as usize];
    let (mut revision, mut seed) = (0, 0x9E37_79B9_7F4A_7C15_u64);
    for round in 0..ROUNDS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        let mut child = child("crash::child_writes_until_killed", &path);
        let output = child.0.stdout.take().unwrap();
        let pid = child.0.id();
        // Also within the creation and the opening of the store.
        let delay = Duration::from_micros(if round % 4 == 0 {
            (seed >> 33) % 30_000
        } else {
            20_000 + (seed >> 33) % 60_000
        });
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            // SAFETY: kill(2) takes no pointers; the child is not reaped before this thread is joined.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        });
        acknowledged(output, &mut acks, &mut revision);
        killer.join().unwrap();
        drop(child);
        let store = open(&path);
        let (values, found) = run(store.load()).unwrap();
        assert!(
            found >= revision,
            "round {round}: revision {revision} was acknowledged, {found} is there"
        );
        revision = found;
        assert!(
            values
                .iter()
                .all(|kv| kv.created <= kv.revision && kv.revision <= found)
        );
        let mut found: BTreeMap<String, Vec<u8>> = values
            .iter()
            .map(|kv| (kv.key.to_string(), kv.value.to_vec()))
            .collect();
        for task in 0..TASKS {
            let n = found
                .get(&format!("/counter/{task}"))
                .map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap());
            let acked = acks[task as usize];
            assert!(
                n == acked || n == acked + 1,
                "round {round}, task {task}: {acked} acknowledged, {n} there"
            );
            acks[task as usize] = n;
            for (key, value) in state(task, n) {
                assert!(
                    found.remove(&key) == Some(value),
                    "round {round}: {key} is not as transaction {n} left it"
                );
            }
        }
        assert!(
            found.is_empty(),
            "round {round}: half a transaction left {:?}",
            found.keys()
        );
    }
    assert!(acks.iter().sum::<u64>() > ROUNDS, "the children did write: {acks:?}");
}

/// From here on every fdatasync(2) of this process fails with EIO.
fn fail_fdatasync() {
    const ERRNO_EIO: u32 = libc::SECCOMP_RET_ERRNO | libc::EIO as u32;
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_fdatasync as u32,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, ERRNO_EIO),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` points to a filter that lives until the call returns; the kernel copies it.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &program,
        )
    };
    assert_eq!(failed, 0, "seccomp: {}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "the child of the test of a failing fsync"]
fn child_whose_fsync_fails() {
    let store = open(Path::new(&std::env::var(DIRECTORY).unwrap()));
    run(store.commit(vec![put("/good", b"1", Expect::Absent)])).unwrap();
    fail_fdatasync();
    let answer = run(store.commit(vec![put("/bad", b"2", Expect::Absent)]));
    println!("answered {answer:?}");
}

#[test]
fn a_failed_fsync_ends_the_process_and_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut child = child("crash::child_whose_fsync_fails", &path);
    let (mut out, mut err) = (String::new(), String::new());
    child.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status:?} {out} {err}");
    assert!(err.contains("fsync of the journal failed"), "{err}");
    assert!(!out.contains("answered"), "{out}");
    let (values, _) = run(open(&path).load()).unwrap();
    assert!(values.iter().any(|kv| &*kv.key == "/good" && kv.value == "1"));
}
