//! A measurement as an SVG: one panel for each latency, one line for each path, on HdrHistogram's percentile axis.
//!
//! The horizontal axis is the logarithm of 1/(1-p): each nine takes as much room as the one before, so that the tail
//! can be seen. The vertical one is logarithmic, too. Colours come from a style sheet that follows the reader's theme.

use super::plan::Path;
use super::report::{Latency, Report, duration_text};

const PANEL_WIDTH: f64 = 380.0;
const PANEL_HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 96.0;
const GAP: f64 = 72.0;
const BOTTOM: f64 = 64.0;

const STYLE: &str = "
  svg { font: 12px system-ui, sans-serif; background: #ffffff; }
  text { fill: #24292f; } .muted { fill: #57606a; }
  .grid { fill: none; stroke: #d0d7de; stroke-width: 1; } .axis { fill: none; stroke: #57606a; stroke-width: 1; }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .pod { stroke: #57606a; stroke-dasharray: 5 3; } .clusterip { stroke: #0969da; } .nodeport { stroke: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; }
    text { fill: #e6edf3; } .muted { fill: #9198a1; }
    .grid { stroke: #30363d; } .axis { stroke: #9198a1; }
    .pod { stroke: #9198a1; } .clusterip { stroke: #58a6ff; } .nodeport { stroke: #f0883e; }
  }
";

/// The picture, a complete file.
#[must_use]
pub fn svg(report: &Report) -> String {
    let names: Vec<&str> = ["connect", "first byte", "round trip"]
        .into_iter()
        .filter(|name| {
            report
                .paths
                .iter()
                .any(|path| path.latencies().any(|(own, _)| own == *name))
        })
        .collect();
    let panels = names.len().max(1) as f64;
    let width = LEFT + panels * (PANEL_WIDTH + GAP);
    let height = TOP + PANEL_HEIGHT + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\">\n<title>Latency of {} port {}</title>\n<style>{STYLE}</style>\n",
        escape(&report.service),
        report.port
    );
    out += &heading(report);
    for (index, name) in names.iter().enumerate() {
        let x = LEFT + index as f64 * (PANEL_WIDTH + GAP);
        let lines: Vec<(Path, &Latency)> = report
            .paths
            .iter()
            .filter_map(|path| {
                let (_, latency) = path.latencies().find(|(own, _)| own == name)?;
                Some((path.path, latency))
            })
            .collect();
        out += &panel(name, x, &lines);
    }
    out + "</svg>\n"
}

fn heading(report: &Report) -> String {
    let from = report.pod.as_ref().unwrap_or(&report.node);
    let mut out = format!(
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"16\" font-weight=\"600\">{} port {}, from {}</text>\n",
        escape(&report.service),
        report.port,
        escape(from)
    );
    let mut x = LEFT;
    for path in &report.paths {
        let name = path.path.name();
        out += &format!(
            "<path class=\"line {name}\" d=\"M{x} 44h24\"/><text x=\"{}\" y=\"48\">{name}</text>\n",
            x + 30.0
        );
        x += 46.0 + 7.0 * name.len() as f64;
    }
    out
}

/// The values' scale: whole decades, or parts of one that hold them all.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(lines: &[(Path, &Latency)]) -> Scale {
        let low = lines.iter().map(|(_, latency)| latency.min).min().unwrap_or(1).max(1);
        let high = lines
            .iter()
            .flat_map(|(_, latency)| latency.buckets.last())
            .map(|(value, _)| *value);
        Scale {
            low: (low as f64 * 0.8).log10(),
            high: (high.max().unwrap_or(10).max(low) as f64 * 1.25).log10(),
        }
    }

    fn y(&self, nanoseconds: f64) -> f64 {
        let share = (nanoseconds.log10() - self.low) / (self.high - self.low);
        TOP + PANEL_HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    }

    /// 1, 2 and 5 of each decade, or only 1 where that would be too many.
    fn marks(&self) -> Vec<f64> {
        let decades = self.low.floor() as i32..=self.high.ceil() as i32;
        let steps: &[f64] = if self.high - self.low > 3.0 {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
            .filter(|value| (self.low..=self.high).contains(&value.log10()))
            .collect()
    }
}

/// How many nines the axis has: as many as the samples can tell.
fn nines(lines: &[(Path, &Latency)]) -> u32 {
    let most = lines.iter().map(|(_, latency)| latency.count).max().unwrap_or(1);
    most.max(10).ilog10().clamp(1, 6)
}

fn panel(name: &str, x: f64, lines: &[(Path, &Latency)]) -> String {
    let (scale, nines) = (Scale::of(lines), nines(lines));
    let bottom = TOP + PANEL_HEIGHT;
    let mut out = format!(
        "<g><text x=\"{x}\" y=\"{y}\" font-weight=\"600\">{name}</text>\
         <text class=\"muted\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">p50 {}</text>\n",
        x + PANEL_WIDTH,
        medians(lines),
        y = TOP - 12.0
    );
    for value in scale.marks() {
        let y = scale.y(value);
        out += &format!(
            "<path class=\"grid\" d=\"M{x:.1} {y:.1}h{PANEL_WIDTH}\"/><text class=\"muted\" x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>\n",
            x - 6.0,
            y + 4.0,
            mark_text(value)
        );
    }
    let half = (0.5f64.log10().abs(), "50%".to_owned());
    let marks = (0..=nines).map(|nine| (f64::from(nine), nines_text(nine)));
    for (place, text) in marks.chain([half]) {
        let at = x + PANEL_WIDTH * place / f64::from(nines);
        out += &format!(
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/><text class=\"muted\" x=\"{at:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}</text>\n",
            bottom + 18.0,
            text
        );
    }
    out += &format!(
        "<path class=\"axis\" d=\"M{x:.1} {TOP}V{bottom}H{:.1}\"/>\n",
        x + PANEL_WIDTH
    );
    for (path, latency) in lines {
        out += &format!(
            "<path class=\"line {}\" d=\"{}\"/>\n",
            path.name(),
            curve(latency, &scale, x, f64::from(nines))
        );
    }
    out + &format!(
        "<text class=\"muted\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">percentile</text></g>\n",
        x + PANEL_WIDTH / 2.0,
        bottom + 40.0
    )
}

/// The medians of the lines, in their order.
fn medians(lines: &[(Path, &Latency)]) -> String {
    let medians = lines.iter().map(|(path, latency)| {
        let mut seen = 0;
        let middle = latency.buckets.iter().find(|(_, count)| {
            seen += count;
            2 * seen >= latency.count
        });
        let value = middle.map_or(latency.min, |(value, _)| *value);
        format!("{} {}", path.name(), duration_text(value))
    });
    medians.collect::<Vec<_>>().join(", ")
}

/// Through each bucket's share and value, as steps would be drawn by a pen that does not lift.
fn curve(latency: &Latency, scale: &Scale, x: f64, nines: f64) -> String {
    let mut seen = 0;
    let mut d = format!("M{x:.1} {:.1}", scale.y(latency.min.max(1) as f64));
    for (value, count) in &latency.buckets {
        seen += count;
        let left = (latency.count.saturating_sub(seen) as f64 / latency.count.max(1) as f64).max(10f64.powf(-nines));
        let at = x + PANEL_WIDTH * -left.log10() / nines;
        d += &format!("L{at:.1} {:.1}", scale.y((*value).max(1) as f64));
    }
    d
}

fn nines_text(nines: u32) -> String {
    match nines {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        more => format!("99.{}%", "9".repeat(more as usize - 2)),
    }
}

/// A round value with its unit and no decimals.
fn mark_text(value: f64) -> String {
    let text = duration_text(value.round() as u64);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn latency(buckets: &[(u64, u64)]) -> Latency {
        Latency {
            count: buckets.iter().map(|(_, count)| count).sum(),
            min: buckets[0].0,
            mean: 0,
            quantiles: BTreeMap::new(),
            rounds: Vec::new(),
            buckets: buckets.to_vec(),
        }
    }

    #[test]
    fn each_nine_takes_the_same_room() {
        let latency = latency(&[(1_000, 900), (2_000, 90), (4_000, 9), (8_000, 1)]);
        let lines = [(Path::Pod, &latency)];
        assert_eq!(nines(&lines), 3);
        let d = curve(&latency, &Scale::of(&lines), 0.0, 3.0);
        let xs: Vec<f64> = d[1..]
            .split('L')
            .map(|point| point.split(' ').next().unwrap().parse().unwrap())
            .collect();
        let third = PANEL_WIDTH / 3.0;
        for (found, expected) in xs.iter().zip([0.0, third, 2.0 * third, 3.0 * third, 3.0 * third]) {
            assert!((found - expected).abs() < 0.1, "{xs:?}");
        }
    }

    #[test]
    fn what_is_stroked_is_not_filled() {
        let rules = STYLE.split('}').filter(|rule| rule.contains("stroke-width"));
        let bare: Vec<&str> = rules.filter(|rule| !rule.contains("fill: none")).collect();
        assert!(
            bare.is_empty(),
            "a path without a fill of its own is black inside: {bare:?}"
        );
    }

    #[test]
    fn the_median_is_where_half_is_faster() {
        let latency = latency(&[(1_000, 2), (2_000, 2), (9_000, 1)]);
        assert_eq!(medians(&[(Path::ClusterIp, &latency)]), "clusterip 2.0 us");
    }

    #[test]
    fn a_line_never_falls() {
        let latency = latency(&[(100, 3), (50_000, 20), (2_000_000, 1), (900_000_000, 1)]);
        let d = curve(&latency, &Scale::of(&[(Path::Pod, &latency)]), 0.0, 2.0);
        let ys: Vec<f64> = d[1..]
            .split('L')
            .map(|point| point.split(' ').nth(1).unwrap().parse().unwrap())
            .collect();
        assert!(ys.is_sorted_by(|earlier, later| earlier >= later), "{ys:?}");
    }

    #[test]
    fn marks_are_round_and_inside() {
        let scale = Scale {
            low: 10_000f64.log10(),
            high: 300_000f64.log10(),
        };
        let texts: Vec<String> = scale.marks().into_iter().map(mark_text).collect();
        assert_eq!(texts, ["10 us", "20 us", "50 us", "100 us", "200 us"]);
    }
}
