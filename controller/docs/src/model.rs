//! The one model that every format renders: a small tree of headings, tables and
//! checklists.
//!
//! Owns: what a document can consist of. Every text in it is a [`Text`] or a
//! [`Verbatim`], so no renderer meets a hostile character. Must not: know a format
//! or a rollout.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;
use serde_json::Value;

use crate::text::{Text, Verbatim};

/// One deliverable, ready to be rendered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Document {
    /// 1 to 6; 0 for the index.
    pub(crate) number: u8,
    /// File name without its ending: `1-pre-deployment-checklist`.
    pub(crate) slug: &'static str,
    /// `Pre-Deployment Checklist`.
    pub(crate) title: &'static str,
    /// What it is about, under the title.
    pub(crate) subtitle: Text,
    /// How it ended, or where it stands.
    pub(crate) badge: Cell,
    /// In order.
    pub(crate) blocks: Vec<Block>,
    /// Under everything.
    pub(crate) footer: Footer,
    /// The same as numbers, for programs.
    #[serde(skip)]
    pub(crate) data: Value,
}

/// What ties paper to the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Footer {
    /// Which rollout.
    pub(crate) rollout: Text,
    /// The last record that the documents know.
    pub(crate) journal_seq: u64,
    /// Its hash, which covers all before it.
    pub(crate) journal_hash: Text,
}

/// One part of a document.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "block", rename_all = "kebab-case")]
pub(crate) enum Block {
    /// `level` from 2 (the title is 1) to 4.
    Heading {
        /// 2 to 4.
        level: u8,
        /// In the guide's own words where it has some.
        text: Text,
    },
    /// One paragraph.
    Paragraph {
        /// It.
        text: Text,
    },
    /// Names and values.
    KeyValues {
        /// In order.
        pairs: Vec<(Text, Cell)>,
    },
    /// Rows under columns; every row has as many cells as there are columns.
    Table {
        /// Their names.
        columns: Vec<Text>,
        /// In order.
        rows: Vec<Vec<Cell>>,
        /// Shown in place of rows where there is none.
        empty: Text,
    },
    /// Boxes, ticked or not.
    Checklist {
        /// In order.
        rows: Vec<Check>,
    },
    /// Values over time.
    Chart(Chart),
    /// Who signed, and who has not yet.
    Signatures {
        /// One each.
        rows: Vec<Signature>,
    },
    /// One item each.
    List {
        /// In order.
        items: Vec<Text>,
    },
    /// As it is: signatures, payloads, commands.
    Code {
        /// Over it.
        caption: Text,
        /// It.
        text: Verbatim,
    },
}

/// How something stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mark {
    /// Nothing to say.
    #[default]
    Plain,
    /// It holds.
    Good,
    /// It does not hold.
    Bad,
    /// Somebody should look.
    Warn,
    /// Not given yet.
    Open,
    /// It does not apply.
    NotApplicable,
}

impl Mark {
    /// Before a text.
    #[must_use]
    pub(crate) const fn sign(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "✓",
            Self::Bad => "✗",
            Self::Warn => "!",
            Self::Open => "○",
            Self::NotApplicable => "–",
        }
    }
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    /// What stands in it.
    pub(crate) text: Text,
    /// How it stands.
    #[serde(skip_serializing_if = "is_plain")]
    pub(crate) mark: Mark,
    /// A digest, a name, a command: in a fixed-width font.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) code: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_plain(mark: &Mark) -> bool {
    *mark == Mark::Plain
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Cell {
    /// Plain text.
    pub(crate) fn new(text: impl Into<Text>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// In a fixed-width font.
    pub(crate) fn code(text: impl Into<Text>) -> Self {
        Self { text: text.into(), code: true, ..Self::default() }
    }

    /// With a mark before it.
    pub(crate) fn marked(mark: Mark, text: impl Into<Text>) -> Self {
        Self { text: text.into(), mark, code: false }
    }

    /// A line whose evidence is missing: its fixed name, and what to do.
    pub(crate) fn open(item: &str, what: &str) -> Self {
        Self::marked(Mark::Open, alloc::format!("open: {item} ({what})"))
    }

    /// Nothing.
    #[must_use]
    pub(crate) fn none() -> Self {
        Self::new("-")
    }
}

/// A box of a checklist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Its fixed name.
    pub(crate) item: Text,
    /// The guide's line.
    pub(crate) title: Text,
    /// Good = ticked, open, bad = failed, n/a.
    pub(crate) mark: Mark,
    /// What was seen, or what is missing.
    pub(crate) evidence: Text,
    /// Who said so.
    pub(crate) by: Text,
    /// When.
    pub(crate) at: Text,
}

/// Values over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Chart {
    /// Over it.
    pub(crate) title: Text,
    /// `%`, `ms`, `/s` or nothing.
    pub(crate) unit: Text,
    /// The horizontal axis, Unix milliseconds.
    pub(crate) from_unix_ms: u64,
    /// Its end.
    pub(crate) to_unix_ms: u64,
    /// At most four.
    pub(crate) series: Vec<Series>,
}

/// What a line of a chart is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// Before the first swap: one value.
    Baseline,
    /// The hosts that changed.
    Changed,
    /// The hosts not changed yet.
    Control,
    /// What it is held against: one value.
    Limit,
}

impl Line {
    /// For legends and style classes.
    #[must_use]
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Changed => "changed",
            Self::Control => "control",
            Self::Limit => "limit",
        }
    }
}

/// One line of a chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Series {
    /// What it is.
    pub(crate) line: Line,
    /// Unix milliseconds and value; a horizontal line has one point.
    pub(crate) points: Vec<(u64, f64)>,
}

/// A place for a signature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Signature {
    /// As what.
    pub(crate) role: Text,
    /// Who; empty while nobody did.
    pub(crate) name: Text,
    /// Fingerprint of the key.
    pub(crate) key: Text,
    /// When.
    pub(crate) at: Text,
    /// Good = signed, open, warn = void.
    pub(crate) mark: Mark,
    /// What is missing, or why it is void.
    pub(crate) note: Text,
}

/// Builds blocks with less ado.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    pub(crate) blocks: Vec<Block>,
}

impl Sheet {
    pub(crate) fn h2(&mut self, text: &str) {
        self.blocks.push(Block::Heading { level: 2, text: text.into() });
    }

    pub(crate) fn h3(&mut self, text: &str) {
        self.blocks.push(Block::Heading { level: 3, text: text.into() });
    }

    pub(crate) fn text(&mut self, text: impl Into<Text>) {
        self.blocks.push(Block::Paragraph { text: text.into() });
    }

    pub(crate) fn pairs(&mut self, pairs: Vec<(&str, Cell)>) {
        self.blocks.push(Block::KeyValues { pairs: pairs.into_iter().map(|(k, v)| (k.into(), v)).collect() });
    }

    pub(crate) fn table(&mut self, columns: &[&str], rows: Vec<Vec<Cell>>, empty: &str) {
        self.blocks.push(Block::Table { columns: columns.iter().map(|c| (*c).into()).collect(), rows, empty: empty.into() });
    }

    pub(crate) fn checks(&mut self, rows: Vec<Check>) {
        self.blocks.push(Block::Checklist { rows });
    }

    pub(crate) fn list(&mut self, items: impl IntoIterator<Item = String>) {
        self.blocks.push(Block::List { items: items.into_iter().map(Text::from).collect() });
    }

    pub(crate) fn code(&mut self, caption: &str, text: &str) {
        self.blocks.push(Block::Code { caption: caption.into(), text: text.into() });
    }
}
