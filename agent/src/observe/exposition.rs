//! The Prometheus text exposition format, read strictly, and selectors of its
//! series. OpenMetrics' exemplars and suffixes are tolerated.
//!
//! Must not: keep a series; each is told of once.

use std::borrow::Cow;
use std::fmt;

use regex_lite::{Regex, RegexBuilder};

/// Of a line that does not read, characters quoted.
const EXCERPT_CHARS: usize = 80;
/// Of a selector.
const SELECTOR_BYTES_MAX: usize = 1_024;
/// Of one compiled expression: every series of every scrape is matched with it.
const REGEX_BYTES_MAX: usize = 64 * 1024;

/// One sample.
#[derive(Debug, PartialEq)]
pub(super) struct Series<'a> {
    pub(super) name: &'a str,
    pub(super) labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) value: f64,
}

impl Series<'_> {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| value.as_ref())
    }
}

impl fmt::Display for Series<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        for (at, (label, value)) in self.labels.iter().enumerate() {
            write!(f, "{}{label}={value:?}", if at == 0 { "{" } else { "," })?;
        }
        f.write_str(if self.labels.is_empty() { "" } else { "}" })
    }
}

/// What a line says.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// A family of this name is exposed, even if no series of it is there yet.
    Family(&'a str),
    Series(Series<'a>),
}

/// Not the text exposition format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} is not of the Prometheus text format: {excerpt:?}")]
pub(super) struct BadLine {
    number: usize,
    excerpt: String,
}

/// Reads it line by line.
///
/// # Errors
/// The first line that does not read: half of a scrape is no measurement.
pub(super) fn read<'a>(text: &'a str, each: &mut dyn FnMut(Line<'a>)) -> Result<(), BadLine> {
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.split_ascii_whitespace();
            if let (Some("TYPE"), Some(name)) = (words.next(), words.next()) {
                each(Line::Family(name));
            }
            continue;
        }
        let Some(series) = series(line) else {
            return Err(BadLine { number: at + 1, excerpt: line.chars().take(EXCERPT_CHARS).collect() });
        };
        each(Line::Series(series));
    }
    Ok(())
}

fn series(line: &str) -> Option<Series<'_>> {
    let (name, rest) = name(line)?;
    let rest = skip_blank(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None if rest.len() + name.len() < line.len() => (Vec::new(), rest),
        None => return None,
    };
    let (value, rest) = word(rest)?;
    let value = number(value)?;
    let rest = skip_blank(rest);
    // A timestamp, an exemplar, both or neither.
    let rest = match word(rest) {
        Some((stamp, rest)) if !stamp.starts_with('#') => {
            stamp.parse::<f64>().ok()?;
            skip_blank(rest)
        }
        _ => rest,
    };
    (rest.is_empty() || rest.starts_with('#')).then_some(Series { name, labels, value })
}

/// As Go writes them.
pub(super) fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => text.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

fn skip_blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

fn word(text: &str) -> Option<(&str, &str)> {
    let text = skip_blank(text);
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A metric's name, and what follows.
fn name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some((name, rest))
}

/// Labels behind their brace, and what follows.
#[expect(clippy::type_complexity, reason = "named once, right here")]
fn labels(mut rest: &str) -> Option<(Vec<(&str, Cow<'_, str>)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = skip_blank(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (label, after) = name(rest)?;
        let after = skip_blank(skip_blank(after).strip_prefix('=')?).strip_prefix('"')?;
        let (value, after) = quoted(after, '"')?;
        labels.push((label, value));
        rest = skip_blank(after);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// A text up to its closing quote, unescaped, and what follows.
fn quoted(text: &str, quote: char) -> Option<(Cow<'_, str>, &str)> {
    let mut out = String::new();
    let mut from = 0;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            let last = text.get(from..at)?;
            let whole = if out.is_empty() { Cow::Borrowed(last) } else { Cow::Owned(out + last) };
            return Some((whole, text.get(at + c.len_utf8()..)?));
        }
        if c == '\\' {
            out.push_str(text.get(from..at)?);
            let (next, escaped) = chars.next()?;
            // Any other stays as it stands: regular expressions are written so.
            if !matches!(escaped, 'n' | '\\' | '"' | '\'') {
                out.push('\\');
            }
            out.push(if escaped == 'n' { '\n' } else { escaped });
            from = next + escaped.len_utf8();
        }
    }
    None
}

/// `name{label="x",label!="x",label=~"re",label!~"re"}`.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    pub(super) name: String,
    matchers: Vec<(String, Matcher)>,
}

#[derive(Clone, Debug)]
enum Matcher {
    Is(String),
    IsNot(String),
    Like(Regex),
    NotLike(Regex),
}

/// A text that selects nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSelector {
    #[error("{0:?} is not a series selector: write name, or name{{label=\"value\",other=~\"re\"}}")]
    Form(String),
    #[error("{pattern:?} in {text:?} is not a regular expression: {why}")]
    Pattern { text: String, pattern: String, why: String },
    #[error("a series selector of {0} bytes is too long: write at most {SELECTOR_BYTES_MAX}")]
    Long(usize),
}

impl Selector {
    /// As PromQL writes them; regular expressions match a value as a whole.
    ///
    /// # Errors
    /// [`BadSelector`].
    pub(super) fn parse(text: &str) -> Result<Self, BadSelector> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(BadSelector::Long(text.len()));
        }
        let form = || BadSelector::Form(text.to_owned());
        let (metric, rest) = name(text.trim()).ok_or_else(form)?;
        let mut matchers = Vec::new();
        let mut rest = skip_blank(rest);
        if let Some(after) = rest.strip_prefix('{') {
            rest = skip_blank(after);
            while !rest.starts_with('}') {
                let (label, after) = name(rest).ok_or_else(form)?;
                let after = skip_blank(after);
                let operators = ["=~", "!~", "!=", "="];
                let (operator, after) = operators.iter().find_map(|o| Some((*o, after.strip_prefix(o)?))).ok_or_else(form)?;
                let after = skip_blank(after);
                let quote = after.chars().next().filter(|c| matches!(c, '"' | '\'')).ok_or_else(form)?;
                let (value, after) = quoted(after.get(1..).unwrap_or_default(), quote).ok_or_else(form)?;
                let regex = || {
                    let bounded = RegexBuilder::new(&format!("^(?s:{value})$")).size_limit(REGEX_BYTES_MAX).build();
                    bounded.map_err(|e| BadSelector::Pattern { text: text.to_owned(), pattern: value.to_string(), why: e.to_string() })
                };
                let matcher = match operator {
                    "=~" => Matcher::Like(regex()?),
                    "!~" => Matcher::NotLike(regex()?),
                    "!=" => Matcher::IsNot(value.to_string()),
                    _ => Matcher::Is(value.to_string()),
                };
                matchers.push((label.to_owned(), matcher));
                rest = skip_blank(after);
                rest = match rest.strip_prefix(',') {
                    Some(after) => skip_blank(after),
                    None if rest.starts_with('}') => rest,
                    None => return Err(form()),
                };
            }
            rest = skip_blank(rest.get(1..).unwrap_or_default());
        }
        if rest.is_empty() { Ok(Self { name: metric.to_owned(), matchers }) } else { Err(form()) }
    }

    /// Whether its labels match; a label that is not there is empty, as in PromQL.
    pub(super) fn matches(&self, series: &Series<'_>) -> bool {
        self.matchers.iter().all(|(label, matcher)| {
            let value = series.label(label).unwrap_or_default();
            match matcher {
                Matcher::Is(wanted) => value == wanted,
                Matcher::IsNot(unwanted) => value != unwanted,
                Matcher::Like(regex) => regex.is_match(value),
                Matcher::NotLike(regex) => !regex.is_match(value),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Vec<String>, BadLine> {
        let mut out = Vec::new();
        read(text, &mut |line| {
            out.push(match line {
                Line::Family(name) => format!("family {name}"),
                Line::Series(series) => format!("{series} {}", series.value),
            });
        })?;
        Ok(out)
    }

    #[test]
    fn the_format_s_own_example_is_read() {
        let text = concat!(
            "# HELP http_requests_total The total number of HTTP requests.\n",
            "# TYPE http_requests_total counter\n",
            "http_requests_total{method=\"post\",code=\"200\"} 1027 1395066363000\n",
            "http_requests_total{method=\"post\",code=\"400\",}    3 1395066363000\r\n",
            "\n# Escaping in label values:\n",
            "msdos_file_access_time_seconds{path=\"C:\\\\DIR\\\\FILE.TXT\",error=\"Cannot find file:\\n\\\"FILE.TXT\\\"\"} 1.458255915e9\n",
            "metric_without_timestamp_and_labels 12.47\n",
            "something_weird{problem=\"division by zero\"} +Inf -3982045\n",
            "x:y { le = \"0.05\" } NaN # {trace_id=\"KOO5S4vxi0o\"} 0.67\n",
            "# EOF\n",
        );
        let wanted = [
            "family http_requests_total",
            "http_requests_total{method=\"post\",code=\"200\"} 1027",
            "http_requests_total{method=\"post\",code=\"400\"} 3",
            "msdos_file_access_time_seconds{path=\"C:\\\\DIR\\\\FILE.TXT\",error=\"Cannot find file:\\n\\\"FILE.TXT\\\"\"} 1458255915",
            "metric_without_timestamp_and_labels 12.47",
            "something_weird{problem=\"division by zero\"} inf",
            "x:y{le=\"0.05\"} NaN",
        ];
        assert_eq!(lines(text).unwrap(), wanted);
    }

    #[test]
    fn anything_else_is_refused_with_its_line() {
        let bad = [
            "<html>",
            "a",
            "a{b=\"c\" 1",
            "a{b=\"c} 1",
            "a{b=c} 1",
            "a{b=\"c\"d=\"e\"} 1",
            "a{b} 1",
            "a{b=\"c\"}",
            "a x",
            "a 1 x",
            "a 1 2 3",
            "1a 1",
            "a 1e999",
            "a infinity",
            "a 0x1p3",
            "{a=\"b\"} 1",
            "a-b 1",
            "é 1",
        ];
        for line in bad {
            assert_eq!(lines(&format!("ok 1\n{line}\nok 2\n")).unwrap_err().number, 2, "{line}");
        }
        let error = lines(&"<".repeat(10_000)).unwrap_err();
        assert_eq!(error.excerpt.len(), EXCERPT_CHARS);
    }

    #[test]
    fn selectors_match_as_in_promql() {
        let series = |code: &'static str| Series { name: "r", labels: vec![("code", code.into()), ("path", "/a".into())], value: 1.0 };
        let cases = [
            ("r", true, true),
            ("r{}", true, true),
            ("r{code=\"500\"}", true, false),
            ("r{code!=\"500\"}", false, true),
            ("r{code=~\"5..\"}", true, false),
            ("r{code=~'5..', path=\"/a\",}", true, false),
            ("r{code=~\"5.\"}", false, false),
            ("r{code=~\"50|200\"}", false, true),
            ("r{code!~\"5..\"}", false, true),
            ("r{none=\"\"}", true, true),
            ("r{none=~\".+\"}", false, false),
            (" r { code =~ \"\\d+\" , path!~\"/b\" } ", true, true),
        ];
        for (text, bad, good) in cases {
            let selector = Selector::parse(text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((selector.matches(&series("500")), selector.matches(&series("200"))), (bad, good), "{text}");
        }
        for text in ["", "{code=\"5\"}", "r{", "r{code}", "r{code=5}", "r{code=\"5\"", "r{code=\"5\"} x", "sum(r)", "r[5m]", "r{a==\"b\"}"]
        {
            assert!(matches!(Selector::parse(text), Err(BadSelector::Form(_))), "{text}");
        }
        let error = Selector::parse("r{code=~\"5(.\"}").unwrap_err();
        assert!(matches!(&error, BadSelector::Pattern { .. }) && error.to_string().contains("5(."), "{error}");
    }

    #[test]
    fn selectors_have_bounds() {
        let with = |pattern: &str| Selector::parse(&format!("r{{code=~\"{pattern}\"}}"));
        let names: Vec<String> = (0..50).map(|n| format!("/api/v1/{n}/.*")).collect();
        assert!(with(&names.join("|")).is_ok() && with("[a-z]{1,200}").is_ok());
        for pattern in ["((a{100}){100}){2}", "(\\\\w{100}){50}"] {
            let error = with(pattern).unwrap_err();
            assert!(matches!(error, BadSelector::Pattern { .. }), "{pattern}: {error}");
        }
        let long = |more: usize| Selector::parse(&"r".repeat(SELECTOR_BYTES_MAX + more));
        assert!(long(0).is_ok());
        assert_eq!(long(1).unwrap_err(), BadSelector::Long(SELECTOR_BYTES_MAX + 1));
    }
}
