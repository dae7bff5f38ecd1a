//! The file of allowed signers (ALLOWED SIGNERS in ssh-keygen(1)).
//!
//! Owns: reading it, all of it or nothing: a line that is skipped would be a
//! person who believes that their key counts, or a restriction that does not.
//! Must not: verify.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::PRINCIPAL_BYTES_MAX;
use super::pattern::{BadPatterns, PatternList};
use super::time::{self, BadTime, Seconds};
use super::wire::{self, BadKey};

/// Largest file, bytes.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Longest line, bytes: an RSA key of 8192 bits takes 1400.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Most lines with a key.
const LINES_MAX: usize = 4096;

/// Who may sign, for what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedSigners {
    file: String,
    lines: Vec<Line>,
}

/// One line: a key and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) principals: PatternList,
    namespaces: Option<PatternList>,
    pub(super) valid_after: Option<Seconds>,
    pub(super) valid_before: Option<Seconds>,
    pub(super) key_blob: Vec<u8>,
    /// Type and base64.
    pub(super) public_key: String,
    pub(super) comment: String,
}

/// A file of allowed signers that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SignersError {
    /// It cannot be read.
    #[error("{path}: the allowed signers cannot be read: check that the file exists and its permissions")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Larger than any such file.
    #[error("{file}: over {FILE_BYTES_MAX} bytes or {LINES_MAX} keys, this is not a file of allowed signers")]
    TooLarge {
        /// Which.
        file: String,
    },
    /// A line that is not understood.
    #[error("{file}:{line}: {problem}")]
    Line {
        /// Which file.
        file: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong and what to write.
        problem: LineProblem,
    },
}

/// What is wrong with a line, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// Longer than any line with a key.
    #[error("the line has over {LINE_BYTES_MAX} bytes: split its principals over several lines with the same key")]
    TooLong,
    /// Bytes that are no text, or invisible ones that could hide what the line says.
    #[error("the line holds bytes that are not printable text: write it in UTF-8, without a byte order mark")]
    NotText,
    /// A quote that is not closed.
    #[error("a quote is not closed: add the missing \"")]
    Quote,
    /// The line ends too early.
    #[error("no key: a line is `PRINCIPALS [OPTIONS] KEYTYPE BASE64 [COMMENT]`, as in `ada@example.com ssh-ed25519 AAAA…`")]
    NoKey,
    /// A .pub file as it is.
    #[error("the line begins with the key: put who may sign with it before that, as in `ada@example.com {0} AAAA…`")]
    NoPrincipals(String),
    /// The first field.
    #[error("principals: {0}")]
    Principals(BadPatterns),
    /// A certificate authority.
    #[error(
        "cert-authority: certificates are not supported; write one line for each person, with that person's own key: \
         `ada@example.com namespaces=\"…\" ssh-ed25519 AAAA…`"
    )]
    CertAuthority,
    /// An option that is not known, and so would not be obeyed.
    #[error("\"{0}\" is neither a key type nor an option: the options are namespaces=\"…\", valid-after=\"…\" and valid-before=\"…\"")]
    UnknownOption(String),
    /// An option without its quoted value.
    #[error("{0} has no quoted value: write {0}=\"…\"")]
    NoValue(&'static str),
    /// An option given twice.
    #[error("{0} stands twice: give it once")]
    Twice(&'static str),
    /// The pattern list of `namespaces`.
    #[error("namespaces: {0}")]
    Namespaces(BadPatterns),
    /// The time of `valid-after` or `valid-before`.
    #[error("{option}: {problem}")]
    Time {
        /// Which option.
        option: &'static str,
        /// What is wrong.
        problem: BadTime,
    },
    /// The key would never count.
    #[error("valid-before is not later than valid-after, so the key never counts: correct the times or remove the line")]
    NeverValid,
    /// The key itself.
    #[error("{0}")]
    Key(BadKey),
}

impl AllowedSigners {
    /// Reads and parses the file. Blocks: not for the async runtime's threads.
    ///
    /// # Errors
    /// The file cannot be read, is too large, or has a line that is not understood.
    pub fn load(path: &Path) -> Result<Self, SignersError> {
        let read = |source| SignersError::Read { path: path.into(), source };
        let mut bytes = Vec::new();
        File::open(path).map_err(read)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(read)?;
        Self::parse_bytes(&bytes, &path.display().to_string())
    }

    /// Parses a file's text; `file_name` is for messages.
    ///
    /// # Errors
    /// The first line that is not understood: nothing is skipped.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, SignersError> {
        Self::parse_bytes(text.as_bytes(), file_name)
    }

    fn parse_bytes(bytes: &[u8], file_name: &str) -> Result<Self, SignersError> {
        let too_large = || SignersError::TooLarge { file: file_name.to_owned() };
        if bytes.len() > FILE_BYTES_MAX {
            return Err(too_large());
        }
        let mut lines = Vec::new();
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            match parse_line(line.strip_suffix(b"\r").unwrap_or(line)) {
                Ok(None) => {}
                Ok(Some(_)) if lines.len() == LINES_MAX => return Err(too_large()),
                Ok(Some(line)) => lines.push(line),
                Err(problem) => return Err(SignersError::Line { file: file_name.to_owned(), line: at + 1, problem }),
            }
        }
        Ok(Self { file: file_name.to_owned(), lines })
    }

    /// The file's name, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Number of lines with a key.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Nobody may sign.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether some key of `principal` counts for `namespace` at `now_unix_ms` (milliseconds since 1970): whether that
    /// person could sign at all.
    #[must_use]
    pub fn can_sign(&self, principal: &str, namespace: &str, now_unix_ms: u64) -> bool {
        let now = Seconds(now_unix_ms / 1000);
        self.lines.iter().any(|line| line.allows(namespace) && line.covers(now) && line.is_for(principal))
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }
}

impl Line {
    /// A principal is one name: `*` in the file must not let a list or an escape sequence become one.
    pub(super) fn is_for(&self, principal: &str) -> bool {
        let is_name =
            !principal.is_empty() && principal.len() <= PRINCIPAL_BYTES_MAX && !principal.chars().any(|c| c.is_control() || c == ',');
        is_name && self.principals.matches(principal)
    }

    pub(super) fn allows(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|list| list.matches(namespace))
    }

    /// Both ends belong to the time, as in OpenSSH.
    pub(super) fn covers(&self, now: Seconds) -> bool {
        self.valid_after.is_none_or(|after| now >= after) && self.valid_before.is_none_or(|before| now <= before)
    }
}

/// None for an empty line or a comment.
fn parse_line(bytes: &[u8]) -> Result<Option<Line>, LineProblem> {
    if bytes.len() > LINE_BYTES_MAX {
        return Err(LineProblem::TooLong);
    }
    let line = std::str::from_utf8(bytes).map_err(|_| LineProblem::NotText)?.trim_matches([' ', '\t']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if line.chars().any(|c| (c.is_control() && c != '\t') || c == '\u{feff}') {
        return Err(LineProblem::NotText);
    }

    let (principals, rest) = field(line)?;
    // Every key in base64 begins so: the bytes of a short length.
    if rest.starts_with("AAAA") {
        return Err(LineProblem::NoPrincipals(principals.to_owned()));
    }
    // A list in quotes may have names with spaces.
    let principals = principals.strip_prefix('"').and_then(|list| list.strip_suffix('"')).unwrap_or(principals);
    let mut line = Line {
        principals: PatternList::parse(principals).map_err(LineProblem::Principals)?,
        namespaces: None,
        valid_after: None,
        valid_before: None,
        key_blob: Vec::new(),
        public_key: String::new(),
        comment: String::new(),
    };

    let (next, after) = field(rest)?;
    let (key_type, rest) = if is_options(next) {
        parse_options(next, &mut line)?;
        field(after)?
    } else {
        (next, after)
    };
    let (base64, comment) = field(rest)?;
    if base64.is_empty() {
        return Err(if key_type.is_empty() || looks_like_key_type(key_type) {
            LineProblem::NoKey
        } else {
            LineProblem::UnknownOption(key_type.to_owned())
        });
    }
    let key_blob = wire::decode(base64.as_bytes()).ok_or_else(|| {
        if looks_like_key_type(key_type) { LineProblem::Key(BadKey::Malformed) } else { LineProblem::UnknownOption(key_type.to_owned()) }
    })?;
    let (_, is) = wire::parse_key(&key_blob).map_err(LineProblem::Key)?;
    if is != key_type {
        return Err(LineProblem::Key(BadKey::Type { said: key_type.to_owned(), is }));
    }
    line.key_blob = key_blob;
    line.public_key = format!("{key_type} {base64}");
    comment.clone_into(&mut line.comment);
    Ok(Some(line))
}

/// The first field and what follows it. Blanks within quotes separate nothing; `\"` is a quote within quotes.
fn field(text: &str) -> Result<(&str, &str), LineProblem> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b' ' | b'\t' if !quoted => {
                let (field, rest) = text.split_at_checked(at).unwrap_or((text, ""));
                return Ok((field, rest.trim_start_matches([' ', '\t'])));
            }
            b'"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = byte == b'\\';
    }
    if quoted { Err(LineProblem::Quote) } else { Ok((text, "")) }
}

fn is_options(field: &str) -> bool {
    field.contains(['=', ',', '"']) || field.eq_ignore_ascii_case("cert-authority")
}

fn looks_like_key_type(field: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-", "rsa-"].iter().any(|prefix| field.starts_with(prefix))
}

fn parse_options(mut options: &str, line: &mut Line) -> Result<(), LineProblem> {
    loop {
        let end = options.find(['=', ',']).unwrap_or(options.len());
        let (name, rest) = options.split_at_checked(end).unwrap_or((options, ""));
        let option = match name.to_ascii_lowercase().as_str() {
            "cert-authority" => return Err(LineProblem::CertAuthority),
            "namespaces" => "namespaces",
            "valid-after" => "valid-after",
            "valid-before" => "valid-before",
            _ => return Err(LineProblem::UnknownOption(name.to_owned())),
        };
        let (value, rest) = quoted_value(rest.strip_prefix('=').ok_or(LineProblem::NoValue(option))?, option)?;
        let twice = if option == "namespaces" {
            line.namespaces.replace(PatternList::parse(&value).map_err(LineProblem::Namespaces)?).is_some()
        } else {
            let time = time::parse(&value).map_err(|problem| LineProblem::Time { option, problem })?;
            let slot = if option == "valid-after" { &mut line.valid_after } else { &mut line.valid_before };
            slot.replace(time).is_some()
        };
        if twice {
            return Err(LineProblem::Twice(option));
        }
        if rest.is_empty() {
            break;
        }
        options = rest.strip_prefix(',').ok_or_else(|| LineProblem::UnknownOption(rest.to_owned()))?;
    }
    match (line.valid_after, line.valid_before) {
        (Some(after), Some(before)) if before <= after => Err(LineProblem::NeverValid),
        _ => Ok(()),
    }
}

/// The value between quotes, and what follows it.
fn quoted_value<'a>(text: &'a str, option: &'static str) -> Result<(String, &'a str), LineProblem> {
    let text = text.strip_prefix('"').ok_or(LineProblem::NoValue(option))?;
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' if chars.next_if(|(_, next)| *next == '"').is_some() => value.push('"'),
            other => value.push(other),
        }
    }
    Err(LineProblem::Quote)
}
