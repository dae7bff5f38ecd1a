//! The controller's memory per connected agent.

use std::thread;
use std::time::Duration;

use super::light::Light;
use super::stats::{Sample, digits, slope};
use super::{Settings, cost, row};
use crate::Fleet;
use crate::wait::{Look, wait_until};

const STEPS: [usize; 5] = [100, 250, 500, 750, 1000];
const IN_WITHIN: Duration = Duration::from_secs(120);
/// Over so long the controller's CPU is counted at the last step.
const WATCH: Duration = Duration::from_secs(12);

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    let (mut slopes, mut anonymous, mut cpu) = (Sample::default(), Sample::default(), Sample::default());
    let mut last = Vec::new();
    for _ in 0..settings.runs.min(3) {
        let once = once()?;
        slopes.push(slope(&once.points));
        anonymous.push(slope(&once.anonymous));
        cpu.push(once.cpu_permille);
        last = once.points;
    }
    row("resident, slope over 100 to 1000 agents", &slopes.show("kB per agent"));
    row("of it anonymous", &anonymous.show("kB per agent"));
    let points: Vec<String> = last.iter().map(|(agents, kb)| format!("{agents:.0}: {}", digits(*kb / 1000.0))).collect();
    row("resident by number of agents, last run, MB", &points.join(", "));
    row("CPU with all connected, a report every 3 s", &cpu.show("ms per s"));
    Ok(())
}

struct Once {
    points: Vec<(f64, f64)>,
    anonymous: Vec<(f64, f64)>,
    cpu_permille: f64,
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^53")]
fn once() -> anyhow::Result<Once> {
    // Dropped in reverse: the agents leave before the controller ends.
    let mut fleet = Fleet::start(0)?;
    let pid = fleet.controller()?.pid();
    let most = STEPS.into_iter().max().unwrap_or_default();
    let mut light = Light::start(format!("127.0.0.1:{}", fleet.port()?), &fleet.token(&[], most)?)?;
    // Not from none: the first agents also fill pools that do not grow any more.
    let (mut points, mut anonymous) = (Vec::new(), Vec::new());
    for step in STEPS {
        light.grow_to(step)?;
        wait_until(&format!("{step} light agents are in"), IN_WITHIN, || {
            let (welcomed, _) = light.counts()?;
            Ok(if welcomed == step { Look::Done(()) } else { Look::NotYet(format!("{welcomed} are")) })
        })?;
        // Buffers of joining are given back, and every agent has reported more than once.
        let (_, before) = light.counts()?;
        wait_until("all have reported twice", IN_WITHIN, || {
            let (_, reports) = light.counts()?;
            Ok(if reports >= before + 2 * step as u64 { Look::Done(()) } else { Look::NotYet(format!("{} reports", reports - before)) })
        })?;
        let memory = cost::memory_of(pid)?;
        points.push((step as f64, memory.rss as f64 / 1000.0));
        anonymous.push((step as f64, memory.anonymous as f64 / 1000.0));
    }
    let before = cost::cpu_of(pid)?;
    thread::sleep(WATCH);
    let cpu_permille = (cost::cpu_of(pid)? - before) * 1000.0 / WATCH.as_secs_f64();
    light.counts()?;
    Ok(Once { points, anonymous, cpu_permille })
}
