//! Hostile texts through every format, and whether each one is well-formed.

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Digest};
use tidegate_rollout::Record;
use tidegate_rollout::record::{Seen, TargetState};

use crate::world::{Journal, complete, component, host, release, rolled_back};

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=y>|pipe| `tick` [l](javascript:x) \u{202e}txt\u{2066}\u{200b}\u{0}\u{1b}[31m\u{feff}\u{ffff}]]> --> &amp; \r\n# head";

/// A rollout in which everything that others write is hostile.
fn hostile() -> Journal {
    let mut release = release("2.1.0");
    release.known_issues = Some(HOSTILE.into());
    for component in &mut release.components {
        for smoke in &mut component.smoke {
            smoke.name = HOSTILE.into();
        }
    }
    release.tasks.iter_mut().for_each(|t| t.name = HOSTILE.into());
    let mut journal = crate::world::complete_of(Journal::with(crate::world::PLAN, release));
    let (h, c) = (host("api-3"), component("api"));
    let mut seen: Seen = Journal::seen(&c, "2.1.0", journal.results(&c, true, Some("SMK-002")));
    seen.smoke.iter_mut().for_each(|s| s.message = HOSTILE.repeat(40));
    journal.host(&h, &c, TargetState::Reverting, Some(Failure { cause: Cause::Smoke, message: HOSTILE.into() }), Some(seen));
    journal.change(|r| match r {
        Record::State { reason, .. } | Record::Gate { reason, .. } => reason.push_str(HOSTILE),
        Record::Attested { note, by, .. } => (*note, *by) = (HOSTILE.into(), HOSTILE.into()),
        Record::Approved { signed, .. } | Record::SignedOff { signed, .. } => {
            (signed.principal, signed.signature, signed.key) = (HOSTILE.into(), format!("```\n{HOSTILE}"), HOSTILE.into());
        }
        Record::TaskEnded { note, .. } => *note = HOSTILE.into(),
        Record::Reviewed { review, .. } => {
            review.went_well = vec![HOSTILE.into()];
            review.participants = vec![HOSTILE.into()];
        }
        Record::Item { what, owner, .. } => (*what, *owner) = (HOSTILE.into(), HOSTILE.into()),
        Record::Judged { judgements, .. } => judgements.iter_mut().for_each(|j| j.reason = HOSTILE.into()),
        Record::Readiness { rows } => rows.iter_mut().for_each(|r| r.evidence = HOSTILE.into()),
        _ => {}
    });
    for (key, route) in [(HOSTILE, "team"), ("x", HOSTILE)] {
        journal.say(Record::Notified { key: key.into(), route: route.into(), ok: false, detail: HOSTILE.into() });
    }
    journal.say(Record::Alert { fingerprint: "f".into(), text: HOSTILE.into(), before: false });
    journal.say(Record::Noted { by: HOSTILE.into(), text: HOSTILE.into(), resolves: Some(1) });
    journal
}

fn forbidden(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\r')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{ffff}')
}

/// What Markdown reads as Markdown.
fn outside_fences(text: &str) -> String {
    let mut out = String::new();
    let mut fence: Option<usize> = None;
    for line in text.lines() {
        let ticks = line.len() - line.trim_start_matches('`').len();
        match fence {
            // Only as many alone on a line end it.
            Some(open) if ticks >= open && line.len() == ticks => fence = None,
            Some(_) => {}
            None if ticks >= 3 => fence = Some(ticks),
            None => out.extend([line, "\n"]),
        }
    }
    assert_eq!(fence, None, "a fence that never ends");
    out
}

#[test]
fn nothing_hostile_gets_through() {
    for paper in hostile().papers() {
        let text = &paper.text;
        assert!(!text.contains(forbidden), "{}: {:?}", paper.name, text.chars().find(|c| forbidden(*c)));
        assert!(text.contains("alert(1)") || paper.name.ends_with("csv"), "{}: the text itself is told", paper.name);
        match paper.name.rsplit('.').next().unwrap() {
            "html" | "xml" => {
                for markup in ["<script", "<img", "]]>", "onerror=y>"] {
                    assert!(!text.contains(markup), "{}: {markup}", paper.name);
                }
            }
            "md" => {
                let text = outside_fences(text);
                for markup in ["<script", "<img", "\n# head", "[l](javascript"] {
                    assert!(!text.contains(markup), "{}: {markup}", paper.name);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn rows_of_tables_stay_rows() {
    for journal in [hostile(), complete(), rolled_back()] {
        for paper in journal.papers().into_iter().filter(|p| p.name.ends_with(".md")) {
            let mut columns = None;
            for line in paper.text.lines() {
                let bars = line.replace("\\|", "").matches('|').count();
                columns = if line.starts_with('|') { Some(columns.unwrap_or(bars)) } else { None };
                assert!(columns.is_none_or(|c| c == bars), "{}: {line}", paper.name);
            }
        }
    }
}

/// Elements that have no end.
const VOID: [&str; 4] = ["meta", "br", "hr", "img"];

/// Every tag is closed in its order, every attribute is quoted, every `&` begins a
/// reference: enough of XML for what we write.
fn well_formed(text: &str) -> Result<usize, String> {
    let mut open: Vec<String> = Vec::new();
    let mut elements = 0;
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        references(before)?;
        if let Some(style) = tag.strip_prefix("<style>") {
            rest = style.split_once("</style>").ok_or("style has no end")?.1;
            continue;
        }
        let end = tag.find('>').ok_or_else(|| format!("no end: {}", &tag[..40.min(tag.len())]))?;
        let inner = &tag[1..end];
        rest = &tag[end + 1..];
        if inner.starts_with('!') || inner.starts_with('?') {
            continue;
        }
        if let Some(name) = inner.strip_prefix('/') {
            let top = open.pop();
            if top.as_deref() != Some(name) {
                return Err(format!("</{name}> closes {top:?}"));
            }
            continue;
        }
        elements += 1;
        let own = inner.ends_with('/');
        let inner = inner.trim_end_matches('/');
        let (name, attributes) = inner.split_once(' ').unwrap_or((inner, ""));
        if attributes.matches('"').count() % 2 != 0 || attributes.contains('<') {
            return Err(format!("attributes of {name}: {attributes}"));
        }
        references(attributes)?;
        if !own && !VOID.contains(&name) {
            open.push(name.to_string());
        }
    }
    references(rest)?;
    if open.is_empty() { Ok(elements) } else { Err(format!("never closed: {open:?}")) }
}

fn references(text: &str) -> Result<(), String> {
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        if !known.iter().any(|k| text[at..].starts_with(k)) {
            return Err(format!("a bare &: {}", text[at..].chars().take(20).collect::<String>()));
        }
    }
    Ok(())
}

#[test]
fn html_and_junit_are_well_formed() {
    assert!(well_formed("<a><b></a></b>").is_err() && well_formed("<a>x & y</a>").is_err() && well_formed("<a>").is_err());
    for journal in [complete(), rolled_back(), hostile()] {
        for paper in journal.papers().into_iter().filter(|p| p.name.ends_with(".html") || p.name.ends_with(".xml")) {
            let elements = well_formed(&paper.text).unwrap_or_else(|e| panic!("{}: {e}", paper.name));
            assert!(elements > 20, "{}: {elements} elements", paper.name);
        }
    }
}

#[test]
fn html_fetches_and_runs_nothing() {
    for paper in complete().papers().into_iter().filter(|p| p.name.ends_with(".html")) {
        for outside in ["<script", "<link", "<iframe", "src=", "url(", "@import", "href=\"http", " onload", "<object", "<form"] {
            assert!(!paper.text.contains(outside), "{}: {outside}", paper.name);
        }
        assert!(paper.text.contains("default-src 'none'") && paper.text.contains("@page"), "{}", paper.name);
    }
}

#[test]
fn charts_say_what_they_show() {
    let text = complete().paper("4-monitoring-verification.html");
    for wanted in [
        "<title id=",
        "class=\"line changed\"",
        "class=\"line control\"",
        "class=\"line baseline\"",
        "class=\"line limit\"",
        "role=\"img\"",
    ] {
        assert!(text.contains(wanted), "{wanted}");
    }
}

#[test]
fn json_has_schema_head_data_and_model() {
    for journal in [complete(), rolled_back(), hostile()] {
        for paper in journal.papers().into_iter().filter(|p| p.name.ends_with(".json")) {
            let value: serde_json::Value = serde_json::from_str(&paper.text).unwrap();
            assert_eq!(value["schema"], 1, "{}", paper.name);
            assert_eq!(value["rollout"], journal.id.as_str());
            assert_eq!(format!("{}.json", value["document"].as_str().unwrap()), paper.name);
            assert!(value["data"].is_object() && value["model"]["blocks"].is_array(), "{}", paper.name);
            let last = journal.entries.last().unwrap();
            assert_eq!(value["journal_sha256"], last.hash.to_string());
        }
    }
    let value: serde_json::Value = serde_json::from_str(&rolled_back().paper("6-post-deployment-review.json")).unwrap();
    assert_eq!(value["data"]["metrics"]["rollbacks"], 1);
    assert_eq!(value["data"]["metrics"]["rollback_declared_ms"], 300_000);
}

#[test]
fn junit_tells_failures_errors_and_what_did_not_run() {
    let text = rolled_back().paper("smoke.junit.xml");
    let suite = text.split("<testsuite ").find(|s| s.contains("hostname=\"api-4\"")).unwrap();
    assert!(suite.contains("tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{suite}");
    assert!(suite.contains("<failure message=\"GET /login answered 500, wanted 200\" type=\"smoke\">"), "{suite}");
    for property in ["digest", "host", "stage", "release"] {
        assert!(suite.contains(&format!("<property name=\"{property}\" value=\"")), "{property}");
    }
    let mut journal = Journal::new();
    journal.prepared();
    let failure = Failure { cause: Cause::Disk, message: "no space".into() };
    journal.host(&host("web-2"), &component("web"), TargetState::Failed, Some(failure), None);
    let text = journal.paper("smoke.junit.xml");
    let suite = text.split("<testsuite ").find(|s| s.contains("hostname=\"web-2\"")).unwrap();
    assert!(suite.contains("errors=\"1\"") && suite.contains("<error message=\"no space\" type=\"disk\">"), "{suite}");
}

#[test]
fn a_checksum_that_differs_is_counted() {
    let mut journal = complete();
    journal.change(|r| {
        if let Record::Host { host, seen: Some(seen), .. } = r
            && host.as_str() == "api-2"
        {
            seen.tree_sha256 = Some(Digest::of(b"something else"));
        }
    });
    let text = journal.paper("2-deployment-execution-log.md");
    assert!(text.contains("✗ 5/5 hosts, 1 mismatches"), "{text}");
}
