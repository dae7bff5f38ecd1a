//! `cargo demo`: Tidegate's main job in under a minute, with real processes on
//! loopback.
//!
//! Owns: the story and its telling. It must not decide what happened: that is
//! asked of the controller and, apart from it, of each service over HTTP. Exit
//! code 0 only if, in the end, every host runs release 2.

use std::fmt::Write as _;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidegate_integration_tests::ask::text;
use tidegate_integration_tests::bins::programs;
use tidegate_integration_tests::client::get;
use tidegate_integration_tests::release::http_smoke;
use tidegate_integration_tests::{Component, Fleet, Plan, Release};

const HOSTS: usize = 6;

fn say(text: &str) {
    println!("{text}");
}

fn chapter(text: &str) {
    println!("\n\u{2500}\u{2500} {text}");
}

/// The demo's service, which takes a moment to start, as real ones do.
fn release(version: &str, conf: &[&str]) -> Release {
    let smoke = http_smoke("port", "5s");
    let component = Component::new("api").smoke(&[&smoke]);
    Release::new(version).component(conf.iter().fold(component, |component, line| component.conf(line)))
}

/// Packs and imports a release, and says what that was.
fn import(fleet: &Fleet, release: &Release) -> anyhow::Result<()> {
    let imported = fleet.import(release)?;
    let digest = text(&imported, "/digest")?;
    let number = |key: &str| imported[key].as_u64().unwrap_or_default();
    say(&format!(
        "imported {} ({} files, {} KiB, {} KiB of them new, {}\u{2026})",
        release.id(),
        number("files"),
        number("bytes") / 1024,
        number("new_bytes") / 1024,
        digest.get(..12).unwrap_or(digest)
    ));
    Ok(())
}

/// `tidegate rollout start --wait`, on this terminal; its exit code.
fn roll(fleet: &Fleet, plan: &Plan) -> anyhow::Result<i32> {
    let file = fleet.plan_file(plan)?;
    say("$ tidegate rollout start -f plan.toml --wait");
    let mut command = fleet.cli_command(&["rollout", "start", "-f", &file, "--wait"]);
    let status = command.stdin(Stdio::null()).status().context("starting tidegate")?;
    let code = status.code().context("tidegate was ended by a signal")?;
    say(&format!("(exit code {code})"));
    Ok(code)
}

/// A command of the CLI, on this terminal.
fn show(fleet: &Fleet, args: &[&str]) -> anyhow::Result<()> {
    say(&format!("$ tidegate {}", args.join(" ")));
    let status = fleet.cli_command(args).stdin(Stdio::null()).status().context("starting tidegate")?;
    ensure!(status.success(), "tidegate ended with {status}");
    Ok(())
}

/// What runs on each host, by the controller's word and by the service's own;
/// whether all of it is `version`.
fn ends_with(fleet: &Fleet, version: &str) -> anyhow::Result<bool> {
    let mut table = format!("{:<6}{:<10}{:<14}{:<14}{:<16}{}\n", "host", "state", "release", "previous", "executable", "http says");
    let listed = fleet.host_list()?;
    let mut good = listed.len() == HOSTS;
    for host in &fleet.hosts {
        let entry =
            listed.iter().find(|entry| entry["name"] == host.name.as_str()).with_context(|| format!("{} is not listed", host.name))?;
        let api = &entry["components"]["api"];
        let word = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        let greeting = match get(host.address(), "/", Duration::from_secs(2)) {
            Ok(answer) => answer.body.trim_end().to_owned(),
            Err(error) => format!("{error:#}"),
        };
        good &= api["release"] == format!("shop@{version}") && greeting == format!("Welcome to shop {version}");
        let executable = word(&api["running_sha256"]);
        let executable = executable.trim_start_matches("sha256:").get(..12).unwrap_or("-").to_owned();
        let row = [host.name.clone(), word(&entry["state"]), word(&api["release"]), word(&api["previous"]), executable];
        let _ = writeln!(table, "{:<6}{:<10}{:<14}{:<14}{:<16}{greeting}", row[0], row[1], row[2], row[3], row[4]);
    }
    print!("{table}");
    Ok(good)
}

fn run() -> anyhow::Result<bool> {
    eprintln!("building the programs \u{2026}");
    programs()?;
    let began = Instant::now();

    chapter(&format!("a controller starts, and {HOSTS} agents join it by token"));
    let mut fleet = Fleet::start(HOSTS)?;
    say(&format!("controller on 127.0.0.1:{}, everything in {}", fleet.port()?, fleet.dir().display()));
    show(&fleet, &["host", "list"])?;

    chapter("release 1 is shipped to all hosts at once");
    import(&fleet, &release("1.0.0", &[]))?;
    ensure!(roll(&fleet, &Plan::new("shop@1.0.0", "big-bang"))? == 0, "release 1 was not shipped");

    chapter("release 2 is rolled out, two hosts at a time");
    import(&fleet, &release("2.0.0", &["behaviour = slow-start", "seconds = 0.7"]))?;
    let gently = |id: &str| Plan::new(id, "rolling").batch("2").limit("max_parallel = 2");
    ensure!(roll(&fleet, &gently("shop@2.0.0"))? == 0, "release 2 was not rolled out");

    // Good on most hosts, so that some are changed by the time one fails.
    let port = fleet.host("h4")?.port;
    chapter("release 3 fails its smoke test on h4: it is taken back everywhere");
    import(&fleet, &release("3.0.0", &["behaviour = bad", &format!("only_port = {port}")]))?;
    ensure!(roll(&fleet, &gently("shop@3.0.0"))? == 4, "release 3 was to be rolled back, with exit code 4");

    chapter("what happened with release 3");
    let id = fleet.newest()?;
    show(&fleet, &["rollout", "events", &id])?;
    // Beside this program: the fleet's own directory goes with it.
    let papers = std::env::current_exe().context("where this program is")?.with_file_name("demo-papers");
    let out = papers.to_str().context("a path that is no text")?;
    show(&fleet, &["docs", &id, "--out", out])?;

    chapter("what runs now, by the controller's word and asked over HTTP");
    let good = ends_with(&fleet, "2.0.0")?;
    let seconds = began.elapsed().as_secs_f64();
    say(&if good {
        format!("\nThe papers of release 3 are in {}.\nEvery host runs release 2. ({seconds:.1} s)", papers.join("index.html").display())
    } else {
        format!("\nNOT every host runs release 2. ({seconds:.1} s)\n{}", fleet.tails())
    });
    Ok(good)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
