//! The benchmarks: each compares Tidegate with something else, or with itself at
//! another size, in one run on one machine.
//!
//! Owns: what is measured and how it is printed. Must not judge: a machine that
//! others share gives other seconds each time, so only ratios of one run are
//! worth comparing, and no figure here fails anything. `BENCHMARKS.md` says what
//! they mean.

mod ansible;
mod bigbang;
mod cost;
mod idle;
mod light;
mod memory;
mod rollout;
mod sshd;
mod stage;
mod stats;
mod wire;

use anyhow::{Context, bail};

/// What every benchmark is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often what is timed is repeated.
    pub runs: usize,
}

/// A benchmark by name.
type Benchmark = (&'static str, &'static str, fn(Settings) -> anyhow::Result<()>);

/// In the order they run.
const ALL: [Benchmark; 5] = [
    ("bigbang", "a 20 MiB release to 50 hosts at once", bigbang::run),
    ("stage", "artifact MB/s of one host, against a bare quinn transfer", stage::run),
    ("memory", "the controller's memory per connected agent", memory::run),
    ("idle", "an idle agent's memory and CPU", idle::run),
    ("ansible", "copy 10 MiB, verify, swap, restart, smoke test on 20 hosts, against Ansible", ansible::run),
];

/// Names and titles of all benchmarks.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(|(name, title, _)| (*name, *title))
}

/// Runs the benchmarks called `wanted`, or all of them, and prints their figures.
///
/// # Errors
/// A name that is none, or a benchmark that did not come to its end.
pub fn run(wanted: &[String], settings: Settings) -> anyhow::Result<()> {
    if let Some(odd) = wanted.iter().find(|name| !ALL.iter().any(|(known, ..)| known == name)) {
        bail!("there is no benchmark {odd}; there are {}", ALL.map(|(name, ..)| name).join(", "));
    }
    // What outlives its parent (sessions of sshd, services) is then still ours to count.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("becoming the reaper of what is started here")?;
    println!("{}", cost::machine());
    for (name, title, run) in ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        println!("\n== {name}: {title} ({} runs; load {})", settings.runs, cost::load());
        run(settings).with_context(|| format!("the benchmark {name}"))?;
        println!("   load {} at the end", cost::load());
    }
    Ok(())
}

/// One line of figures.
fn row(what: &str, figures: &str) {
    println!("   {what:<46} {figures}");
}
