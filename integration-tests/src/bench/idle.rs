//! What an agent uses while nothing happens: one supervised service, a report
//! every three seconds.

use std::thread;
use std::time::Duration;

use super::cost::Threads;
use super::stats::Sample;
use super::{Settings, cost, rollout, row};

const WATCH: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(15);
/// As the controller asks.
const REPORT_EVERY: Duration = Duration::from_secs(3);

pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    let mut fleet = rollout::fleet(1)?;
    let agent = fleet.host("h1")?.agent()?.pid();
    let (mut rss, mut pss, mut anonymous) = (Sample::default(), Sample::default(), Sample::default());
    let (mut per_report, mut share) = (Sample::default(), Sample::default());
    // Threads and pages of the rollout are given back.
    thread::sleep(SETTLE);
    for _ in 0..settings.runs.min(3) {
        let before = Threads::of(agent)?;
        thread::sleep(WATCH);
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of half a minute")]
        let used_ms = Threads::of(agent)?.since(&before) as f64 / 1e6;
        per_report.push(used_ms * REPORT_EVERY.as_secs_f64() / WATCH.as_secs_f64());
        share.push(used_ms / WATCH.as_secs_f64());
        let memory = cost::memory_of(agent)?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
        let mb = |bytes: u64| bytes as f64 / 1e6;
        rss.push(mb(memory.rss));
        pss.push(mb(memory.pss));
        anonymous.push(mb(memory.anonymous));
    }
    row("resident (RSS)", &rss.show("MB"));
    row("proportional (PSS)", &pss.show("MB"));
    row("anonymous", &anonymous.show("MB"));
    row("CPU", &share.show("ms per s"));
    row("CPU per report, keep-alives included", &per_report.show("ms"));
    Ok(())
}
