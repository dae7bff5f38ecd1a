//! The files in deploy/examples say what this version does.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use std::path::Path;

use tidegate_controller::config::Config;
use tidegate_controller::windows;
use tidegate_protocol::Timestamp;
use tidegate_rollout::Spec;
use tidegate_rollout::process::{ContactRole, Role, Topic};
use tidegate_rollout::readiness;

fn example(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples").join(name)).unwrap()
}

fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("controller.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(&file).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn the_production_profile_demands_the_whole_guide() {
    let text = example("controller.toml");
    assert!(load(&text).environments.is_empty(), "as shipped it demands nothing");
    let (head, profile) = text.split_once("# --- A production profile").unwrap();
    let lines = profile.lines().skip(1).filter(|line| !line.starts_with("# ---"));
    let uncommented: Vec<&str> = lines.map(|line| line.strip_prefix("# ").or(line.strip_prefix('#')).unwrap_or(line)).collect();
    let config = load(&format!("{head}\n{}", uncommented.join("\n")));
    let production = &config.environments["production"];
    for item in readiness::items().filter(|item| *item != "runbook-still-valid") {
        assert!(production.demanded.contains(item), "{item} is not demanded");
    }
    assert_eq!(production.approvals, [Role::TechLead, Role::Security, Role::Operations, Role::ProductOwner]);
    assert_eq!(production.rules.staging.as_deref(), Some("staging"));
    assert!(config.approvers.is_some());
    let routes = config.routes.known();
    let plan = Spec::parse(&example("production.toml"), "production.toml").unwrap();
    for notify in &plan.notify {
        assert_eq!(routes.get(&notify.to), Some(&notify.via), "{}", notify.to);
    }
}

#[test]
fn the_production_plan_brings_what_the_profile_asks_for() {
    let plan = Spec::parse(&example("production.toml"), "production.toml").unwrap();
    windows::check(&plan.window, &plan.contact).unwrap();
    assert_eq!(windows::openings(&plan.window, Timestamp(1_764_000_000_000), 3).len(), 3);
    for topic in [Topic::Started, Topic::Completed, Topic::Issue] {
        assert!(plan.notify.iter().any(|n| n.on.contains(&topic)), "{topic}");
    }
    for role in ContactRole::ALL {
        assert!(plan.contact.iter().any(|c| c.role == *role), "{role}");
    }
    let change = plan.change.unwrap();
    assert!(change.downtime.is_some() && change.rollback_time.is_some() && !plan.risk.is_empty());
}

#[test]
fn every_plan_reads() {
    for name in ["plan.toml", "canary.toml", "blue-green.toml", "production.toml"] {
        Spec::parse(&example(name), name).unwrap();
    }
}
