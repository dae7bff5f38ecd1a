//! The real-host test: three machines with systemd, the agent as their service
//! from `deploy/`, Debian's nginx as what is released. Run by `.ci/run`, as root:
//!
//! `cargo run -p tidegate-integration-tests --bin hosts-test [STEP…]`
//!
//! Owns: booting the hosts, then running itself on the bridge's side, where the
//! controller, the operator and a client of every host are. Fails, never skips,
//! when the hosts do not boot.

mod real;
mod sides;
mod steps;
mod swaps;
mod web;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tidegate_integration_tests::bins::programs;
use tidegate_integration_tests::nspawn::{Hosts, require_root};
use tidegate_integration_tests::wait::{Look, wait_until};

use crate::real::Real;

/// Of the hosts in `hosts.sh`.
const NAME: &str = "tgtest";
const COUNT: usize = 3;
/// All steps together.
const WITHIN: Duration = Duration::from_secs(20 * 60);
/// As first argument: this is the process on the bridge's side.
const INSIDE: &str = "--inside";

fn outside(args: &[OsString]) -> anyhow::Result<()> {
    require_root()?;
    let bins = programs()?.cli.parent().context("where the programs are")?.to_owned();
    let began = Instant::now();
    let hosts = Hosts::up(NAME, COUNT)?;
    eprintln!("{COUNT} hosts are up after {:.1} s", began.elapsed().as_secs_f64());
    let myself = std::env::current_exe().context("where this program is")?;
    let args: Vec<OsString> = std::iter::once(INSIDE.into()).chain(args.iter().cloned()).collect();
    // The programs are built: the inside must not build them again.
    let mut child = hosts.hub(&myself, &args).env("TIDEGATE_BIN_DIR", bins).spawn().context("starting on the bridge's side")?;
    let status = wait_until("the steps end", WITHIN, || {
        Ok(Look::from_option(child.try_wait().context("asking after it")?, || "they run".to_owned()))
    });
    if status.is_err() {
        // `hosts.sh down` ends what is left on the bridge's side.
        let _ = child.kill();
    }
    let status = status?;
    ensure!(status.success(), "a step failed ({status})");
    Ok(())
}

fn inside(wanted: &[OsString]) -> anyhow::Result<()> {
    let mut real = Real::start(NAME, COUNT)?;
    let mut failed = Vec::new();
    for (name, step) in steps::ALL {
        // The first one ships the first release, which all others need.
        if !wanted.is_empty() && *name != "ship" && !wanted.iter().any(|word| word == name) {
            continue;
        }
        let began = Instant::now();
        match step(&mut real) {
            Ok(()) => eprintln!("ok    {name} ({:.1} s)", began.elapsed().as_secs_f64()),
            Err(error) => {
                eprintln!("FAIL  {name} ({:.1} s): {error:#}", began.elapsed().as_secs_f64());
                failed.push(*name);
                // The steps build upon each other.
                break;
            }
        }
    }
    if !failed.is_empty() {
        eprintln!("{}", real.logs());
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match args.split_first() {
        Some((first, rest)) if first == INSIDE => inside(rest),
        _ => outside(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hosts-test: {error:#}");
            ExitCode::FAILURE
        }
    }
}
