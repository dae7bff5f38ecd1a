//! Processes as the kernel shows them: `/proc`, never a cached word.
//!
//! A process is named by (boot id, pid, start ticks); a pid alone is reused.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::{ClockId, clock_gettime};
use tidegate_protocol::Timestamp;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Between two looks at a process that the kernel does not tell about.
const WITHOUT_PIDFD: std::time::Duration = std::time::Duration::from_millis(50);

/// A wall clock that is off by more was set.
const CLOCK_SET_MS: u64 = 500;
/// As coarse as the kernel's ticks.
const BOOT_ROUND_NS: i128 = 10_000_000;

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat` field 22).
    pub start_ticks: u64,
    /// The same on the wall clock, Unix milliseconds.
    pub started_at_unix_ms: u64,
}

impl Process {
    /// The process of that pid; none if there is none or it is a zombie.
    #[must_use]
    pub fn find(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        stat.alive.then(|| Self { pid, start_ticks: stat.start_ticks, started_at_unix_ms: unix_ms_of(stat.start_ticks) })
    }

    /// Whether exactly this process is still there.
    #[must_use]
    pub fn alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.alive && stat.start_ticks == self.start_ticks)
    }

    /// See [`started_since`].
    #[must_use]
    pub fn started_since(&self, at: Timestamp) -> bool {
        started_since(self.start_ticks, at)
    }

    /// Sends a signal to exactly this process; it may have ended meanwhile.
    pub(crate) fn signal(&self, signal: Signal) {
        // The descriptor holds the process, so between the look at its start
        // time and the signal the pid cannot become another's.
        let Some(pid) = raw(self.pid) else { return };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) if self.alive() => {
                let _ = rustix::process::pidfd_send_signal(fd, signal);
            }
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(_) if self.alive() => {
                let _ = rustix::process::kill_process(pid, signal);
            }
            Err(_) => {}
        }
    }
}

/// Whether a process with these start ticks started at or after an instant since
/// boot. Ticks are coarse (10 ms): the tick that contains the instant counts.
#[must_use]
pub fn started_since(start_ticks: u64, at: Timestamp) -> bool {
    let hz = rustix::param::clock_ticks_per_second().max(1);
    start_ticks.saturating_add(1).saturating_mul(1_000) / hz > at.0
}

/// Milliseconds since boot, suspend included.
#[must_use]
pub fn since_boot() -> Timestamp {
    let now = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or_default();
    Timestamp(secs.saturating_mul(1_000) + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000)
}

/// Wall clock, Unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms_of(ticks: u64) -> u64 {
    let hz = rustix::param::clock_ticks_per_second().max(1);
    booted_unix_ms().saturating_add(ticks.saturating_mul(1_000) / hz)
}

/// When this boot began, on the wall clock, Unix milliseconds. Two looks at two
/// clocks differ a little, but a process has one start, also in the eyes of an
/// agent that was restarted: so it is rounded, and the first answer stands until
/// the wall clock is set.
fn booted_unix_ms() -> u64 {
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let known = KNOWN.load(Ordering::Relaxed);
    let now = unix_ms().saturating_sub(since_boot().0);
    if known != 0 && known.abs_diff(now) <= CLOCK_SET_MS {
        return known;
    }
    let now = measured_boot();
    match KNOWN.compare_exchange(known, now, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => now,
        Err(other) => other,
    }
}

/// The difference of the two clocks, from the quickest of a few looks.
fn measured_boot() -> u64 {
    let nanos = |id: ClockId| {
        let now = clock_gettime(id);
        i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
    };
    let look = |_| {
        let (before, wall, after) = (nanos(ClockId::Boottime), nanos(ClockId::Realtime), nanos(ClockId::Boottime));
        (after - before, wall - (before + after) / 2)
    };
    let offset = (0..8).map(look).min().map_or(0, |(_, offset)| offset);
    u64::try_from((offset + BOOT_ROUND_NS / 2).div_euclid(BOOT_ROUND_NS) * BOOT_ROUND_NS / 1_000_000).unwrap_or_default()
}

/// A pid as the kernel's calls want it.
pub(crate) fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Returns once exactly that process has ended. One's own child is then still to be
/// reaped, so its pid is not another's yet.
///
/// # Errors
/// The runtime cannot watch a descriptor.
pub(crate) async fn ended(process: Process) -> io::Result<()> {
    let Some(raw) = raw(process.pid) else { return Ok(()) };
    if let Ok(fd) = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
        #[expect(
            deprecated,
            reason = "sound for an `OwnedFd`, whose descriptor never changes; the replacement is unsafe, which is forbidden here"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        if process.alive() {
            fd.readable().await?.retain_ready();
        }
        return Ok(());
    }
    // A kernel before 5.3, or a sandbox that knows no pidfd.
    while process.alive() {
        tokio::time::sleep(WITHOUT_PIDFD).await;
    }
    Ok(())
}

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) alive: bool,
    /// Its process group.
    pub(crate) group: u32,
    pub(crate) session: u32,
    /// User and system time, waited-for children included, clock ticks.
    pub(crate) cpu_ticks: u64,
    pub(crate) start_ticks: u64,
    pub(crate) resident_pages: u64,
}

impl Stat {
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name, field 2, may hold anything, so counting starts behind its
        // last parenthesis: field 3, the state, is the first there.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        let signed = |at: usize| Some(u64::try_from(field(at)?.parse::<i64>().ok()?).unwrap_or_default());
        Some(Self {
            alive: !matches!(field(3)?, "Z" | "X" | "x"),
            group: field(5)?.parse().unwrap_or_default(),
            session: field(6)?.parse().unwrap_or_default(),
            cpu_ticks: number(14)? + number(15)? + signed(16)? + signed(17)?,
            start_ticks: number(22)?,
            resident_pages: signed(24)?,
        })
    }
}

/// Whether a process was started with this variable in its environment; unreadable
/// counts as no.
pub(crate) fn carries(pid: u32, variable: &str, value: &str) -> bool {
    let Ok(environ) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
    let wanted = format!("{variable}={value}");
    environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
}

/// Every pid there is.
pub(crate) fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = std::fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_the_last_parenthesis() {
        let line = "42 (a) b) S 1 42 40 0 -1 4194560 1 2 3 4 50 60 7 8 20 0 1 0 12345 1000 77 18446744073709551615";
        let stat = Stat::parse(line).unwrap();
        assert!(stat.alive);
        assert_eq!((stat.group, stat.session, stat.cpu_ticks, stat.start_ticks, stat.resident_pages), (42, 40, 125, 12345, 77));
        assert!(!Stat::parse(&line.replace(") S", ") Z")).unwrap().alive);
        assert!(Stat::parse("42 (a").is_none());
        assert!(Stat::parse("42 (a) S 1").is_none());
    }

    #[test]
    fn a_process_started_before_a_mark_is_told_from_one_after() {
        let me = Process::find(std::process::id()).unwrap();
        assert!(me.alive());
        assert!(me.started_since(Timestamp(0)));
        assert!(!me.started_since(since_boot() + tidegate_protocol::Millis(1_000)));
        assert!(me.started_at_unix_ms <= unix_ms() + 10);
        assert_eq!(Process::find(me.pid), Some(me), "one process has one start");
        assert!(!Process { start_ticks: me.start_ticks + 1, ..me }.alive());
    }
}
