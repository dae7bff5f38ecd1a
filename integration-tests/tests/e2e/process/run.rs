//! The guide's run from the first look at the plan to the closed rollout, as
//! scripts and people would go through it. Every step is one that may be done
//! again: a controller that is away at that moment is asked once more.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_integration_tests::Plan;
use tidegate_integration_tests::ask::Operator;
use tidegate_integration_tests::load::Load;
use tidegate_integration_tests::people::{People, Person};
use tidegate_integration_tests::wait::{Look, wait_until};

use super::{BOTH, CHANGE, CONTACTS, World, open_window};
use crate::gating::{SCRAPED, traffic};
use crate::{Result, SOON};

/// The rollout's name in all of these runs, so that documents can be compared.
pub(crate) const ID: &str = "shop-cr-1042";
const LATENCY: &[&str] = &[
    "source = \"scrape\"",
    "url = \"http://127.0.0.1:${var.port}/metrics\"",
    "histogram = \"http_request_duration_seconds\"",
    "min_samples = 10",
    // Two busy cores make milliseconds wander: the paper shows them, no gate judges them here.
    "tolerance = \"5000%\"",
];

/// Traffic on every host, enough that a second decides.
pub(crate) fn load(world: &World) -> Result<Load> {
    traffic(&world.fleet, 40, 40)
}

/// The guide's plan, scaled down: approvals, window, contacts, three stages with
/// one attestation, triggers, notifications, the change request.
pub(crate) fn plan(world: &World) -> Plan {
    plan_with(world, "1s", ATTEST, "watch = \"1s\"")
}

/// What the guide's canary asks a person.
pub(crate) const ATTEST: &str = "attest = [\"no-customer-complaints\"]";

/// The same; the canary is observed for `bake` and asks `attest`, the last stage is observed as `last` says.
pub(crate) fn plan_with(world: &World, bake: &str, attest: &str, last: &str) -> Plan {
    let approvals = ["tech-lead", "security", "operations"].map(|role| format!("[[approval]]\nrole = \"{role}\"\n")).concat();
    Plan::to("shop@2.0.0", "canary", BOTH)
        .line("environment = \"production\"")
        .line(&format!("dashboards = [\"{}\"]", world.dashboard()))
        .limit("max_parallel = \"100%\"")
        .limit("rollback_parallel = \"100%\"")
        .analysis("baseline = \"1s\"")
        .analysis("interval = \"300ms\"")
        .analysis("window = \"5s\"")
        .metric("error_rate", &[&SCRAPED[..4], &["min_samples = 20"]].concat())
        .metric("latency", LATENCY)
        .stage_with("Canary", 34, &[&format!("bake = \"{bake}\""), "success = [\"error_rate < 0.1%\", \"critical_errors == 0\"]", attest])
        .stage_with("Full", 100, &[last, "success = [\"error_rate < 0.1%\"]"])
        .trigger("error_rate > 1%", "rollback", &["min_samples = 20"])
        .trigger("critical_errors > 0", "rollback", &[])
        .trigger("declared data-corruption", "emergency", &[])
        .perf("latency_p99", "5s")
        .tables(&approvals)
        .tables("[[approval]]\nrole = \"product-owner\"\noptional = true\n")
        .tables(&open_window())
        .tables(CONTACTS)
        .tables(CHANGE)
        .tables(&world.notify())
}

/// One thing that a person does until it is done. Another answer than done or
/// away is an error at once.
pub(crate) fn done(operator: &Operator, args: &[&str], already: &[&str]) -> Result {
    wait_until(&args.join(" "), SOON, || {
        let output = operator.cli(args)?;
        // It was taken before the answer got lost: then it says so.
        let taken = output.code == 0 || already.iter().any(|word| output.said().contains(word));
        // 1 and 7: the controller is away. Anything else is meant.
        ensure!(taken || [1, 7].contains(&output.code), "{output}");
        Ok(if taken { Look::Done(()) } else { Look::NotYet(output.to_string()) })
    })
}

/// The four approvals: two by the CLI, two by stock ssh-keygen.
pub(crate) fn approve_all(operator: &Operator, people: &People, id: &str) -> Result {
    for (role, stock) in [("tech-lead", false), ("security", true), ("operations", true), ("product-owner", false)] {
        let person = people.with(role)?;
        signed(operator, &["rollout", "approve", id, "--role", role], person, stock, &|status| {
            !misses(status, &format!("approval-{role}"))
        })?;
    }
    Ok(())
}

/// Signs until it shows.
fn signed(operator: &Operator, command: &[&str], person: &Person, stock: bool, shows: &dyn Fn(&Value) -> bool) -> Result {
    let id = command.get(2).copied().context("the rollout's id")?;
    wait_until(&command.join(" "), SOON, || {
        let output = if stock {
            operator.sign_stock(command, person)
        } else {
            let with_key: Vec<&str> = command.iter().copied().chain(["--key", person.key_path()?]).collect();
            operator.cli(&with_key)
        };
        let said = match output {
            Ok(output) if output.code == 0 => return Ok(Look::Done(())),
            Ok(output) => output.to_string(),
            // The payload could not be had: the controller is away.
            Err(error) => format!("{error:#}"),
        };
        let status = operator.cli(&["rollout", "status", id, "--output", "json"])?;
        let taken = status.code == 0 && shows(&status.json()?);
        Ok(if taken { Look::Done(()) } else { Look::NotYet(said) })
    })
}

/// A row is among those that keep it from beginning.
pub(crate) fn misses(status: &Value, item: &str) -> bool {
    let missing = status["missing"].as_array().map(Vec::as_slice).unwrap_or_default();
    missing.iter().any(|row| row["item"] == item)
}

/// `rollout start --detach --run-id ID`.
pub(crate) fn submit(operator: &Operator, plan: &Plan) -> Result {
    let file = operator.plan_file(plan)?;
    done(operator, &["rollout", "start", "-f", &file, "--detach", "--run-id", ID], &[])
}

/// Vouches for the canary once it is observed.
pub(crate) fn attest_stage(operator: &Operator) -> Result {
    operator.wait_status(ID, "the canary is observed, or passed", SOON, |status| {
        let state = status.pointer("/waves/1/state").and_then(Value::as_str)?;
        (state != "pending" && state != "open").then_some(())
    })?;
    let attested = |status: &Value| status.pointer("/waves/1/state").and_then(Value::as_str).is_some_and(|state| state == "passed");
    wait_until("the stage's item is attested", SOON, || {
        let output =
            operator.cli(&["rollout", "attest", ID, "--item", "no-customer-complaints", "--note", "support inbox empty at 22:40"])?;
        let status = operator.cli(&["rollout", "status", ID, "--output", "json"])?;
        let taken = output.code == 0 || status.code == 0 && attested(&status.json()?);
        Ok(if taken { Look::Done(()) } else { Look::NotYet(format!("{output}\n{status}")) })
    })
}

/// review.toml as people would fill it in.
pub(crate) const REVIEW: &str = "date = \"2026-11-25\"\nparticipants = [\"Lea Lead\", \"Otto Oncall\"]\n\
    went_well = [\"The canary caught nothing\", \"Everybody was told\"]\ncould_improve = [\"Announce earlier\"]\n\
    [[action]]\naction = \"Write to support a day before\"\nowner = \"Lea Lead\"\ndue = \"2026-12-01\"\n";

/// From ended to closed: issues resolved, items, attestations, review, two
/// signatures over the handoff.
pub(crate) fn hand_over(operator: &Operator, people: &People) -> Result {
    for (item, note) in
        [("on-call-briefed", "call at 23:00"), ("alerts-reviewed", "two rules changed"), ("runbook-tested", "by the drill of Monday")]
    {
        done(operator, &["rollout", "attest", ID, "--item", item, "--note", note], &[])?;
    }
    once_item(operator)?;
    let review = operator.text_file("review.toml", REVIEW)?;
    done(operator, &["rollout", "review", ID, "-f", &review], &[])?;
    for (role, who, stock) in [("lead", "lead@example.com", false), ("ops-lead", "opslead@example.com", true)] {
        let person = people.named(who)?;
        wait_until(&format!("the handoff is signed as {role}"), SOON, || {
            let command = ["rollout", "handoff", ID, "--role", role];
            let output = if stock {
                operator.sign_stock(&command, person)
            } else {
                let key: Vec<&str> = command.into_iter().chain(["--key", person.key_path()?]).collect();
                operator.cli(&key)
            };
            let said = output.map_or_else(|error| format!("{error:#}"), |output| output.to_string());
            let shown = operator.cli(&["rollout", "handoff", ID, "--output", "json"])?;
            let signed = shown.code == 0
                && shown.json()?["signed"].as_array().into_iter().flatten().any(|one| one["role"] == role && one["current"] == true);
            Ok(if signed { Look::Done(()) } else { Look::NotYet(format!("{said}\n{shown}")) })
        })?;
    }
    Ok(())
}

/// One outstanding item, however often its answer got lost.
fn once_item(operator: &Operator) -> Result {
    wait_until("the outstanding item is there", SOON, || {
        let list = operator.cli(&["rollout", "item", ID, "list", "--output", "json"])?;
        if list.code == 0 && list.json()?.as_array().is_some_and(|items| !items.is_empty()) {
            return Ok(Look::Done(()));
        }
        let add = operator.cli(&["rollout", "item", ID, "add", "Remove the old index", "--owner", "Otto Oncall", "--eta", "2026-12-02"])?;
        Ok(Look::NotYet(format!("{list}\n{add}")))
    })
}

/// `rollout close`, until the status says so.
pub(crate) fn close(operator: &Operator) -> Result<Value> {
    done(operator, &["rollout", "close", ID], &["closed"])?;
    let status = operator.status(ID)?;
    ensure!(status["closed"] == true, "{status:#}");
    Ok(status)
}

/// What `rollout plan` shows, also of a plan that would be refused now.
pub(crate) fn look(operator: &Operator, plan: &Plan) -> Result<Value> {
    let output = operator.cli(&["rollout", "plan", "-f", &operator.plan_file(plan)?, "--output", "json"])?;
    let shown = output.json()?;
    let refused = shown["refused_because"].as_array().is_some_and(|all| !all.is_empty());
    ensure!(output.code == if refused { 5 } else { 0 }, "{output}");
    Ok(shown)
}

/// The sentence of a row in what `rollout plan` shows.
pub(crate) fn row<'a>(plan: &'a Value, item: &str) -> Result<&'a Value> {
    let rows = plan["readiness"].as_array().with_context(|| format!("no readiness in {plan:#}"))?;
    rows.iter().find(|row| row["item"] == item || row["name"] == item).with_context(|| format!("no row {item} among {rows:#?}"))
}

/// Nobody was told what should not have been.
pub(crate) const HOLD: Duration = Duration::from_millis(700);
