//! What proc_pid_stat(5) says of a process: whether it lives, and when it started, which with its number names it.

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// What /proc/<pid>/stat says.
pub(super) struct ProcessStat {
    pub start_time: u64,
    pub dead: bool,
}

pub(super) fn process_stat(pid: i32) -> Option<ProcessStat> {
    // One read is enough: the kernel writes the line in one piece, and it is shorter than this.
    let mut buffer = [0; 1024];
    let file = rustix::fs::open(
        format!("/proc/{pid}/stat"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let length = rustix::io::read(&file, &mut buffer).ok()?;
    parse_stat(&String::from_utf8_lossy(&buffer[..length]))
}

/// Fields 3 (state) and 22 (start time), counted behind the name, which may contain anything. proc_pid_stat(5).
fn parse_stat(stat: &str) -> Option<ProcessStat> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    Some(ProcessStat {
        dead: matches!(state, "Z" | "X" | "x"),
        start_time: fields.nth(18)?.parse().ok()?,
    })
}

/// Start time of a process that is our child and not reaped yet.
pub(super) fn start_time(pid: i32) -> Result<u64> {
    process_stat(pid)
        .map(|stat| stat.start_time)
        .ok_or_else(|| Error::system(format!("read /proc/{pid}/stat: no start time in it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_any_name() {
        let line = "77 (a ) b) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.start_time, 4711);
        assert!(!stat.dead);
        assert!(parse_stat(&line.replace(" S ", " Z ")).unwrap().dead);
        assert!(parse_stat("garbage").is_none());
    }
}
