//! The machine's numbers: CPU, memory, space. Never walks all processes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sysinfo::{MINIMUM_CPU_UPDATE_INTERVAL, System};
use tidegate_protocol::report::HostFacts;

use crate::service::Stat;

/// Descendants of a service that are counted with it.
const DESCENDANTS_MAX: usize = 256;
/// Control groups live here (version 2).
const CGROUPS: &str = "/sys/fs/cgroup";

/// Keeps what a difference over time needs.
pub struct Facts {
    /// None where the system does not tell: the numbers are then zero.
    system: Option<System>,
    opt_dir: PathBuf,
    read: Option<Instant>,
    cpu_permille: u32,
    /// Per main pid: when it was last looked at, and what was shown then.
    services: std::collections::BTreeMap<u32, Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    cpu_ms: u64,
    permille: u32,
}

/// Cumulative numbers of one service, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceNumbers {
    /// CPU time, milliseconds of one core.
    pub cpu_ms: u64,
    /// Resident now, bytes.
    pub memory_bytes: u64,
}

impl Facts {
    /// Reads nothing yet. `opt_dir` is where space is looked at.
    #[must_use]
    pub fn new(opt_dir: impl Into<PathBuf>) -> Self {
        Self {
            system: System::new().ok(),
            opt_dir: opt_dir.into(),
            read: None,
            cpu_permille: 0,
            services: std::collections::BTreeMap::new(),
        }
    }

    /// The machine, now. CPU is over the time since the last call; a call that
    /// comes too soon repeats the last number. Reads three small files.
    pub fn host(&mut self) -> HostFacts {
        let (disk_free_bytes, inodes_free) = space(&self.opt_dir).unwrap_or_default();
        let mut facts = HostFacts { disk_free_bytes, inodes_free, ..HostFacts::default() };
        let Some(system) = &mut self.system else { return facts };
        if self.read.is_none_or(|at| at.elapsed() >= MINIMUM_CPU_UPDATE_INTERVAL) {
            system.refresh_cpu_usage();
            // The first reading has nothing to compare with.
            if self.read.is_some() {
                self.cpu_permille = permille(f64::from(system.global_cpu_usage()) * 10.0);
            }
            self.read = Some(Instant::now());
        }
        system.refresh_memory();
        facts.cpu_permille = self.cpu_permille;
        facts.memory_bytes = system.used_memory();
        facts.memory_total_bytes = system.total_memory();
        facts
    }

    /// A service by its main pid: CPU since the last call, in thousandths of one
    /// core, and resident memory. Zero if it is gone, and CPU at the first call.
    pub fn service(&mut self, pid: u32) -> (u32, u64) {
        let Some(numbers) = service_numbers(pid) else {
            self.services.remove(&pid);
            return (0, 0);
        };
        let now = Instant::now();
        let before = self.services.get(&pid).copied();
        let permille = match before {
            Some(before) if now - before.at < MINIMUM_CPU_UPDATE_INTERVAL => return (before.permille, numbers.memory_bytes),
            Some(before) => rate(numbers.cpu_ms.saturating_sub(before.cpu_ms), now - before.at),
            None => 0,
        };
        self.services.insert(pid, Sample { at: now, cpu_ms: numbers.cpu_ms, permille });
        // Main pids of services that were replaced are of no use any more.
        self.services.retain(|_, sample| now - sample.at < Duration::from_secs(600));
        (permille, numbers.memory_bytes)
    }
}

fn rate(cpu_ms: u64, over: Duration) -> u32 {
    let over = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
    u32::try_from(cpu_ms.saturating_mul(1_000) / over).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range before")]
fn permille(value: f64) -> u32 {
    value.clamp(0.0, 1_000.0).round() as u32
}

/// Free bytes and inodes for an unprivileged writer, at the nearest directory
/// that is there.
#[must_use]
pub fn space(dir: &Path) -> Option<(u64, u64)> {
    let there = dir.ancestors().find(|dir| dir.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_favail))
}

/// Memory that new processes can have without swapping, bytes. Blocks for one
/// small file.
#[must_use]
pub fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// A service's numbers: of its own control group if systemd gave it one, else of
/// its main process and what descends from it. None if it is gone.
#[must_use]
pub fn service_numbers(pid: u32) -> Option<ServiceNumbers> {
    let main = Stat::read(pid).filter(|stat| stat.alive)?;
    if let Some(numbers) = own_cgroup(pid).and_then(|group| cgroup_numbers(&group)) {
        return Some(numbers);
    }
    let mut sum = (main.cpu_ticks, main.resident_pages);
    let mut queue = children(pid);
    let mut seen = 0;
    while let Some(child) = queue.pop() {
        seen += 1;
        if seen > DESCENDANTS_MAX {
            break;
        }
        if let Some(stat) = Stat::read(child) {
            sum = (sum.0.saturating_add(stat.cpu_ticks), sum.1.saturating_add(stat.resident_pages));
            queue.extend(children(child));
        }
    }
    let hz = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    Some(ServiceNumbers { cpu_ms: sum.0.saturating_mul(1_000) / hz, memory_bytes: sum.1.saturating_mul(page) })
}

/// The control group of a unit that is not the agent's own.
fn own_cgroup(pid: u32) -> Option<PathBuf> {
    let of = |who: &str| {
        let text = std::fs::read_to_string(format!("/proc/{who}/cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    };
    let group = of(&pid.to_string())?;
    let unit = group.rsplit('/').next().is_some_and(|last| last.ends_with(".service"));
    (unit && of("self").as_deref() != Some(&group)).then(|| PathBuf::from(format!("{CGROUPS}{group}")))
}

fn cgroup_numbers(group: &Path) -> Option<ServiceNumbers> {
    let cpu = std::fs::read_to_string(group.join("cpu.stat")).ok()?;
    let cpu_us: u64 = cpu.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse().ok()?;
    // `memory.current` counts the page cache too; what processes hold is `anon`.
    let memory = std::fs::read_to_string(group.join("memory.stat")).ok()?;
    let field = |name: &str| memory.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let memory_bytes = field("anon ")?.saturating_add(field("file_mapped ").unwrap_or_default());
    Some(ServiceNumbers { cpu_ms: cpu_us / 1_000, memory_bytes })
}

/// Direct children, if the kernel tells them.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.take(DESCENDANTS_MAX).filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists.flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_a_service_have_numbers() {
        let mut facts = Facts::new(PathBuf::from("/nonexistent/opt/tidegate"));
        let host = facts.host();
        assert!(host.memory_bytes > 0 && host.memory_total_bytes > host.memory_bytes);
        assert!(host.disk_free_bytes > 0);
        assert!(memory_available().is_some_and(|bytes| bytes < host.memory_total_bytes));
        let (_, memory) = facts.service(std::process::id());
        assert!(memory > 0);
        assert_eq!(facts.service(u32::MAX), (0, 0));
    }

    #[test]
    fn cpu_is_a_rate_of_one_core() {
        assert_eq!(rate(500, Duration::from_secs(1)), 500);
        assert_eq!(rate(4_000, Duration::from_secs(2)), 2_000);
        assert_eq!(rate(0, Duration::ZERO), 0);
    }

    #[test]
    fn children_count_with_their_parent() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mine = children(std::process::id());
        let found = mine.contains(&child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        // Kernels without CONFIG_PROC_CHILDREN tell none.
        assert!(found || !Path::new("/proc/self/task").join(std::process::id().to_string()).join("children").exists());
    }
}
