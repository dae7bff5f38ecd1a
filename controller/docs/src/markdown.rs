//! The model as Markdown (CommonMark with tables and task lists).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::model::{Block, Cell, Chart, Check, Document, Line, Mark, Signature};
use crate::text::{Text, number, quantity};

/// A document.
pub(crate) fn render(document: &Document) -> String {
    let mut out = format!("# {}\n\n**{}**", document.title, escape(&document.subtitle));
    if !document.badge.text.is_empty() {
        out.push_str(&format!(" · {}", cell(&document.badge)));
    }
    out.push_str("\n\n");
    for block in &document.blocks {
        self::block(&mut out, block);
    }
    let footer = &document.footer;
    out.push_str(&format!(
        "---\n\nRollout `{}` · journal head {} `sha256:{}` · `tidegate audit verify` checks it.\n",
        footer.rollout, footer.journal_seq, footer.journal_hash
    ));
    out
}

fn block(out: &mut String, block: &Block) {
    match block {
        Block::Heading { level, text } => {
            out.push_str(&"#".repeat(usize::from(*level)));
            out.push_str(&format!(" {}\n\n", escape(text)));
        }
        Block::Paragraph { text } => out.push_str(&format!("{}\n\n", escape(text))),
        Block::KeyValues { pairs } => {
            for (name, value) in pairs {
                out.push_str(&format!("- **{}:** {}\n", escape(name), cell(value)));
            }
            out.push('\n');
        }
        Block::Table { columns, rows, empty } => table(out, columns, rows, empty),
        Block::Checklist { rows } => {
            for row in rows {
                out.push_str(&check(row));
            }
            out.push('\n');
        }
        Block::Chart(chart) => out.push_str(&self::chart(chart)),
        Block::Signatures { rows } => signatures(out, rows),
        Block::List { items } => {
            for item in items {
                out.push_str(&format!("- {}\n", escape(item)));
            }
            out.push('\n');
        }
        Block::Code { caption, text } => {
            let fence = fence(text.as_str());
            let text = text.as_str().trim_end_matches('\n');
            out.push_str(&format!("{}\n\n{fence}text\n{text}\n{fence}\n\n", escape(caption)));
        }
    }
}

fn table(out: &mut String, columns: &[Text], rows: &[Vec<Cell>], empty: &Text) {
    out.push('|');
    for column in columns {
        out.push_str(&format!(" {} |", escape(column)));
    }
    out.push_str("\n|");
    out.push_str(&"---|".repeat(columns.len()));
    out.push('\n');
    for row in rows {
        out.push('|');
        for value in row {
            out.push_str(&format!(" {} |", cell(value)));
        }
        out.push('\n');
    }
    if rows.is_empty() {
        out.push_str(&format!("| {} |{}\n", escape(empty), " - |".repeat(columns.len().saturating_sub(1))));
    }
    out.push('\n');
}

fn signatures(out: &mut String, rows: &[Signature]) {
    let columns: Vec<Text> = ["Role", "Name", "Signature", "Date"].into_iter().map(Text::from).collect();
    let cells = rows.iter().map(|row| {
        let signature = if row.key.is_empty() {
            Cell::marked(row.mark, "_________")
        } else if row.note.is_empty() {
            Cell::marked(row.mark, row.key.as_str())
        } else {
            Cell::marked(row.mark, format!("{} ({})", row.key, row.note))
        };
        let name = if row.name.is_empty() { Cell::marked(Mark::Open, row.note.as_str()) } else { Cell::new(row.name.as_str()) };
        let at = if row.at.is_empty() { Cell::none() } else { Cell::new(row.at.as_str()) };
        alloc::vec![Cell::new(row.role.as_str()), name, signature, at]
    });
    table(out, &columns, &cells.collect::<Vec<_>>(), &Text::from("None"));
}

fn check(row: &Check) -> String {
    let ticked = if row.mark == Mark::Good { "x" } else { " " };
    let word = match row.mark {
        Mark::Bad => " — **failed**",
        Mark::Open => " — **open**",
        Mark::Warn => " — **look**",
        Mark::NotApplicable => " — n/a",
        Mark::Good | Mark::Plain => "",
    };
    let mut line = format!("- [{ticked}] {}{word}", escape(&row.title));
    if !row.item.is_empty() {
        line.push_str(&format!(" {}", code(&row.item)));
    }
    if !row.evidence.is_empty() {
        line.push_str(&format!(": {}", escape(&row.evidence)));
    }
    let who: Vec<&str> = [row.by.as_str(), row.at.as_str()].into_iter().filter(|t| !t.is_empty()).collect();
    if !who.is_empty() {
        line.push_str(&format!(" ({})", escape(&Text::from(who.join(", ")))));
    }
    line.push('\n');
    line
}

fn cell(cell: &Cell) -> String {
    let text = if cell.code && !cell.text.is_empty() { code(&cell.text) } else { escape(&cell.text) };
    match (cell.mark, text.as_str()) {
        (Mark::Plain, "") => "-".to_string(),
        (Mark::Plain, _) => text,
        (mark, "") => mark.sign().to_string(),
        (mark, _) => format!("{} {text}", mark.sign()),
    }
}

/// Lines of a chart in words, the course in blocks.
fn chart(chart: &Chart) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDTH: usize = 60;
    let mut out = format!("**{}**\n\n", escape(&chart.title));
    let all = || chart.series.iter().flat_map(|s| &s.points).map(|(_, v)| *v);
    let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(f64::MIN, f64::max));
    for series in &chart.series {
        let (Some((_, first)), Some((_, last))) = (series.points.first(), series.points.last()) else { continue };
        let unit = chart.unit.as_str();
        if matches!(series.line, Line::Baseline | Line::Limit) {
            out.push_str(&format!("- {}: {}\n", series.line.word(), quantity(*first, unit)));
            continue;
        }
        let step = series.points.len().div_ceil(WIDTH).max(1);
        let bars: String = series
            .points
            .iter()
            .step_by(step)
            .map(|(_, value)| {
                let share = if high > low { (value - low) / (high - low) } else { 0.0 };
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
                let at = (share * 7.0) as usize;
                BARS.get(at).copied().unwrap_or('█')
            })
            .collect();
        out.push_str(&format!("- {}: `{bars}` {} → {}\n", series.line.word(), number(*first), quantity(*last, unit)));
    }
    out.push('\n');
    out
}

/// Every character that Markdown or HTML in it could read as markup.
fn escape(text: &Text) -> String {
    let mut out = String::with_capacity(text.as_str().len());
    let mut chars = text.as_str().trim().chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '\\' | '`' | '*' | '[' | ']' | '|' | '~' | '!' if c != '!' || chars.peek() == Some(&'[') => {
                out.push('\\');
                out.push(c);
            }
            // Within a word it is none.
            '_' if first || out.ends_with(' ') || chars.peek().is_none_or(|n| !n.is_alphanumeric()) => out.push_str("\\_"),
            '<' => out.push_str("&lt;"),
            // A quotation where a line begins, and nothing else anywhere.
            '>' if out.trim().is_empty() => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '#' | '+' | '-' | '=' if first && chars.peek() == Some(&' ') => {
                out.push('\\');
                out.push(c);
            }
            '#' if first => out.push_str("\\#"),
            // `javascript:` and the like are no links here, and a bare address is none.
            _ => out.push(c),
        }
        first = false;
    }
    out
}

/// In backticks, where it is nothing but a name, a digest or a path.
fn code(text: &Text) -> String {
    let text_is = text.as_str().trim();
    let plain = text_is.chars().all(|c| c.is_ascii_alphanumeric() || " -_.,:;/+=@~%#'\"(){}$".contains(c));
    if plain { format!("`{text_is}`") } else { escape(text) }
}

/// Longer than any run of backticks inside.
fn fence(text: &str) -> String {
    let mut longest = 0;
    let mut run = 0;
    for c in text.chars() {
        run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    "`".repeat(longest.max(2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_as_markup() {
        for (text, wanted) in [
            ("a|b", "a\\|b"),
            ("<b>x</b>", "&lt;b>x&lt;/b>"),
            ("> said", "&gt; said"),
            ("error_rate > 1%", "error_rate > 1%"),
            ("# head", "\\# head"),
            ("![x](y)", "\\!\\[x\\](y)"),
            ("latency_p99", "latency_p99"),
            ("_em_", "\\_em\\_"),
            ("a & b", "a &amp; b"),
            ("1 < 2!", "1 &lt; 2!"),
        ] {
            assert_eq!(escape(&Text::from(text)), wanted);
        }
        assert_eq!(fence("a ```` b"), "`````");
    }
}
