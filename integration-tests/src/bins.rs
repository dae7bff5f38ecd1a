//! Where the programs are, built once per process.
//!
//! A test of the workspace must never drive yesterday's daemon: `cargo build`
//! runs first, into the same target directory and profile as the caller's, where
//! it costs a fraction of a second when nothing changed. `TIDEGATE_BIN_DIR` names
//! a directory with programs that were built elsewhere, and nothing is built.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, anyhow, bail, ensure};

const PACKAGES: &[&str] = &["tidegate-controller", "tidegate-agent", "tidegate-integration-tests"];
const BINS: &[&str] = &["tidegate-controller", "tidegate-agent", "tidegate", "demo-service", "fleet-reaper"];
/// Beginnings of variables that cargo sets for what it runs.
const TOLD: &[&str] = &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "CARGO_CFG_", "CARGO_FEATURE_"];

/// The programs by path.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `tidegate-controller`.
    pub controller: PathBuf,
    /// `tidegate-agent`.
    pub agent: PathBuf,
    /// `tidegate`.
    pub cli: PathBuf,
    /// `demo-service` of this package, without debug information.
    pub demo_service: PathBuf,
    /// `fleet-reaper` of this package.
    pub reaper: PathBuf,
}

/// The programs, built first if need be.
///
/// # Errors
/// They do not build, or a program is missing after that.
pub fn programs() -> anyhow::Result<&'static Programs> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    PROGRAMS.get_or_init(|| find().map_err(|error| format!("{error:#}"))).as_ref().map_err(|error| anyhow!("{error}"))
}

fn find() -> anyhow::Result<Programs> {
    let dir = match std::env::var_os("TIDEGATE_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => build()?,
    };
    let program = |name: &str| {
        let path = dir.join(name);
        ensure!(path.is_file(), "there is no {}", path.display());
        Ok(path)
    };
    Ok(Programs {
        controller: program("tidegate-controller")?,
        agent: program("tidegate-agent")?,
        cli: program("tidegate")?,
        demo_service: slim(&program("demo-service")?),
        reaper: program("fleet-reaper")?,
    })
}

/// `target/PROFILE`, from where this program runs (`target/PROFILE/[deps/]NAME`).
fn profile_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("where this program is")?;
    let dir = program.parent().context("no directory")?;
    let dir = if dir.ends_with("deps") { dir.parent().context("no directory")? } else { dir };
    Ok(dir.to_owned())
}

fn build() -> anyhow::Result<PathBuf> {
    let dir = profile_dir()?;
    let target = dir.parent().context("no target directory")?;
    let profile = match dir.file_name().and_then(|name| name.to_str()).context("no profile")? {
        "debug" => "dev",
        other => other,
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args(["build", "--profile", profile, "--target-dir"])
        .arg(target)
        .args(PACKAGES.iter().flat_map(|package| ["--package", *package]))
        .args(BINS.iter().flat_map(|bin| ["--bin", *bin]))
        .stdin(Stdio::null());
    // What cargo told this program about itself must not reach the cargo below:
    // build scripts that look at it would run again, and all that stands on them.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name == "OUT_DIR" || TOLD.iter().any(|told| name.starts_with(told))) {
            command.env_remove(name);
        }
    }
    // Its progress belongs to a person at a terminal; a test shows it only when it fails.
    if std::io::stderr().is_terminal() {
        let status = command.stdout(Stdio::null()).status().context("starting cargo")?;
        ensure!(status.success(), "cargo build ended with {status}");
    } else {
        let output = command.output().context("starting cargo")?;
        if !output.status.success() {
            bail!("cargo build ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(dir)
}

/// `program` without debug information, a fifth of the size: copies go to every
/// host. Where there is no `strip`, the whole file works alike.
#[must_use]
pub fn slim(program: &Path) -> PathBuf {
    let slimmed = program.with_extension("slim");
    let newer = |a: &Path, b: &Path| Some(a.metadata().ok()?.modified().ok()? >= b.metadata().ok()?.modified().ok()?);
    if newer(&slimmed, program) == Some(true) {
        return slimmed;
    }
    // Renamed when complete: another test may be at the same point.
    let half = program.with_extension(format!("slim-{}", std::process::id()));
    let stripped = Command::new("strip").arg("-o").args([&half, &program.to_owned()]).stderr(Stdio::null()).status();
    match stripped {
        Ok(status) if status.success() && std::fs::rename(&half, &slimmed).is_ok() => slimmed,
        _ => program.to_owned(),
    }
}
