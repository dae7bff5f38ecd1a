//! What is told of components with sides: the sides and the switch, whole, and in
//! the place of such a component in the host's report the side that serves.
//!
//! Must not look at anything: it only puts together what was seen.

use std::collections::BTreeMap;

use tidegate_protocol::codec;
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::side::{SideReport, SwitchProgress};
use tidegate_protocol::{ComponentName, ComponentReport, Generation, SidesReport};

use crate::slot::Slot;
use crate::switch::SwitchSeen;

#[derive(Default)]
struct Parts {
    plain: Option<ComponentReport>,
    sides: Vec<SideReport>,
    switch: Option<SwitchSeen>,
}

/// The components of the host's report, and those with sides.
///
/// A component with sides is shown as its active side, with the highest
/// generation seen of sides and switch; before its first switch it is left out. An
/// order without sides that came for it later is shown instead.
pub(super) fn assemble(slots: Vec<(Slot, ComponentReport)>, switches: Vec<SwitchSeen>) -> (Vec<ComponentReport>, Vec<SidesReport>) {
    let mut parts: BTreeMap<ComponentName, Parts> = BTreeMap::new();
    for (Slot { component, side }, report) in slots {
        let parts = parts.entry(component).or_default();
        match side {
            None => parts.plain = Some(report),
            Some(side) => parts.sides.push(SideReport { side, report }),
        }
    }
    for switch in switches {
        let component = switch.component.clone();
        parts.entry(component).or_default().switch = Some(switch);
    }
    let (mut components, mut sided) = (Vec::new(), Vec::new());
    for (component, Parts { plain, sides, switch }) in parts {
        if sides.is_empty() && switch.is_none() {
            components.extend(plain);
            continue;
        }
        let active = switch.as_ref().and_then(|switch| switch.active);
        let ordered = switch.as_ref().map_or(Generation::ZERO, |switch| switch.generation);
        let generation = sides.iter().map(|side| side.report.generation).fold(ordered, Generation::max);
        let serves = sides.iter().find(|side| Some(side.side) == active).map(|side| ComponentReport { generation, ..side.report.clone() });
        let later = plain.as_ref().is_some_and(|plain| plain.generation > generation);
        components.extend(if later { plain } else { serves.or(plain) });
        sided.push(SidesReport {
            component,
            active,
            generation: ordered,
            progress: switch.as_ref().map_or(SwitchProgress::None, |switch| switch.progress),
            failure: switch.and_then(|switch| switch.failure),
            sides,
        });
    }
    fit(&mut sided);
    (components, sided)
}

/// Makes it fit its frame: what people read goes before what decides.
fn fit(sided: &mut [SidesReport]) {
    let fits = |sided: &[SidesReport]| codec::encode(&sided, CONTROL_FRAME_BYTES_MAX - 1024).is_ok();
    let cuts: [fn(&mut ComponentReport); 3] = [
        |report| report.smoke.iter_mut().for_each(|test| test.message = test.message.chars().take(40).collect()),
        |report| report.smoke.clear(),
        |report| report.failure.iter_mut().for_each(|failure| failure.message = failure.message.chars().take(80).collect()),
    ];
    for cut in cuts {
        if fits(sided) {
            return;
        }
        sided.iter_mut().flat_map(|one| &mut one.sides).for_each(|side| cut(&mut side.report));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::report::{Cause, Failure, Progress, ServiceState, SmokeResult, SmokeStatus};
    use tidegate_protocol::{Digest, ReleaseRef, Side};

    fn report(name: &str, n: u64) -> ComponentReport {
        ComponentReport {
            component: name.parse().unwrap(),
            generation: Generation::new(1, n),
            progress: Progress::Confirmed,
            failure: None,
            current: Some(ReleaseRef { id: format!("shop@{n}").parse().unwrap(), manifest: Digest::of(b"m") }),
            previous: None,
            service: ServiceState::Running,
            running: None,
            tree_sha256: None,
            was_unhealthy: false,
            smoke: Vec::new(),
            staged_bytes: 0,
            fetched_bytes: 0,
            cpu_permille: 0,
            memory_bytes: 0,
            restarts: 0,
            lease_left_ms: None,
        }
    }

    fn slot(name: &str, n: u64) -> (Slot, ComponentReport) {
        let slot: Slot = name.parse().unwrap();
        let report = report(slot.component.as_str(), n);
        (slot, report)
    }

    fn switch(active: Option<Side>, n: u64) -> SwitchSeen {
        let progress = if n == 0 { SwitchProgress::None } else { SwitchProgress::Switched };
        SwitchSeen { component: "api".parse().unwrap(), active, generation: Generation::new(1, n), progress, failure: None }
    }

    #[test]
    fn without_sides_nothing_changes() {
        let (components, sided) = assemble(vec![slot("api", 3), slot("web", 1)], Vec::new());
        assert_eq!(components, [report("api", 3), report("web", 1)]);
        assert!(sided.is_empty());
    }

    #[test]
    fn a_component_with_sides_is_shown_as_the_one_that_serves() {
        let both = || vec![slot("api@blue", 1), slot("api@green", 4)];
        let (components, sided) = assemble(both(), Vec::new());
        assert!(components.is_empty(), "nothing serves before the first switch");
        assert_eq!((sided[0].active, sided[0].progress, sided[0].generation), (None, SwitchProgress::None, Generation::ZERO));
        assert_eq!(sided[0].sides.iter().map(|s| s.side).collect::<Vec<_>>(), Side::ALL);

        let (components, sided) = assemble(both(), vec![switch(Some(Side::Blue), 2)]);
        assert_eq!(components, [ComponentReport { generation: Generation::new(1, 4), ..report("api", 1) }]);
        assert_eq!((sided[0].active, sided[0].generation), (Some(Side::Blue), Generation::new(1, 2)));

        let (components, _) = assemble(both(), vec![switch(Some(Side::Green), 5)]);
        assert_eq!(components, [ComponentReport { generation: Generation::new(1, 5), ..report("api", 4) }]);
    }

    #[test]
    fn an_order_without_sides_is_answered_and_one_with_sides_hides_nothing() {
        let with = |plain| vec![slot("api", plain), slot("api@blue", 3)];
        let (components, _) = assemble(with(7), vec![switch(Some(Side::Blue), 4)]);
        assert_eq!(components, [report("api", 7)]);
        let (components, _) = assemble(with(2), vec![switch(Some(Side::Blue), 4)]);
        assert_eq!(components[0].generation, Generation::new(1, 4));
        // A side was refused where the component runs without any.
        let (components, sided) = assemble(with(2), Vec::new());
        assert_eq!((components, sided.len()), (vec![report("api", 2)], 1));
    }

    #[test]
    fn however_much_is_said_it_fits_a_frame() {
        let test = |n| SmokeResult { id: format!("SMK-{n:03}"), status: SmokeStatus::Pass, duration_ms: 1, message: "x".repeat(512) };
        let mut slots = Vec::new();
        for n in 0..32 {
            for side in Side::ALL {
                let (slot, mut report) = slot(&format!("api-{n}@{side}"), 1);
                report.smoke = (0..32).map(test).collect();
                report.failure = Some(Failure { cause: Cause::Smoke, message: "y".repeat(512) });
                slots.push((slot, report));
            }
        }
        let (_, sided) = assemble(slots, Vec::new());
        assert!(codec::encode(&sided, CONTROL_FRAME_BYTES_MAX).is_ok());
    }
}
