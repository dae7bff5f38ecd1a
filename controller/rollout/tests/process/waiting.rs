//! Before it begins: who and what is waited for, what is taken meanwhile, and the
//! deadlines after which it is refused with nothing touched.

use super::*;

const NORMAL: &str = "[change]\nid = \"CR-1\"\ntype = \"normal\"\nrisk = \"low\"\nsummary = \"x\"\njustification = \"y\"\n";

fn change(kind: &str, risk: &str) -> String {
    NORMAL.replace("normal", kind).replace("low", risk)
}

fn asking(roles: &[Role]) -> Process {
    let mut process = Process::default();
    process.around.approvals = roles.to_vec();
    process
}

/// Waits for security's approval; its window opens in 100 s.
fn awaiting() -> World {
    let mut process = in_windows(&[opening(100, 400)], 20, 5);
    process.around.approvals = vec![Role::Security];
    let world = fleet(2, &format!("{ROLLING}{WINDOW}"), process);
    assert_eq!(world.state(), RolloutState::AwaitingApproval);
    world
}

/// The same, once approved.
fn scheduled() -> World {
    let mut world = awaiting();
    world.approve(Role::Security, "eve").unwrap();
    assert_eq!(world.state(), RolloutState::Scheduled);
    world
}

fn refused_untouched(world: &World, why: &str) {
    assert_eq!(world.state(), RolloutState::Refused, "{}", world.rollout.reason());
    assert!(world.rollout.reason().contains(why), "{}", world.rollout.reason());
    assert_eq!(world.orders(), 0);
    assert!(world.everyone_on(&world.old) && world.tasks_run.is_empty());
    assert!(world.rollout.locks().is_empty());
    assert!(world.status().hosts.iter().all(|h| h.state == TargetState::Skipped));
}

#[test]
fn without_a_demand_it_runs_at_once_and_says_nothing_of_the_process() {
    let world = fleet(2, ROLLING, Process::default());
    assert_eq!(world.state(), RolloutState::Completed);
    let of_process = |r: &Record| matches!(r, Record::Began | Record::Windows { .. } | Record::Freeze { .. } | Record::Readiness { .. });
    assert_eq!(world.count(of_process), 0);
}

#[test]
fn what_can_be_said_to_one_that_waits() {
    for begin in [awaiting as fn() -> World, scheduled] {
        let hint = |world: &World| {
            if world.state() == RolloutState::AwaitingApproval { "approval-security" } else { "the window is closed" }
        };
        for verb in Verb::ALL.iter().copied().filter(|v| *v != Verb::Halt) {
            let mut world = begin();
            let (before, state) = (world.journal.len(), world.state());
            let refused = world.verb(verb).unwrap_err();
            assert!(refused.hint.contains(hint(&world)) && refused.hint.contains("halt ends it"), "{state} {verb}: {refused}");
            assert_eq!((world.journal.len(), world.state()), (before, state), "{verb}");
        }
        let mut world = begin();
        world.verb(Verb::Halt).unwrap();
        assert_eq!((world.state(), world.orders()), (RolloutState::Halted, 0));
        assert!(world.rollout.reason().contains("halt by ops"), "{}", world.rollout.reason());

        let mut world = begin();
        let (before, state) = (world.journal.len(), world.state());
        for what in ["data-corruption", "security-incident"] {
            assert!(world.declare(what).unwrap_err().hint.contains("halt"), "{what}");
        }
        assert!(world.attest("security-exit").is_err(), "nobody asks for it");
        assert!(world.attest("on-call-briefed").is_err(), "there is nothing to hand over");
        assert!(world.approve(Role::Cab, "eve").unwrap_err().hint.contains("wanted: security"));
        let refused = world.handle(Event::Overridden { what: Override::Window, role: Role::Security, signed: &signed("eve"), reason: "" });
        assert!(refused.unwrap_err().hint.contains("operations or cab"));
        for record in [sign_off(), review(), Record::Closed { by: "ops".into() }, Record::Began] {
            assert!(world.paper(record).is_err());
        }
        assert_eq!((world.journal.len(), world.state()), (before, state));
        world.paper(Record::Noted { by: "ops".into(), text: "later".into(), resolves: None }).unwrap();
        assert_eq!(world.journal.len(), before + 1);

        // It holds its hosts, and asks nothing of them.
        let mut world = begin();
        assert!(world.rollout.holds() && world.rollout.locks().len() == 2);
        assert!(world.rollout.watches(&name(1)).is_empty() && world.rollout.fetches().is_empty());
        assert!(world.rollout.outage_watches(&name(1)).is_empty() && world.rollout.task_orders(&name(1)).is_empty());
        world.handle(Event::Superseded(&"r2".parse().unwrap())).unwrap();
        let before = world.journal.len();
        let outage = Outages { component: "api".parse().unwrap(), probe: "x".into(), since_unix_ms: 1, intervals: Vec::new() };
        world.handle(Event::Outages(&name(1), &outage)).unwrap();
        world.lose(2);
        world.pass(20);
        world.find(2);
        assert_eq!((world.journal.len(), world.state()), (before, state));
        // A restart asks nobody anew.
        world.restart();
        assert_eq!((world.journal.len(), world.state()), (before + 1, state));
        assert_eq!(world.orders(), 0);
    }
}

fn sign_off() -> Record {
    Record::SignedOff { role: SignRole::Lead, signed: signed("lead"), document: Digest::of(b"d") }
}

fn review() -> Record {
    Record::Reviewed { review: record::Review::default(), by: "ops".into() }
}

#[test]
fn it_begins_once_people_windows_freezes_and_the_checklist_let_it() {
    let mut process = in_windows(&[opening(100, 1_000)], 20, 5);
    process.around.approvals = vec![Role::TechLead, Role::Security];
    process.around.attest = vec!["security-exit".into()];
    process.around.demanded = ["rollback-target".to_string()].into();
    process.brought.rows = vec![row("rollback-target", RowVerdict::Fail)];
    process.brought.freeze = Some("year end".into());
    let mut world = fleet(2, &format!("{ROLLING}{WINDOW}"), process);
    let missing = |w: &World| w.status().missing.iter().map(|r| r.item.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(missing(&world), "security-exit approval-tech-lead approval-security rollback-target");
    world.approve(Role::TechLead, "tom").unwrap();
    world.attest("security-exit").unwrap();
    assert_eq!((world.state(), missing(&world).as_str()), (RolloutState::AwaitingApproval, "approval-security rollback-target"));
    world.approve(Role::Security, "eve").unwrap();
    assert_eq!(world.state(), RolloutState::Scheduled);
    assert!(world.rollout.reason().contains("year end"), "{}", world.rollout.reason());
    world.freeze(None);
    assert!(world.rollout.reason().contains("it opens next 100-1000"), "{}", world.rollout.reason());
    world.until("open", 110, |w| w.now >= at(101));
    assert_eq!(world.state(), RolloutState::Scheduled);
    assert!(world.rollout.reason().contains("seen of rollback-target"), "{}", world.rollout.reason());
    assert_eq!(world.count(|r| matches!(r, Record::Began)), 0);
    // Other words for the same verdicts are no news.
    let before = world.journal.len();
    let again = Row { evidence: "still".into(), ..row("rollback-target", RowVerdict::Fail) };
    world.handle(Event::Readiness(&[again])).unwrap();
    assert_eq!(world.journal.len(), before);
    world.handle(Event::Readiness(&[row("rollback-target", RowVerdict::Pass)])).unwrap();
    world.run();
    assert_eq!((world.state(), world.orders() > 0), (RolloutState::Completed, true), "{}", world.rollout.reason());
    assert_eq!(world.count(|r| matches!(r, Record::Began)), 1);
    let began = world.journal.iter().position(|(_, r)| matches!(r, Record::Began)).unwrap();
    assert!(world.journal[..began].iter().all(|(_, r)| !matches!(r, Record::Ordered { .. })));
    // Once it began nothing of that is taken.
    assert!(world.approve(Role::Security, "eve").is_err() && world.attest("security-exit").is_err());
}

#[test]
fn a_freeze_alone_is_waited_for_and_the_beginning_is_journaled() {
    let mut process = Process::default();
    process.brought.freeze = Some("year end".into());
    let mut world = fleet(1, ROLLING, process);
    assert_eq!((world.state(), world.orders()), (RolloutState::Scheduled, 0));
    world.freeze(None);
    assert_eq!((world.state(), world.count(|r| matches!(r, Record::Began))), (RolloutState::Completed, 1));
}

#[test]
fn no_demand_of_the_day_is_waived_by_the_order_in_which_it_is_met() {
    // Approved first, then frozen: it waits all the same.
    let mut world = fleet(1, ROLLING, asking(&[Role::Security]));
    world.freeze(Some("incident"));
    world.approve(Role::Security, "eve").unwrap();
    assert_eq!((world.state(), world.orders()), (RolloutState::Scheduled, 0));
    world.override_it(Override::Freeze).unwrap();
    assert_eq!(world.state(), RolloutState::Completed);
}

#[test]
fn deadlines_refuse_and_numbers_do_not() {
    // Nobody approves.
    let mut process = asking(&[Role::Security]);
    process.around.approval_valid = Millis::from_secs(60);
    let mut slow = fleet(2, ROLLING, process);
    slow.pass(59);
    assert_eq!(slow.state(), RolloutState::AwaitingApproval);
    slow.pass(1);
    refused_untouched(&slow, "1m after it was submitted");

    // Approved too late.
    let mut process = asking(&[Role::Security]);
    process.around.approval_valid = Millis::from_secs(60);
    let mut late = fleet(2, ROLLING, process);
    late.now = at(60);
    drop(late.approve(Role::Security, "eve"));
    refused_untouched(&late, "after it was submitted");

    // Not by its hour, in either state; frozen, so that it cannot begin.
    for approved in [false, true] {
        let mut process = asking(&[Role::Security]);
        process.brought.freeze = Some("year end".into());
        let mut world = fleet(2, &format!("start_by = \"1970-01-01T00:17:30Z\"\n{ROLLING}"), process);
        if approved {
            world.approve(Role::Security, "eve").unwrap();
        }
        world.pass(49);
        assert!(world.rollout.waits_to_begin());
        world.pass(1);
        refused_untouched(&world, "start_by (1970-01-01T00:17:30.000Z)");
    }
    let world = fleet(2, &format!("start_by = \"1970-01-01T00:16:40Z\"\n{ROLLING}"), Process::default());
    refused_untouched(&world, "start_by");
}

#[test]
fn a_scheduled_one_is_refused_at_the_end_of_its_window() {
    let mut world = scheduled();
    world.freeze(Some("incident"));
    world.until("the end of the window", 401, |w| w.now >= at(399));
    assert_eq!(world.state(), RolloutState::Scheduled);
    world.pass(1);
    refused_untouched(&world, "its window ended");

    // A restart, and newer openings told before anything else, do not move it.
    let mut world = scheduled();
    world.freeze(Some("incident"));
    world.until("open", 401, |w| w.now >= at(200));
    world.now = at(500);
    world.handle(Event::Windows(&[opening(1_000, 2_000)])).unwrap();
    refused_untouched(&world, "its window ended");
}

#[test]
fn waiting_for_people_outlasts_a_window() {
    let mut process = in_windows(&[opening(10, 50), opening(100, 400)], 20, 5);
    process.around.approvals = vec![Role::Security];
    let mut world = fleet(2, &format!("{ROLLING}{WINDOW}"), process);
    world.pass(60);
    assert_eq!(world.state(), RolloutState::AwaitingApproval);
    world.approve(Role::Security, "eve").unwrap();
    world.until_state(RolloutState::Completed, 60);
    assert!(world.now >= at(100));
}

#[test]
fn a_window_that_is_too_short_for_what_is_left_waits_for_the_next() {
    // 25 s are needed and 20 left: the window that is open does not count.
    let mut short = fleet(2, &format!("{ROLLING}{WINDOW}"), in_windows(&[opening(0, 20), opening(100, 200)], 20, 5));
    assert_eq!(short.state(), RolloutState::Scheduled);
    assert!(short.rollout.reason().contains("(0-20) leaves too little time: 25s"), "{}", short.rollout.reason());
    short.pass(30);
    assert_eq!(short.state(), RolloutState::Scheduled);
    short.until_state(RolloutState::Completed, 100);
    // One that is never long enough: refused at its end.
    let mut never = fleet(2, &format!("{ROLLING}{WINDOW}"), in_windows(&[opening(10, 30), opening(100, 200)], 20, 5));
    never.pass(30);
    refused_untouched(&never, "its window ended");
    // To the second, it fits; and one that goes on past its end need not be long.
    let fits = fleet(2, &format!("{ROLLING}{WINDOW}"), in_windows(&[opening(0, 25)], 20, 5));
    assert_eq!(fits.state(), RolloutState::Completed);
    let over = Opening { overrun: true, ..opening(0, 20) };
    let over = fleet(2, &format!("{ROLLING}{WINDOW}"), in_windows(&[over], 20, 5));
    assert_eq!(over.state(), RolloutState::Completed);
    // By stages: the first one (10 s) and the way back.
    let by_stage = |closes| Opening { fit: Fit::Stage, ..opening(0, closes) };
    let begins = |closes| fleet(4, &canary(WINDOW), in_windows(&[by_stage(closes)], 500, 5)).state();
    assert_eq!((begins(14), begins(15)), (RolloutState::Scheduled, RolloutState::Running));
}

#[test]
fn the_type_of_the_change_says_who_must_sign() {
    let roles = [Role::TechLead, Role::Security];
    let submit = |kind: &str, risk: &str| {
        let mut process = asking(&roles);
        process.brought.freeze = Some("year end".into());
        fleet(1, &format!("{ROLLING}{}", change(kind, risk)), process)
    };
    // Standard: nobody; the freeze binds.
    assert_eq!(submit("standard", "high").state(), RolloutState::Scheduled);
    // Emergency: one of them, and no freeze.
    let mut emergency = submit("emergency", "low");
    assert_eq!(emergency.state(), RolloutState::AwaitingApproval);
    emergency.approve(Role::TechLead, "tom").unwrap();
    assert_eq!(emergency.state(), RolloutState::Completed);
    // Normal: all of them, and the freeze.
    let mut normal = submit("normal", "low");
    normal.approve(Role::TechLead, "tom").unwrap();
    assert_eq!(normal.state(), RolloutState::AwaitingApproval);
    normal.approve(Role::Security, "tom").unwrap();
    assert_eq!(normal.state(), RolloutState::Scheduled);
    // High risk: two keys, and the last signature of a role counts.
    let mut high = submit("normal", "high");
    high.approve(Role::TechLead, "tom").unwrap();
    high.approve(Role::Security, "tom").unwrap();
    assert_eq!(high.state(), RolloutState::AwaitingApproval);
    assert!(high.rollout.reason().contains("second-approver"), "{}", high.rollout.reason());
    high.approve(Role::Security, "eve").unwrap();
    assert_eq!(high.state(), RolloutState::Scheduled);
    high.approve(Role::Security, "tom").unwrap();
    assert_eq!(high.state(), RolloutState::AwaitingApproval);
    // Where fewer roles are asked for, the second key may be anybody's.
    let mut one = fleet(1, &format!("{ROLLING}{}", change("normal", "high")), asking(&[Role::Security]));
    one.approve(Role::Security, "eve").unwrap();
    assert_eq!(one.state(), RolloutState::AwaitingApproval);
    one.approve(Role::Operations, "olaf").unwrap();
    assert_eq!(one.state(), RolloutState::Completed);
}

#[test]
fn an_optional_approval_is_given_or_said_to_be_not_applicable() {
    for waive in [true, false] {
        let mut world = fleet(1, ROLLING, asking(&[Role::ProductOwner]));
        assert_eq!(world.state(), RolloutState::AwaitingApproval);
        if waive {
            world.attest("approval-product-owner").unwrap()
        } else {
            world.approve(Role::ProductOwner, "pat").unwrap()
        }
        assert_eq!(world.state(), RolloutState::Completed);
    }
    let mut world = fleet(1, ROLLING, asking(&[Role::Security]));
    assert!(world.attest("approval-security").is_err());
}

#[test]
fn the_word_emergency_opens_nothing_that_nobody_signed_for() {
    let plan = format!("{ROLLING}{WINDOW}{}", change("emergency", "low"));
    let world = fleet(2, &plan, in_windows(&[opening(500, 600)], 20, 5));
    assert_eq!(world.state(), RolloutState::Scheduled);
}

#[test]
fn an_emergency_crosses_a_closed_window() {
    let plan = format!("{ROLLING}{WINDOW}{}", change("emergency", "low"));
    let mut process = in_windows(&[opening(500, 600)], 20, 5);
    process.around.approvals = [Role::Security].to_vec();
    let mut world = fleet(2, &plan, process);
    assert_eq!(world.state(), RolloutState::AwaitingApproval);
    world.approve(Role::Security, "eve").unwrap();
    assert_eq!(world.state(), RolloutState::Completed);
    world.freeze(Some("none of its business"));
    assert_eq!(world.state(), RolloutState::Completed);
}

#[test]
fn a_person_who_is_waited_for_is_told_every_hour() {
    let reminded = |w: &World| w.count(|r| matches!(r, Record::Reminded { .. }));
    let mut world = fleet(1, ROLLING, asking(&[Role::Security]));
    for hour in 0..4_u64 {
        world.now = at(hour * 3_600 + 3_599);
        world.tick(0);
        assert_eq!(reminded(&world), hour as usize, "before hour {hour} is over");
        world.tick(1_000);
        world.restart();
        world.tick(500);
        assert_eq!(reminded(&world), hour as usize + 1);
    }
    // A window is nobody's to answer.
    let mut world = scheduled();
    world.now = at(99);
    world.tick(0);
    assert_eq!(reminded(&world), 0);
}

#[test]
fn cut_at_any_record_it_comes_to_the_same_end() {
    let story = |world: &mut World| {
        world.pass(3);
        drop(world.approve(Role::TechLead, "tom"));
        drop(world.attest("security-exit"));
        world.pass(3);
        drop(world.approve(Role::Security, "eve"));
        world.until("an end", 200, |w| w.state().is_terminal());
    };
    let begin = || {
        let mut process = in_windows(&[opening(100, 1_000)], 20, 5);
        process.around.approvals = vec![Role::TechLead, Role::Security];
        process.around.attest = vec!["security-exit".into()];
        process.brought.rows = vec![row("rollback-target", RowVerdict::Pass)];
        fleet(2, &format!("{ROLLING}{WINDOW}"), process)
    };
    let mut undisturbed = begin();
    story(&mut undisturbed);
    assert_eq!(undisturbed.state(), RolloutState::Completed);
    for cut in 1..undisturbed.journal.len() {
        let mut world = begin();
        world.kill_at = Some(cut);
        story(&mut world);
        world.restart_at(cut.min(world.journal.len()));
        // Half of what was brought may not have been durable: the driver says it again.
        world.handle(Event::Windows(&[opening(100, 1_000)])).unwrap();
        world.handle(Event::Readiness(&[row("rollback-target", RowVerdict::Pass)])).unwrap();
        story(&mut world);
        assert_eq!(world.state(), RolloutState::Completed, "cut at {cut}: {}", world.rollout.reason());
        assert_eq!(world.count(|r| matches!(r, Record::Began)), 1, "cut at {cut}");
        let first = world.journal.iter().position(|(_, r)| matches!(r, Record::Ordered { .. })).unwrap();
        assert!(world.journal[first].0 >= at(100), "cut at {cut}");
        assert!(world.everyone_on(&world.new));
        let (folded, live) = folds(&world);
        assert_eq!(folded, live, "cut at {cut}");
    }
}
