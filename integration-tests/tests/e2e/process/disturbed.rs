//! The guide's run with a controller that is killed again and again: nobody is
//! told less, nobody much more, and the documents are those of an undisturbed run.
//!
//! The seed is printed; `TIDEGATE_SEED` replays it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use tidegate_integration_tests::ask::Operator;
use tidegate_integration_tests::paperwork::Papers;
use tidegate_integration_tests::people::People;
use tidegate_integration_tests::receiver::Received;
use tidegate_integration_tests::sim::rng::Rng;
use tidegate_integration_tests::wait::{hold, wait_for};
use tidegate_integration_tests::{Fleet, Plan};

use super::papers::normalised;
use super::run::{HOLD, ID, approve_all, close, hand_over, load, plan_with, submit};
use super::{HOSTS, World, plain, with_tasks};
use crate::{Result, SOON};

/// Kills of one run.
const KILLS: u32 = 4;
/// Between a controller that listens and its next death, milliseconds.
const LIFE: (u64, u64) = (200, 2_500);

/// What a run left: its documents, and how often each message came and was taken.
struct Left {
    papers: Papers,
    told: BTreeMap<String, usize>,
}

/// The whole run, by people who insist.
fn walk(operator: &Operator, plan: &Plan, people: &People) -> Result {
    submit(operator, plan)?;
    operator.wait_state(ID, "awaiting-approval", SOON)?;
    approve_all(operator, people, ID)?;
    operator.wait_state(ID, "completed", SOON)?;
    hand_over(operator, people)?;
    close(operator).map(drop)
}

fn run(seed: Option<u64>) -> Result<Left> {
    let mut world = World::new("")?;
    world.ship(&plain("1.0.0"))?;
    world.fleet.import(&with_tasks("2.0.0"))?;
    let traffic = load(&world)?;
    // Nobody is asked in the middle: how late a person answers is no matter of the controller.
    // Observed long enough that what is left of it after a restart still decides.
    let plan = plan_with(&world, "5s", "", "watch = \"5s\"");
    let operator: Operator = (*world.fleet).clone();
    match seed {
        None => walk(&operator, &plan, &world.people)?,
        Some(seed) => disturbed(&mut world.fleet, &operator, &plan, &world.people, seed)?,
    }
    drop(traffic);
    let told = told(&world)?;
    world.receiver.expect_valid()?;
    let papers = world.fleet.papers(ID)?;
    let events = world.fleet.events(ID)?;
    let swaps =
        events.iter().filter(|e| e["record"]["kind"] == "ordered" && e["record"]["intent"] == "forward" && e["record"]["phase"] == "swap");
    ensure!(swaps.count() == world.fleet.hosts.len(), "a host was swapped twice");
    ensure!(world.fleet.tasks_run().len() == 2, "{:?}", world.fleet.tasks_run());
    Ok(Left { papers, told })
}

/// Walks on one thread, and kills the controller on this one.
fn disturbed(fleet: &mut Fleet, operator: &Operator, plan: &Plan, people: &People, seed: u64) -> Result {
    let mut chance = Rng::new(seed, 7);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let walking = scope.spawn(|| {
            let walked = walk(operator, plan, people);
            over.store(true, Ordering::Relaxed);
            walked
        });
        let mut killed = 0;
        let mut kill = || -> Result {
            while killed < KILLS && !over.load(Ordering::Relaxed) {
                hold(Duration::from_millis(chance.between(LIFE.0, LIFE.1)), || Ok(()))?;
                fleet.kill_controller()?;
                killed += 1;
                fleet.start_controller()?;
            }
            Ok(())
        };
        let kills = kill();
        let walked = walking.join().map_err(|_| anyhow!("the walking thread panicked"))?;
        walked.with_context(|| fleet.tails())?;
        kills?;
        ensure!(killed >= 2, "it was over after {killed} kills: nothing was disturbed");
        Ok(())
    })
}

/// How often each message came and was taken, without what moves in it.
fn told(world: &World) -> Result<BTreeMap<String, usize>> {
    if let Some(mail) = &world.mail {
        mail.wait("the last mail", SOON, |mail| mail.header("subject").contains("completed") && mail.text.contains("shop@2.0.0"))?;
    }
    let last = |r: &Received| r.taken() && r.text().contains("completed") && r.text().contains("shop@2.0.0");
    world.receiver.wait("the last message", "/webhook", SOON, last)?;
    // And whatever still follows.
    let mut before = usize::MAX;
    wait_for("nothing more comes", SOON, || {
        let now = world.receiver.received().len();
        let same = now == before;
        before = now;
        if !same {
            hold(HOLD, || Ok(()))?;
        }
        Ok(same)
    })?;
    let mut told = BTreeMap::new();
    for r in world.receiver.received().iter().filter(|r| r.taken() && r.method == "POST" && r.text().contains(ID)) {
        let what = [
            &r.json["text"],
            &r.json["event_action"],
            &r.json["dedup_key"],
            &r.json["payload"]["summary"],
            &r.json["key"],
            &r.json["title"],
        ];
        let what: Vec<String> = what.iter().filter_map(|part| part.as_str().map(normalised)).collect();
        *told.entry(format!("{} {}", r.path.split('/').nth(1).unwrap_or_default(), what.join(" | "))).or_default() += 1;
    }
    for mail in world.mail.iter().map(|mail| mail.mails()).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        if !mail.text.contains(ID) {
            continue;
        }
        *told.entry(format!("mail {}", normalised(mail.header("subject")))).or_default() += 1;
    }
    Ok(told)
}

#[test]
fn a_controller_that_dies_again_and_again_loses_no_message_and_writes_the_same_documents() -> Result {
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1042);
    eprintln!("seed {seed}");
    let (calm, stormy) = thread::scope(|scope| {
        let calm = scope.spawn(|| run(None));
        let stormy = run(Some(seed));
        let calm = calm.join().map_err(|_| anyhow!("the calm run panicked"));
        (calm, stormy)
    });
    let (calm, stormy) = (calm??, stormy?);

    ensure!(calm.told.len() >= 5, "hardly anybody was told anything: {:#?}", calm.told);
    ensure!(calm.told.values().all(|times| *times == 1), "told more than once though nothing happened: {:#?}", calm.told);
    for message in calm.told.keys() {
        let times = stormy.told.get(message).copied().unwrap_or_default();
        ensure!((1..=2).contains(&times), "{message} came {times} times; all: {:#?}", stormy.told);
    }
    let extra: Vec<&String> = stormy.told.keys().filter(|message| !calm.told.contains_key(*message)).collect();
    ensure!(extra.is_empty(), "messages that an undisturbed run does not send: {extra:#?}");

    ensure!(calm.papers.names() == stormy.papers.names(), "{:?} and {:?}", calm.papers.names(), stormy.papers.names());
    let mut differ = Vec::new();
    for ((name, a), (_, b)) in calm.papers.each().zip(stormy.papers.each()) {
        // The HTML is made from the same model; its charts are drawn from samples.
        if name.ends_with(".md") || name.ends_with(".xml") {
            let (a, b) = (normalised(&without_chance(a)), normalised(&without_chance(b)));
            differ.extend(difference(&a, &b).map(|line| format!("{name}: {line}")));
        }
    }
    ensure!(differ.is_empty(), "the documents differ in more than times:\n{}", differ.join("\n"));
    Ok(())
}

/// Without downtime: whether a probe met a restart of some milliseconds, and of
/// which host, is chance. So is which of five hosts on one disk has least room.
fn without_chance(text: &str) -> String {
    let mut inside = false;
    let keeps = |line: &&str| {
        if line.starts_with("## ") {
            inside = line.starts_with("## Downtime");
        }
        !inside && !line.contains("**Downtime:**")
    };
    let lines: String = text.lines().filter(keeps).map(|line| format!("{line}\n")).collect();
    // A check that took no millisecond shows no duration.
    let lines: String = lines.lines().map(|line| format!("{}\n", without_duration(line))).collect();
    (1..=HOSTS).fold(lines, |lines, number| lines.replace(&format!("free (h{number})"), "free"))
}

/// The row of a table without a duration of milliseconds in its last column.
fn without_duration(line: &str) -> String {
    let row = line.strip_suffix(" ms |").and_then(|row| row.rsplit_once('|'));
    row.map_or_else(|| line.to_owned(), |(row, _)| format!("{row}| - |"))
}

/// The lines that only one of two texts has.
fn difference<'a>(a: &'a str, b: &'a str) -> impl Iterator<Item = String> {
    let only = |mark: char, these: &'a str, those: &'a str| {
        let others: Vec<&str> = those.lines().collect();
        these.lines().filter(move |line| !others.contains(line)).map(move |line| format!("{mark} {line}")).collect::<Vec<_>>()
    };
    only('-', a, b).into_iter().chain(only('+', b, a))
}
