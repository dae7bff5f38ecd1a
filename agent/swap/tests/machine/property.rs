//! Random runs: words in any order, any outcome, crashes and reboots anywhere, time
//! jumps, a disk that refuses. The model checks the invariants at every step.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_protocol::{Assignment, Intent, Phase, Target};

use crate::model::{End, Host, Write, release, to, word};

const PHASES: [Phase; 5] = [Phase::Preflight, Phase::Stage, Phase::Cancel, Phase::Swap, Phase::Confirm];

/// What can happen, which, the word, its details.
type Choice = (u8, u8, u8, u8);

#[derive(Default)]
struct Controller {
    minted: BTreeMap<u64, Assignment>,
}

impl Controller {
    /// A new generation, or any old one with any phase.
    fn word(&mut self, host: &Host, kind: u8, detail: u8) -> Assignment {
        let newest = self.minted.last_key_value().map_or(0, |(n, _)| *n);
        let n = match kind % 8 {
            0..3 => newest + 1,
            3..7 => newest.max(1),
            _ => 1 + u64::from(detail) % newest.max(1),
        };
        let fresh = || {
            let record = host.machine.record();
            let usual = record.swap.as_ref().map_or(Target::from(record.standing.clone()), |swap| swap.from.clone());
            let target = match detail % 8 {
                0..4 => usual,
                4 => Target::Absent,
                n => to(n - 5),
            };
            if detail & 8 == 0 {
                let mut word = word(n, Intent::Forward, to(detail % 4), Phase::Swap);
                word.reversible = detail & 0xf0 != 0xf0;
                word
            } else {
                word(n, Intent::Back, target, Phase::Swap)
            }
        };
        let mut word = self.minted.entry(n).or_insert_with(fresh).clone();
        word.phase = match kind / 8 % 8 {
            at @ 0..5 => PHASES[usize::from(at)],
            5 => Phase::Stage,
            _ => Phase::Swap,
        };
        word
    }
}

/// One step of a run; the bytes choose among what can happen here.
fn step(host: &mut Host, controller: &mut Controller, (what, kind, word, detail): Choice, refuse: bool) {
    if host.out.is_some() && what < 200 {
        host.write(match what % 50 {
            0 => Write::CrashBefore,
            1 => Write::CrashAfter,
            2..5 if refuse => Write::Refused,
            _ => Write::Good,
        });
    } else if host.op.is_some() && what < 215 {
        host.finish(match what % 24 {
            0 => End::CrashBefore,
            1 => End::CrashAfter,
            2..5 => End::Bad,
            _ => End::Good,
        });
    } else {
        match kind % 16 {
            0 => host.crash(),
            1 => host.reboot(),
            2 => host.restart_by_itself(),
            3 => host.wait(70_000),
            4..6 => host.wait(u64::from(detail) * 100),
            _ => {
                let word = controller.word(host, word, detail);
                host.say(word);
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec(any::<Choice>(), 1..120)
}

fn run(steps: Vec<Choice>, refuse: bool, installed: bool) {
    let mut host = if installed { Host::on(0) } else { Host::new() };
    let mut controller = Controller::default();
    if installed {
        controller.minted.insert(1, crate::model::forward(1, 0, Phase::Confirm));
        assert_eq!(host.link, Some(release(0)));
    }
    host.auto = false;
    for choice in steps {
        step(&mut host, &mut controller, choice, refuse);
    }
    host.run_out();
    // At rest, an agent that starts again does nothing.
    let (starts, link) = (host.starts, host.link.clone());
    host.crash();
    host.run_out();
    assert_eq!((host.starts, host.link.clone()), (starts, link));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_from_nothing(steps in steps()) {
        run(steps, false, false);
    }

    #[test]
    fn invariants_hold_on_a_running_host(steps in steps()) {
        run(steps, false, true);
    }

    #[test]
    fn invariants_hold_on_a_disk_that_refuses(steps in steps()) {
        run(steps, true, true);
    }
}
