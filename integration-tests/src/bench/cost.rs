//! What processes used, as the kernel counts it.
//!
//! CPU seconds come from `/proc/PID/stat`, in ticks of 10 ms: of what a process
//! used itself and of its children that it has reaped. Over everything that
//! descends from this process the sum loses nothing, because this process is the
//! reaper of all orphans below it.

use std::collections::HashMap;
use std::fs;

use anyhow::Context;

/// CPU time of one process, ticks.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    parent: u32,
    own: u64,
    reaped: u64,
}

impl Ticks {
    /// From the text of a `stat` file; the name in it may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the first field here is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { parent: u32::try_from(field(4)?).ok()?, own: field(14)? + field(15)?, reaped: field(16)? + field(17)? })
    }

    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a benchmark are far below 2^53")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64
}

/// What a process itself has used, CPU seconds.
pub(super) fn cpu_of(pid: u32) -> anyhow::Result<f64> {
    Ticks::of(pid).map(|ticks| seconds(ticks.own)).with_context(|| format!("process {pid} is gone"))
}

/// What everything below this process has used so far, CPU seconds, without this
/// process itself.
pub(super) fn cpu_below() -> anyhow::Result<f64> {
    let all: HashMap<u32, Ticks> = fs::read_dir("/proc")
        .context("reading /proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Some((pid, Ticks::of(pid)?)))
        .collect();
    let me = std::process::id();
    let mine = |mut pid: u32| {
        // As deep as a process tree gets.
        for _ in 0..64 {
            match all.get(&pid) {
                Some(ticks) if ticks.parent == me => return true,
                Some(ticks) => pid = ticks.parent,
                None => return false,
            }
        }
        false
    };
    let below: u64 = all.iter().filter(|(pid, _)| mine(**pid)).map(|(_, ticks)| ticks.own + ticks.reaped).sum();
    let reaped = all.get(&me).map_or(0, |ticks| ticks.reaped);
    Ok(seconds(below + reaped))
}

/// Time on a CPU of each thread of a process, nanoseconds: finer than ticks, but
/// blind to threads that ended.
#[derive(Clone, Debug)]
pub(super) struct Threads(HashMap<u32, u64>);

impl Threads {
    /// The process's threads now.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
        let of = |task: fs::DirEntry| {
            let used = fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()?;
            Some((task.file_name().to_str()?.parse().ok()?, used))
        };
        Ok(Self(tasks.flatten().filter_map(of).collect()))
    }

    /// What they used since an earlier look, nanoseconds.
    pub(super) fn since(&self, earlier: &Self) -> u64 {
        self.0.iter().map(|(thread, used)| used.saturating_sub(earlier.0.get(thread).copied().unwrap_or_default())).sum()
    }
}

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Resident, shared pages counted whole.
    pub(super) rss: u64,
    /// Resident, each shared page divided by those who share it.
    pub(super) pss: u64,
    /// Private and not from a file: heap and stacks.
    pub(super) anonymous: u64,
}

/// Memory of a process.
pub(super) fn memory_of(pid: u32) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("the memory of process {pid}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in smaps_rollup"))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("{name}{line}"))?;
        anyhow::Ok(kib * 1024)
    };
    Ok(Memory { rss: field("Rss:")?, pss: field("Pss:")?, anonymous: field("Anonymous:")? })
}

/// The load averages.
pub(super) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// What all figures depend on, in one line.
pub(super) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).map_or("CPU", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let day = jiff::Zoned::now().date();
    format!("{day}: {cores} cores ({model}), {} GiB, Linux {}, files in {}", kib >> 20, kernel.trim(), std::env::temp_dir().display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_no_trouble() {
        let ticks = Ticks::parse("7 (a) b) S 3 1 1 0 -1 0 0 0 0 0 11 22 33 44 20 0").unwrap();
        assert_eq!((ticks.parent, ticks.own, ticks.reaped), (3, 33, 77));
    }

    #[test]
    fn work_of_a_child_is_counted() {
        let before = cpu_below().unwrap();
        let done = std::process::Command::new("sh").args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"]).status().unwrap();
        assert!(done.success() && cpu_below().unwrap() > before);
    }
}
