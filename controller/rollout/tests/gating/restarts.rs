//! The journal is all there is: cut at any record, a rollout comes to the same end.

use super::preflight::RELATIVE;
use super::*;

/// Stories whose journals are cut at every record below.
fn stories() -> Vec<(&'static str, World)> {
    let good = canary(4, &[25, 50, 100]);
    let mut gray_one = canary(4, &[25, 100]);
    gray_one.load = Box::new(gray);
    let mut bad = canary(4, &[25, 100]);
    bad.load = Box::new(|_, new| Load { bad: if new { 30 } else { 0 }, ..GOOD });
    let mut rolled = World::new(3, &["api"], &rolling(""));
    rolled.load = Box::new(|_, _| Load { total: 400, ..GOOD });
    let relative = World::new(3, &["api"], &plan(RELATIVE, "", ""));
    let watch = World::new(2, &["api"], &watched("20s"));
    let smoke = World::with(3, &["api"], &plan("strategy = \"canary\"", "", &stages(&[40, 100])), |w| w.smoke_fails = ["h3".into()].into());
    vec![
        ("good", good),
        ("gray", gray_one),
        ("bad", bad),
        ("rolling", rolled),
        ("relative", relative),
        ("watch", watch),
        ("smoke", smoke),
        ("drill", drill(&rolling(""), |_| {})),
    ]
}

fn to_the_end(world: &mut World) -> RolloutState {
    world.until("an end", 600, |w| w.state().is_terminal());
    world.state()
}

#[test]
fn the_fold_of_what_is_durable_is_the_machine_at_every_point() {
    for (story, mut world) in stories() {
        world.snapshots = Some(vec![(world.journal.len(), journaled(&world.rollout))]);
        to_the_end(&mut world);
        let snapshots = world.snapshots.take().unwrap();
        assert!(snapshots.len() > 5, "{story}: {}", snapshots.len());
        for (records, live) in snapshots {
            let json: Vec<String> = world.journal[..records].iter().map(|(_, r)| serde_json::to_string(r).unwrap()).collect();
            let read = json.iter().zip(&world.journal).map(|(j, (at, _))| (*at, serde_json::from_str::<Record>(j).unwrap()));
            let folded = Rollout::fold("r1".parse().unwrap(), read).unwrap();
            assert_eq!(journaled(&folded), live, "{story}: after {records} records, the last {:?}", world.journal[records - 1]);
        }
    }
}

#[test]
fn a_restart_at_any_record_comes_to_the_same_end() {
    for which in 0..stories().len() {
        let (story, mut undisturbed) = stories().remove(which);
        let end = to_the_end(&mut undisturbed);
        let on: BTreeMap<_, _> = undisturbed.hosts.iter().map(|(k, r)| (k.clone(), r.current.clone())).collect();
        for cut in 1..undisturbed.journal.len() {
            let (_, mut world) = stories().remove(which);
            world.kill_at = Some(cut);
            world.until("the record", 600, |w| w.killed || w.journal.len() >= cut);
            let last = format!("{:?}", world.journal[cut - 1].1);
            world.restart_at(cut);
            assert_eq!(to_the_end(&mut world), end, "{story}, cut at {cut} after {last}: {}", world.rollout.reason());
            let now: BTreeMap<_, _> = world.hosts.iter().map(|(k, r)| (k.clone(), r.current.clone())).collect();
            assert_eq!(now, on, "{story}, cut at {cut} after {last}");
        }
    }
}

#[test]
fn an_attestation_answers_the_question_that_asked_for_it() -> R {
    let tables = "[[stage]]\nname = \"one\"\npercent = 50\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]\nattest = [\"no-customer-complaints\"]\n\
                  [[stage]]\nname = \"all\"\npercent = 100\nbake = \"40s\"\nsuccess = [\"error_rate < 0.1%\"]\n";
    let mut world = World::new(4, &["api"], &plan("strategy = \"canary\"", "", tables));
    world.until("a person is asked", 150, |w| w.gate_steps().contains(&GateStep::Asked));
    assert_eq!((world.state(), world.changed()), (RolloutState::Paused, 2));
    world.handle(Event::Attested { item: "no-customer-complaints", by: "dana", note: "asked support" })?;
    assert_eq!(world.state(), RolloutState::Running);
    world.run();
    world.until_state(RolloutState::Completed, 90);
    Ok(())
}
