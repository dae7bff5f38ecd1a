//! Texts as they may stand on paper: cleaned, bounded, with times, durations and
//! quantities in one form everywhere.
//!
//! Owns: what may be in a text at all. What hosts and people write is hostile: no
//! control character, no override of the direction of writing, nothing invisible
//! gets past [`Text`]. Must not: escape for a format, the renderers do.

use alloc::format;
use alloc::string::{String, ToString};
use core::cmp::Ordering;
use core::fmt;

use serde::{Serialize, Serializer};
use tidegate_protocol::{Digest, Millis, Timestamp};
use tidegate_rollout::status::rfc3339;

/// Longest text of one cell, characters.
const CELL_CHARS_MAX: usize = 2_000;
/// Longest verbatim block, characters.
const BLOCK_CHARS_MAX: usize = 64 * 1024;

/// One line that is safe to print: no control characters, no overrides of the
/// direction of writing, nothing invisible, at most 2000 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Text(String);

impl Text {
    /// Its characters.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Nothing to see.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.trim().is_empty()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(clean(text, CELL_CHARS_MAX, false))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

/// Several lines that are safe to print verbatim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verbatim(String);

impl Verbatim {
    /// Its characters, lines ended by `\n`.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Verbatim {
    fn from(text: &str) -> Self {
        Self(clean(text, BLOCK_CHARS_MAX, true))
    }
}

impl Serialize for Verbatim {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

/// Characters that show nothing, or that change how others are shown.
const fn invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Not characters at all, or nobody's: XML does not take the first kind.
const fn nobodys(c: char) -> bool {
    let code = c as u32;
    matches!(code, 0xfdd0..=0xfdef | 0xe000..=0xf8ff) || code & 0xfffe == 0xfffe || code >= 0xf_0000
}

/// What every text goes through.
pub(crate) fn clean(text: &str, max: usize, lines: bool) -> String {
    let mut out = String::with_capacity(text.len().min(max * 4));
    for (at, c) in text.chars().enumerate() {
        if at >= max {
            out.push('…');
            break;
        }
        match c {
            '\n' if lines => out.push('\n'),
            '\r' if lines => {}
            _ if invisible(c) || nobodys(c) => {}
            _ if c.is_control() => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

/// `2026-11-24 22:00:13`, UTC.
pub(crate) fn moment(at: Timestamp) -> String {
    let text = rfc3339(at.0);
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock}"),
        _ => text,
    }
}

/// `2026-11-24 22:00:13 UTC`.
pub(crate) fn moment_utc(at: Timestamp) -> String {
    format!("{} UTC", moment(at))
}

/// `2026-11-24`.
pub(crate) fn day(at: Timestamp) -> String {
    rfc3339(at.0).get(..10).map_or_else(String::new, ToString::to_string)
}

/// `22:00:13` on the day of `origin`, `+1d 22:00:13` on the one after it, `-1d …` before.
pub(crate) fn clock(at: Timestamp, origin: Timestamp) -> String {
    const DAY: u64 = 86_400_000;
    let (day, first) = (at.0 / DAY, origin.0 / DAY);
    let text = rfc3339(at.0);
    let clock = text.get(11..19).unwrap_or_default();
    match day.cmp(&first) {
        Ordering::Equal => clock.to_string(),
        Ordering::Greater => format!("+{}d {clock}", day - first),
        Ordering::Less => format!("-{}d {clock}", first - day),
    }
}

/// `850 ms`, `12.4 s`, `4 min 10 s`, `3 h 30 min`, `2 d 4 h`.
pub(crate) fn span(ms: u64) -> String {
    let two = |big: u64, unit: &str, small: u64, below: &str| {
        if small == 0 { format!("{big} {unit}") } else { format!("{big} {unit} {small} {below}") }
    };
    match ms {
        0 => "0 s".to_string(),
        1..=999 => format!("{ms} ms"),
        1_000..=59_999 => match ms % 1_000 / 100 {
            0 => format!("{} s", ms / 1_000),
            tenth => format!("{}.{tenth} s", ms / 1_000),
        },
        60_000..=3_599_999 => two(ms / 60_000, "min", ms / 1_000 % 60, "s"),
        3_600_000..=86_399_999 => two(ms / 3_600_000, "h", ms / 60_000 % 60, "min"),
        _ => two(ms / 86_400_000, "d", ms / 3_600_000 % 24, "h"),
    }
}

/// As [`span`].
pub(crate) fn millis(of: Millis) -> String {
    span(of.0)
}

/// Three digits behind the point at most.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

/// `0.05%`, `85ms`, `12.5/s`, `3`.
pub(crate) fn quantity(value: f64, unit: &str) -> String {
    format!("{}{unit}", number(value))
}

/// `+0.01pp`, `+5ms`: a difference in its own unit; of percentages in points.
pub(crate) fn difference(value: f64, unit: &str) -> String {
    let text = number(value);
    let sign = if text.starts_with('-') || text == "0" { "" } else { "+" };
    format!("{sign}{text}{}", if unit == "%" { "pp" } else { unit })
}

/// `1 host`, `2 hosts`.
pub(crate) fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// `sha256:…`, whole.
pub(crate) fn sha256(digest: &Digest) -> String {
    format!("sha256:{digest}")
}

/// For people: `error_rate` → `Error rate`.
pub(crate) fn metric_title(name: &str) -> String {
    match name {
        "error_rate" => "Error rate",
        "latency_p50" => "Latency p50",
        "latency_p99" => "Latency p99",
        "host_cpu" => "CPU usage",
        "host_memory" => "Memory",
        "service_cpu" => "CPU usage (service, of one core)",
        "service_memory" => "Memory (service)",
        "critical_errors" => "Critical errors",
        "new_errors" => "New error messages",
        "security_warnings" => "Security warnings",
        "request_rate" => "Request rate",
        "restarts" => "Restarts",
        "alerts" => "Alerts",
        other => return other.to_string(),
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_characters_do_not_pass() {
        let text = Text::from("a\u{202e}b\u{0}c\nd\u{1b}[31m\u{2066}\u{feff}e\u{ffff}\u{e0041}");
        assert_eq!(text.as_str(), "abc d [31me".replace("bc", "b c"));
        assert_eq!(Verbatim::from("one\r\ntwo\u{7}\n").as_str(), "one\ntwo \n");
        assert_eq!(Text::from("x".repeat(5_000)).as_str().chars().count(), CELL_CHARS_MAX + 1);
    }

    #[test]
    fn times_and_quantities_read_well() {
        assert_eq!(moment(Timestamp(1_795_557_613_000)), "2026-11-24 22:00:13");
        assert_eq!(clock(Timestamp(1_795_557_613_000), Timestamp(1_795_557_600_000)), "22:00:13");
        assert_eq!(clock(Timestamp(1_795_644_013_000), Timestamp(1_795_557_600_000)), "+1d 22:00:13");
        let spans =
            [(0, "0 s"), (850, "850 ms"), (12_400, "12.4 s"), (250_000, "4 min 10 s"), (12_600_000, "3 h 30 min"), (86_400_000, "1 d")];
        for (ms, text) in spans {
            assert_eq!(span(ms), text);
        }
        assert_eq!(quantity(0.05, "%"), "0.05%");
        assert_eq!(quantity(100.0, ""), "100");
        assert_eq!(difference(5.0, "ms"), "+5ms");
        assert_eq!(difference(-0.01, "%"), "-0.01pp");
        assert_eq!(difference(0.0, "%"), "0pp");
    }
}
