//! The values that monitoring saw, one a line: for spreadsheets.

use alloc::format;
use alloc::string::{String, ToString};

use tidegate_protocol::Timestamp;
use tidegate_rollout::gate::{Group, Observed};
use tidegate_rollout::status::rfc3339;

use crate::story::Story;
use crate::text::clean;

/// `metrics.csv` (RFC 4180, lines ended by CR LF).
pub(crate) fn render(story: &Story<'_>) -> String {
    let facts = &story.facts;
    let mut out = String::from("time,metric,group,value,unit,samples\r\n");
    let sealed = facts.first_swap.unwrap_or(facts.started);
    for value in &facts.baseline {
        line(&mut out, story, sealed, value);
    }
    for (at, values) in &facts.observed {
        for value in *values {
            line(&mut out, story, *at, value);
        }
    }
    out
}

fn line(out: &mut String, story: &Story<'_>, at: Timestamp, value: &Observed) {
    let group = match value.group {
        Group::Baseline => "baseline",
        Group::Changed => "changed",
        Group::Control => "control",
        Group::Worst => "worst-host",
    };
    let unit = story.facts.plan.gating.metrics.get(&value.metric).map_or("", |m| m.kind.unit());
    let number = value.value.map_or_else(String::new, |v| format!("{}", v.get()));
    let fields = [rfc3339(at.0), value.metric.clone(), group.to_string(), number, unit.to_string(), value.samples.to_string()];
    let fields = fields.map(|f| field(&f));
    out.push_str(&fields.join(","));
    out.push_str("\r\n");
}

/// Quoted where it must be; what a spreadsheet would run as a formula is text.
fn field(text: &str) -> String {
    let text = clean(text, 2_000, false);
    let number = text.parse::<f64>().is_ok();
    let formula = !number && text.starts_with(['=', '+', '-', '@']);
    let text = if formula { format!("'{text}") } else { text };
    if text.contains([',', '"', '\'']) || text.contains(char::is_whitespace) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stay_fields() {
        assert_eq!(field("=cmd|x"), "\"'=cmd|x\"");
        assert_eq!(field("-1.5"), "-1.5");
        assert_eq!(field("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
