//! How long a plan takes: its bakes, and swaps at the pace that was measured.

use alloc::format;
use alloc::string::{String, ToString};

use tidegate_protocol::Millis;

use crate::plan::Plan;
use crate::process::Estimate;
use crate::spec::Fit;

/// One step of a wave, where nothing was measured.
const STEP_ASSUMED: Millis = Millis::from_secs(30);

/// How fast hosts change, as measured before. A step is as many hosts as may be in
/// flight together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// One step forward: stage, swap, smoke tests, confirmation.
    pub forward: Millis,
    /// One step back.
    pub back: Millis,
    /// `measured by drill shop-…`
    pub from: String,
}

/// Steps forward (tasks are one each) and back.
#[must_use]
pub fn steps(plan: &Plan) -> (u64, u64) {
    let window_of = |component| plan.components.iter().find(|c| &c.name == component).map_or(1, |c| c.window.max(1));
    let forward: usize = plan.waves.iter().map(|wave| wave.hosts.len().div_ceil(window_of(&wave.component))).sum();
    let back: usize = plan.components.iter().map(|c| c.hosts.len().div_ceil(c.rollback_window.max(1))).sum();
    let undone = plan.process.tasks.iter().filter(|task| task.undo).count();
    ((forward + plan.process.tasks.len()) as u64, (back + undone) as u64)
}

/// Time of a plan up to 100 %, and of the way back of all its hosts.
#[must_use]
pub fn estimate(plan: &Plan, pace: Option<&Pace>) -> Estimate {
    let (forward, back) = steps(plan);
    let assumed =
        || Pace { forward: STEP_ASSUMED, back: STEP_ASSUMED, from: format!("assumed: {STEP_ASSUMED} for each step; a drill measures it") };
    let pace = pace.cloned().unwrap_or_else(assumed);
    let baseline = if plan.gating.analysis.needs_baseline { plan.gating.analysis.baseline } else { Millis(0) };
    let bakes = plan.gating.stages.iter().filter(|s| !s.watch).fold(baseline, |sum, s| sum_of(sum, s.bake));
    Estimate { forward: sum_of(bakes, times(pace.forward, forward)), back: times(pace.back, back), from: pace.from }
}

/// What must fit into what is left of a window: everything and the way back, or
/// the longest stage and the way back.
#[must_use]
pub fn needs(plan: &Plan, fit: Fit) -> Millis {
    let estimate = &plan.process.estimate;
    let forward = match fit {
        Fit::All => estimate.forward,
        Fit::Stage => longest_stage(plan),
    };
    sum_of(forward, estimate.back)
}

/// The longest stage: its bake, and its share of the swaps.
fn longest_stage(plan: &Plan) -> Millis {
    let forward = plan.process.estimate.forward;
    let bakes = plan.gating.stages.iter().filter(|s| !s.watch).fold(0_u64, |sum, s| sum.saturating_add(s.bake.0));
    let swaps = forward.0.saturating_sub(bakes);
    let all = plan.waves.len().max(1) as u64;
    let mut last = 0;
    let longest = plan
        .gating
        .stages
        .iter()
        .filter(|s| !s.watch)
        .map(|stage| {
            let waves = stage.after_wave.saturating_sub(last).max(1) as u64;
            last = stage.after_wave;
            stage.bake.0.saturating_add(swaps.saturating_mul(waves).div_ceil(all))
        })
        .max();
    longest.map_or(forward, |ms| Millis(ms).min(forward))
}

fn sum_of(a: Millis, b: Millis) -> Millis {
    Millis(a.0.saturating_add(b.0))
}

fn times(one: Millis, n: u64) -> Millis {
    Millis(one.0.saturating_mul(n))
}

/// A duration for people: `4h10m`, `45s`, to the second.
#[must_use]
pub fn spell(span: Millis) -> String {
    let seconds = span.0.div_ceil(1_000);
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let part = |n: u64, unit: &str| if n == 0 { String::new() } else { format!("{n}{unit}") };
    let text = format!("{}{}{}", part(h, "h"), part(m, "m"), part(s, "s"));
    if text.is_empty() { "0s".to_string() } else { text }
}
