//! Aligned columns of text that may come from hosts.

/// How a cell is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: &str, tone: Tone) -> Self {
        Self { text: clean(text, CELL_CHARS_MAX), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text.as_ref(), Tone::Plain)
    }
}

/// Rows below a heading; cells keep to their columns, the last is not padded.
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

/// Long words of a host do not push everything else off the screen.
const CELL_CHARS_MAX: usize = 200;

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.into_iter().map(Cell::from).collect()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    pub(super) fn render(&self, color: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.text.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let text = if cell.text.is_empty() { "-" } else { &cell.text };
                let pad = width.saturating_sub(text.chars().count()) + 2;
                line.push_str(&paint(text, cell.tone, color));
                line.extend(std::iter::repeat_n(' ', pad));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// ANSI around a text, or nothing.
pub(super) fn paint(text: &str, tone: Tone, color: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Busy => "33",
        Tone::Bad => "31",
        Tone::Plain => return text.to_string(),
    };
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// What others wrote, safe for a terminal: no control or direction-changing
/// characters, and bounded.
pub(super) fn clean(text: &str, max: usize) -> String {
    let hidden =
        |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let mut out: String = text.chars().map(|c| if hidden(c) { ' ' } else { c }).take(max + 1).collect();
    if out.chars().count() > max {
        out = out.chars().take(max.saturating_sub(1)).chain(['…']).collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_hosts_cannot_write_to_the_terminal() {
        let mut table = Table::new(["NAME", "STATE", "CAUSE"]);
        table.row(["web-1".into(), Cell::toned("failed", Tone::Bad), "\x1b[2Jboom\nnext".into()]);
        table.row(["a-long-name".into(), "ok".into(), "".into()]);
        assert_eq!(table.render(false), "NAME         STATE   CAUSE\nweb-1        failed   [2Jboom next\na-long-name  ok      -\n");
        let painted = table.render(true);
        assert!(painted.contains("\x1b[31mfailed\x1b[0m  "), "{painted:?}");
        assert_eq!(painted.matches('\x1b').count(), 2);
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abcde…");
        assert_eq!(clean("a\u{202e}b", 6), "a b");
    }
}
