//! Where file systems are mounted: /proc/PID/mountinfo, proc_pid_mountinfo(5).

/// The mount points of file systems of these kinds, in the order of their mounting.
pub(crate) fn points(mountinfo: &str, kinds: &[&str]) -> impl DoubleEndedIterator<Item = String> {
    mountinfo.lines().filter_map(move |line| {
        let (fields, rest) = line.split_once(" - ")?;
        let point = fields.split(' ').nth(4)?;
        let kind = rest.split(' ').next()?;
        kinds.contains(&kind).then(|| point.replace("\\040", " "))
    })
}
