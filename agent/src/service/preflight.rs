//! Whether a release can run on this host at all, asked of its manifest and of
//! local policy before anything is fetched.

use tidegate_protocol::release::{Service, SmokeCheck};
use tidegate_protocol::report::{Cause, Failure};
use tidegate_protocol::template::BadTemplate;

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
    if !tells_sides_apart(ctx, installed).map_err(|e| denied(&e.to_string()))? {
        return Err(denied(
            "its service is the same on both sides, so starting one would disturb the other: name ${side} in it (a unit `NAME@${side}.service`), \
             or give the host two values, such as port_blue and port_green in [vars] for ${var.port}",
        ));
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

/// Whether the two sides are two services; true without sides.
fn tells_sides_apart(ctx: &Context, installed: &Installed) -> Result<bool, BadTemplate> {
    let Some(side) = installed.side else { return Ok(true) };
    let other = Installed { side: Some(side.other()), ..installed.clone() };
    let words = |installed: &Installed| -> Result<Vec<String>, BadTemplate> {
        let expand = |text: &String| ctx.expand_in(installed, text);
        match &installed.component.service {
            Service::Systemd(unit) => Ok(vec![expand(unit)?]),
            Service::Command { start, .. } => start.iter().map(expand).collect(),
            Service::Supervised { run, env } => run.iter().chain(env.values()).map(expand).collect(),
        }
    };
    Ok(words(installed)? != words(&other)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use tidegate_protocol::Side;

    #[test]
    fn a_side_needs_a_service_of_its_own_that_policy_allows() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.policy.units = Some(vec!["shop-api@green.service".into()]);
        let of = |unit: &str, side| {
            let mut it = installed(dir.path(), "1", &[("bin/api", b"x")], Service::Systemd(unit.into()));
            it.side = side;
            check(&ctx, &it).map_err(|failure| failure.message)
        };
        assert_eq!(of("shop-api@${side}.service", Some(Side::Green)), Ok(()));
        assert!(
            of("shop-api@${side}.service", Some(Side::Blue)).unwrap_err().contains("unit shop-api@blue.service is not in [policy] units")
        );
        assert!(of("shop-api@${side}.service", None).unwrap_err().contains("\"side\""));
        assert!(of("shop-api@green.service", Some(Side::Green)).unwrap_err().contains("the same on both sides"));
        let run = Service::Supervised { run: vec!["bin/api".into(), "${var.port}".into()], env: Default::default() };
        let mut it = installed(dir.path(), "1", &[("bin/api", b"x")], run);
        it.side = Some(Side::Blue);
        assert!(check(&ctx, &it).unwrap_err().message.contains("port_blue"));
        ctx.vars.insert("port_blue".into(), "9".into());
        assert_eq!(check(&ctx, &it), Ok(()));
    }
}
