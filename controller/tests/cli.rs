//! The command line as scripts and people meet it: help, documents, exit codes.
//!
//! `TIDEGATE_BLESS=1 cargo test -p tidegate-controller --test cli` rewrites
//! CLI.md and the snapshots; what changed is then a matter of review.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_controller::cli::live::Model;
use tidegate_controller::cli::output::render_error;
use tidegate_controller::cli::{self, audit, freeze, gates, handover, notify, render};
use tidegate_controller::operator::doc::{
    AuditDoc, ErrorOut, EventDoc, ExplainDoc, FreezeDoc, HandoffDoc, HostDoc, ImportDoc, PlanDoc, ReleaseDoc, ReleaseShowDoc, RolloutDoc,
    RouteDoc,
};
use tidegate_controller::store::{Append, FleetRecord, NewFleet, Store};
use tidegate_protocol::Timestamp;
use tidegate_rollout::replay::ReplayDoc;
use tidegate_rollout::status::StatusDoc;

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Compares with a checked-in file, or rewrites it.
fn golden(name: &str, text: &str) {
    let path = here(name);
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{name} differs; TIDEGATE_BLESS=1 rewrites it if the change is meant");
}

/// A fixed document: it reads, it writes the same fields again (field names are
/// public interface), and people see what the snapshot shows.
fn document<T: DeserializeOwned + Serialize>(name: &str, human: impl FnOnce(&T) -> String) {
    let text = fs::read_to_string(here(&format!("tests/snapshots/{name}.json"))).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let doc: T = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(&doc).unwrap(), value, "{name}: a field was renamed or lost");
    golden(&format!("tests/snapshots/{name}.txt"), &human(&doc));
}

#[test]
fn the_reference_is_what_help_says() {
    fn section(command: &mut clap::Command, path: &str, out: &mut String) {
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        out.push_str(&format!("\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
        let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_string()).collect();
        for name in names.iter().filter(|n| *n != "help") {
            section(command.find_subcommand_mut(name).unwrap(), &format!("{path} {name}"), out);
        }
    }
    let mut out = String::from(
        "# tidegate\n\nWhat `--help` says, command by command. Written by `TIDEGATE_BLESS=1 cargo test -p tidegate-controller --test cli`.\n",
    );
    let mut command = cli::command();
    command.build();
    section(&mut command, "tidegate", &mut out);
    golden("CLI.md", &out);
}

#[test]
fn documents_keep_their_fields_and_read_well() {
    document("hosts", |docs: &Vec<HostDoc>| render::hosts(docs, false));
    document("host", |doc: &HostDoc| render::host(doc, false));
    document("explain", |doc: &ExplainDoc| render::explain(doc, false));
    document("releases", |docs: &Vec<ReleaseDoc>| render::releases(docs, false));
    document("release", |doc: &ReleaseShowDoc| render::release(doc, false));
    document("import", |doc: &ImportDoc| render::import(doc, false));
    document("plan", |doc: &PlanDoc| render::plan(doc, false));
    document("rollouts", |docs: &Vec<RolloutDoc>| render::rollouts(docs, false));
    document("status", |doc: &StatusDoc| format!("{}\n{}", render::status(doc, false), render::state_line(doc, false)));
    document("baking", |doc: &StatusDoc| render::status_at(doc, false, Some("2026-11-23T02:30:30Z".parse().unwrap())));
    document("waiting", |doc: &StatusDoc| render::status(doc, false));
    document("handoff", |doc: &HandoffDoc| handover::shown(doc, false));
    document("freezes", |docs: &Vec<FreezeDoc>| freeze::list(docs, false));
    document("routes", |docs: &Vec<RouteDoc>| notify::shown(docs, false));
    document("audit", |doc: &AuditDoc| audit::shown(doc, false));
    document("replay", |doc: &ReplayDoc| gates::replay(doc, false));
    document("events", |docs: &Vec<EventDoc>| {
        let lines: Vec<String> = docs.iter().map(render::event_line).collect();
        format!("{}\n{}\n", render::events(docs, false), lines.join("\n"))
    });
    document("error", |doc: &ErrorOut| render_error(&doc.error, false));
}

#[test]
fn nothing_a_host_says_reaches_the_terminal_raw() {
    let text = fs::read_to_string(here("tests/snapshots/status.json")).unwrap();
    let mut doc: StatusDoc = serde_json::from_str(&text).unwrap();
    doc.reason = "\x1b]0;owned\x07\r\n".repeat(200);
    doc.hosts[0].message = Some("\x1b[2J\u{202e}".repeat(500));
    let shown = render::status(&doc, false);
    assert!(!shown.contains(['\x1b', '\r', '\x07', '\u{202e}']), "{shown:?}");
    assert!(shown.lines().all(|l| l.chars().count() < 800));
}

#[test]
fn a_drill_says_what_it_came_to() {
    let text = fs::read_to_string(here("tests/snapshots/status.json")).unwrap();
    let mut doc: StatusDoc = serde_json::from_str(&text).unwrap();
    doc.drill = true;
    for (passed, word) in [(true, "passed"), (false, "not passed")] {
        doc.drilled = Some(tidegate_rollout::status::Drilled { passed, forward_ms: 61_250, back_ms: 940 });
        let shown = render::status(&doc, false);
        assert!(shown.contains(&format!("\n  drill    {word}; forward 61.2 s, back 0.9 s\n")), "{shown}");
    }
}

#[test]
fn progress_follows_the_events() {
    let read = |name: &str| fs::read_to_string(here(&format!("tests/snapshots/{name}.json"))).unwrap();
    let mut status: StatusDoc = serde_json::from_str(&read("status")).unwrap();
    status.state = tidegate_rollout::RolloutState::Running;
    status.hosts.iter_mut().for_each(|h| h.state = tidegate_rollout::TargetState::Staged);
    let mut model = Model::new(&status);
    assert_eq!(model.head(), "shop@2.1.0 (rolling): running, confirmed 0/3");
    assert_eq!(model.open_waves(), []);
    let events: Vec<EventDoc> = serde_json::from_str(&read("events")).unwrap();
    let mut seen = Vec::new();
    for event in &events {
        model.apply(event);
        seen.push(model.head());
        seen.extend(model.open_waves().into_iter().map(|(index, line)| format!("  {index}: {line}")));
    }
    golden("tests/snapshots/progress.txt", &(seen.join("\n") + "\n"));
}

#[test]
fn progress_shows_the_open_gate_and_the_time_that_is_left() {
    let read = |name: &str| fs::read_to_string(here(&format!("tests/snapshots/{name}.json"))).unwrap();
    let baking: StatusDoc = serde_json::from_str(&read("baking")).unwrap();
    let now = Some("2026-11-23T02:30:30Z".parse().unwrap());
    let mut model = Model::new(&baking);
    let line = model.gate(now).unwrap();
    // What cannot be read weighs more than what is undecided; an advisory fail decides nothing.
    assert_eq!(line, "Canary (after wave 1), 10 min 30 s left, extended once: error: the agent on web-1 says: no journal to read");
    let mut judged: EventDoc = serde_json::from_value(serde_json::from_str::<Value>(&read("events")).unwrap()[0].clone()).unwrap();
    judged.kind = "judged".into();
    judged.record = serde_json::json!({"verdict": "pass", "judgements": []});
    model.apply(&judged);
    assert_eq!(model.gate(now).unwrap(), "Canary (after wave 1), 10 min 30 s left, extended once: pass");
    // Once it goes back, no gate is open.
    judged.kind = "state".into();
    judged.record = serde_json::json!({"to": "rolling-back"});
    model.apply(&judged);
    assert_eq!(model.gate(now), None);
}

/// `tidegate ARGS` without a terminal and with nothing inherited.
fn tidegate(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(args).current_dir(dir).env_clear().env("HOME", dir).stdin(Stdio::null());
    command.output().unwrap()
}

/// Exit code, stdout, stderr.
fn texts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_wrong_command_line_is_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 50] = [
        &["rollot"],
        &["token", "create", "--ttl", "15"],
        &["token", "create", "--label", "role"],
        &["token", "create", "--uses", "0"],
        &["token", "create", "--host", "../x"],
        &["host", "list", "-l", "a=b=c"],
        &["host", "label", "web-1"],
        &["host", "label", "web-1", "=x"],
        &["release", "show", "shop"],
        &["release", "pack", "-f", "release.toml"],
        &["rollout", "start"],
        &["rollout", "start", "-f", "plan.toml", "--wait", "--detach"],
        &["rollout", "start", "-f", "plan.toml", "--confirm", "abc"],
        &["rollout", "wait", "r-1", "--for", "done"],
        &["rollout", "wait", "r-1", "--for", "wave:0"],
        &["rollout", "watch", "r-1", "--until", "completed"],
        &["rollout", "declare", "r-1", "data-corruption"],
        &["rollout", "declare", "r-1", "--reason", "x"],
        &["rollout", "attest", "r-1", "--item", "x"],
        &["rollout", "replay", "r-1"],
        &["rollout", "drill", "-f", "plan.toml", "--host", "a", "--stage", "1"],
        &["rollout", "drill", "-f", "plan.toml", "--stage", "0"],
        &["rollout", "approve", "r-1", "--role", "boss", "--key", "k"],
        &["rollout", "approve", "r-1", "--role", "security"],
        &["rollout", "approve", "r-1", "--key", "k"],
        &["rollout", "approve", "r-1", "--role", "security", "--key", "k", "--signature", "s"],
        &["rollout", "approve", "r-1", "--role", "security", "--print-payload", "--signature", "s"],
        &["rollout", "override", "r-1", "--what", "gate", "--role", "cab", "--key", "k", "--reason", "x"],
        &["rollout", "override", "r-1", "--what", "window", "--role", "cab", "--key", "k"],
        &["rollout", "override", "r-1", "--what", "window", "--role", "cab", "--key", "k", "--reason", " "],
        &["rollout", "handoff", "r-1", "--role", "lead"],
        &["rollout", "handoff", "r-1", "--key", "k"],
        &["rollout", "handoff", "r-1", "--role", "security", "--key", "k"],
        &["rollout", "note", "r-1"],
        &["rollout", "note", "r-1", "x", "--resolves", "0"],
        &["rollout", "item", "r-1"],
        &["rollout", "item", "r-1", "add", "x"],
        &["rollout", "item", "r-1", "set", "1"],
        &["rollout", "item", "r-1", "set", "--status", "done"],
        &["rollout", "review", "r-1"],
        &["rollout", "review", "r-1", "-f", "review.toml", "--template"],
        &["rollout", "review", "r-1", "-f", "review.toml", "-o", "x"],
        &["rollout", "close"],
        &["docs", "r-1"],
        &["freeze", "add"],
        &["freeze", "add", "--reason", "x", "--until", "2099-01-01T00:00"],
        &["freeze", "add", "--reason", "x", "--until", "2099-01-01T00:00Z", "--for", "1h"],
        &["freeze", "remove", "1"],
        &["audit", "export", "--after", "-1"],
        &["notify", "route"],
    ];
    for args in cases {
        let (code, out, err) = texts(&tidegate(dir.path(), args));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.starts_with("error: "), "{args:?}: {err}");
        let json: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        let (code, out, err) = texts(&tidegate(dir.path(), &json));
        assert_eq!((code, err.as_str()), (2, ""), "{args:?}: {out}");
        let doc: ErrorOut = serde_json::from_str(&out).unwrap();
        assert!(!doc.error.message.is_empty() && doc.schema == 1);
        assert_eq!(doc.error.code.exit(), 2);
    }
}

#[test]
fn files_that_do_not_read_are_exit_2_before_any_controller_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("plan.toml"), "release = \"shop@1\"\nhosts = { api = \"role=api\" }\nstrategy = \"rollin\"\n").unwrap();
    fs::write(dir.path().join("release.toml"), "name = \"shop\"\nversion = 1\n").unwrap();
    fs::write(dir.path().join("bundle"), "no bundle").unwrap();
    fs::write(dir.path().join("review.toml"), "date = \"2026-11-24\"\nparticipants = [\"Dana\"]\nwent_wel = []\n").unwrap();
    let sign = ["rollout", "approve", "r-1", "--role", "security"];
    let with = |more: [&'static str; 2]| sign.into_iter().chain(more).collect::<Vec<_>>();
    let (no_key, dir_key) = (with(["--key", "none"]), with(["--key", "."]));
    let (no_signature, bad_signature) = (with(["--signature", "none"]), with(["--signature", "bundle"]));
    let empty_stdin = with(["--signature", "-"]);
    let cases: [(&[&str], &[&str]); 18] = [
        (&no_key, &["no key at none", "fix: "]),
        (&dir_key, &["no key at .", "it is not a file"]),
        (&no_signature, &["read none", "fix: "]),
        (&bad_signature, &["bundle: not an SSH signature", "ssh-keygen -Y sign -n tidegate-approval"]),
        (&empty_stdin, &["-: not an SSH signature"]),
        (&["rollout", "review", "r-1", "-f", "review.toml"], &["review.toml", "line 3", "went_wel", "review --help"]),
        (&["rollout", "review", "r-1", "--template", "-o", "review.toml"], &["review.toml is there already"]),
        (&["audit", "verify", "--journal", "none"], &["none does not read as a journal", "fix: "]),
        (&["audit", "verify", "--journal", "bundle"], &["bundle does not read as a journal", "fix: "]),
        (&["rollout", "plan", "-f", "plan.toml"], &["plan.toml", "line 3", "rollin", "fix: "]),
        (&["rollout", "start", "-f", "plan.toml", "--detach"], &["plan.toml", "line 3"]),
        (&["rollout", "start", "-f", "none.toml"], &["none.toml", "fix: "]),
        (&["rollout", "drill", "-f", "plan.toml"], &["plan.toml", "line 3"]),
        (&["rollout", "replay", "r-1", "-f", "plan.toml"], &["plan.toml", "line 3"]),
        (&["release", "pack", "-f", "release.toml", "-o", "x"], &["release.toml", "line 2", "fix: "]),
        (&["release", "pack", "-f", "none.toml", "-o", "x"], &["none.toml", "fix: "]),
        (&["release", "import", "bundle"], &["bundle", "release.json", "nothing was imported"]),
        (&["release", "import", "none"], &["none", "fix: "]),
    ];
    for (args, wanted) in cases {
        let (code, out, err) = texts(&tidegate(dir.path(), args));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        wanted.iter().for_each(|w| assert!(err.contains(w), "{args:?}: {w:?} not in {err}"));
    }
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_controller_that_is_not_there_is_exit_1_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = texts(&tidegate(dir.path(), &["host", "list"]));
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains(".config/tidegate/default/profile.toml") && err.contains("--profile DIR"), "{err}");
    let (code, out, err) = texts(&tidegate(dir.path(), &["rollout", "watch", "r-1", "--profile", "elsewhere", "--output", "ndjson"]));
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    let doc: ErrorOut = serde_json::from_str(&out).unwrap();
    assert!(doc.error.message.contains("elsewhere/profile.toml") && doc.error.fix.is_some());
}

#[test]
fn pack_says_the_same_to_people_and_scripts() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("dist")).unwrap();
    fs::write(dir.path().join("dist/site.conf"), "x").unwrap();
    let text = "name = \"shop\"\nversion = \"1\"\n[[component]]\nname = \"web\"\ntree = \"dist\"\nproof = \"none\"\nservice = { systemd = \"nginx.service\" }\n";
    fs::write(dir.path().join("release.toml"), text).unwrap();
    let pack = ["release", "pack", "-f", "release.toml", "-o", "shop.tidegate"];
    let (code, out, err) = texts(&tidegate(dir.path(), &pack));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("packed shop@1 (") && out.ends_with("into shop.tidegate: 1 file(s), 1 B\n"), "{out}");
    let json: Vec<&str> = pack.iter().copied().chain(["--output=json"]).collect();
    let (code, out, _) = texts(&tidegate(dir.path(), &json));
    let doc: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    let fields: Vec<&str> = doc.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["bundle", "bytes", "digest", "files", "release", "schema"]);
}

/// A journal with three records.
fn journal(dir: &Path) -> PathBuf {
    let path = dir.join("journal.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(&path).unwrap();
        for freeze in 1..=3 {
            let record = FleetRecord::FreezeRemoved { freeze, by: "dana".into(), reason: "over".into() };
            let fleet = vec![NewFleet { at: Timestamp(1_795_425_511_000), record }];
            store.append(Append { fleet, ..Append::default() }).await.unwrap();
        }
    });
    path
}

#[test]
fn a_journal_file_is_verified_without_a_controller() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal(dir.path());
    let verify = ["audit", "verify", "--journal", "journal.sqlite", "--output", "json"];
    let (code, out, err) = texts(&tidegate(dir.path(), &verify));
    let doc: AuditDoc = serde_json::from_str(&out).unwrap();
    assert_eq!((code, err.as_str(), doc.ok, doc.records, doc.first_bad), (0, "", true, 3, None), "{out}");
    for (damage, first) in
        [("UPDATE journal SET body = replace(body, 'dana', 'ravi') WHERE seq = 2", 2), ("DELETE FROM journal WHERE seq = 1", 1)]
    {
        rusqlite::Connection::open(&path).unwrap().execute(damage, []).unwrap();
        let (code, out, err) = texts(&tidegate(dir.path(), &verify));
        let doc: AuditDoc = serde_json::from_str(&out).unwrap();
        assert_eq!((code, err.as_str(), doc.ok, doc.first_bad), (1, "", false, Some(first)), "{damage}: {out}");
        let (code, out, _) = texts(&tidegate(dir.path(), &verify[..4]));
        assert_eq!(code, 1, "{damage}");
        assert!(out.starts_with("journal.sqlite: the journal is NOT what was written") && out.contains(&doc.findings[0]), "{out}");
    }
}

#[test]
fn help_version_and_completions_go_to_stdout() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["rollout", "start", "-h"], &["--version"], &["completions", "bash"], &["completions", "zsh"]] {
        let (code, out, err) = texts(&tidegate(dir.path(), args));
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        assert!(out.contains("tidegate"), "{args:?}");
    }
    // Words of closed lists are completed, too.
    let (_, out, _) = texts(&tidegate(dir.path(), &["completions", "bash"]));
    for words in ["tech-lead security operations product-owner cab", "lead ops-lead", "window freeze"] {
        assert!(out.contains(&format!("compgen -W \"{words}\"")), "{words}");
    }
    let (_, out, _) = texts(&tidegate(dir.path(), &["rollout", "--help"]));
    for verb in [
        "plan", "start", "list", "status", "watch", "events", "wait", "pause", "resume", "halt", "rollback", "promote", "ack", "declare",
        "attest", "drill", "replay", "explain", "approve", "override", "note", "item", "handoff", "review", "close",
    ] {
        assert!(out.contains(&format!("\n  {verb} ")), "{verb}");
    }
}
