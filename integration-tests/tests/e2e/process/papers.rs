//! What the six documents of a run must say, in all their formats.

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Context, anyhow, ensure};
use serde_json::Value;
use tidegate_integration_tests::browser::{Browser, junit};
use tidegate_integration_tests::paperwork::Papers;

use crate::Result;

/// Six documents in three formats, and the report of smoke tests.
pub(crate) fn expect_complete(papers: &Papers) -> Result {
    for number in 1..=6_u8 {
        let text = papers.markdown(number)?;
        ensure!(text.starts_with("# "), "deliverable {number} has no title:\n{text}");
        ensure!(papers.json(number)?.is_object(), "deliverable {number} is no JSON object");
        let (name, html) = papers.file(&format!("{number}-"), ".html")?;
        ensure!(html.to_ascii_lowercase().contains("<!doctype html"), "{name} is no HTML");
        // Self-contained: nothing is loaded from anywhere.
        for bad in ["<script src", "<link ", "src=\"http", "url(http", "@import"] {
            ensure!(!html.contains(bad), "{name} loads something: {bad}");
        }
    }
    ensure!(papers.names().iter().any(|name| name.ends_with(".xml")), "no JUnit report among {:?}", papers.names());
    for (name, text) in papers.each() {
        for placeholder in ["TODO", "[Name]", "[Date]", "undefined", "NaN"] {
            ensure!(!text.contains(placeholder), "{name} says {placeholder}");
        }
    }
    Ok(())
}

/// Opens each HTML document in a real browser, some at a time.
pub(crate) fn expect_shown(papers: &Papers) -> Result {
    let Some(browser) = Browser::find()? else { return Ok(()) };
    let names: Vec<&str> = papers.names().into_iter().filter(|name| name.ends_with(".html")).collect();
    ensure!(names.len() >= 6, "{names:?}");
    for pair in names.chunks(2) {
        thread::scope(|scope| -> Result {
            let threads: Vec<_> = pair
                .iter()
                .map(|name| {
                    let (file, dir) = (papers.dir.join(name), papers.dir.join(format!("{name}.browser")));
                    let browser = &browser;
                    (name, scope.spawn(move || browser.open(&file, &dir)))
                })
                .collect();
            for (name, thread) in threads {
                let shown = thread.join().map_err(|_| anyhow!("the thread of {name} panicked"))?.with_context(|| (*name).to_owned())?;
                shown.expect_proper().with_context(|| format!("{name} in a browser"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// JUnit, read by a stock parser: every case has a result as due.
pub(crate) fn expect_junit(papers: &Papers, hosts: &[&str], all_pass: bool) -> Result<Vec<Value>> {
    let (name, _) = papers.file("", ".xml")?;
    let Some(suites) = junit(&papers.dir.join(name))? else { return Ok(Vec::new()) };
    let text = serde_json::to_string(&suites).context("the suites")?;
    for host in hosts {
        ensure!(text.contains(host), "no suite of {host} in {text}");
    }
    let cases: Vec<&Value> = suites.iter().flat_map(|suite| suite["cases"].as_array().into_iter().flatten()).collect();
    ensure!(cases.iter().any(|case| case.to_string().contains("SMK-001")), "no SMK-001 in {text}");
    let bad = cases.iter().filter(|case| case["results"].as_array().is_some_and(|results| !results.is_empty())).count();
    ensure!((bad == 0) == all_pass, "{bad} cases did not pass: {text}");
    let count = |key: &str| suites.iter().filter_map(|suite| suite[key].as_u64()).sum::<u64>();
    ensure!(count("tests") == cases.len() as u64, "the report counts {} tests and has {}", count("tests"), cases.len());
    Ok(suites)
}

/// Every string of a JSON document.
pub(crate) fn strings(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            into.insert(text.clone());
        }
        Value::Array(list) => list.iter().for_each(|one| strings(one, into)),
        Value::Object(map) => map.values().for_each(|one| strings(one, into)),
        _ => {}
    }
}

/// What two runs of the same plan may differ in: times, durations, measured
/// numbers and their charts, digests, ports, directories.
pub(crate) fn normalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let end = |word: &mut String, out: &mut String| {
        out.push_str(&plain_word(word));
        word.clear();
    };
    for c in without_signatures(text).chars() {
        // A chart of samples, drawn in blocks.
        if ('▁'..='█').contains(&c) {
            continue;
        }
        // One word: what dates, times, numbers with units, digests and addresses are made of.
        if c.is_alphanumeric() || matches!(c, ':' | '.' | '+' | '-' | '/' | '%' | '=' | '_' | 'µ') {
            word.push(c);
        } else {
            end(&mut word, &mut out);
            out.push(c);
        }
    }
    end(&mut word, &mut out);
    // Half a second here is more than one there, and short waits are not mentioned.
    out.replace("# ms", "# s").replace("; asked for # s before", "")
}

/// Without the inside of armored signatures: random bytes.
fn without_signatures(text: &str) -> String {
    let mut inside = false;
    let keeps = |line: &&str| {
        inside &= !line.contains("END SSH SIGNATURE");
        let keep = !inside;
        inside |= line.contains("BEGIN SSH SIGNATURE");
        keep
    };
    text.lines().filter(keeps).map(|line| format!("{line}\n")).collect()
}

/// A word without what moves: a measured number becomes `#`.
fn plain_word(word: &str) -> String {
    // The rollout that measured the pace: a name made of a time.
    if word.starts_with("shop-1.0.0-") {
        return "#".to_owned();
    }
    let digits = word.chars().filter(char::is_ascii_digit).count();
    let name = |prefix: &str| word.starts_with(prefix);
    // Names with numbers in them stay: hosts, versions, tests, tasks' notes, the change.
    let is_name =
        ["SMK-", "INT-", "CR-", "shop", "backup_", "h1", "h2", "h3", "h4", "h5"].iter().any(|p| name(p)) || word.starts_with("tidegate/");
    if digits == 0 || is_name && !word.contains("127.0.0.1") {
        return word.to_owned();
    }
    if word.contains('/') && word.chars().all(|c| c.is_ascii_digit() || c == '/') {
        // 5/5 nodes.
        return word.to_owned();
    }
    "#".to_owned()
}

#[test]
fn only_what_moves_is_normalised() {
    let a = "| 22:10:03 | Deploy api | 3/3 nodes | h1 SMK-001 12.5ms sha256:abc0 2026-11-24T22:10:03Z |";
    let b = "| 09:59:59 | Deploy api | 3/3 nodes | h1 SMK-001 7ms sha256:ffff9 2027-01-01T00:00:00Z |";
    assert_eq!(normalised(a), normalised(b));
    assert_ne!(normalised(a), normalised(&a.replace("3/3", "2/3")));
    assert_ne!(normalised(a), normalised(&a.replace("h1", "h2")));
    assert_ne!(normalised(a), normalised(&a.replace("api", "web")));
}
