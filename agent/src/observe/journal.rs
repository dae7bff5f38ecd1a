//! The service's own messages, from the host's journal or from its log file, and
//! what the observers of a watch count of them. One reader for all of them.
//!
//! Owns where reading begins and what a restart means for the counts. A message is
//! read once. Where the manager starts the service again, counting goes on with its
//! first `since`: what a process said before it died is told whenever the link is
//! back. With another release, or a start by order, counting begins anew; what was
//! counted then is said first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tidegate_protocol::limits::METRIC_NAME_BYTES_MAX;
use tidegate_protocol::metric::{JournalWhat, Reading};
use tidegate_protocol::release::{Service, SmokeCheck};
use tokio::time::{sleep, timeout};

use super::bench::Bench;
use super::board::Teller;
use super::follow::{Begin, Follower, before};
use super::subject::Subject;
use super::tally::{Entry, Tally};
use crate::context::Installed;
use crate::error::chain;
use crate::exec::{self, ExecError, Mode, Program};
use crate::service::{Messages, unix_ms};
use crate::smoke::journal::{Lines, follow, journalctl, since_arg};

/// Between two looks at a log file.
const LOOK: Duration = Duration::from_millis(250);
/// Until messages that cannot be read are asked for again.
const PAUSE: Duration = Duration::from_secs(5);
/// A process that is younger when observing begins is observed from its start: the
/// agent may have been restarted under a rollout.
const YOUNG_MS: u64 = 3_600_000;
/// How long one `journalctl` follows; the next goes on behind its last message.
const FOLLOW: Duration = Duration::from_secs(3_600);
/// For the messages before.
const BEFORE: Duration = Duration::from_secs(10);
/// As much of the past is the baseline of new errors.
const BASELINE_MS: u64 = 3_600_000;
const BASELINE_LINES: usize = 5_000;
/// A start is known to a tick of the kernel.
const TICK_MS: u64 = 10;
/// Of one entry of the journal as JSON, with all its fields.
const JSON_BYTES_MAX: usize = 256 * 1024;
const JOURNALCTL: &str = "journalctl";
/// For the service manager to say where messages are.
const WHERE: Duration = Duration::from_secs(3);

/// One observer of messages.
pub(super) struct Counter {
    teller: Teller,
    patterns: Vec<String>,
    tally: Tally,
    /// Why its texts cannot be looked for.
    bad: Option<String>,
}

impl Counter {
    pub(super) fn new(teller: Teller, what: JournalWhat, mut patterns: Vec<String>) -> Self {
        patterns.truncate(METRIC_NAME_BYTES_MAX);
        Self { teller, patterns, tally: Tally::new(what), bad: None }
    }
}

/// All observers of messages of one watch.
struct Counters {
    all: Vec<Counter>,
    /// Counted for.
    release: Option<PathBuf>,
    /// Messages are read from the process's start on, though it was there before.
    from_start: bool,
    /// When the counting began, as it was told last.
    told: Option<u64>,
    /// `told` holds, for the process has taken over the counts of one that died.
    carries_on: bool,
}

impl Counters {
    fn new(all: Vec<Counter>, release: Option<PathBuf>) -> Self {
        Self { all, release, from_start: false, told: None, carries_on: false }
    }

    fn since(&mut self, bench: &Bench) -> u64 {
        let process = if self.from_start { bench.since_process() } else { bench.since() };
        *self.told.insert(self.told.filter(|_| self.carries_on).unwrap_or(process))
    }

    /// What counts of this release's messages.
    fn look_for(&mut self, bench: &Bench, installed: &Installed) {
        let expand = |texts: &[String]| texts.iter().map(|text| bench.expand(installed, text)).collect::<Result<Vec<_>, _>>();
        let deny = installed.component.smoke.iter().filter_map(|smoke| match &smoke.check {
            SmokeCheck::Journal { deny, .. } => Some(deny.as_slice()),
            _ => None,
        });
        let deny = expand(&deny.flatten().cloned().collect::<Vec<_>>());
        for counter in &mut self.all {
            let texts = deny.clone().and_then(|deny| Ok((expand(&counter.patterns)?, deny)));
            counter.bad = texts.map(|(patterns, deny)| counter.tally.look_for(&patterns, &deny)).err();
        }
    }

    fn take(&mut self, entry: Entry<'_>, since: u64) {
        for counter in &mut self.all {
            if counter.bad.is_none() && counter.tally.take(entry) {
                let reading = Reading::Count(counter.tally.count());
                if counter.tally.urgent() {
                    counter.teller.tell_now(since, reading, counter.tally.note());
                } else {
                    counter.teller.tell(since, reading, counter.tally.note());
                }
            }
        }
    }

    fn know(&mut self, entry: Entry<'_>) {
        self.all.iter_mut().for_each(|counter| counter.tally.know(entry));
    }

    fn tell(&self, since: u64) {
        for counter in &self.all {
            match &counter.bad {
                Some(why) => counter.teller.failed(since, why),
                None => counter.teller.tell(since, Reading::Count(counter.tally.count()), counter.tally.note()),
            }
        }
    }

    fn failed(&self, since: u64, why: &str) {
        self.all.iter().for_each(|counter| counter.teller.failed(since, why));
    }

    /// Another process. True if counting goes on; else what was counted is said and
    /// counting begins anew.
    async fn begin(&mut self, bench: &Bench, installed: &Installed, ordered: bool) -> bool {
        if !ordered && self.told.is_some() && self.release.as_ref() == Some(&installed.dir) {
            self.carries_on = true;
            self.look_for(bench, installed);
            let since = self.since(bench);
            self.tell(since);
            return true;
        }
        if let Some(counter) = self.all.first() {
            counter.teller.settled().await;
        }
        let another_release = self.release.as_ref().is_some_and(|before| *before != installed.dir);
        self.release = Some(installed.dir.clone());
        self.from_start = true;
        self.carries_on = false;
        self.all.iter_mut().for_each(|counter| counter.tally.begin(another_release));
        self.look_for(bench, installed);
        let since = self.since(bench);
        self.tell(since);
        false
    }
}

/// Whether reading begins with the process rather than now.
fn young(subject: &Subject, bench: &Bench) -> bool {
    subject.process.is_some_and(|process| process.started_at_unix_ms.saturating_add(YOUNG_MS) > bench.began)
}

pub(super) async fn run(mut bench: Bench, all: Vec<Counter>) {
    if !bench.ready().await {
        return;
    }
    let mut counters = Counters::new(all, None);
    loop {
        let subject = bench.now();
        let another = bench.another(&subject);
        let Some(installed) = subject.installed.clone() else {
            // Nothing says anything; what was said before stays said.
            let since = counters.told.unwrap_or_else(|| bench.since());
            counters.tell(since);
            bench.changed().await;
            continue;
        };
        if another {
            counters.begin(&bench, &installed, subject.ordered).await;
        } else {
            counters.release = Some(installed.dir.clone());
            counters.look_for(&bench, &installed);
        }
        let why = match whereabouts(&bench, &installed).await {
            Ok(Messages::File { path, from }) => in_file(&mut bench, &mut counters, &subject, path, from).await,
            Ok(Messages::Unit(unit)) => in_unit(&mut bench, &mut counters, &subject, unit, Path::new(JOURNALCTL)).await,
            Err(why) => Some(why),
        };
        if let Some(why) = why {
            let since = counters.since(&bench);
            counters.failed(since, &why);
            tokio::select! { () = bench.changed() => {}, () = sleep(PAUSE) => {} }
        }
    }
}

async fn whereabouts(bench: &Bench, installed: &Installed) -> Result<Messages, String> {
    if matches!(installed.component.service, Service::Command { .. }) {
        return Err(format!(
            "{}: the output of commands is not kept: `journal` needs a service of systemd or of the agent",
            installed.title()
        ));
    }
    let asked = timeout(WHERE, bench.services.messages(installed)).await;
    asked
        .unwrap_or_else(|_| Err(crate::error::failure(tidegate_protocol::Cause::Timeout, "the service manager does not answer")))
        .map_err(|e| e.message)
}

/// Follows a log file until the service is to be looked at anew, or it cannot be
/// read and why.
async fn in_file(bench: &mut Bench, counters: &mut Counters, subject: &Subject, path: PathBuf, mut from: u64) -> Option<String> {
    // The offset is that of the last start by order.
    counters.from_start = young(subject, bench) && subject.restarts == 0;
    let begin = if counters.from_start { Begin::At(from) } else { Begin::End };
    let unreadable = |error: &std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = path.clone();
    let known = blocking(move || {
        let mut lines = Vec::new();
        before(&file, begin, &mut |line| lines.push(line.to_owned())).map(|()| lines)
    });
    match known.await {
        Ok(lines) => lines.iter().for_each(|line| counters.know(Entry::of_line(line))),
        Err(error) => return Some(unreadable(&error)),
    }
    let mut follower = Follower::new(path.clone(), begin);
    let since = counters.since(bench);
    counters.tell(since);
    loop {
        loop {
            let look = blocking(move || {
                let mut lines = Vec::new();
                let more = follower.look(&mut |line| lines.push(line.to_owned()));
                Ok((follower, lines, more))
            });
            let (back, lines, more) = match look.await {
                Ok(looked) => looked,
                Err(error) => return Some(unreadable(&error)),
            };
            follower = back;
            if follower.anew() {
                from = 0;
            }
            let since = counters.since(bench);
            lines.iter().for_each(|line| counters.take(Entry::of_line(line), since));
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Some(unreadable(&error)),
            }
        }
        tokio::select! {
            () = sleep(LOOK) => continue,
            () = bench.changed() => {}
        }
        let subject = bench.now();
        let installed = subject.installed.clone()?;
        let same = counters.release.as_ref() == Some(&installed.dir);
        if !bench.another(&subject) {
            if !same {
                counters.look_for(bench, &installed);
            }
            continue;
        }
        let by_order = match whereabouts(bench, &installed).await {
            Ok(Messages::File { path: now, from: at }) if now == path => {
                let by_order = subject.restarts == 0 || at != from;
                from = at;
                by_order
            }
            _ => {
                counters.begin(bench, &installed, subject.ordered).await;
                return None;
            }
        };
        counters.begin(bench, &installed, subject.ordered || by_order).await;
        if by_order {
            // What it has said since was taken for the other's.
            follower = Follower::new(path.clone(), Begin::At(from));
        }
    }
}

/// As [`in_file`], for a unit in the host's journal.
async fn in_unit(bench: &mut Bench, counters: &mut Counters, subject: &Subject, unit: String, program: &Path) -> Option<String> {
    counters.from_start = young(subject, bench);
    let start = subject.process.filter(|_| counters.from_start).map(|process| process.started_at_unix_ms.saturating_sub(TICK_MS));
    let mut start = start.unwrap_or_else(unix_ms);
    if let Err(why) = known_of(program, &unit, start, counters).await {
        return Some(why);
    }
    let mut cursor: Option<String> = None;
    let since = counters.since(bench);
    counters.tell(since);
    loop {
        let place = cursor.as_ref().map_or_else(|| since_arg(start), |cursor| format!("--after-cursor={cursor}"));
        let command = of_unit(program, &unit, &[[place].as_slice(), &follow(&bench.ctx.boot_id)].concat());
        let since = counters.since(bench);
        let mut lines = Lines::of(JSON_BYTES_MAX);
        let mut sink = |bytes: &[u8]| {
            lines.take(bytes, &mut |line| of_json(line, &mut cursor, &mut |entry| counters.take(entry, since)));
            true
        };
        tokio::select! {
            ran = exec::run_program(&command, Path::new("/"), Mode::Manager, None, FOLLOW, &mut sink) => match ran {
                Err(ExecError::Timeout { .. }) => continue,
                Ok(ran) => return Some(format!("journalctl → {}; it said: {}", ran.end, ran.output)),
                Err(error) => return Some(format!("cannot read the journal: {}", chain(&error))),
            },
            () = bench.changed() => {}
        }
        let subject = bench.now();
        let installed = subject.installed.clone()?;
        if bench.another(&subject) {
            let process = subject.process?;
            // Where counting goes on, so does reading: the last words of the dead come late.
            if !counters.begin(bench, &installed, subject.ordered).await {
                (cursor, start) = (None, process.started_at_unix_ms.saturating_sub(TICK_MS));
            }
        } else if counters.release.as_ref() != Some(&installed.dir) {
            counters.look_for(bench, &installed);
        }
        match whereabouts(bench, &installed).await {
            Ok(Messages::Unit(now)) if now == unit => {}
            _ => return None,
        }
    }
}

/// Reads what the unit said before; that it can be read at all is known then.
async fn known_of(program: &Path, unit: &str, start: u64, counters: &mut Counters) -> Result<(), String> {
    let until = format!("--until=@{}.{:03}", start / 1_000, start % 1_000);
    let command = of_unit(program, unit, &[since_arg(start.saturating_sub(BASELINE_MS)), until, format!("--lines={BASELINE_LINES}")]);
    let mut lines = Lines::of(JSON_BYTES_MAX);
    let mut sink = |bytes: &[u8]| {
        lines.take(bytes, &mut |line| of_json(line, &mut None, &mut |entry| counters.know(entry)));
        true
    };
    match exec::run_program(&command, Path::new("/"), Mode::Manager, None, BEFORE, &mut sink).await {
        // No entry is not an error, whatever the version.
        Ok(ran) if ran.success || ran.output.is_empty() => Ok(()),
        Ok(ran) => Err(format!("journalctl → {}; it said: {}", ran.end, ran.output)),
        Err(error) => Err(format!("cannot read the journal: {}", chain(&error))),
    }
}

fn of_unit(program: &Path, unit: &str, args: &[String]) -> Program {
    // With --all, a long message is not left out.
    let form = ["--output=json", "--output-fields=MESSAGE,PRIORITY", "--all"].map(str::to_owned);
    Program { path: program.to_owned(), ..journalctl(unit, &[form.as_slice(), args].concat()) }
}

/// An entry as journalctl writes it.
#[derive(Deserialize)]
struct Json {
    #[serde(rename = "__CURSOR")]
    cursor: String,
    #[serde(rename = "PRIORITY", default)]
    priority: serde_json::Value,
    #[serde(rename = "MESSAGE", default)]
    message: serde_json::Value,
}

fn of_json(line: &str, cursor: &mut Option<String>, each: &mut dyn FnMut(Entry<'_>)) {
    if line.trim().is_empty() {
        return;
    }
    let Ok(json) = serde_json::from_str::<Json>(line) else {
        // Too long to be read whole; its words still count.
        return each(Entry { priority: None, text: line });
    };
    let text = match &json.message {
        serde_json::Value::String(text) => text.clone(),
        // Bytes that are not text come as numbers.
        serde_json::Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    };
    let priority = json.priority.as_str().and_then(|priority| priority.parse().ok());
    text.lines().for_each(|text| each(Entry { priority, text }));
    *cursor = Some(json.cursor);
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use crate::observe::board::{Board, Wanted};
    use crate::service::{Process, Services};
    use crate::slot::Slot;
    use std::sync::Arc;
    use tokio::sync::watch;

    /// What the host's journal tells of a unit, and what it was asked for.
    const SCRIPT: &str = r#"#!/bin/sh
echo "$*" >>"$0.asked"
say() { printf '{"__CURSOR":"%s","PRIORITY":"%s","MESSAGE":"%s"}\n' "$1" "$2" "$3"; }
case "$*" in
*--until=*) say c0 3 'request 1 failed' ;;
*--after-cursor=c[23]*) say c3 6 'still here'; exec sleep 600 ;;
*--since=*) [ -e "$0.next" ] || { say c1 3 'request 2 failed'; say c2 2 'no disk'; }; exec sleep 600 ;;
esac
"#;

    #[tokio::test]
    async fn the_journal_is_followed_from_a_cursor_and_from_the_start_of_each_process() {
        let dir = scratch();
        let script = dir.path().join("journalctl");
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let beside = |end: &str| PathBuf::from(format!("{}.{end}", script.display()));
        let ctx = Arc::new(context(dir.path()));
        let it = Arc::new(installed(dir.path(), "1", &[], Service::Systemd("shop-api.service".into())));
        let me = Process::find(std::process::id()).unwrap();
        let old = Process { started_at_unix_ms: 1_000_000, ..me };
        let subject = Subject { seen: true, installed: Some(it.clone()), process: Some(old), ..Subject::default() };
        let (show, shown) = watch::channel(subject.clone());
        let board = Arc::new(Board::default());
        let slot = Slot::plain("api".parse().unwrap());
        let kinds = [("critical", JournalWhat::Critical), ("new", JournalWhat::NewErrors)];
        board.arrange(vec![Wanted {
            slot: slot.clone(),
            every: Duration::from_secs(300),
            metrics: kinds.iter().map(|(m, _)| ((*m).to_owned(), false)).collect(),
        }]);
        let counter =
            |(m, what): (&str, JournalWhat)| Counter::new(Teller::new(board.clone(), slot.clone(), m.to_owned()), what, Vec::new());
        let mut counters = Counters::new(kinds.map(counter).into(), Some(it.dir.clone()));
        let mut bench = Bench::new(ctx.clone(), Services::observing(ctx), shown, Duration::from_secs(300));
        bench.another(&subject);
        counters.look_for(&bench, &it);
        let (first, path) = (subject.clone(), script.clone());
        let following = tokio::spawn(async move { in_unit(&mut bench, &mut counters, &first, "shop-api.service".into(), &path).await });
        let until = |wanted: [u64; 2]| {
            let board = board.clone();
            async move {
                let look = async {
                    let wanted = wanted.map(Reading::Count);
                    while board.samples()[0].readings.iter().map(|r| r.reading.clone()).ne(wanted.clone()) {
                        sleep(Duration::from_millis(5)).await;
                    }
                };
                timeout(Duration::from_secs(20), look).await.unwrap_or_else(|_| panic!("{wanted:?}: {:?}", board.samples()));
            }
        };
        let asked = |count: usize| {
            let path = beside("asked");
            async move {
                let look = async {
                    loop {
                        let lines: Vec<String> = std::fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
                        if lines.len() >= count {
                            return lines;
                        }
                        sleep(Duration::from_millis(5)).await;
                    }
                };
                timeout(Duration::from_secs(20), look).await.unwrap()
            }
        };
        // `request # failed` was there before; priority err is an error, crit is one and critical.
        until([1, 1]).await;
        // The swap goes on: the same process, so the reader goes on behind its last message.
        show.send_replace(Subject { moving: true, ..subject.clone() });
        let lines = asked(3).await;
        assert!(lines.iter().all(|line| line.starts_with("_SYSTEMD_UNIT=shop-api.service ")), "{lines:?}");
        assert!(lines[0].contains("--until=@") && !lines[0].contains("--follow"), "{lines:?}");
        assert!(lines[1].contains("--since=@") && lines[1].contains("--follow"), "{lines:?}");
        assert!(lines[2].contains("--after-cursor=c2") && !lines[2].contains("--since"), "{lines:?}");
        until([1, 1]).await;
        // It dies and its manager starts it again: counting and reading go on.
        let since = board.samples()[0].readings[0].since_unix_ms;
        let again = Process { started_at_unix_ms: me.started_at_unix_ms - 5_000, ..me };
        show.send_replace(Subject { process: Some(again), restarts: 1, ..subject.clone() });
        assert!(asked(4).await[3].contains("--after-cursor=c"));
        until([1, 1]).await;
        assert_eq!(board.samples()[0].readings[0].since_unix_ms, since);
        // Another process by order: zero, and everything since its start.
        std::fs::write(beside("next"), "").unwrap();
        show.send_replace(Subject { process: Some(me), ordered: true, ..subject.clone() });
        until([0, 0]).await;
        let from = me.started_at_unix_ms - TICK_MS;
        assert!(asked(5).await[4].contains(&since_arg(from)));
        assert_eq!(board.samples()[0].readings[0].since_unix_ms.max(me.started_at_unix_ms), board.samples()[0].readings[0].since_unix_ms);
        // Nothing is installed any more.
        show.send_replace(Subject { seen: true, ..Subject::default() });
        assert_eq!(timeout(Duration::from_secs(20), following).await.unwrap().unwrap(), None);
    }

    #[tokio::test]
    async fn a_journal_that_cannot_be_read_says_so() {
        let mut none = Counters::new(Vec::new(), None);
        let error = known_of(Path::new("/nonexistent/journalctl"), "x.service", 5, &mut none).await.unwrap_err();
        assert!(error.contains("cannot read the journal") && error.contains("/nonexistent/journalctl"), "{error}");
    }

    #[test]
    fn entries_of_the_journal_are_read() {
        let mut cursor = None;
        let mut seen = Vec::new();
        for line in [
            "{\"__CURSOR\":\"s=1\",\"PRIORITY\":\"2\",\"MESSAGE\":\"no disk\"}\n",
            "{\"__CURSOR\":\"s=2\",\"PRIORITY\":\"6\",\"MESSAGE\":[70,65,255,84,10,97]}",
            "{\"__CURSOR\":\"s=3\",\"MESSAGE\":null}",
            "\n",
            "{\"__CURSOR\":\"s=4\",\"MESSAGE\":\"panic and no end",
        ] {
            of_json(line, &mut cursor, &mut |entry| seen.push((entry.priority, entry.text.to_owned())));
        }
        let text = |text: &str| text.to_owned();
        assert_eq!(
            seen,
            [
                (Some(2), text("no disk")),
                (Some(6), text("FA\u{fffd}T")),
                (Some(6), text("a")),
                (None, text("{\"__CURSOR\":\"s=4\",\"MESSAGE\":\"panic and no end")),
            ]
        );
        assert_eq!(cursor.as_deref(), Some("s=3"));
    }
}
