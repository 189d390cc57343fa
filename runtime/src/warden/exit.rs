//! How processes end, for children (wait status) and for strangers (pidfd, ioctl_pidfs PIDFD_GET_INFO of Linux 6.15).
//!
//! A pid alone names nothing: every look at a process is guarded by its start time (/proc/<pid>/stat field 22) or its pidfd.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::protocol::Exit;
use crate::timestamp;

/// An exit from a wait status as wait(2) defines it.
pub(crate) fn from_wait_status(status: i32, oom_killed: bool, at: i64) -> Exit {
    let signal = status & 0x7f;
    if signal == 0 {
        Exit {
            code: Some((status >> 8) & 0xff),
            signal: None,
            oom_killed,
            at,
        }
    } else {
        Exit {
            code: None,
            signal: Some(signal),
            oom_killed,
            at,
        }
    }
}

/// An exit nobody saw.
pub(crate) fn unknown(oom_killed: bool, at: i64) -> Exit {
    Exit {
        code: None,
        signal: None,
        oom_killed,
        at,
    }
}

/// How a process that is not our child ended, if it ended and the kernel still tells; needs Linux 6.15 and a pidfd that was
/// open while it ended.
pub fn exit_of(pidfd: impl AsFd) -> Option<Exit> {
    let pidfd = pidfd.as_fd();
    wait_status(pidfd).map(|status| from_wait_status(status, false, timestamp::now()))
}

/// The wait status of an ended stranger: from its pidfd once it is reaped, from /proc while it is a zombie.
pub(crate) fn status_of_stranger(pidfd: BorrowedFd<'_>, pid: i32, start_time: u64) -> Option<i32> {
    wait_status(pidfd)
        .or_else(|| {
            Stat::read(pid)
                .filter(|stat| stat.start_time == start_time)?
                .zombie_status()
        })
        // Reaped between the two looks.
        .or_else(|| wait_status(pidfd))
}

/// A pidfd of the process that had this pid and start time, if it still exists (a zombie does).
pub(crate) fn open_pidfd(pid: i32, start_time: u64) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Read after the pidfd was opened: if it matches, the pidfd is of that process.
    let stat = Stat::read(pid)?;
    (stat.start_time == start_time).then_some(pidfd)
}

/// The parts of /proc/<pid>/stat that matter here (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    start_time: u64,
    exit_code: Option<i32>,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // The command name may hold spaces and brackets; what counts comes after its last bracket. That is field 3.
        let fields: Vec<&str> = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            start_time: fields.get(22 - 3)?.parse().ok()?,
            exit_code: fields.get(52 - 3).and_then(|code| code.parse().ok()),
        })
    }

    fn zombie_status(&self) -> Option<i32> {
        (self.state == 'Z').then_some(self.exit_code)?
    }
}

/// struct pidfd_info, first version (include/uapi/linux/pidfd.h).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
const _: () = assert!(size_of::<PidfdInfo>() == 64);
/// _IOWR(0xFF, 11, struct pidfd_info)
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

fn wait_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the ioctl writes at most the 64 bytes its number names, into a struct of that size.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::process::{Command, Stdio};

    #[test]
    fn wait_statuses_become_codes_and_signals() {
        let exit = |status| from_wait_status(status, false, 1);
        assert_eq!(exit(0).code, Some(0));
        assert_eq!(exit(42 << 8).status(), Some(42));
        assert_eq!(
            (exit(9).code, exit(9).signal, exit(9).status()),
            (None, Some(9), Some(137))
        );
        assert_eq!(exit(11 | 0x80).status(), Some(139));
        assert_eq!(unknown(false, 1).status(), None);
    }

    #[test]
    fn a_command_name_with_brackets_does_not_confuse_the_parser() {
        let mut line = String::from("7 (a ) Z (b) Z");
        for field in 4..=52 {
            line.push_str(&format!(" {field}"));
        }
        let stat = Stat::parse(&line).unwrap();
        assert_eq!(
            stat,
            Stat {
                state: 'Z',
                start_time: 22,
                exit_code: Some(52)
            }
        );
        assert_eq!(Stat::parse("7 (short) R 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_stranger_tells_its_exit_as_zombie_and_after_it_was_reaped() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x; exit 7"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let started = Stat::read(pid).unwrap().start_time;
        let pidfd = open_pidfd(pid, started).unwrap();
        assert!(
            open_pidfd(pid, started + 1).is_none(),
            "another process of the same pid"
        );
        assert_eq!(status_of_stranger(pidfd.as_fd(), pid, started), None, "alive");
        drop(child.stdin.take());
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert_eq!(
            status_of_stranger(pidfd.as_fd(), pid, started),
            Some(7 << 8),
            "as a zombie"
        );
        child.wait().unwrap();
        assert_eq!(exit_of(&pidfd).unwrap().code, Some(7), "after it was reaped");
    }
}
