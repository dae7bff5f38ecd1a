//! A journal that was edited, thinned, shuffled or cut off is found, and the
//! first record that is not what was written is named.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rusqlite::{Connection, params};
use serde_json::Value;
use tidegate_integration_tests::wait::{Look, wait_until};
use tidegate_integration_tests::{Fleet, Plan, Release};
use tidegate_protocol::Digest;
use tidegate_protocol::digest::Hasher;

use crate::{Result, SOON};

/// Two hosts that went through two rollouts: enough records to spoil one.
fn told() -> Result<Fleet> {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::good("2.0.0"))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    Ok(fleet)
}

fn journal(fleet: &Fleet) -> PathBuf {
    fleet.controller_dir().join("journal.sqlite")
}

fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path).with_context(|| format!("opening {}", path.display()))?;
    connection.busy_timeout(SOON).context("the busy timeout")?;
    Ok(connection)
}

/// A copy of the journal, whole, that `spoil` changed.
fn copy(fleet: &Fleet, name: &str, spoil: impl FnOnce(&Connection) -> Result) -> Result<String> {
    let path = fleet.scratch().join(name);
    let text = path.to_str().context("the path is not UTF-8")?.to_owned();
    open(&journal(fleet))?.execute("VACUUM INTO ?1", params![text]).context("copying the journal")?;
    spoil(&open(&path)?)?;
    Ok(text)
}

/// Changes one row so that it still reads as before: a word of a sentence.
fn edit(journal: &Connection, seq: i64) -> Result {
    let body: String = journal.query_row("SELECT body FROM journal WHERE seq = ?1", [seq], |row| row.get(0))?;
    let edited = body.replacen('e', "3", 1);
    ensure!(edited != body, "nothing to edit in {body}");
    journal.execute("UPDATE journal SET body = ?2 WHERE seq = ?1", params![seq, edited])?;
    Ok(())
}

fn last(journal: &Connection) -> Result<i64> {
    Ok(journal.query_row("SELECT max(seq) FROM journal", [], |row| row.get(0))?)
}

/// An offline look that finds record `bad`.
fn expect_bad(fleet: &Fleet, file: &str, bad: i64) -> Result {
    let (code, doc) = fleet.audit(&["--journal", file])?;
    ensure!(code == 1 && doc["ok"] == false, "exit code {code} for {doc:#}");
    ensure!(doc["first_bad"] == bad, "record {bad} is the first bad one, not {doc:#}");
    let human = fleet.cli(&["audit", "verify", "--journal", file])?.expect_code(1)?;
    human.expect_said(&bad.to_string())?;
    Ok(())
}

#[test]
fn edited_thinned_and_shuffled_files_are_found_without_a_controller() -> Result {
    let mut fleet = told()?;
    fleet.stop_controller()?;
    let good = copy(&fleet, "good.sqlite", |_| Ok(()))?;
    let (code, doc) = fleet.audit(&["--journal", &good])?;
    ensure!(code == 0 && doc["ok"] == true && doc["first_bad"].is_null(), "{doc:#}");
    ensure!(doc["records"].as_u64() > Some(20), "{doc:#}");

    for seq in [1, 7, 15] {
        expect_bad(&fleet, &copy(&fleet, &format!("edited-{seq}.sqlite"), |journal| edit(journal, seq))?, seq)?;
    }
    let deleted = copy(&fleet, "deleted.sqlite", |journal| Ok(journal.execute("DELETE FROM journal WHERE seq = 9", []).map(drop)?))?;
    expect_bad(&fleet, &deleted, 9)?;
    // Removed, and the rest moved up so that no number is missing.
    let closed = copy(&fleet, "closed.sqlite", |journal| {
        journal.execute("DELETE FROM journal WHERE seq = 9", [])?;
        journal.execute("UPDATE journal SET seq = -seq WHERE seq > 9", [])?;
        Ok(journal.execute("UPDATE journal SET seq = -seq - 1 WHERE seq < 0", []).map(drop)?)
    })?;
    expect_bad(&fleet, &closed, 9)?;
    let shuffled = copy(&fleet, "shuffled.sqlite", |journal| {
        for (from, to) in [(5, -1), (6, 5), (-1, 6)] {
            journal.execute("UPDATE journal SET seq = ?2 WHERE seq = ?1", params![from, to])?;
        }
        Ok(())
    })?;
    expect_bad(&fleet, &shuffled, 5)?;
    let later = copy(&fleet, "later.sqlite", |journal| {
        Ok(journal.execute("UPDATE journal SET at_unix_ms = at_unix_ms + 1 WHERE seq = 12", []).map(drop)?)
    })?;
    expect_bad(&fleet, &later, 12)?;
    let moved = copy(&fleet, "moved.sqlite", |journal| {
        Ok(journal.execute("UPDATE journal SET rollout = 'another' WHERE seq = 12", []).map(drop)?)
    })?;
    expect_bad(&fleet, &moved, 12)?;

    fleet.cli(&["audit", "verify", "--journal", "/no/such/file"])?.expect_code(2)?;
    let text = fleet.text_file("journal.sqlite", "no database")?;
    fleet.cli(&["audit", "verify", "--journal", &text])?.expect_code(2)?;
    // Nothing of that is left beside the files: they were only read.
    let (code, doc) = fleet.audit(&["--journal", &good])?;
    ensure!(code == 0, "{doc:#}");
    Ok(())
}

#[test]
fn an_edit_behind_the_back_of_a_running_controller_is_found() -> Result {
    let fleet = told()?;
    let (code, doc) = fleet.audit(&[])?;
    ensure!(code == 0 && doc["ok"] == true, "{doc:#}");
    edit(&open(&journal(&fleet))?, 11)?;
    let (code, doc) = fleet.audit(&[])?;
    ensure!(code == 1 && doc["first_bad"] == 11, "{doc:#}");
    // It says so in its log, and goes on.
    fleet.gate_logs(&["the journal is not what was written"])?;
    ensure!(fleet.gate_logs(&[]).is_err(), "nothing was logged");
    fleet.cli(&["rollout", "list"])?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_journal_that_was_cut_off_is_found_by_those_who_saw_more_of_it() -> Result {
    let mut fleet = told()?;
    // Every host remembers the end.
    let (_, doc) = fleet.audit(&[])?;
    for index in 0..fleet.hosts.len() {
        wait_until("the host remembers the journal's end", SOON, || {
            let head = fleet.agent_status(index)?["head"]["seq"].clone();
            Ok(if head == doc["records"] { Look::Done(()) } else { Look::NotYet(format!("it remembers {head} of {}", doc["records"])) })
        })?;
    }
    fleet.stop_controller()?;
    let cut = {
        let journal = open(&journal(&fleet))?;
        let end = last(&journal)?;
        // Only the last records, so that all that is left is a whole chain.
        journal.execute("DELETE FROM journal WHERE seq > ?1", [end - 4])?;
        end - 4
    };
    let (code, doc) = fleet.audit(&["--journal", &journal(&fleet).display().to_string()])?;
    ensure!(code == 0, "a chain that was cut off is whole by itself: {doc:#}");

    fleet.start_controller()?;
    let (code, doc) = wait_until("a host says that it saw more", SOON, || {
        let (code, doc) = fleet.audit(&[])?;
        Ok(if code == 1 { Look::Done((code, doc)) } else { Look::NotYet(format!("{doc:#}")) })
    })?;
    ensure!(code == 1 && doc["ok"] == false, "{doc:#}");
    let findings = doc["findings"].to_string();
    ensure!(findings.contains("h1") || findings.contains("h2"), "{doc:#}");
    ensure!(doc["first_bad"].as_i64().is_none_or(|bad| bad > cut), "{doc:#}");
    Ok(())
}

/// The chain of an export, computed again from what stands in its lines.
fn chain(lines: &[String]) -> Result<Digest> {
    let mut hash = Digest([0; 32]);
    for (at, line) in lines.iter().enumerate() {
        let record: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is not JSON"))?;
        let number = |key: &str| record[key].as_u64().with_context(|| format!("no {key} in {record}"));
        let word = |key: &str| record[key].as_str().with_context(|| format!("no {key} in {record}"));
        // The text that was hashed is the last field, byte for byte.
        let body =
            line.split_once(",\"record\":").and_then(|(_, rest)| rest.strip_suffix('}')).with_context(|| format!("no record in {line}"))?;
        ensure!(number("seq")? == at as u64 + 1, "record {} stands at {}", number("seq")?, at + 1);
        let mut hasher = Hasher::new();
        hasher.update(&hash.0);
        hasher.update(&number("seq")?.to_le_bytes());
        hasher.update(&number("at_unix_ms")?.to_le_bytes());
        hasher.update(word("rollout")?.as_bytes());
        hasher.update(&[0]);
        hasher.update(body.as_bytes());
        hash = hasher.finish();
        ensure!(word("hash")? == hash.to_string(), "record {at}: {record} has another hash than {hash}");
        ensure!(record["record"]["kind"] == record["kind"], "{record}");
    }
    Ok(hash)
}

#[test]
fn an_export_can_be_verified_by_anybody() -> Result {
    let fleet = told()?;
    let out = fleet.text_file("journal.ndjson", "")?;
    let lines = |args: &[&str]| -> Result<Vec<String>> {
        let words: Vec<&str> = ["audit", "export"].into_iter().chain(args.iter().copied()).collect();
        Ok(fleet.cli(&words)?.expect_code(0)?.stdout.lines().map(str::to_owned).collect())
    };
    let records = lines(&[])?;
    ensure!(records.len() > 20, "{} records", records.len());
    let head = chain(&records)?;
    fleet.cli(&["audit", "export", "-o", &out])?.expect_code(0)?;
    ensure!(std::fs::read_to_string(&out)?.lines().eq(records.iter().map(String::as_str)), "the file holds something else");
    let (_, doc) = fleet.audit(&[])?;
    // Nothing is written by looking.
    ensure!(doc["head"].as_str().is_some_and(|text| text.ends_with(&head.to_string())), "{doc:#} has another head than {head}");
    ensure!(doc["records"].as_u64() == Some(records.len() as u64), "{doc:#}");
    let mut forged = records.clone();
    forged[8] = forged[8].replacen("\"kind\"", "\"kind\" ", 2);
    ensure!(chain(&forged).is_err(), "an edited export passes");

    let id = fleet.newest()?;
    let own = fleet.export(&["--rollout", &id])?;
    ensure!(!own.is_empty() && own.len() < records.len() && own.iter().all(|record| record["rollout"] == id.as_str()), "{own:#?}");
    let rest = fleet.export(&["--after", "10"])?;
    ensure!(rest.len() == records.len() - 10 && rest[0]["seq"] == 11);
    Ok(())
}
