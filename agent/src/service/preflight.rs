//! Whether a release can run on this host at all, asked of its manifest and of
//! local policy before anything is fetched.

use tidegate_protocol::release::{Service, SmokeCheck};
use tidegate_protocol::report::{Cause, Failure};

use crate::context::{Context, Installed};
use crate::error::failure;
use crate::{exec, smoke};

/// The agent never manages itself through a release.
const OWN_UNIT: &str = "tidegate-agent.service";

/// Everything that needs no service manager to be asked.
pub(super) fn check(ctx: &Context, installed: &Installed) -> Result<(), Failure> {
    let component = &installed.component;
    let denied = |what: &str| failure(Cause::Policy, &format!("{}: {what}", installed.title()));
    let name = component.name.as_str();
    if let Some(allowed) = &ctx.policy.components
        && !allowed.iter().any(|a| a == name)
    {
        return Err(denied(&format!("the component {name:?} is not in [policy] components of agent.toml")));
    }
    ctx.check_templates(installed).map_err(|e| denied(&e.to_string()))?;
    let argv = |what: &str, argv: &[String]| match exec::resolve(ctx, installed, argv) {
        Ok(_) => Ok(()),
        Err(error) => Err(denied(&format!("{what}: {error}"))),
    };
    match &component.service {
        Service::Systemd(unit) => {
            let unit = ctx.expand_in(installed, unit).map_err(|e| denied(&e.to_string()))?;
            allow_unit(ctx, &unit).map_err(|e| denied(&e))?;
        }
        Service::Command { start, stop, status } => {
            argv("service.command.start", start)?;
            argv("service.command.stop", stop)?;
            argv("service.command.status", status)?;
        }
        Service::Supervised { run, .. } => argv("service.supervised.run", run)?,
    }
    let hooks = [("check", &component.check), ("before", &component.before), ("after", &component.after)];
    for (what, hook) in hooks {
        if let Some(hook) = hook {
            argv(what, hook)?;
        }
    }
    exec::confined_user(ctx).map_err(|e| denied(&e.to_string()))?;
    for test in &component.smoke {
        let what = format!("smoke test {}", test.id);
        if let SmokeCheck::Exec { run } = &test.check {
            argv(&what, run)?;
        }
        smoke::allowed(ctx, installed, test).map_err(|e| denied(&format!("{what}: {e}")))?;
    }
    Ok(())
}

/// A unit that local policy lets a release start and stop.
fn allow_unit(ctx: &Context, unit: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":_.@\\-".contains(c);
    if !unit.ends_with(".service") || unit.len() > 255 || !unit.chars().all(plain) {
        return Err(format!("{unit:?} is not the name of a service unit"));
    }
    if unit == OWN_UNIT || own_unit().is_some_and(|own| own == unit) {
        return Err(format!("{unit} is the agent itself, which no release may start or stop"));
    }
    match &ctx.policy.units {
        Some(allowed) if !allowed.iter().any(|a| a == unit) => {
            Err(format!("the unit {unit} is not in [policy] units of agent.toml: add it there to let releases manage it"))
        }
        _ => Ok(()),
    }
}

/// The unit whose control group this process is in.
pub(super) fn own_unit() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let unit = |line: &str| line.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned);
    groups.lines().find_map(unit)
}
