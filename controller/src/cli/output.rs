//! The only place of the CLI that prints.
//!
//! Data goes to stdout, everything else to stderr. `human` is for people and may
//! change; `json` is one document; `ndjson` one object a line, each with `schema`.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::table::{Tone, clean, paint};
use crate::operator::doc::{ErrorOut, SCHEMA};
use crate::operator::msg::{ErrorCode, ErrorDoc};

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences
    #[default]
    Human,
    /// One JSON document
    Json,
    /// One JSON object a line
    Ndjson,
}

/// Where and how a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// As asked for.
    pub format: Format,
    color: bool,
    /// Progress may be drawn on stderr.
    pub live: bool,
}

/// Longest line of free text on a terminal, characters.
const LINE_CHARS_MAX: usize = 2_000;
/// Most lines of an error's part.
const BLOCK_LINES_MAX: usize = 400;

impl Output {
    /// For this process's streams. `NO_COLOR` (set, not empty) turns colours off.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb" || t.is_empty());
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            format,
            color: format == Format::Human && !no_color && !dumb && io::stdout().is_terminal(),
            live: format != Format::Ndjson && !dumb && io::stderr().is_terminal(),
        }
    }

    /// Whether data on stdout may be coloured.
    #[must_use]
    pub const fn color(&self) -> bool {
        self.color
    }

    /// A person sits here and sees what happens.
    #[must_use]
    pub fn attended(&self) -> bool {
        self.live && self.format == Format::Human && io::stdin().is_terminal()
    }

    /// One document, as the controller wrote it.
    ///
    /// # Errors
    /// It does not read, or stdout is gone.
    pub fn document<T: DeserializeOwned>(&self, json: &str, human: impl FnOnce(&T, bool) -> String) -> Result<(), ErrorDoc> {
        match self.format {
            Format::Human => self.stdout(&human(&read(json)?, self.color)),
            Format::Json => self.stdout(&format!("{json}\n")),
            Format::Ndjson => self.stdout(&lines(json)?),
        }
    }

    /// One document, made here.
    ///
    /// # Errors
    /// Stdout is gone.
    pub fn value<T: Serialize>(&self, value: &T, human: impl FnOnce(&T, bool) -> String) -> Result<(), ErrorDoc> {
        if self.format == Format::Human {
            return self.stdout(&human(value, self.color));
        }
        let json = serde_json::to_string(value).map_err(|e| ErrorDoc::new(ErrorCode::Internal, "write JSON").cause(e.to_string()))?;
        self.stdout(&if self.format == Format::Json { format!("{json}\n") } else { lines(&json)? })
    }

    /// A line of ndjson, as the controller wrote it.
    ///
    /// # Errors
    /// Stdout is gone.
    pub fn line(&self, json: &str) -> Result<(), ErrorDoc> {
        self.stdout(&format!("{json}\n"))
    }

    /// Text on stdout as it is: help, completions, tokens.
    ///
    /// # Errors
    /// Stdout is gone.
    pub fn stdout(&self, text: &str) -> Result<(), ErrorDoc> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // `tidegate … | head` is no error.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(ErrorDoc::new(ErrorCode::Internal, "write stdout").cause(e.to_string())),
            _ => Ok(()),
        }
    }

    /// A line for people on stderr. A stderr that is gone does not stop a rollout.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{}", clean(text, LINE_CHARS_MAX));
    }

    /// What went wrong: JSON on stdout, or sentences on stderr.
    pub fn error(&self, error: &ErrorDoc) {
        if self.format != Format::Human {
            let out = ErrorOut { schema: SCHEMA, error: error.clone() };
            let json = serde_json::to_string(&out).unwrap_or_default();
            let _ = self.stdout(&format!("{json}\n"));
            return;
        }
        let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && self.live;
        let _ = io::stderr().lock().write_all(render_error(error, color).as_bytes());
    }
}

/// An error for people: the thing, the cause, the fix.
#[must_use]
pub fn render_error(error: &ErrorDoc, color: bool) -> String {
    let mut out = format!("{} {}\n", paint("error:", Tone::Bad, color), block(&error.message));
    if let Some(cause) = &error.cause {
        out.push_str(&format!("  cause: {}\n", block(cause)));
    }
    if let Some(fix) = &error.fix {
        out.push_str(&format!("  fix: {}\n", block(fix)));
    }
    out
}

/// Text of several lines (say, a file's line with a mark below it), indented.
fn block(text: &str) -> String {
    let lines: Vec<String> = text.lines().take(BLOCK_LINES_MAX).map(|l| clean(l, LINE_CHARS_MAX).trim_end().to_string()).collect();
    lines.join("\n    ")
}

/// A document of the controller.
///
/// # Errors
/// It does not read.
pub fn read<T: DeserializeOwned>(json: &str) -> Result<T, ErrorDoc> {
    serde_json::from_str(json).map_err(|e| {
        ErrorDoc::new(ErrorCode::Internal, "the controller's answer does not read")
            .cause(e.to_string())
            .fix("use a `tidegate` of the controller's version; --output json prints the answer as it is")
    })
}

/// A document as ndjson: lists one element a line.
fn lines(json: &str) -> Result<String, ErrorDoc> {
    let elements = match read::<Value>(json)? {
        Value::Array(elements) => elements,
        one => vec![one],
    };
    let mut out = String::new();
    for mut element in elements {
        if let Value::Object(fields) = &mut element {
            fields.entry("schema").or_insert_with(|| SCHEMA.into());
        }
        out.push_str(&element.to_string());
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_one_object_a_line_with_a_schema() {
        assert_eq!(lines(r#"[{"a":1},{"a":2,"schema":1}]"#).unwrap(), "{\"a\":1,\"schema\":1}\n{\"a\":2,\"schema\":1}\n");
        assert_eq!(lines("[]").unwrap(), "");
        assert!(lines("{").is_err());
    }

    #[test]
    fn errors_say_thing_cause_and_fix() {
        let error = ErrorDoc::new(ErrorCode::Refused, "host web-1\x1b[2J is taken").cause("line 1\nline 2").fix("wait for r-1");
        assert_eq!(render_error(&error, false), "error: host web-1 [2J is taken\n  cause: line 1\n    line 2\n  fix: wait for r-1\n");
    }
}
