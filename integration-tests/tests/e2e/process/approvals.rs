//! Who may approve what, and that a signature covers exactly one rollout of one
//! release by one plan.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::people::Person;
use tidegate_integration_tests::{Fleet, Output, Plan, Release};

use super::World;
use super::run::misses;
use crate::{Result, SOON};

fn world() -> Result<World> {
    let world = World::with(2, |_| pairs(&[("role", "api")]), "")?;
    world.ship(&Release::good("1.0.0"))?;
    world.fleet.import(&Release::good("2.0.0"))?;
    Ok(world)
}

fn plan(roles: &[&str]) -> Plan {
    roles.iter().fold(Plan::new("shop@2.0.0", "rolling"), |plan, role| plan.tables(&format!("[[approval]]\nrole = \"{role}\"\n")))
}

fn submit(fleet: &Fleet, id: &str, plan: &Plan) -> Result {
    let file = fleet.plan_file(plan)?;
    fleet.cli(&["rollout", "start", "-f", &file, "--detach", "--run-id", id])?.expect_code(0)?;
    fleet.wait_state(id, "awaiting-approval", SOON)?;
    Ok(())
}

fn payload(fleet: &Fleet, id: &str, role: &str) -> Result<String> {
    Ok(fleet.cli(&["rollout", "approve", id, "--role", role, "--print-payload"])?.expect_code(0)?.stdout)
}

/// A signature that `person` made over `text` in `namespace`, handed in for a role.
fn hand_in(fleet: &Fleet, id: &str, role: &str, person: &Person, text: &str, namespace: &str) -> Result<Output> {
    let file = fleet.text_file("payload", text)?;
    let signature = person.sign_as(Path::new(&file), namespace)?;
    fleet.cli(&["rollout", "approve", id, "--role", role, "--signature", signature.to_str().context("UTF-8")?])
}

#[test]
fn only_the_right_person_with_the_right_key_over_the_right_text() -> Result {
    const APPROVAL: &str = "tidegate-approval";
    let world = world()?;
    let (fleet, people) = (&world.fleet, &world.people);
    // The lead's own key has a role too: still, nobody approves what is theirs.
    submit(fleet, "run", &plan(&["tech-lead", "security"]).line("lead = \"sam@example.com\""))?;
    let text = payload(fleet, "run", "tech-lead")?;
    ensure!(text.starts_with("tidegate-approval v1\nrollout: run\nrole: tech-lead\nrelease: shop@2.0.0 sha256:"), "{text}");
    let tina = people.with("tech-lead")?;

    let refusals: [(&str, Output, &str); 7] = [
        ("a person without that role", fleet.approve("run", "tech-lead", people.with("operations")?)?, "tech-lead"),
        ("a person without any role", fleet.approve("run", "tech-lead", people.named("guest@example.com")?)?, "guest@example.com"),
        ("a key that nobody knows", fleet.approve("run", "tech-lead", &people.stranger()?)?, ""),
        ("the author", fleet.approve("run", "security", people.with("security")?)?, "sam@example.com"),
        ("another namespace", hand_in(fleet, "run", "tech-lead", tina, &text, "file")?, ""),
        ("another text", hand_in(fleet, "run", "tech-lead", tina, &text.replace("tech-lead", "security"), APPROVAL)?, ""),
        ("one byte less", hand_in(fleet, "run", "tech-lead", tina, text.trim_end(), APPROVAL)?, ""),
    ];
    for (what, output, says) in refusals {
        let output = output.expect_code(5).context(what)?;
        output.expect_said(says).context(what)?;
    }
    // A role that nobody asks for; a file that is no signature; a key that is not there.
    ensure!(fleet.approve("run", "cab", people.with("cab")?)?.code != 0);
    let junk = fleet.text_file("junk.sig", "no signature\n")?;
    fleet.cli(&["rollout", "approve", "run", "--role", "tech-lead", "--signature", &junk])?.expect_code(2)?;
    fleet.cli(&["rollout", "approve", "run", "--role", "tech-lead", "--key", "/no/such/key"])?.expect_code(2)?;
    let status = fleet.status("run")?;
    ensure!(misses(&status, "approval-tech-lead") && misses(&status, "approval-security"), "{status:#}");
    fleet.expect_version("1.0.0")?;

    // The right one, by hand.
    hand_in(fleet, "run", "tech-lead", tina, &text, APPROVAL)?.expect_code(0)?;
    ensure!(!misses(&fleet.status("run")?, "approval-tech-lead"));
    fleet.say("halt", "run", &["--reason", "test"])?;
    let halted = fleet.wait_state("run", "halted", SOON)?;
    ensure!(halted["state"] == "halted", "{halted:#}");
    fleet.expect_version("1.0.0")
}

#[test]
fn an_edit_of_plan_or_release_voids_what_was_signed() -> Result {
    let world = world()?;
    let (fleet, people) = (&world.fleet, &world.people);
    let tina = people.with("tech-lead")?;
    let first = plan(&["tech-lead"]).batch("1");
    // It does not begin in time, so its name can be used again.
    let by = Timestamp::now() + SignedDuration::from_secs(4);
    submit(fleet, "run", &first.clone().line(&format!("start_by = \"{by}\"")))?;
    let text = payload(fleet, "run", "tech-lead")?;
    let file = fleet.text_file("payload", &text)?;
    let signature = tina.sign(Path::new(&file))?;
    let signature = signature.to_str().context("UTF-8")?.to_owned();
    let digest = |text: &str, line: &str| -> Result<String> {
        let line = text.lines().find(|l| l.starts_with(line)).with_context(|| format!("no {line} in {text}"))?;
        Ok(line.rsplit_once("sha256:").context("no digest")?.1.to_owned())
    };
    fleet.wait_state("run", "refused", SOON)?;
    fleet.cli(&["rollout", "wait", "run", "--for", "completed"])?.expect_code(5)?;

    // The same name, another plan; then another release under the same version's name.
    submit(fleet, "run", &first.clone().batch("2"))?;
    let edited = payload(fleet, "run", "tech-lead")?;
    ensure!(digest(&text, "plan:")? != digest(&edited, "plan:")?, "an edited plan has the same digest: {text}{edited}");
    ensure!(digest(&text, "release:")? == digest(&edited, "release:")?);
    let hand_in = || fleet.cli(&["rollout", "approve", "run", "--role", "tech-lead", "--signature", &signature]);
    hand_in()?.expect_code(5)?;
    // A script that looked at the old plan does not approve the new one.
    let old = digest(&text, "plan:")?;
    fleet.cli(&["rollout", "approve", "run", "--role", "tech-lead", "--key", tina.key_path()?, "--confirm", &old])?.expect_code(5)?;
    ensure!(misses(&fleet.status("run")?, "approval-tech-lead"));
    fleet.say("halt", "run", &["--reason", "test"])?;

    fleet.import(&Release::good("2.0.1"))?;
    let other = plan(&["tech-lead"]).batch("1").line("release = \"shop@2.0.1\"");
    submit(fleet, "other", &other)?;
    let released = payload(fleet, "other", "tech-lead")?;
    ensure!(digest(&text, "release:")? != digest(&released, "release:")?);
    fleet.cli(&["rollout", "approve", "other", "--role", "tech-lead", "--signature", &signature])?.expect_code(5)?;
    fleet.expect_version("1.0.0")?;
    fleet.approve("other", "tech-lead", tina)?.expect_code(0)?;
    fleet.wait_state("other", "completed", SOON)?;
    fleet.expect_version("2.0.1")
}

#[test]
fn a_key_that_was_taken_from_the_list_signs_nothing_more_and_a_refusal_shows_no_key() -> Result {
    let world = world()?;
    let (fleet, people) = (&world.fleet, &world.people);
    submit(fleet, "run", &plan(&["tech-lead"]))?;
    let list = fs::read_to_string(people.allowed_signers()).context("the list")?;
    let without: String = list.lines().filter(|line| !line.starts_with("tina@")).map(|line| format!("{line}\n")).collect();
    fs::write(people.allowed_signers(), without).context("the list")?;
    let refused = fleet.approve("run", "tech-lead", people.with("tech-lead")?)?.expect_code(5)?;
    ensure!(!refused.said().contains("PRIVATE KEY"), "{refused}");
    fs::write(people.allowed_signers(), list).context("the list")?;
    fleet.approve("run", "tech-lead", people.with("tech-lead")?)?.expect_code(0)?;
    fleet.wait_state("run", "completed", SOON)?;
    fleet.expect_version("2.0.0")
}
