//! What operations do to a simulated host.

use tidegate_protocol::report::{Cause, Failure, SmokeResult, SmokeStatus};
use tidegate_protocol::{ReleaseRef, Target};
use tidegate_swap::{Op, Outcome, Restart};

use super::engine::Sim;
use super::host::Process;
use super::world::Bad;
use super::{Mutant, log};

fn fail(cause: Cause, message: &str) -> Outcome {
    Outcome::Failed(Failure { cause, message: message.to_string() })
}

impl Sim {
    /// The effect of what runs, and how it will end.
    pub(super) fn effect(&mut self, h: usize, c: usize) -> Outcome {
        let link = self.hosts[h].parts[c].link.clone();
        let Some(doing) = self.hosts[h].parts[c].running.as_mut() else { return Outcome::Ok };
        doing.effect = true;
        doing.link_before = link;
        let op = doing.op.clone();
        let full = self.now < self.hosts[h].disk_full_until;
        let unlucky = self.odds(|o| o.op_fail);
        match op {
            Op::Preflight { .. } if full => fail(Cause::Disk, "no space"),
            Op::Preflight { .. } if unlucky => fail(Cause::Policy, "not allowed"),
            Op::Preflight { current, .. } => {
                let intact = current.as_ref().is_none_or(|r| self.hosts[h].parts[c].trees.contains(r));
                if intact { Outcome::Ok } else { fail(Cause::Drifted, "the present release is not intact") }
            }
            Op::Stage { target } => {
                let there = self.hosts[h].parts[c].trees.contains(&target);
                if !there && self.world.bad(h, &target) == Some(Bad::Verify) {
                    fail(Cause::Verify, "the bytes are not the manifest's")
                } else if !there && full {
                    fail(Cause::Disk, "no space")
                } else if unlucky {
                    fail(Cause::Verify, "a bit flipped")
                } else {
                    self.hosts[h].parts[c].trees.insert(target);
                    Outcome::Ok
                }
            }
            Op::Check { target } if self.world.bad(h, &target) == Some(Bad::Check) => fail(Cause::Smoke, "check failed"),
            Op::Check { .. } if unlucky => fail(Cause::Smoke, "check failed by chance"),
            Op::Check { .. } => Outcome::Ok,
            Op::Observe { .. } if unlucky => fail(Cause::Timeout, "nobody knows"),
            Op::Observe { .. } => Outcome::Observed { healthy: self.serves(h, c) },
            Op::Before { .. } => {
                self.hosts[h].parts[c].drained = true;
                if unlucky { fail(Cause::Timeout, "drain failed") } else { Outcome::Ok }
            }
            Op::After { .. } if unlucky => fail(Cause::Timeout, "undrain failed"),
            Op::After { .. } => {
                self.hosts[h].parts[c].drained = false;
                Outcome::Ok
            }
            Op::Flip { to } => {
                // An error may come before the rename or after it.
                if !unlucky || self.run.chance(500) {
                    self.flip(h, c, &to);
                }
                if unlucky { fail(Cause::Disk, "input/output error") } else { Outcome::Ok }
            }
            Op::Activate { to, restart, .. } => self.activate(h, c, &to, &restart, unlucky),
            Op::Smoke { target, .. } => {
                let passes = self.serves(h, c) && !unlucky;
                let status = if passes { SmokeStatus::Pass } else { SmokeStatus::Fail };
                let result = SmokeResult { id: "SMK-001".to_string(), status, duration_ms: 10, message: String::new() };
                let failure =
                    (!passes).then(|| Failure { cause: Cause::Smoke, message: format!("SMK-001: {} does not answer", target.id) });
                Outcome::Smoke { results: vec![result], failure }
            }
            Op::Collect { keep } => {
                let part = &mut self.hosts[h].parts[c];
                // The driver adds what `current` points at: after a revert that failed
                // the machine need not know it.
                part.trees.retain(|tree| keep.contains(tree) || part.link.as_ref() == Some(tree));
                Outcome::Ok
            }
        }
    }

    /// The agent is killed, or calls it back, in the middle.
    pub(super) fn half_effect(&mut self, h: usize, c: usize) {
        let activates = self.hosts[h].parts[c].running.as_ref().is_some_and(|d| matches!(d.op, Op::Activate { .. }));
        if activates && self.run.chance(300) {
            // Stopped, not started.
            self.hosts[h].parts[c].service = None;
        } else {
            self.effect(h, c);
        }
    }

    fn flip(&mut self, h: usize, c: usize, to: &Target) {
        let before = self.hosts[h].parts[c].link.clone();
        self.hosts[h].parts[c].link = to.release().cloned();
        if self.mutant == Some(Mutant::DropsPrevious) {
            let part = &mut self.hosts[h].parts[c];
            part.trees.retain(|tree| part.link.as_ref() == Some(tree));
        }
        log!(self, "{} {} current -> {:?}", self.world.hosts[h], self.world.components[c], to.release().map(|r| &r.id));
        self.check.link_moved(&self.world, h, c, &self.hosts[h].parts[c], before.as_ref());
    }

    fn activate(&mut self, h: usize, c: usize, to: &Target, restart: &Restart, unlucky: bool) -> Outcome {
        // The link is part of the proof: a revert in memory may have moved it before
        // a crash lost the revert.
        if self.hosts[h].parts[c].link.as_ref() != to.release() {
            return fail(Cause::StartFailed, "current points elsewhere");
        }
        let Some(release) = to.release() else {
            if unlucky {
                return fail(Cause::StartFailed, "does not stop");
            }
            self.hosts[h].parts[c].service = None;
            return Outcome::Ok;
        };
        let wanted = self.executable(c, release);
        let boot_id = self.hosts[h].boot_id();
        let part = &self.hosts[h].parts[c];
        if let (Restart::UnlessProven(mark), Some(process)) = (restart, &part.service) {
            let old_enough = mark.as_ref().is_none_or(|mark| mark.boot_id == boot_id && process.started_at >= mark.at.0);
            if old_enough && self.executable(c, &process.tree) == wanted {
                return Outcome::Ok;
            }
        }
        if unlucky {
            // A manager that did nothing: the old process runs on, and the proof
            // finds it. Or it stopped it and did no more.
            if self.run.chance(500) {
                self.hosts[h].parts[c].service = None;
            }
            return fail(Cause::StartFailed, "the manager said restarted, but the old process runs");
        }
        self.start_service(h, c, release);
        match &self.hosts[h].parts[c].service {
            None => fail(Cause::StartFailed, "does not start"),
            Some(process) if self.executable(c, &process.tree) != wanted => fail(Cause::StartFailed, "another executable runs"),
            Some(_) => Outcome::Ok,
        }
    }

    /// The manager starts what `current` points at.
    pub(super) fn start_service(&mut self, h: usize, c: usize, link: &ReleaseRef) {
        let started_at = self.host_time(h).0.0;
        let starts = self.world.bad(h, link) != Some(Bad::Start);
        self.hosts[h].parts[c].service = starts.then(|| Process { tree: link.clone(), started_at });
    }

    fn executable(&self, c: usize, release: &ReleaseRef) -> Option<tidegate_protocol::Digest> {
        self.world.digests(c, release).map(|d| d.0)
    }

    /// It runs and its smoke tests pass.
    pub(super) fn serves(&self, h: usize, c: usize) -> bool {
        let running = self.hosts[h].parts[c].service.as_ref();
        running.is_some_and(|process| self.world.bad(h, &process.tree) != Some(Bad::Smoke))
    }

    /// A release that runs there cuts the network.
    pub(super) fn cut_by_release(&self, h: usize) -> bool {
        let bad = |tree: &ReleaseRef| self.world.bad(h, tree) == Some(Bad::Network);
        self.hosts[h].power && self.hosts[h].parts.iter().any(|part| part.service.as_ref().is_some_and(|p| bad(&p.tree)))
    }
}
