//! The CRI log format: `<RFC 3339 time> <stream> <F|P> <text>\n`, one record per line of output.
//!
//! A line longer than 16 KiB becomes several records, all but the last marked P (partial); a reader joins them. All records of
//! one batch carry the same time, which no other batch of the file has: recovery relies on that.

/// Longest text of one record.
pub(crate) const LINE_MAX: usize = 16 << 10;

/// Which of its two outputs a container wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Appends the records of `raw` to `out` until `out` holds `limit` bytes or only an unfinished line is left; that is taken
/// too, as a partial record, if `flush`. Returns how many bytes of `raw` are in the records.
pub(crate) fn format(raw: &[u8], flush: bool, stamp: &str, stream: Stream, limit: usize, out: &mut Vec<u8>) -> usize {
    let mut taken = 0;
    while out.len() < limit {
        let rest = &raw[taken..];
        let head = &rest[..rest.len().min(LINE_MAX + 1)];
        let (length, newline) = match head.iter().position(|&byte| byte == b'\n') {
            Some(length) => (length, true),
            None if rest.len() > LINE_MAX => (LINE_MAX, false),
            None if flush && !rest.is_empty() => (rest.len(), false),
            None => break,
        };
        out.extend_from_slice(stamp.as_bytes());
        out.push(b' ');
        out.extend_from_slice(stream.name().as_bytes());
        out.extend_from_slice(if newline { b" F " } else { b" P " });
        out.extend_from_slice(&rest[..length]);
        out.push(b'\n');
        taken += length + usize::from(newline);
    }
    taken
}

/// The last batch in the tail of a log file: its time, its stream and the output it came from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub stamp: String,
    pub stream: Stream,
    pub raw: Vec<u8>,
}

/// Finds the last batch in `tail`, which ends with a newline and may begin in the middle of a record.
pub(crate) fn last_batch(tail: &[u8]) -> Option<Batch> {
    let records: Vec<&[u8]> = tail.strip_suffix(b"\n")?.split(|&byte| byte == b'\n').collect();
    let last = parse(records.last()?)?;
    let same: Vec<Record<'_>> = records
        .iter()
        .rev()
        .map_while(|line| parse(line).filter(|r| r.stamp == last.stamp && r.stream == last.stream))
        .collect();
    let mut raw = Vec::new();
    for record in same.iter().rev() {
        raw.extend_from_slice(record.text);
        if record.full {
            raw.push(b'\n');
        }
    }
    Some(Batch {
        stamp: last.stamp.to_owned(),
        stream: last.stream,
        raw,
    })
}

struct Record<'a> {
    stamp: &'a str,
    stream: Stream,
    full: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let stamp = std::str::from_utf8(parts.next()?).ok()?;
    let name = parts.next()?;
    let stream = Stream::BOTH
        .into_iter()
        .find(|stream| stream.name().as_bytes() == name)?;
    let full = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record {
        stamp,
        stream,
        full,
        text: parts.next()?,
    })
}

/// A time as part of a file name that sorts by time.
pub(crate) fn file_stamp(nanos: i64) -> String {
    crate::timestamp::rfc3339(nanos)
        .replace(['-', ':'], "")
        .replace('T', "-")
        .replace('Z', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: &str = "2026-11-24T06:00:00.000000001Z";

    fn records(raw: &[u8], flush: bool) -> (usize, String) {
        let mut out = Vec::new();
        let taken = format(raw, flush, T, Stream::Stdout, usize::MAX, &mut out);
        (taken, String::from_utf8(out).unwrap().replace(T, "T"))
    }

    #[test]
    fn whole_lines_are_taken_and_an_unfinished_one_waits() {
        assert_eq!(records(b"a\n\nbc", false), (3, "T stdout F a\nT stdout F \n".into()));
        assert_eq!(records(b"bc", false), (0, String::new()));
        assert_eq!(records(b"bc", true), (2, "T stdout P bc\n".into()));
        assert_eq!(records(b"", true), (0, String::new()));
    }

    #[test]
    fn a_line_is_split_at_16_kib_exactly() {
        let fits = [vec![b'x'; LINE_MAX], vec![b'\n']].concat();
        let (taken, text) = records(&fits, false);
        assert_eq!((taken, text.lines().count()), (LINE_MAX + 1, 1));
        assert!(text.starts_with("T stdout F x"));
        let over = [vec![b'x'; LINE_MAX + 1], vec![b'\n']].concat();
        let (taken, text) = records(&over, false);
        assert_eq!(taken, LINE_MAX + 2);
        assert_eq!(
            text.lines().map(|line| &line[..12]).collect::<Vec<_>>(),
            ["T stdout P x", "T stdout F x"]
        );
    }

    #[test]
    fn the_limit_stops_after_the_record_that_reaches_it() {
        let mut out = Vec::new();
        assert_eq!(format(b"a\nb\nc\n", false, T, Stream::Stderr, 1, &mut out), 2);
        assert_eq!(out, format!("{T} stderr F a\n").into_bytes());
    }

    #[test]
    fn file_stamps_sort_by_time() {
        assert_eq!(file_stamp(951_782_400_000_000_007), "20000229-000000.000000007");
    }

    #[test]
    fn the_last_batch_is_told_from_the_one_before() {
        let log = b"alf of a record\nA stdout F one\nB stderr F two\nC stdout P thr\nC stdout F ee\n";
        let batch = last_batch(log).unwrap();
        assert_eq!(
            batch,
            Batch {
                stamp: "C".into(),
                stream: Stream::Stdout,
                raw: b"three\n".to_vec()
            }
        );
        assert_eq!(last_batch(b""), None);
        assert_eq!(last_batch(b"not a record\n"), None);
    }

    proptest! {
        #[test]
        fn what_was_written_can_be_read_back(raw in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 1..300)) {
            let mut out = Vec::new();
            let taken = format(&raw, true, T, Stream::Stderr, usize::MAX, &mut out);
            prop_assert_eq!(taken, raw.len());
            let batch = last_batch(&out).unwrap();
            prop_assert_eq!(batch.raw, raw);
        }
    }
}
