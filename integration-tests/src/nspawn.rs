//! Real hosts: machines with systemd as their first process, made by `hosts.sh`.
//!
//! Owns: driving that script, and that all hosts are down in the end. It needs
//! root; whoever uses it must fail without, never skip.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::output::Output;

/// Making the base tree needs a minute or two, and a slow mirror more.
const UP_WITHIN: Duration = Duration::from_secs(900);
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

/// Booted hosts `h1` … `hN`.
#[derive(Debug)]
pub struct Hosts {
    name: String,
    owned: bool,
    /// `h1`, `h2`, …
    pub names: Vec<String>,
}

impl Hosts {
    /// Boots `count` hosts of the fleet `name`; waits until they are up. What a
    /// killed run left of that fleet goes first.
    ///
    /// # Errors
    /// They do not come up.
    pub fn up(name: &str, count: usize) -> anyhow::Result<Self> {
        let mut hosts = Self::attach(name, count);
        hosts.owned = true;
        hosts.script(&["down"], COMMAND_WITHIN)?.expect_code(0)?;
        let booted = hosts.script(&["up", &count.to_string()], UP_WITHIN)?.expect_code(0).context("the hosts do not boot")?;
        eprint!("{}", booted.stdout);
        Ok(hosts)
    }

    /// Hosts that another process booted and will take down.
    #[must_use]
    pub fn attach(name: &str, count: usize) -> Self {
        Self { name: name.to_owned(), owned: false, names: (1..=count).map(|number| format!("h{number}")).collect() }
    }

    /// The address of `hosts.names[index]`.
    #[must_use]
    pub fn address(index: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, u8::try_from(11 + index).unwrap_or(u8::MAX)))
    }

    /// The address of the hub, where the controller and the clients are.
    #[must_use]
    pub const fn hub_address() -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg(script()).args(args).env("HOSTS_NAME", &self.name);
        command
    }

    fn script(&self, args: &[&str], within: Duration) -> anyhow::Result<Output> {
        Output::of(self.command(args), within)
    }

    /// Runs a command inside a host, as root.
    ///
    /// # Errors
    /// It does not end.
    pub fn run(&self, host: &str, argv: &[&str]) -> anyhow::Result<Output> {
        self.script(&[&["run", host], argv].concat(), COMMAND_WITHIN)
    }

    /// [`Hosts::run`] of something that must work; what it printed.
    ///
    /// # Errors
    /// It ends with another code than 0.
    pub fn ok(&self, host: &str, argv: &[&str]) -> anyhow::Result<String> {
        Ok(self.run(host, argv)?.expect_code(0).with_context(|| host.to_owned())?.stdout.trim_end().to_owned())
    }

    /// A command on the bridge side, with this process's output; not started yet.
    #[must_use]
    pub fn hub(&self, program: &Path, args: &[OsString]) -> Command {
        let mut command = self.command(&["hub"]);
        command.arg(program).args(args).stdin(Stdio::null());
        command
    }

    /// Copies a file into a host, in one step.
    ///
    /// # Errors
    /// It does not arrive.
    pub fn push(&self, host: &str, from: &Path, to: &str, mode: &str) -> anyhow::Result<()> {
        let from = from.to_str().context("a path that is not UTF-8")?;
        self.script(&["push", host, from, to, mode], COMMAND_WITHIN)?.expect_code(0)?;
        Ok(())
    }

    /// The bytes of a host's file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn pull(&self, host: &str, from: &str) -> anyhow::Result<Vec<u8>> {
        let output = self.command(&["run", host, "cat", from]).stdin(Stdio::null()).output().context("starting hosts.sh")?;
        ensure!(output.status.success(), "reading {from} of {host}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// Cuts a host's network, both ways.
    ///
    /// # Errors
    /// The firewall says no.
    pub fn partition(&self, host: &str) -> anyhow::Result<()> {
        self.script(&["partition", host], COMMAND_WITHIN)?.expect_code(0).map(drop)
    }

    /// Undoes [`Hosts::partition`].
    ///
    /// # Errors
    /// The firewall says no.
    pub fn heal(&self, host: &str) -> anyhow::Result<()> {
        self.script(&["heal", host], COMMAND_WITHIN)?.expect_code(0).map(drop)
    }

    /// Takes a host's power away; its disk stays.
    ///
    /// # Errors
    /// It lives on.
    pub fn kill(&self, host: &str) -> anyhow::Result<()> {
        self.script(&["kill", host], COMMAND_WITHIN)?.expect_code(0).map(drop)
    }

    /// Boots a host again and waits until it is up.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot(&self, host: &str) -> anyhow::Result<()> {
        self.script(&["boot", host], COMMAND_WITHIN)?.expect_code(0).map(drop)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        match self.script(&["down"], COMMAND_WITHIN).and_then(|output| output.expect_code(0)) {
            Ok(_) => {}
            Err(error) => eprintln!("taking the hosts down: {error:#}"),
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts.sh")
}

/// That this process may boot hosts.
///
/// # Errors
/// It is not root.
pub fn require_root() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "booting hosts needs root");
    Ok(())
}
