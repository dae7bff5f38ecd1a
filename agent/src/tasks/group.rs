//! What a task's start has left running, found again and killed whole.
//!
//! Owns the proof that a process is of that start: it carries its token, or is in
//! the process group whose leader was recorded. Everything here blocks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidegate_protocol::BootId;

use super::record::Spawn;
use crate::service::{Process, Stat, carries, pids};

/// In the environment of everything a task starts.
pub(super) const TOKEN_VARIABLE: &str = "TIDEGATE_TASK_SPAWN";
/// For killed processes to be gone.
const KILLED: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// 128 random bits, hex.
pub(super) fn token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Kills everything that is left of a start. Returns those that cannot be killed.
pub(super) fn clear(spawn: &Spawn, boot_id: &BootId) -> Vec<Process> {
    if spawn.boot_id != *boot_id {
        return Vec::new();
    }
    let began = Instant::now();
    loop {
        let left = members(spawn);
        if left.is_empty() || began.elapsed() > KILLED {
            return left;
        }
        // Again and again: what was killed may have started something just before.
        left.iter().for_each(|process| process.signal(Signal::KILL));
        std::thread::sleep(LOOK);
    }
}

fn members(spawn: &Spawn) -> Vec<Process> {
    let all: Vec<(u32, Stat)> =
        pids().into_iter().flatten().filter_map(|pid| Some((pid, Stat::read(pid)?))).filter(|(_, stat)| stat.alive).collect();
    let own = std::process::id();
    let own_group = Stat::read(own).map(|stat| stat.group);
    let marked: BTreeSet<u32> =
        all.iter().map(|(pid, _)| *pid).filter(|pid| *pid != own && carries(*pid, TOKEN_VARIABLE, &spawn.token)).collect();
    // A group's number is nobody's pid while anyone is in the group: if another
    // process has that pid now, the group is empty.
    let recorded = spawn.pid.filter(|pid| Stat::read(*pid).is_none_or(|stat| Some(stat.start_ticks) == spawn.start_ticks));
    // The agent died before it recorded the leader: its group is that of what it started.
    let found = all.iter().filter(|(pid, _)| marked.contains(pid)).map(|(_, stat)| stat.group);
    let groups: BTreeSet<u32> = found.chain(recorded).filter(|group| *group > 1 && Some(*group) != own_group).collect();
    let ours = all.iter().filter(|(pid, stat)| marked.contains(pid) || groups.contains(&stat.group));
    ours.filter_map(|(pid, _)| Process::find(*pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    fn spawn(pid: Option<&Child>, token: &str) -> Spawn {
        let boot_id = crate::daemon::boot_id().unwrap();
        let process = pid.and_then(|child| Process::find(child.id()));
        Spawn { boot_id, token: token.to_owned(), pid: process.map(|p| p.pid), start_ticks: process.map(|p| p.start_ticks) }
    }

    fn child(script: &str, token: &str) -> Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env(TOKEN_VARIABLE, token).process_group(0).spawn().unwrap()
    }

    fn until(mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn in_group(group: u32) -> usize {
        pids().unwrap().filter_map(Stat::read).filter(|stat| stat.alive && stat.group == group).count()
    }

    #[test]
    fn what_hides_its_token_is_found_by_its_group_and_what_leaves_the_group_by_its_token() {
        let boot_id = crate::daemon::boot_id().unwrap();
        // The leader forgets its environment; a grandchild leaves the group.
        let token = token().unwrap();
        let mut hiding = child("setsid sleep 600 & exec env -i sh -c 'sleep 601 & wait'", &token);
        let group = hiding.id();
        let away = || {
            pids()
                .unwrap()
                .find(|pid| *pid != group && carries(*pid, TOKEN_VARIABLE, &token) && Stat::read(*pid).is_some_and(|s| s.group == *pid))
        };
        until(|| in_group(group) == 2 && !carries(group, TOKEN_VARIABLE, &token) && away().is_some());
        let away = Process::find(away().unwrap()).unwrap();
        let record = spawn(Some(&hiding), &token);
        let other = Spawn { boot_id: "0b7e4c5e-0000-4000-8000-000000000000".parse().unwrap(), ..record.clone() };
        assert!(clear(&other, &boot_id).is_empty());
        assert_eq!(in_group(group), 2, "another boot's record is about nobody here");
        assert_eq!(clear(&record, &boot_id), []);
        assert_eq!(in_group(group), 0);
        assert!(!away.alive());
        hiding.wait().unwrap();
    }

    #[test]
    fn without_a_recorded_leader_the_token_leads_to_the_group() {
        let boot_id = crate::daemon::boot_id().unwrap();
        let token = token().unwrap();
        let mut leader = child("env -i sleep 600 & wait", &token);
        let group = leader.id();
        until(|| in_group(group) == 2 && carries(group, TOKEN_VARIABLE, &token));
        assert_eq!(clear(&spawn(None, "another"), &boot_id), []);
        assert_eq!(in_group(group), 2);
        assert_eq!(clear(&spawn(None, &token), &boot_id), []);
        assert_eq!(in_group(group), 0);
        leader.wait().unwrap();
    }

    #[test]
    fn a_pid_that_became_another_s_is_left_alone() {
        let boot_id = crate::daemon::boot_id().unwrap();
        let mut other = child("exec sleep 600", "theirs");
        let record = Spawn { start_ticks: Some(1), ..spawn(Some(&other), "ours") };
        assert_eq!(clear(&record, &boot_id), []);
        assert!(Process::find(other.id()).is_some());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
