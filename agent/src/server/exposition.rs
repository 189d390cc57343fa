//! Prometheus' text format 0.0.4 and OpenMetrics 1.0, one or the other as the scraper asks.
//!
//! The families are written in order, each once: a family that is begun ends when the next one begins.

use std::fmt::Write as _;

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// text/plain; version=0.0.4
    Text,
    /// application/openmetrics-text; version=1.0.0
    OpenMetrics,
}

impl Format {
    /// What an Accept header asks for; the older one, which all take, unless OpenMetrics is preferred or equal.
    #[must_use]
    pub fn negotiate(accept: &str) -> Format {
        let quality = |media: &str| {
            let entry = accept.split(',').map(str::trim).find(|entry| {
                let mut parts = entry.split(';').map(str::trim);
                let version = parts.clone().find_map(|part| part.strip_prefix("version="));
                parts.next() == Some(media) && (media == "text/plain" || version.is_none_or(|v| v.starts_with("1.")))
            })?;
            let q = entry.split(';').find_map(|part| part.trim().strip_prefix("q="));
            Some(q.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0)))
        };
        match (quality("application/openmetrics-text"), quality("text/plain")) {
            (Some(open), plain) if open > 0.0 && open >= plain.unwrap_or(0.0) => Format::OpenMetrics,
            _ => Format::Text,
        }
    }

    /// The Content-Type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What kind of numbers a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets.
    Histogram,
}

/// Labels of a sample, in order.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text being written.
pub struct Exposition {
    format: Format,
    text: String,
    family: &'static str,
}

impl Exposition {
    /// An empty one.
    #[must_use]
    pub fn new(format: Format) -> Exposition {
        Exposition {
            format,
            text: String::new(),
            family: "",
        }
    }

    /// Begins a family. A name with a unit ends in it; `_total` of counters is not part of it.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        self.family = name;
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let shown = match (self.format, kind) {
            (Format::Text, Kind::Counter) => format!("{name}_total"),
            _ => name.to_owned(),
        };
        let _ = writeln!(
            self.text,
            "# HELP {shown} {}",
            help.replace('\\', "\\\\").replace('\n', "\\n")
        );
        let _ = writeln!(self.text, "# TYPE {shown} {word}");
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.ends_with(&format!("_{unit}")));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    /// A number of the family; `suffix` is `_total`, `_bucket` and the like, or empty.
    pub fn sample(&mut self, suffix: &str, labels: Labels<'_>, value: impl std::fmt::Display) {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        for (index, (name, content)) in labels.iter().enumerate() {
            let joint = if index == 0 { '{' } else { ',' };
            let content = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{joint}{name}=\"{content}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A histogram of the family: bounds with the counts up to each, the count of all and their sum.
    pub fn histogram(&mut self, labels: Labels<'_>, bounds: &[(f64, u64)], count: u64, sum: f64) {
        for (bound, below) in bounds {
            let bound = bound.to_string();
            let with_bound: Vec<(&str, &str)> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample("_bucket", &with_bound, below);
        }
        let all: Vec<(&str, &str)> = labels.iter().copied().chain([("le", "+Inf")]).collect();
        self.sample("_bucket", &all, count);
        self.sample("_sum", labels, sum);
        self.sample("_count", labels, count);
    }

    /// Appends families that are written in the older format already.
    pub fn append(&mut self, text: &str) {
        for line in text.lines() {
            let mut words: Vec<&str> = line.splitn(4, ' ').collect();
            // There the family's name is that of the counter's samples.
            if self.format == Format::OpenMetrics && words.len() == 4 && words[0] == "#" {
                words[2] = words[2].strip_suffix("_total").unwrap_or(words[2]);
            }
            self.text += &words.join(" ");
            self.text.push('\n');
        }
    }

    /// The whole text.
    #[must_use]
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(format: Format) -> String {
        let mut out = Exposition::new(format);
        out.family("hull_sent_bytes", Kind::Counter, "Bytes sent.");
        out.sample("_total", &[("service", "a\"b\\c\nd"), ("port", "http")], 7);
        out.family("hull_wait_seconds", Kind::Histogram, "Waiting.");
        out.histogram(&[], &[(0.001, 1), (0.002, 3)], 4, 0.5);
        out.finish()
    }

    #[test]
    fn the_older_format_names_counters_with_total() {
        let expected = "# HELP hull_sent_bytes_total Bytes sent.\n# TYPE hull_sent_bytes_total counter\n\
            hull_sent_bytes_total{service=\"a\\\"b\\\\c\\nd\",port=\"http\"} 7\n\
            # HELP hull_wait_seconds Waiting.\n# TYPE hull_wait_seconds histogram\n\
            hull_wait_seconds_bucket{le=\"0.001\"} 1\nhull_wait_seconds_bucket{le=\"0.002\"} 3\n\
            hull_wait_seconds_bucket{le=\"+Inf\"} 4\nhull_wait_seconds_sum 0.5\nhull_wait_seconds_count 4\n";
        assert_eq!(example(Format::Text), expected);
    }

    #[test]
    fn openmetrics_names_the_family_its_unit_and_its_end() {
        let text = example(Format::OpenMetrics);
        assert!(text.starts_with(
            "# HELP hull_sent_bytes Bytes sent.\n# TYPE hull_sent_bytes counter\n# UNIT hull_sent_bytes bytes\n"
        ));
        assert!(
            text.contains("\nhull_sent_bytes_total{") && text.ends_with("\n# EOF\n"),
            "{text}"
        );
    }

    #[test]
    fn what_others_wrote_is_adapted() {
        let theirs = "# HELP x_total Some thing.\n# TYPE x_total counter\nx_total 1\n";
        let mut out = Exposition::new(Format::OpenMetrics);
        out.append(theirs);
        assert_eq!(
            out.finish(),
            "# HELP x Some thing.\n# TYPE x counter\nx_total 1\n# EOF\n"
        );
        let mut out = Exposition::new(Format::Text);
        out.append(theirs);
        assert_eq!(out.finish(), theirs);
    }

    #[test]
    fn the_scraper_chooses_the_format() {
        // As Prometheus asks.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::negotiate(prometheus), Format::OpenMetrics);
        assert_eq!(
            Format::negotiate("application/openmetrics-text; version=0.0.1"),
            Format::Text
        );
        assert_eq!(
            Format::negotiate("text/plain, application/openmetrics-text;q=0.5"),
            Format::Text
        );
        assert_eq!(Format::negotiate("application/openmetrics-text;q=0"), Format::Text);
        assert_eq!(Format::negotiate("*/*"), Format::Text);
        assert_eq!(Format::negotiate(""), Format::Text);
    }
}
