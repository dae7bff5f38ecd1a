//! The operations of a switch, each as one future that can be dropped at any
//! await, and each idempotent: after a crash it runs again.
//!
//! Owns whose rights the command has. A name of `[commands]` was written by the
//! host's own people, so it runs with the agent's own rights (reloading a front
//! needs them); a file of the release runs confined, like a smoke test. Of either
//! nothing is left when it ends, but for what left its process group.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Side, SwitchOrder};
use tidegate_swap::{Mark, SwitchOp};

use crate::context::{Context, Installed};
use crate::error::{chain, failure};
use crate::exec::{self, ExecError, Mode, Program};
use crate::host::Host;
use crate::service::{since_boot, unix_ms};
use crate::slot::Slot;
use crate::smoke;
use crate::work::Scope;

/// Of the command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
const SIDE: &str = "${side}";

/// Runs one operation to its end.
pub(super) async fn perform(host: Arc<Host>, op: SwitchOp, scope: Scope) -> Result<(), Failure> {
    match op {
        SwitchOp::Check(order) => check(&host, &order, &scope).await,
        SwitchOp::Command(order, side, _) => command(&host, &order, side, &scope).await,
        SwitchOp::Verify(order, side, _) => verify(&host, &order, side, &scope).await,
    }
}

/// The side's standing release runs and is proven, and neither the command nor
/// the verification would be refused: asked before traffic moves.
async fn check(host: &Arc<Host>, order: &SwitchOrder, scope: &Scope) -> Result<(), Failure> {
    let slot = Slot::side(order.component.clone(), order.to);
    let unfit = |why: &str| failure(Cause::Policy, &format!("{} cannot serve: {why}; traffic was not moved to it", slot));
    let (here, of) = (host.clone(), slot.clone());
    let (record, tree) = scope
        .blocking(move |_| {
            let record = here.ledger.read(&of).map_err(|error| failure(Cause::Disk, &chain(&error)))?;
            Ok((record, here.trees.read_current(&of).map_err(|e| e.failure())?))
        })
        .await?;
    let tree = tree.ok_or_else(|| unfit("nothing is installed on that side, prepare it first"))?;
    if record.and_then(|record| record.standing).as_ref() != Some(&tree.release) {
        return Err(unfit(&format!("{} is there, but was not confirmed", tree.release.id)));
    }
    if !host.services.try_status(&tree).await?.active {
        return Err(unfit(&format!("its service ({}) does not run", tree.release.id)));
    }
    host.services.prove(&tree).await.map_err(|why| unfit(&why.message))?;
    let about = about(host, order, order.to, scope).await?;
    resolve(&host.ctx, &about, &order.run).map_err(|error| refused(order, &error))?;
    if let Some(test) = &order.verify {
        let no = |why: String| failure(Cause::Policy, &format!("the verification of the switch of {}: {why}", order.component));
        smoke::allowed(&host.ctx, &about.installed, test).map_err(no)?;
    }
    Ok(())
}

async fn command(host: &Arc<Host>, order: &SwitchOrder, side: Side, scope: &Scope) -> Result<(), Failure> {
    let about = about(host, order, side, scope).await?;
    let Resolved { program, own_rights } = resolve(&host.ctx, &about, &order.run).map_err(|error| refused(order, &error))?;
    let (mode, user) = if own_rights {
        (Mode::Manager, None)
    } else {
        (Mode::Confined, exec::confined_user(&host.ctx).map_err(|error| refused(order, &error))?)
    };
    let env = [
        ("TIDEGATE_SIDE", side.to_string()),
        ("TIDEGATE_COMPONENT", order.component.to_string()),
        ("TIDEGATE_VERSION", about.installed.release.id.version.to_string()),
    ];
    tracing::info!(component = %order.component, %side, program = %program.path.display(), args = ?program.args, "switches");
    let title = format!("the command that switches {} to {side}", order.component);
    let ran = exec::run_program_with(&program, &about.installed.dir, &env, mode, user, COMMAND_TIMEOUT, &mut |_| true).await;
    match ran {
        Ok(ran) if ran.success => Ok(()),
        Ok(ran) => {
            let said = if ran.output.is_empty() { String::new() } else { format!("; it said: {}", ran.output) };
            Err(failure(Cause::StartFailed, &format!("{title} ended with {}{said}", ran.end)))
        }
        Err(error) => {
            let cause = if matches!(error, ExecError::Timeout { .. }) { Cause::Timeout } else { Cause::StartFailed };
            Err(failure(cause, &format!("{title}: {}", chain(&error))))
        }
    }
}

async fn verify(host: &Arc<Host>, order: &SwitchOrder, side: Side, scope: &Scope) -> Result<(), Failure> {
    let Some(test) = &order.verify else { return Ok(()) };
    let since = Mark { boot_id: host.ctx.boot_id.clone(), at: since_boot(), unix_ms: unix_ms() };
    let about = about(host, order, side, scope).await?;
    match smoke::one(&host.ctx, &host.services, &about.installed, test, &since).await {
        Ok(seen) => {
            tracing::info!(component = %order.component, %side, seen, "verified");
            Ok(())
        }
        Err(seen) => {
            let text = format!("after switching {} to {side}: {} {:?}: {seen}", order.component, test.id, test.name);
            Err(failure(Cause::Smoke, &text))
        }
    }
}

/// What the strings of a switch speak of.
struct About {
    /// The release on the side, with the tree and the component of the order's
    /// release, where that is laid out.
    installed: Installed,
    /// The order's release is not laid out on this host.
    without_tree: bool,
}

async fn about(host: &Arc<Host>, order: &SwitchOrder, side: Side, scope: &Scope) -> Result<About, Failure> {
    let (trees, slot, release) = (host.trees.clone(), Slot::side(order.component.clone(), side), order.release.clone());
    let (there, tree) = scope
        .blocking(move |_| {
            let there = trees.read_current(&slot).map_err(|e| e.failure())?;
            Ok((there, trees.locate(&slot, &release).map_err(|e| e.failure())?))
        })
        .await?;
    match (tree, there) {
        (Some(tree), there) => {
            let release = there.map_or_else(|| tree.release.clone(), |there| there.release);
            Ok(About { installed: Installed { release, ..tree }, without_tree: false })
        }
        (None, Some(there)) => Ok(About { installed: there, without_tree: true }),
        (None, None) => Err(failure(
            Cause::Policy,
            &format!("neither {} of {} nor anything on the side {side} is laid out on this host", order.component, order.release.id),
        )),
    }
}

/// A command, worked out.
#[derive(Debug, PartialEq, Eq)]
struct Resolved {
    program: Program,
    own_rights: bool,
}

/// A name of `[commands]`, with the words that local policy gives it, or a file of
/// the order's release; then the order's arguments. All are expanded, and where
/// none of them names the side it comes last.
fn resolve(ctx: &Context, about: &About, run: &[String]) -> Result<Resolved, ExecError> {
    let installed = &about.installed;
    let (first, rest) = run.split_first().map_or(("", run), |(first, rest)| (first.as_str(), rest));
    let name = ctx.expand_in(installed, first)?;
    let side = |words: &[&str]| (!words.iter().any(|word| word.contains(SIDE))).then_some(SIDE);
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let Some(command) = ctx.policy.commands.get(&name) else {
        if about.without_tree {
            return Err(ExecError::NotAllowed { program: name });
        }
        let words: Vec<&str> = std::iter::once(first).chain(rest).collect();
        let argv: Vec<String> = words.iter().copied().chain(side(&words)).map(str::to_owned).collect();
        return Ok(Resolved { program: exec::resolve(ctx, installed, &argv)?, own_rights: false });
    };
    let words: Vec<&str> = command.iter().map(String::as_str).chain(rest).collect();
    let mut words =
        words.iter().copied().chain(side(&words)).map(|word| ctx.expand_in(installed, word)).collect::<Result<Vec<_>, _>>()?.into_iter();
    let path = words.next().map(PathBuf::from).filter(|path| path.is_absolute());
    let path = path.ok_or(ExecError::BadCommand { name })?;
    Ok(Resolved { program: Program { path, args: words.collect() }, own_rights: true })
}

fn refused(order: &SwitchOrder, error: &ExecError) -> Failure {
    failure(Cause::Policy, &format!("the switch of {} cannot run: {}", order.component, chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use std::path::Path;
    use tidegate_protocol::release::Service;

    fn on(dir: &Path, side: Side) -> About {
        let service = Service::Systemd("api@${side}.service".into());
        let installed = Installed { side: Some(side), ..installed(dir, "2.1.0", &[("bin/switch", b"x")], service) };
        About { installed, without_tree: false }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_name_of_the_host_gets_its_own_words_then_the_order_s_then_the_side() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.vars.insert("port_green".into(), "8082".into());
        ctx.policy.commands.insert("lb".into(), words(&["/usr/sbin/lb", "--component=${component}"]));
        ctx.policy.commands.insert("lb-port".into(), words(&["/usr/sbin/lb", "${side}:${var.port}"]));
        ctx.policy.commands.insert("bad".into(), words(&["lb"]));
        let about = on(dir.path(), Side::Green);
        let run = |argv: &[&str]| {
            resolve(&ctx, &about, &words(argv)).map(|r| (r.program.path.display().to_string(), r.program.args, r.own_rights))
        };
        assert_eq!(run(&["lb", "${version}"]).unwrap(), ("/usr/sbin/lb".into(), words(&["--component=api", "2.1.0", "green"]), true));
        assert_eq!(run(&["lb-port", "now"]).unwrap(), ("/usr/sbin/lb".into(), words(&["green:8082", "now"]), true));
        assert_eq!(run(&["lb", "to-${side}"]).unwrap().1, words(&["--component=api", "to-green"]));
        assert!(matches!(run(&["bad"]), Err(ExecError::BadCommand { .. })));
        let own = run(&["bin/switch"]).unwrap();
        assert_eq!(own, (about.installed.dir.join("bin/switch").display().to_string(), words(&["green"]), false));
        for program in ["/bin/sh", "sh", "", "../bin/switch"] {
            assert!(matches!(run(&[program]), Err(ExecError::NotAllowed { .. })), "{program}");
        }
        // The release on the side may have a file of that name too; it was not meant.
        let about = About { without_tree: true, ..about };
        assert!(matches!(resolve(&ctx, &about, &words(&["bin/switch"])), Err(ExecError::NotAllowed { .. })));
        assert!(resolve(&ctx, &about, &words(&["lb"])).is_ok());
    }
}
