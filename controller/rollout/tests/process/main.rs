//! The process around a rollout: people, windows, freezes, tasks and papers. One
//! test per row of the tables in DESIGN.md, then whatever comes in any order.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod papers;
mod tasks;
mod waiting;
mod whatever;
mod windows;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeSet;

use tidegate_protocol::*;
use tidegate_rollout::process::{Estimate, Fit, Opening, Override, Role, Row, RowKind, RowVerdict, Section, SignRole, Signed};
use tidegate_rollout::*;

use world::{BEGIN, GOOD, Load, Process, Setup, World, journaled, name};

const ANALYSIS: &str = "[analysis]\ninterval = \"1s\"\nbaseline = \"5s\"\ndeadline = \"120s\"\nerror_deadline = \"60s\"\n";
const SOURCE: &str = "[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1:8080/\"\nrate = \"100/s\"\n";
const TRIGGER: &str = "[[rollback]]\nwhen = \"error_rate > 1%\"\naction = \"rollback\"\nmin_samples = 300\n";

/// Two stages, each observed for 10 s.
fn canary(extra: &str) -> String {
    let stage = |percent: u8| {
        format!("[[stage]]\nname = \"{percent} %\"\npercent = {percent}\nbake = \"10s\"\nsuccess = [\"error_rate < 0.5%\"]\n")
    };
    format!("strategy = \"canary\"\n{ANALYSIS}{SOURCE}{TRIGGER}{}{}{extra}", stage(25), stage(100))
}

fn blue_green(manual: bool, extra: &str) -> String {
    let mode = if manual { "switch_mode = \"manual\"\n" } else { "" };
    let head = format!("strategy = \"blue-green\"\nswitch = {{ run = \"lb ${{side}}\" }}\n{mode}bake = \"10s\"\n");
    format!("{head}success = [\"error_rate < 0.5%\"]\n{ANALYSIS}{SOURCE}{TRIGGER}{extra}")
}

const WINDOW: &str = "[[window]]\n";
const ROLLING: &str = "strategy = \"rolling\"\nbatch = 1\n";

/// Seconds after the begin.
fn at(secs: u64) -> Timestamp {
    BEGIN + Millis::from_secs(secs)
}

/// From and to, in seconds after the begin.
fn opening(from: u64, to: u64) -> Opening {
    Opening { opens: at(from), closes: at(to), text: format!("{from}-{to}"), fit: Fit::All, overrun: false }
}

fn fleet(n: usize, plan: &str, process: Process) -> World {
    fleet_with(n, plan, process, |_| {})
}

fn fleet_with(n: usize, plan: &str, process: Process, set: impl FnOnce(&mut World)) -> World {
    let setup = Setup { hosts: n, components: vec!["api"], first_install: false, drill: false };
    World::begin_in(setup, plan, process, set)
}

/// Openings, and a way forward and back of so many seconds.
fn in_windows(openings: &[Opening], forward: u64, back: u64) -> Process {
    let mut process = Process::default();
    process.around.estimate = Estimate { forward: Millis::from_secs(forward), back: Millis::from_secs(back), from: "assumed".into() };
    process.brought.openings = openings.to_vec();
    process
}

fn task(name: &str) -> release::Task {
    release::Task {
        name: name.into(),
        files: Vec::new(),
        run: vec!["bin/run".into()],
        undo: Some(vec!["bin/undo".into()]),
        reversible: true,
        idempotent: false,
        on: String::new(),
    }
}

fn with_tasks(tasks: Vec<release::Task>) -> Process {
    Process { tasks, ..Process::default() }
}

fn row(item: &str, verdict: RowVerdict) -> Row {
    Row {
        item: item.into(),
        section: Section::Fleet,
        title: item.into(),
        kind: RowKind::Automatic,
        demanded: true,
        verdict,
        evidence: format!("seen of {item}"),
        by: None,
        at: None,
    }
}

fn signed(who: &str) -> Signed {
    Signed { principal: format!("{who}@example.com"), key: format!("SHA256:{who}"), signature: "armored".into(), brought_by: who.into() }
}

impl World {
    fn approve(&mut self, role: Role, who: &str) -> Result<(), VerbError> {
        let said = self.handle(Event::Approved { role, signed: &signed(who) });
        self.run();
        said
    }

    fn attest(&mut self, item: &str) -> Result<(), VerbError> {
        let said = self.handle(Event::Attested { item, by: "ops", note: "seen" });
        self.run();
        said
    }

    fn override_it(&mut self, what: Override) -> Result<(), VerbError> {
        let said = self.handle(Event::Overridden { what, role: Role::Operations, signed: &signed("boss"), reason: "must" });
        self.run();
        said
    }

    fn freeze(&mut self, why: Option<&str>) {
        self.handle(Event::Frozen(why)).unwrap();
        self.run();
    }

    fn paper(&mut self, record: Record) -> Result<(), VerbError> {
        self.handle(Event::Paper(&record))
    }

    /// Orders of any kind in the journal.
    fn orders(&self) -> usize {
        self.count(|r| matches!(r, Record::Ordered { .. } | Record::TaskOrdered { .. } | Record::Switch { .. } | Record::Retired { .. }))
    }
}

/// After a restart it would be the same.
fn folds(world: &World) -> (String, String) {
    let folded = Rollout::fold("r1".parse().unwrap(), world.journal.iter().cloned()).unwrap();
    (journaled(&folded), journaled(&world.rollout))
}
