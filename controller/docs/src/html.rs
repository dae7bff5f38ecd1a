//! The model as one self-contained HTML file: inline style, inline SVG, no script,
//! nothing fetched.

use alloc::format;
use alloc::string::String;

use crate::chart;
use crate::model::{Block, Cell, Check, Document, Mark, Signature};
use crate::story::PAPERS;
use crate::text::Text;

const STYLE: &str = include_str!("style.css");

/// A document.
pub(crate) fn render(document: &Document) -> String {
    let mut out = String::with_capacity(64 * 1024);
    let title = escape(document.title);
    // Says to the browser as well that nothing is to be fetched or run.
    out.push_str(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<meta name=\"color-scheme\" content=\"light dark\">\n",
    );
    out.push_str(&format!("<title>{title} · {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n", text(&document.subtitle)));
    nav(&mut out, document);
    let number = if document.number == 0 { "Deliverables".into() } else { format!("Deliverable {} of 6", document.number) };
    out.push_str(&format!(
        "<main>\n<header>\n<div class=\"over\"><span>{number}</span>{}</div>\n<h1>{title}</h1>\n<p>{}</p>\n</header>\n",
        pill(&document.badge),
        text(&document.subtitle)
    ));
    let mut charts = false;
    for (at, block) in document.blocks.iter().enumerate() {
        let chart = matches!(block, Block::Chart(_));
        if chart != charts {
            out.push_str(if chart { "<div class=\"charts\">\n" } else { "</div>\n" });
            charts = chart;
        }
        self::block(&mut out, block, at);
    }
    if charts {
        out.push_str("</div>\n");
    }
    let footer = &document.footer;
    out.push_str(&format!(
        "<footer>Rollout <code>{}</code> · journal head {} <code>sha256:{}</code> · <code>tidegate audit verify</code> checks it.</footer>\n\
         </main>\n</body>\n</html>\n",
        text(&footer.rollout),
        footer.journal_seq,
        text(&footer.journal_hash)
    ));
    out
}

fn nav(out: &mut String, document: &Document) {
    out.push_str("<nav aria-label=\"Documents\">\n");
    for (number, (slug, title)) in PAPERS.iter().enumerate() {
        let here = if usize::from(document.number) == number { " aria-current=\"page\"" } else { "" };
        let title = if number == 0 { "Index".into() } else { format!("{number} {title}") };
        out.push_str(&format!("<a href=\"{slug}.html\"{here}>{}</a>\n", escape(&title)));
    }
    out.push_str("</nav>\n");
}

fn block(out: &mut String, block: &Block, at: usize) {
    match block {
        Block::Heading { level, text: title } => out.push_str(&format!("<h{level}>{}</h{level}>\n", text(title))),
        Block::Paragraph { text: of } => out.push_str(&format!("<p>{}</p>\n", text(of))),
        Block::KeyValues { pairs } => {
            out.push_str("<dl>\n");
            for (name, value) in pairs {
                out.push_str(&format!("<dt>{}</dt><dd>{}</dd>\n", text(name), cell(value)));
            }
            out.push_str("</dl>\n");
        }
        Block::Table { columns, rows, empty } => {
            let many = if columns.len() > 7 { " class=\"many\"" } else { "" };
            out.push_str(&format!("<div class=\"wide\"><table{many}>\n<thead><tr>"));
            for column in columns {
                out.push_str(&format!("<th scope=\"col\">{}</th>", text(column)));
            }
            out.push_str("</tr></thead>\n<tbody>\n");
            for row in rows {
                out.push_str("<tr>");
                for (value, column) in row.iter().zip(columns) {
                    let of = value.text.as_str();
                    let class = if of.len() <= 20 && !of.contains(' ') {
                        " class=\"short\""
                    } else if of.split(' ').any(|word| word.len() > 24) {
                        " class=\"long\""
                    } else {
                        ""
                    };
                    out.push_str(&format!("<td{class} data-label=\"{}\">{}</td>", text(column), cell(value)));
                }
                out.push_str("</tr>\n");
            }
            if rows.is_empty() {
                out.push_str(&format!("<tr><td class=\"empty\" colspan=\"{}\">{}</td></tr>\n", columns.len(), text(empty)));
            }
            out.push_str("</tbody>\n</table></div>\n");
        }
        Block::Checklist { rows } if rows.is_empty() => {}
        Block::Checklist { rows } => {
            out.push_str("<ul class=\"checks\">\n");
            for row in rows {
                check(out, row);
            }
            out.push_str("</ul>\n");
        }
        Block::Chart(of) => chart::render(out, of, at),
        Block::Signatures { rows } => {
            out.push_str("<div class=\"signatures\">\n");
            for row in rows {
                signature(out, row);
            }
            out.push_str("</div>\n");
        }
        Block::List { items } => {
            out.push_str("<ul class=\"lines\">\n");
            for item in items {
                out.push_str(&format!("<li>{}</li>\n", text(item)));
            }
            out.push_str("</ul>\n");
        }
        Block::Code { caption, text: of } => {
            out.push_str(&format!("<p class=\"caption\">{}</p>\n<pre><code>{}</code></pre>\n", text(caption), escape(of.as_str())));
        }
    }
}

const fn class(mark: Mark) -> &'static str {
    match mark {
        Mark::Plain => "plain",
        Mark::Good => "good",
        Mark::Bad => "bad",
        Mark::Warn => "warn",
        Mark::Open => "open",
        Mark::NotApplicable => "na",
    }
}

/// What a mark says to those who do not see it.
const fn spoken(mark: Mark) -> &'static str {
    match mark {
        Mark::Plain => "",
        Mark::Good => "good",
        Mark::Bad => "failed",
        Mark::Warn => "look",
        Mark::Open => "open",
        Mark::NotApplicable => "not applicable",
    }
}

fn pill(of: &Cell) -> String {
    if of.text.is_empty() {
        return String::new();
    }
    format!("<span class=\"pill {}\">{}</span>", class(of.mark), text(&of.text))
}

fn cell(of: &Cell) -> String {
    let inner = if of.code && !of.text.is_empty() { format!("<code>{}</code>", text(&of.text)) } else { text(&of.text) };
    if of.mark == Mark::Plain {
        return inner;
    }
    let sign = format!("<span class=\"sign\" role=\"img\" aria-label=\"{}\">{}</span>", spoken(of.mark), of.mark.sign());
    format!("<span class=\"{}\">{sign}{inner}</span>", class(of.mark))
}

fn check(out: &mut String, row: &Check) {
    let sign = if row.mark == Mark::Open { "" } else { row.mark.sign() };
    out.push_str(&format!(
        "<li class=\"{}\"><span class=\"box\" role=\"img\" aria-label=\"{}\">{sign}</span><span class=\"title\">{}</span>",
        class(row.mark),
        spoken(row.mark),
        text(&row.title)
    ));
    out.push_str(&format!("<code class=\"item\">{}</code>", text(&row.item)));
    let who = match (row.by.is_empty(), row.at.is_empty()) {
        (true, true) => String::new(),
        (false, true) => text(&row.by),
        (true, false) => text(&row.at),
        (false, false) => format!("{}, {}", text(&row.by), text(&row.at)),
    };
    if !row.evidence.is_empty() || !who.is_empty() {
        let who = if who.is_empty() { String::new() } else { format!(" <span class=\"who\">— {who}</span>") };
        out.push_str(&format!("<span class=\"why\">{}{who}</span>", text(&row.evidence)));
    }
    out.push_str("</li>\n");
}

fn signature(out: &mut String, row: &Signature) {
    out.push_str(&format!(
        "<div class=\"signature\"><div class=\"role\">{}</div><div class=\"line\">{}</div>",
        text(&row.role),
        text(&row.name)
    ));
    if !row.key.is_empty() {
        out.push_str(&format!(
            "<div class=\"small\"><code>{}</code></div><div class=\"small\">{} UTC</div>",
            text(&row.key),
            text(&row.at)
        ));
    }
    let word = if row.note.is_empty() { Cell::marked(row.mark, "signed") } else { Cell::marked(row.mark, row.note.as_str()) };
    out.push_str(&format!("<div class=\"small\">{}</div></div>\n", cell(&word)));
}

/// A cleaned text between tags or in a quoted attribute.
pub(crate) fn text(of: &Text) -> String {
    escape(of.as_str())
}

/// Between tags and in quoted attributes, of HTML and XML alike.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}
