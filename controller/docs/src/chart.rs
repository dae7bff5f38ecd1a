//! Charts as inline SVG: lines over time, with a title that screen readers say.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use tidegate_protocol::Timestamp;

use crate::html::{escape, text};
use crate::model::{Chart, Line, Series};
use crate::text::{clock, quantity};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// A limit farther away would press all other lines flat.
const LIMIT_SHOWN: f64 = 3.0;
/// Horizontal lines above the lowest.
const STEPS: u32 = 4;

/// One figure; `at` makes its ids unique in the document.
pub(crate) fn render(out: &mut String, chart: &Chart, at: usize) {
    let own = |s: &&Series| s.line != Line::Limit;
    let values = |s: &Series| s.points.iter().map(|(_, v)| *v).collect::<Vec<_>>();
    let mut all: Vec<f64> = chart.series.iter().filter(own).flat_map(values).collect();
    let highest = all.iter().copied().fold(0.0, f64::max);
    let limit = chart.series.iter().find(|s| s.line == Line::Limit).and_then(|s| s.points.first()).map(|(_, v)| *v);
    let limit_fits = limit.is_some_and(|l| highest <= 0.0 || l <= highest * LIMIT_SHOWN);
    if limit_fits {
        all.extend(limit);
    }
    let (low, step) = axis(&all);
    let high = low + step * f64::from(STEPS);
    let unit = chart.unit.as_str();
    legend(out, chart, limit.filter(|_| !limit_fits));
    let describe = description(chart);
    out.push_str(&format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"c{at}t c{at}d\">\
         <title id=\"c{at}t\">{}</title><desc id=\"c{at}d\">{}</desc>\n",
        text(&chart.title),
        escape(&describe)
    ));
    for at in 0..=STEPS {
        let value = low + step * f64::from(at);
        let y = y_of(value, low, high);
        out.push_str(&format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 7.0,
            y + 3.8,
            escape(&quantity(value, unit))
        ));
    }
    let origin = Timestamp(chart.from_unix_ms);
    let ticks = [(LEFT, "start", chart.from_unix_ms), (WIDTH - RIGHT, "end", chart.to_unix_ms)];
    for (x, anchor, ms) in ticks {
        let label = clock(Timestamp(ms), origin);
        out.push_str(&format!("<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label} UTC</text>\n", HEIGHT - 6.0));
    }
    for series in chart.series.iter().filter(|s| s.line != Line::Limit || limit_fits) {
        line(out, chart, series, low, high);
    }
    out.push_str("</svg>\n</figure>\n");
}

fn line(out: &mut String, chart: &Chart, series: &Series, low: f64, high: f64) {
    let class = series.line.word();
    if matches!(series.line, Line::Baseline | Line::Limit) {
        if let Some((_, value)) = series.points.first() {
            let y = y_of(*value, low, high);
            out.push_str(&format!(
                "<line class=\"line {class}\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n",
                WIDTH - RIGHT
            ));
        }
        return;
    }
    let place = |(at, value): &(u64, f64)| {
        let over = chart.to_unix_ms.saturating_sub(chart.from_unix_ms).max(1);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a rollout, drawn on 650 points")]
        let share = at.saturating_sub(chart.from_unix_ms) as f64 / over as f64;
        (LEFT + (WIDTH - LEFT - RIGHT) * share.min(1.0), y_of(*value, low, high))
    };
    if let [only] = series.points.as_slice() {
        let (x, y) = place(only);
        out.push_str(&format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>\n"));
        return;
    }
    let points: Vec<String> = series.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    out.push_str(&format!("<polyline class=\"line {class}\" points=\"{}\"/>\n", points.join(" ")));
}

fn legend(out: &mut String, chart: &Chart, off_scale: Option<f64>) {
    out.push_str(&format!("<figure>\n<figcaption><b>{}</b>", text(&chart.title)));
    for series in &chart.series {
        let Some((_, last)) = series.points.last() else { continue };
        let far = if series.line == Line::Limit && off_scale.is_some() { ", off the scale" } else { "" };
        let word = series.line.word();
        out.push_str(&format!(
            "<span class=\"key\"><svg viewBox=\"0 0 28 10\" aria-hidden=\"true\"><line class=\"line {word}\" x1=\"1\" x2=\"27\" y1=\"5\" y2=\"5\"/></svg>{word} {}{far}</span>",
            escape(&quantity(*last, chart.unit.as_str()))
        ));
    }
    out.push_str("</figcaption>\n");
}

/// For those who do not see it.
fn description(chart: &Chart) -> String {
    let unit = chart.unit.as_str();
    let words = chart.series.iter().filter_map(|s| {
        let (first, last) = (s.points.first()?.1, s.points.last()?.1);
        Some(match s.line {
            Line::Baseline | Line::Limit => format!("{} {}", s.line.word(), quantity(first, unit)),
            Line::Changed | Line::Control => format!("{} from {} to {}", s.line.word(), quantity(first, unit), quantity(last, unit)),
        })
    });
    words.collect::<Vec<_>>().join(", ")
}

/// The lowest line and the distance between two: from zero, or close to the
/// values where all of them are far from it.
fn axis(values: &[f64]) -> (f64, f64) {
    let min = values.iter().copied().fold(f64::MAX, f64::min);
    let max = values.iter().copied().fold(f64::MIN, f64::max);
    if values.is_empty() || max - min > 1e15 {
        return (0.0, 1.0);
    }
    let steps = f64::from(STEPS);
    let (from, to) = if min > 0.6 * max {
        let air = (max - min).max(max * 0.04);
        (min - air, max + air)
    } else {
        (min.min(0.0), max.max(0.0) * 1.08)
    };
    let mut step = nice((to - from) / steps);
    for _ in 0..8 {
        let low = whole_below(from / step) * step;
        if low + step * steps >= to {
            return (low, step);
        }
        step = nice(step * 1.01);
    }
    (from, (to - from) / steps)
}

/// The next number that reads well.
fn nice(value: f64) -> f64 {
    let mut decade = 1e-9;
    while decade < 1e15 {
        for factor in [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5] {
            if decade * factor >= value * 0.999_999 {
                return decade * factor;
            }
        }
        decade *= 10.0;
    }
    value.max(1e-9)
}

/// `floor`, which `core` has not got.
fn whole_below(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "saturates far beyond any axis")]
    let whole = value as i64;
    #[expect(clippy::cast_precision_loss, reason = "an axis has few digits")]
    let whole = whole as f64;
    if whole > value { whole - 1.0 } else { whole }
}

fn y_of(value: f64, low: f64, high: f64) -> f64 {
    let share = (value - low) / (high - low);
    TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share.clamp(0.0, 1.0))
}
