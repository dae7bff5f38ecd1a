//! The other half of the crash-point table: the controller comes back only after
//! the lease ran out. And twenty kills at no particular moment.
//!
//! | killed | h1 at rest meanwhile | generation that h1 ends on |
//! |---|---|---|
//! | before the swap order is appended | staged | as undisturbed |
//! | swap order appended, not sent | staged | as undisturbed |
//! | swap order sent | reverted: nobody confirmed | the next one, not counted |
//! | before the confirmation is appended | reverted | the next one, not counted |
//! | confirmation appended, not sent | reverted | the next one, not counted |
//! | confirmation sent | confirmed | as undisturbed |
//!
//! Each row ends `completed` with exit code 0 and no host counted as failed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::bins::programs;
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::wait::{hold, wait_for};
use tidegate_integration_tests::{Fleet, Plan, Release};

use crate::{Result, SOON, entries, entry};

const ROWS: &[(&str, &str, u64)] = &[
    ("controller.append.before.ordered-swap", "staged", 2),
    ("controller.append.after.ordered-swap", "staged", 2),
    ("controller.sent.after.ordered-swap", "reverted", 3),
    ("controller.append.before.ordered-confirm", "reverted", 3),
    ("controller.append.after.ordered-confirm", "reverted", 3),
    ("controller.sent.after.ordered-confirm", "confirmed", 2),
];

/// What a host says of its component by itself.
fn own_word(fleet: &Fleet, host: usize) -> Result<Value> {
    let output = Command::new(&programs()?.agent)
        .args(["status", "--output", "json", "--config"])
        .arg(fleet.hosts[host].dir.join("agent.toml"))
        .output()
        .context("run tidegate-agent status")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: Value = serde_json::from_slice(&output.stdout)?;
    Ok(status["components"][0].clone())
}

/// No generation was swapped forward more than once.
fn swapped_once(fleet: &Fleet) -> Result {
    for at in 0..fleet.hosts.len() {
        let word = own_word(fleet, at)?;
        let history = word["history"].as_array().context("the ledger has a history")?;
        ensure!(!history.is_empty() && history.iter().all(|line| line["swaps"].as_u64().is_some_and(|n| n <= 1)), "{word:#}");
    }
    Ok(())
}

#[test]
fn the_controller_comes_back_after_the_lease() -> Result {
    for (point, rest, generation) in ROWS {
        let mut fleet = Fleet::start(2)?;
        fleet.ship(&Release::good("1.0.0"))?;
        fleet.import(&Release::good("2.0.0"))?;
        fleet.kill_controller()?;
        fleet.start_controller_with(&pairs(&[("TIDEGATE_CRASH_AT", point)]))?;
        fleet.wait_online(2).with_context(|| format!("{point}\n{}", fleet.tails()))?;
        let plan = fleet.plan_file(&Plan::new("shop@2.0.0", "rolling").limit("confirm_within = \"2s\""))?;
        fleet.cli(&["rollout", "start", "-f", &plan, "--detach", "--run-id", "run"])?;
        fleet.wait_controller_dead(SOON).with_context(|| format!("{point} was never passed"))?;
        wait_for(&format!("{point}: h1 is {rest}"), SOON, || Ok(own_word(&fleet, 0)?["progress"] == *rest))?;
        // No lease of 2 s outlives this, whichever state the host is in.
        hold(Duration::from_secs(3), || Ok(()))?;
        ensure!(own_word(&fleet, 0)?["progress"] == *rest, "{point}: {:#}", own_word(&fleet, 0)?);
        fleet.start_controller()?;
        let status = fleet.wait_state("run", "completed", SOON).with_context(|| format!("{point}\n{}", fleet.tails()))?;
        ensure!(entries(&status).all(|host| host["state"] == "confirmed" && host["cause"].is_null()), "{point}: {status:#}");
        let reached = entry(&status, "h1")["generation"].as_str().and_then(|g| g.rsplit('.').next()).and_then(|n| n.parse::<u64>().ok());
        ensure!(reached == Some(*generation), "{point}: {status:#}");
        fleet.expect_version("2.0.0").context(*point)?;
        swapped_once(&fleet).context(*point)?;
    }
    Ok(())
}

/// A small generator (xorshift64*, Vigna 2016): the moments of the kills repeat.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

#[test]
fn twenty_kills_at_no_particular_moment() -> Result {
    let mut fleet = Fleet::start(3)?;
    fleet.ship(&Release::good("1.0.0"))?;
    fleet.import(&Release::good("2.0.0"))?;
    let mut seed = 0x7469_6465_6761_7465;
    let (mut kills, mut round) = (0, 0);
    while kills < 20 {
        round += 1;
        let version = if round % 2 == 1 { "2.0.0" } else { "1.0.0" };
        let id = format!("round-{round}");
        let plan = fleet.plan_file(&Plan::new(&format!("shop@{version}"), "rolling").batch("1"))?;
        fleet.cli(&["rollout", "start", "-f", &plan, "--detach", "--run-id", &id])?.expect_code(0)?;
        for _ in 0..4 {
            hold(Duration::from_millis(next(&mut seed) % 400), || Ok(()))?;
            match next(&mut seed) % 4 {
                3 => {
                    fleet.kill_controller()?;
                    fleet.start_controller()?;
                }
                host => {
                    let host = usize::try_from(host)?;
                    fleet.kill_agent(host)?;
                    fleet.start_agent(host)?;
                }
            }
            kills += 1;
        }
        let status = fleet.wait_state(&id, "completed", SOON).with_context(|| format!("{id}\n{}", fleet.tails()))?;
        // One generation per host and rollout, as if nobody had been killed.
        let due = format!("1.{}", round + 1);
        ensure!(entries(&status).all(|host| host["state"] == "confirmed" && host["generation"] == *due), "{id}: {status:#}");
        fleet.expect_version(version)?;
        swapped_once(&fleet)?;
    }
    Ok(())
}
