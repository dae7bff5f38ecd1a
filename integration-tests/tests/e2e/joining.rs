//! Tokens and joining.

use std::process::Command;

use anyhow::Context;
use tidegate_integration_tests::ask::text;
use tidegate_integration_tests::fleet::pairs;
use tidegate_integration_tests::{Fleet, Output};

use crate::{Result, SOON};

/// `enroll` of a new host below the fleet's directory.
fn enroll(fleet: &Fleet, name: &str, token: &str) -> Result<Output> {
    let agent = tidegate_integration_tests::bins::programs()?.agent.clone();
    let mut command = Command::new(agent);
    command.arg("enroll").arg("--dir").arg(fleet.dir().join(name));
    command.args(["--controller", &format!("127.0.0.1:{}", fleet.port()?), "--token", token, "--name", name]);
    Output::of(command, SOON)
}

fn names(fleet: &Fleet) -> Result<Vec<String>> {
    fleet.host_list()?.iter().map(|host| Ok(text(host, "/name")?.to_owned())).collect()
}

#[test]
fn a_token_is_good_once_and_its_labels_come_with_it() -> Result {
    let fleet = Fleet::start(0)?;
    let token = fleet.token(&pairs(&[("role", "api"), ("zone", "b")]), 1)?;
    enroll(&fleet, "one", &token)?.expect_code(0)?;
    let host = fleet.host_list()?.pop().context("no host")?;
    assert_eq!((&host["labels"]["role"], &host["labels"]["zone"]), (&"api".into(), &"b".into()), "{host:#}");

    let second = enroll(&fleet, "two", &token)?.expect_code(1)?;
    second.expect_said("token")?;
    assert_eq!(names(&fleet)?, ["one"]);
    assert!(!fleet.dir().join("two/agent.toml").exists(), "a refused host was configured");
    Ok(())
}

#[test]
fn a_token_with_a_name_is_good_for_that_host_only() -> Result {
    let fleet = Fleet::start(0)?;
    let created = fleet.json(&["token", "create", "--host", "right"])?;
    let token = text(&created, "/token")?;
    enroll(&fleet, "wrong", token)?.expect_code(1)?;
    assert_eq!(names(&fleet)?, [""; 0]);
    // Refusing another host did not use it up.
    enroll(&fleet, "right", token)?.expect_code(0)?;
    assert_eq!(names(&fleet)?, ["right"]);
    Ok(())
}

#[test]
fn a_token_ends() -> Result {
    let fleet = Fleet::start(0)?;
    let token = fleet.json(&["token", "create", "--ttl", "1s"])?;
    let expires: &str = text(&token, "/expires_at")?;
    let expires: std::time::SystemTime = expires.parse::<jiff::Timestamp>().context("expires_at")?.into();
    tidegate_integration_tests::wait::wait_for("the token has ended", SOON, || Ok(std::time::SystemTime::now() > expires))?;
    enroll(&fleet, "late", text(&token, "/token")?)?.expect_code(1)?;
    assert_eq!(names(&fleet)?, [""; 0]);
    Ok(())
}

#[test]
fn a_mangled_token_is_a_usage_error() -> Result {
    let fleet = Fleet::start(0)?;
    enroll(&fleet, "one", "not-a-token")?.expect_code(2)?;
    let token = fleet.token(&[], 1)?;
    let shortened = token.get(..token.len() - 2).context("a token is longer")?;
    assert_ne!(enroll(&fleet, "one", shortened)?.code, 0);
    assert_eq!(names(&fleet)?, [""; 0]);
    Ok(())
}

#[test]
fn a_token_of_another_controller_is_refused_before_the_host_says_anything() -> Result {
    let fleet = Fleet::start(0)?;
    let other = Fleet::start(0)?;
    let foreign = other.token(&[], 1)?;
    // The token pins its own CA, which this controller's certificate is not of.
    assert_ne!(enroll(&fleet, "one", &foreign)?.code, 0);
    assert_eq!(names(&fleet)?, [""; 0]);
    enroll(&other, "one", &foreign)?.expect_code(0)?;
    Ok(())
}
