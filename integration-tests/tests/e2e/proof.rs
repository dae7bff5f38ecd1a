//! What runs is observed, never believed.

use tidegate_integration_tests::{Component, Fleet, Plan, Release};

use crate::{Result, entry, expect_state};

/// A service manager made of a script. It starts the service in a session of its
/// own; with `etc/lie` in the release it says that all is well and does nothing.
const MANAGER: &str = r#"#!/bin/sh
# svc start|stop|status PORT DIRECTORY
here=$(dirname "$(readlink -f "$0")")
pidfile=$3/svc-$2.pid
alive() { [ -s "$pidfile" ] && [ -d "/proc/$(cat "$pidfile")" ] && ! grep -q '^State:.Z' "/proc/$(cat "$pidfile")/status"; }
case $1 in
  start)
    if [ -e "$here/../etc/lie" ] && alive; then exit 0; fi
    setsid sh -c 'echo $$ >"$1"; exec "$2/demo-service" --port "$3"' sh "$pidfile" "$here" "$2" </dev/null >/dev/null 2>&1 &
    while ! alive; do sleep 0.05; done ;;
  stop)
    if alive && ! [ -e "$here/../etc/lie" ]; then
      kill "$(cat "$pidfile")"
      while alive; do sleep 0.05; done
    fi
    exit 0 ;;
  status) alive && cat "$pidfile" ;;
esac
"#;

fn scripted(version: &str, lies: bool, shared: bool) -> Release {
    let argv = |verb: &str| format!(r#"["bin/svc", "{verb}", "${{var.port}}", "${{var.scratch}}"]"#);
    let service = format!("{{ command = {{ start = {}, stop = {}, status = {} }} }}", argv("start"), argv("stop"), argv("status"));
    let mut component = Component::new("api").service(&service).file("bin/svc", MANAGER.as_bytes(), 0o755);
    component = component.smoke(&["id = \"SMK-001\"\nname = \"Answers\"\nhttp = { url = \"http://127.0.0.1:${var.port}/\", status = 200, body = \"Welcome\" }\ntimeout = \"1s\"\nretry_for = \"5s\""]);
    if lies {
        component = component.file("etc/lie", b"", 0o644);
    }
    if shared {
        component = component.shared_executable();
    }
    Release::new(version).component(component)
}

/// The smoke test alone would be fooled: the old process still says Welcome.
fn a_liar_is_caught(shared: bool) -> Result {
    let fleet = Fleet::start(1)?;
    fleet.ship(&scripted("1.0.0", false, shared))?;
    fleet.expect_version("1.0.0")?;
    // An honest manager can be moved on.
    fleet.import(&scripted("1.1.0", false, shared))?;
    fleet.roll(&Plan::new("shop@1.1.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("1.1.0")?;

    fleet.import(&scripted("2.0.0", true, shared))?;
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(4)?;
    let status = fleet.newest_status()?;
    assert_eq!(entry(&status, "h1")["cause"], "start-failed", "{status:#}");
    expect_state(&status, "rolled-back")?;
    fleet.expect_version("1.1.0")
}

#[test]
fn a_service_manager_that_says_restarted_while_the_old_process_runs() -> Result {
    a_liar_is_caught(false)
}

#[test]
fn the_same_when_old_and_new_share_their_executable() -> Result {
    a_liar_is_caught(true)
}

#[test]
fn a_release_that_differs_only_in_its_configuration() -> Result {
    let shared = |version: &str, conf: &[&str]| {
        let component = conf.iter().fold(Component::new("api").shared_executable(), |component, line| component.conf(line));
        Release::new(version).component(component)
    };
    let fleet = Fleet::start(3)?;
    fleet.ship(&shared("1.0.0", &[]))?;
    let first = fleet.observed("api")?;
    let imported = fleet.import(&shared("2.0.0", &[]))?;
    assert!(imported["new_bytes"].as_u64() < Some(1_000), "only the configuration is new: {imported:#}");
    fleet.roll(&Plan::new("shop@2.0.0", "rolling"))?.expect_code(0)?;
    fleet.expect_version("2.0.0")?;
    let second = fleet.observed("api")?;
    for ((name, old), (_, new)) in first.iter().zip(&second) {
        assert_eq!(old["running_sha256"], new["running_sha256"], "{name}");
        assert_ne!(old["tree_sha256"], new["tree_sha256"], "{name}");
    }

    fleet.import(&shared("3.0.0", &["behaviour = bad"]))?;
    fleet.roll(&Plan::new("shop@3.0.0", "rolling"))?.expect_code(4)?;
    expect_state(&fleet.newest_status()?, "rolled-back")?;
    assert_eq!(second, fleet.observed("api")?);
    fleet.expect_version("2.0.0")
}
