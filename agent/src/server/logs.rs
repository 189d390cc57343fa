//! What of a container's log is asked for, and turning CRI log lines into what the client gets. Pure.
//!
//! A CRI line is `<RFC 3339 time> <stream> <P|F> <text>`; `P` lines continue in the next one.

use jiff::Timestamp;

use super::query::Query;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on as new lines come.
    pub follow: bool,
    /// The attempt before the current one.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only lines from this moment on.
    pub since: Option<Timestamp>,
    /// Stop after this many bytes.
    pub limit: Option<usize>,
}

impl Options {
    /// Reads the parameters of the request.
    pub fn parse(query: &Query, now: Timestamp) -> Result<Self, String> {
        let number = |name: &str| -> Result<Option<u64>, String> {
            query
                .get(name)
                .filter(|text| !text.is_empty())
                .map(|text| {
                    text.parse()
                        .map_err(|_| format!("{name}: {text:?} is not a number from 0 on"))
                })
                .transpose()
        };
        let since_time = query.get("sinceTime").filter(|text| !text.is_empty());
        let since_time: Option<Timestamp> = since_time
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("sinceTime: {text:?} is not an RFC 3339 time"))
            })
            .transpose()?;
        let since_seconds = number("sinceSeconds")?
            .map(|seconds| now - std::time::Duration::from_secs(seconds.min(u64::from(u32::MAX))));
        let size = |value: Option<u64>| value.map(|value| usize::try_from(value).unwrap_or(usize::MAX));
        Ok(Options {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail: size(number("tailLines")?),
            since: since_time.or(since_seconds),
            limit: size(number("limitBytes")?),
        })
    }
}

/// Turns raw log bytes into output, across any boundaries.
#[derive(Debug)]
pub struct Renderer {
    timestamps: bool,
    since: Option<Timestamp>,
    left: Option<usize>,
    rest: Vec<u8>,
    continues: bool,
    skipping: bool,
}

impl Renderer {
    /// For what `options` ask.
    pub fn new(options: &Options) -> Self {
        Renderer {
            timestamps: options.timestamps,
            since: options.since,
            left: options.limit,
            rest: Vec::new(),
            continues: false,
            skipping: false,
        }
    }

    /// Whether the byte limit is reached.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends to `out` what `bytes` complete.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut bytes = bytes;
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.rest.is_empty() {
                self.line(&bytes[..end], out);
            } else {
                let mut line = std::mem::take(&mut self.rest);
                line.extend_from_slice(&bytes[..end]);
                self.line(&line, out);
            }
            bytes = &bytes[end + 1..];
        }
        self.rest.extend_from_slice(bytes);
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        let text = parts.next().unwrap_or_default();
        if !self.continues {
            self.skipping = self.since.is_some_and(|since| {
                let parsed = std::str::from_utf8(time)
                    .ok()
                    .and_then(|time| time.parse::<Timestamp>().ok());
                parsed.is_some_and(|time| time < since)
            });
        }
        let begins = !std::mem::replace(&mut self.continues, tag == b"P");
        if self.skipping {
            return;
        }
        if self.timestamps && begins {
            self.emit(time, out);
            self.emit(b" ", out);
        }
        self.emit(text, out);
        if !self.continues {
            self.emit(b"\n", out);
        }
    }

    fn emit(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let take = self.left.map_or(bytes.len(), |left| left.min(bytes.len()));
        out.extend_from_slice(&bytes[..take]);
        if let Some(left) = &mut self.left {
            *left -= take;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout F one\n2026-01-01T00:00:01.1Z stdout P tw\n2026-01-01T00:00:02Z stdout F o\n2026-01-01T00:00:03Z stderr F \n";

    fn rendered(options: &Options, chunk: usize) -> String {
        let mut renderer = Renderer::new(options);
        let mut out = Vec::new();
        for bytes in LOG.as_bytes().chunks(chunk) {
            renderer.push(bytes, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_put_together_across_any_boundary() {
        for chunk in 1..LOG.len() {
            assert_eq!(rendered(&Options::default(), chunk), "one\ntwo\n\n", "{chunk}");
        }
    }

    #[test]
    fn times_since_and_limit_apply() {
        let with = |options: Options| rendered(&options, 1000);
        let timestamps = with(Options {
            timestamps: true,
            ..Options::default()
        });
        assert_eq!(
            timestamps,
            "2026-01-01T00:00:00.1Z one\n2026-01-01T00:00:01.1Z two\n2026-01-01T00:00:03Z \n"
        );
        let since = "2026-01-01T00:00:01Z".parse().ok();
        assert_eq!(
            with(Options {
                since,
                ..Options::default()
            }),
            "two\n\n"
        );
        assert_eq!(
            with(Options {
                limit: Some(5),
                ..Options::default()
            }),
            "one\nt"
        );
    }

    #[test]
    fn parameters_are_checked() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let parse = |text: &str| Options::parse(&Query::of(&format!("/l?{text}").parse().unwrap()), now);
        let options = parse("follow=true&tailLines=5&sinceSeconds=60&limitBytes=7").unwrap();
        assert_eq!((options.follow, options.tail, options.limit), (true, Some(5), Some(7)));
        assert_eq!(options.since, "2026-01-01T00:00:00Z".parse().ok());
        assert!(parse("tailLines=-1").is_err() && parse("sinceTime=yesterday").is_err());
    }
}
