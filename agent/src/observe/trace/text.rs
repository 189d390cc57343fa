//! A trace for people: first what would happen, then the diary.

use super::super::bench::report::{columns, duration_text};
use super::{FrontendView, Line, Trace};

const MICROSECOND: u64 = 1_000;

/// What several nodes answered about a service.
#[must_use]
pub fn text(service: &str, traces: &[Trace]) -> String {
    let mut out = String::new();
    for trace in traces {
        out += &format!("{service} as node {} has it\n", trace.node);
        if trace.frontends.is_empty() {
            out += "  no addresses: it is headless or ExternalName (names lead to pods at once), or this node has not heard of it\n";
        }
        for frontend in &trace.frontends {
            out += &frontend_text(frontend);
        }
        out.push('\n');
    }
    let mut lines: Vec<&Line> = traces.iter().flat_map(|trace| &trace.diary).collect();
    lines.sort_by(|one, other| one.time.total_cmp(&other.time));
    if lines.is_empty() {
        out += "no connections in the diary\n";
    }
    for line in lines {
        out += &line.text();
        out.push('\n');
    }
    out
}

fn frontend_text(view: &FrontendView) -> String {
    let whom = if view.outside { ", from outside" } else { "" };
    let mut out = format!(
        "  {} {} ({}){whom}: {}\n",
        view.address, view.protocol, view.port, view.verdict
    );
    if let Some(algorithm) = &view.algorithm {
        out += &format!("    chosen: {algorithm}\n");
    }
    if let Some(seconds) = view.affinity {
        out += &format!("    a client stays with its backend until it was quiet for {seconds} s\n");
    }
    for note in &view.notes {
        out += &format!("    {note}\n");
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    for candidate in &view.candidates {
        let latency = match candidate.latency {
            0 => "connect -".to_owned(),
            micros => format!("connect {}", duration_text(u64::from(micros) * MICROSECOND)),
        };
        rows.push(vec![
            format!("    -> {}", candidate.backend),
            candidate.pod.clone().unwrap_or_else(|| "-".to_owned()),
            format!("weight {}", candidate.weight),
            format!("{:.1}%", candidate.share * 100.0),
            format!("{} open", candidate.open),
            latency,
        ]);
    }
    for excluded in &view.excluded {
        rows.push(vec![
            format!("    not {}", excluded.address),
            excluded.pod.clone().unwrap_or_else(|| "-".to_owned()),
            excluded.reason.clone(),
        ]);
    }
    out += &columns(&rows, 3);
    if view.translated + view.refused > 0 {
        out += &format!(
            "    so far {} clients sent on, {} refused\n",
            view.translated, view.refused
        );
    }
    out
}

impl Line {
    /// One line, without its end.
    #[must_use]
    pub fn text(&self) -> String {
        let client = self
            .client_pod
            .as_ref()
            .map_or_else(|| self.client.clone(), |pod| format!("{} ({pod})", self.client));
        let took = duration_text(self.after * MICROSECOND);
        let what = match (self.event.as_str(), &self.failure) {
            ("opened", _) => format!(
                "opened in {took}, rtt {}",
                duration_text(u64::from(self.rtt) * MICROSECOND)
            ),
            ("failed", Some(why)) => format!("FAILED after {took}: {why}{}", self.resent()),
            (_, Some(why)) => format!("BROKE after {took}: {why}, {}", self.traffic()),
            _ => format!("closed after {took}, {}", self.traffic()),
        };
        format!(
            "{}  {client} -> {} -> {}  {what}",
            time_of_day(self.time),
            self.asked,
            self.backend
        )
    }

    fn traffic(&self) -> String {
        format!("{} B sent, {} B received{}", self.sent, self.received, self.resent())
    }

    fn resent(&self) -> String {
        if self.retransmits == 0 {
            String::new()
        } else {
            format!(", {} segments sent again", self.retransmits)
        }
    }
}

/// Hours, minutes, seconds and milliseconds of UTC.
fn time_of_day(since_1970: f64) -> String {
    let milliseconds = (since_1970 * 1e3) as u64 % 86_400_000;
    let (seconds, rest) = (milliseconds / 1_000, milliseconds % 1_000);
    format!(
        "{:02}:{:02}:{:02}.{rest:03}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Candidate, Excluded};
    use super::*;

    fn line(event: &str, failure: Option<&str>) -> Line {
        Line {
            time: 3_661.25,
            socket: 1,
            event: event.to_owned(),
            failure: failure.map(str::to_owned),
            client: "10.244.0.5:40000".to_owned(),
            client_pod: Some("d/client".to_owned()),
            asked: "10.96.0.7:80".to_owned(),
            backend: "10.244.0.6:8080".to_owned(),
            after: 41,
            rtt: 33,
            sent: 80,
            received: 1_000,
            retransmits: 2,
        }
    }

    #[test]
    fn a_line_is_a_sentence() {
        assert_eq!(
            line("opened", None).text(),
            "01:01:01.250  10.244.0.5:40000 (d/client) -> 10.96.0.7:80 -> 10.244.0.6:8080  opened in 41.0 us, rtt 33.0 us"
        );
        assert!(
            line("failed", Some("refused"))
                .text()
                .ends_with("FAILED after 41.0 us: refused, 2 segments sent again")
        );
        assert!(
            line("closed", None)
                .text()
                .ends_with("closed after 41.0 us, 80 B sent, 1000 B received, 2 segments sent again")
        );
    }

    #[test]
    fn candidates_and_those_left_out_are_listed() {
        let view = FrontendView {
            address: "10.96.0.7:80".to_owned(),
            protocol: "TCP".to_owned(),
            port: "http".to_owned(),
            outside: false,
            verdict: "sent to the only backend".to_owned(),
            algorithm: None,
            affinity: Some(60),
            notes: Vec::new(),
            candidates: vec![Candidate {
                backend: "10.244.0.6:8080".to_owned(),
                pod: Some("d/web".to_owned()),
                weight: 1,
                share: 1.0,
                open: 3,
                latency: 40,
            }],
            excluded: vec![Excluded {
                address: "10.244.0.7".to_owned(),
                pod: None,
                reason: "not ready".to_owned(),
            }],
            translated: 5,
            refused: 0,
        };
        let trace = Trace {
            node: "n1".to_owned(),
            frontends: vec![view],
            diary: vec![
                line("closed", None),
                Line {
                    time: 1.0,
                    ..line("opened", None)
                },
            ],
            newest: 0,
        };
        let text = text("d/web", &[trace]);
        for part in [
            "d/web as node n1 has it",
            "-> 10.244.0.6:8080  d/web",
            "not 10.244.0.7",
            "until it was quiet for 60 s",
            "5 clients sent on",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let first = text.find("opened in").unwrap();
        assert!(first < text.find("closed after").unwrap(), "the oldest first\n{text}");
    }
}
