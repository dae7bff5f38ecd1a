//! Seeded simulation: one controller and up to eight hosts over the real, pure
//! machines, with everything around them simulated, in virtual time.
//!
//! Owns: the drivers around the machines, the faults between any two of their
//! steps, and a checker that looks after every event. One number gives the whole
//! run, so a failure is replayed by its seed. Must not: read a clock, do I/O, or
//! iterate over anything unordered.

mod check;
mod controller;
mod effect;
mod engine;
mod host;
mod net;
pub mod rng;
pub mod world;

use std::collections::BTreeSet;

use tidegate_protocol::Generation;
use tidegate_rollout::RolloutState;

pub use world::{Kind, World};

/// A rule that a driver breaks on purpose: the checker must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The controller sends an order before it is durable.
    SendsFirst,
    /// The controller admits twice the window.
    AdmitsDouble,
    /// The controller journals a host's transition twice.
    JournalsTwice,
    /// The agent obeys old generations.
    IgnoresGenerations,
    /// The agent says persisted, and is not.
    ForgetsLedger,
    /// The agent never looks at its deadlines.
    NoDeadlines,
    /// The agent says confirmed before it is.
    ClaimsConfirmed,
    /// The agent deletes what it would go back to as soon as it has flipped.
    DropsPrevious,
    /// The controller's last records were not as durable as it was told.
    LosesJournal,
}

impl Mutant {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::SendsFirst,
        Self::AdmitsDouble,
        Self::JournalsTwice,
        Self::IgnoresGenerations,
        Self::ForgetsLedger,
        Self::NoDeadlines,
        Self::ClaimsConfirmed,
        Self::DropsPrevious,
        Self::LosesJournal,
    ];
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Empty when every invariant held.
    pub violations: Vec<String>,
    /// State of each rollout.
    pub states: Vec<RolloutState>,
    /// Each (host, component) that went forward, and for which generation.
    pub swaps: BTreeSet<(usize, usize, Generation)>,
    /// What happened, line by line, if it was asked for.
    pub log: Vec<String>,
    /// Events taken in.
    pub events: u64,
    /// Virtual milliseconds.
    pub took: u64,
}

/// Runs a world to its end, or to the first violation.
#[must_use]
pub fn run(world: World, mutant: Option<Mutant>, verbose: bool) -> Outcome {
    let mut sim = engine::Sim::new(world, mutant, verbose);
    sim.go();
    Outcome {
        violations: std::mem::take(&mut sim.check.violations),
        states: sim.ctl.runs.iter().map(|run| run.rollout.state()).collect(),
        swaps: sim.check.swaps.iter().filter(|(_, n)| **n > 0).map(|(((h, c), generation), _)| (*h, *c, *generation)).collect(),
        log: sim.log.take().unwrap_or_default(),
        events: sim.events,
        took: sim.now,
    }
}

/// Runs a seed. A world in which only the controller is away is run undisturbed
/// too: the same hosts must have swapped, for the same generations.
#[must_use]
pub fn run_seed(seed: u64, mutant: Option<Mutant>, verbose: bool) -> Outcome {
    let world = World::new(seed);
    let undisturbed = (world.kind == Kind::ControllerOnly && mutant.is_none()).then(|| {
        let mut world = world.clone();
        world.phases.iter_mut().for_each(|phase| phase.faults.clear());
        run(world, None, false)
    });
    let mut outcome = run(world, mutant, verbose);
    if let Some(undisturbed) = undisturbed
        && outcome.violations.is_empty()
    {
        outcome.violations = undisturbed.violations;
        if undisturbed.swaps != outcome.swaps {
            let text = format!("swaps differ from the undisturbed run: {:?}, undisturbed {:?}", outcome.swaps, undisturbed.swaps);
            outcome.violations.push(text);
        }
    }
    outcome
}

/// Adds a line to the log of a verbose run.
macro_rules! log {
    ($sim:expr, $($arg:tt)*) => {
        if $sim.log.is_some() {
            let line = format!("{:>8} {}", $sim.now, format!($($arg)*));
            if let Some(log) = $sim.log.as_mut() {
                log.push(line);
            }
        }
    };
}
use log;
