//! What must be refused before any service is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tidegate_integration_tests::ask::text;
use tidegate_integration_tests::release::noise;
use tidegate_integration_tests::{Component, Fleet, Output, Plan, Release};

use crate::{Result, SOON, slow};

/// Two hosts that run 1.0.0, with 2.0.0 in the depot.
fn two_hosts() -> Result<Fleet> {
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::good("2.0.0"))?;
    Ok(fleet)
}

/// `rollout start --wait` of a plan's text.
fn start(fleet: &Fleet, toml: &str) -> Result<Output> {
    let file = fleet.text_file("plan.toml", toml)?;
    fleet.cli(&["rollout", "start", "-f", &file, "--wait"])
}

#[test]
fn plans_that_cannot_be_meant() -> Result {
    let fleet = two_hosts()?;
    let poller = fleet.poll(Duration::from_millis(50));
    let good = Plan::new("shop@2.0.0", "rolling").toml();
    for (what, toml, code, says) in [
        ("an unknown key", good.replace("strategy", "stratgey"), 2, "stratgey"),
        ("an unknown key in a table", format!("{good}max_fialed_hosts = 1\n"), 2, "max_fialed_hosts"),
        ("a value of another type", good.replace("\"rolling\"", "7"), 2, "strategy"),
        ("an unknown strategy", good.replace("rolling", "sideways"), 2, "sideways"),
        ("no TOML at all", "release = ".to_owned(), 2, "plan.toml"),
        ("a selector that matches nothing", good.replace("role=api", "role=nobody"), 5, "role=nobody"),
        ("a selector that is none", good.replace("role=api", "role in (api"), 2, "role in (api"),
        ("no such release", good.replace("2.0.0", "9.9.9"), 5, "shop@9.9.9"),
        ("no such component", good.replace("api = ", "apy = "), 5, "apy"),
    ] {
        let output = start(&fleet, &toml)?.expect_code(code).context(what)?;
        output.expect_said(says).context(what)?;
    }
    let missing = fleet.cli(&["rollout", "start", "-f", "/no/such/plan.toml"])?.expect_code(2)?;
    missing.expect_said("/no/such/plan.toml")?;
    let misses = poller.finish();
    assert!(misses.is_empty(), "{misses:?}");
    fleet.expect_version("1.0.0")
}

#[test]
fn an_unknown_key_is_named_with_its_line() -> Result {
    let fleet = two_hosts()?;
    let toml = format!("# a comment\n{}", Plan::new("shop@2.0.0", "rolling").line("bathc = \"1\"").toml());
    let line = toml.lines().position(|line| line.starts_with("bathc")).context("the line")? + 1;
    start(&fleet, &toml)?.expect_code(2)?.expect_said(&format!("{line}"))?.expect_said("bathc")?;
    Ok(())
}

#[test]
fn a_big_bang_over_its_limit() -> Result {
    let fleet = Fleet::start(3)?;
    fleet.import(&Release::good("1.0.0"))?;
    let output = fleet.roll(&Plan::new("shop@1.0.0", "big-bang").batch("2"))?.expect_code(5)?;
    output.expect_said("3")?.expect_said("2")?;
    fleet.roll(&Plan::new("shop@1.0.0", "big-bang").batch("3"))?.expect_code(0)?;
    fleet.expect_version("1.0.0")
}

#[test]
fn a_plan_that_was_edited_after_it_was_looked_at() -> Result {
    let fleet = two_hosts()?;
    let plan = Plan::new("shop@2.0.0", "rolling").batch("1");
    let file = fleet.plan_file(&plan)?;
    let shown = fleet.json(&["rollout", "plan", "-f", &file])?;
    let digest = text(&shown, "/plan_digest")?;
    assert_eq!(shown["refused_because"], serde_json::json!([]), "{shown:#}");

    let edited = fleet.plan_file(&plan.clone().batch("2"))?;
    let output = fleet.cli(&["rollout", "start", "-f", &edited, "--wait", "--confirm", digest])?.expect_code(5)?;
    output.expect_said("digest")?;
    fleet.expect_version("1.0.0")?;

    fleet.cli(&["rollout", "start", "-f", &file, "--wait", "--confirm", digest])?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn looking_at_a_plan_touches_nothing() -> Result {
    let fleet = two_hosts()?;
    let file = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
    let (first, second) = (fleet.json(&["rollout", "plan", "-f", &file])?, fleet.json(&["rollout", "plan", "-f", &file])?);
    assert_eq!(first["plan_digest"], second["plan_digest"]);
    assert_eq!(fleet.json(&["rollout", "list"])?.as_array().map(Vec::len), Some(1), "only the first release's rollout is there");
    fleet.expect_version("1.0.0")
}

#[test]
fn two_rollouts_of_one_component() -> Result {
    let fleet = two_hosts()?;
    fleet.import(&slow("3.0.0", "3"))?;
    let id = fleet.start_rollout(&Plan::new("shop@3.0.0", "rolling").batch("1"))?;
    let output = fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(5)?;
    output.expect_said(&id)?;
    fleet.wait_state(&id, "completed", SOON)?;
    fleet.expect_version("3.0.0")?;
    // Once it has ended, nothing is in the way.
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn a_run_id_starts_a_plan_once() -> Result {
    let fleet = two_hosts()?;
    let file = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
    let begin = |file: &str| fleet.cli(&["rollout", "start", "-f", file, "--detach", "--run-id", "ci-4711", "--output", "json"]);
    let first = begin(&file)?.expect_code(0)?.json()?;
    let again = begin(&file)?.expect_code(0)?.json()?;
    assert_eq!((&first["id"], &first["plan_digest"]), (&again["id"], &again["plan_digest"]));
    assert_eq!(first["id"], "ci-4711");
    fleet.wait_state("ci-4711", "completed", SOON)?;

    let other = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling").batch("1"))?;
    begin(&other)?.expect_code(5)?.expect_said("ci-4711")?;
    // `--wait` with an id that ended says how it ended.
    fleet.cli(&["rollout", "start", "-f", &file, "--wait", "--run-id", "ci-4711"])?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

#[test]
fn a_refused_run_id_may_be_used_again() -> Result {
    let fleet = two_hosts()?;
    let nobody = fleet.plan_file(&Plan::to("shop@2.0.0", "rolling", r#"{ api = "role=nobody" }"#))?;
    fleet.cli(&["rollout", "start", "-f", &nobody, "--wait", "--run-id", "ci-1"])?.expect_code(5)?;
    let file = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling"))?;
    fleet.cli(&["rollout", "start", "-f", &file, "--wait", "--run-id", "ci-1"])?.expect_code(0)?;
    fleet.expect_version("2.0.0")
}

/// Finds the one file below `dir` that holds exactly `bytes`.
fn file_with(dir: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if entry.metadata()?.len() == bytes.len() as u64 && fs::read(entry.path())? == bytes {
                return Ok(entry.path());
            }
        }
    }
    bail!("the file is not below {}", dir.display())
}

#[derive(Clone, Copy)]
enum FoundBy {
    Depot,
    Hosts,
}

/// Imports 2.0.0 with a big file, does something to that file in the depot, and
/// expects that no service notices. A file of another size is found by the
/// controller's own look at its depot, before there is a rollout; other bytes by
/// the hosts, which hash them.
fn depot_trouble(found_by: FoundBy, spoil: impl Fn(&mut Vec<u8>)) -> Result {
    const SIZE: usize = 300_000;
    let fleet = Fleet::start(2)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::new("2.0.0").component(Component::new("api").padding(SIZE)))?;
    let before = fleet.observed("api")?;
    let file = file_with(&fleet.controller_dir(), &noise(SIZE, "2.0.0"))?;
    let mut bytes = fs::read(&file)?;
    spoil(&mut bytes);
    // A new file under the name: the depot's are read-only.
    fs::remove_file(&file)?;
    fs::write(&file, &bytes)?;

    let poller = fleet.poll(Duration::from_millis(50));
    let output = fleet.roll(&Plan::new("shop@2.0.0", "rolling").limit("max_failed_hosts = 0"))?.expect_code(5)?;
    match found_by {
        FoundBy::Depot => {
            output.expect_said("artifacts-verified")?;
            assert_eq!(fleet.json(&["rollout", "list"])?.as_array().map(Vec::len), Some(1), "only the first release's rollout is there");
        }
        FoundBy::Hosts => {
            output.expect_said("h1").or_else(|_| output.expect_said("h2"))?;
            let status = fleet.newest_status()?;
            assert_eq!(status["state"], "refused", "{status:#}");
        }
    }
    let misses = poller.finish();
    assert!(misses.is_empty(), "{misses:?}");
    assert_eq!(before, fleet.observed("api")?);
    fleet.expect_version("1.0.0")
}

#[test]
fn an_artifact_with_one_flipped_byte() -> Result {
    depot_trouble(FoundBy::Hosts, |bytes| bytes[1234] ^= 1)
}

#[test]
fn an_artifact_that_is_too_short() -> Result {
    depot_trouble(FoundBy::Depot, |bytes| bytes.truncate(bytes.len() - 1))
}

#[test]
fn an_artifact_that_is_too_long() -> Result {
    depot_trouble(FoundBy::Depot, |bytes| bytes.push(0))
}

#[test]
fn an_undefined_variable_is_refused_in_preflight() -> Result {
    let fleet = two_hosts()?;
    fleet.import(&Release::new("3.0.0").component(Component::new("api").port_var("prot")))?;
    let output = fleet.roll(&Plan::new("shop@3.0.0", "rolling"))?.expect_code(5)?;
    output.expect_said("var.prot")?;
    fleet.expect_version("1.0.0")
}

#[test]
fn bundles_that_cannot_be_meant() -> Result {
    let fleet = Fleet::start(0)?;
    let bundle = fleet.pack(&Release::new("1.0.0").component(Component::new("api").padding(100_000)))?;
    let mut bytes = fs::read(&bundle)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let spoiled = bundle.with_extension("spoiled");
    fs::write(&spoiled, &bytes)?;
    fs::write(bundle.with_extension("short"), &fs::read(&bundle)?[..middle])?;
    for broken in [spoiled, bundle.with_extension("short")] {
        let output = fleet.cli(&["release", "import", &broken.display().to_string()])?;
        assert!(output.code == 1 || output.code == 2, "{output}");
    }
    assert_eq!(fleet.json(&["release", "list"])?, serde_json::json!([]));
    let unknown = fleet.text_file("release.toml", "name = \"shop\"\nversion = \"1.0.0\"\ncolour = \"red\"\n")?;
    fleet.cli(&["release", "pack", "-f", &unknown, "-o", "/dev/null"])?.expect_code(2)?.expect_said("colour")?;
    Ok(())
}
