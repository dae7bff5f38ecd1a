//! The operations of a switch, each as one future that can be dropped at any
//! await, and each idempotent: after a crash it runs again.
//!
//! Owns whose rights the command has. A name of `[commands]` was written by the
//! host's own people, so it runs with the agent's own rights (reloading a front
//! needs them), and a plan may tell it only which side, component, version and host
//! it is about; a file of the release runs confined, like a smoke test. Of either
//! nothing is left when it ends, but for what left its process group.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::release::{Smoke, SmokeCheck};
use tidegate_protocol::report::Failure;
use tidegate_protocol::{Cause, Side, SwitchOrder};
use tidegate_swap::{Mark, SwitchOp};

use crate::context::{Context, Installed};
use crate::error::{chain, failure};
use crate::exec::{self, ExecError, Mode, Program, Terms};
use crate::host::Host;
use crate::service::{since_boot, unix_ms};
use crate::slot::Slot;
use crate::smoke;
use crate::work::Scope;

/// Of the command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
const SIDE: &str = "${side}";
/// All that a plan may add to a name of `[commands]`: what runs with the agent's own
/// rights is the host's to word, and none of these can be worded by a plan.
const TOLD: [&str; 4] = [SIDE, "${component}", "${version}", "${host}"];

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
        verifiable(&host.ctx, &about.installed, test).map_err(no)?;
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
    let terms = Terms { cwd: &about.installed.dir, env: &env, mode, user, timeout: COMMAND_TIMEOUT, begun: None };
    let ran = exec::run_program_with(&program, terms, &mut |_| true).await;
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

/// A name of `[commands]`, with the words that local policy gives it, then those of
/// [`TOLD`] that the order adds; or a file of the order's release, with any. All are expanded, and where
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
    if let Some(word) = rest.iter().find(|word| !TOLD.contains(word)) {
        return Err(ExecError::Brought { name, word: (*word).to_owned() });
    }
    let words: Vec<&str> = command.iter().map(String::as_str).chain(rest).collect();
    let mut words =
        words.iter().copied().chain(side(&words)).map(|word| ctx.expand_in(installed, word)).collect::<Result<Vec<_>, _>>()?.into_iter();
    let path = words.next().map(PathBuf::from).filter(|path| path.is_absolute());
    let path = path.ok_or(ExecError::BadCommand { name })?;
    Ok(Resolved { program: Program { path, args: words.collect() }, own_rights: true })
}

/// Whether a plan may verify by this. What the release asserts of itself is signed;
/// of a plan's own checks only those that ask the service, and a program may be named
/// but, of the host's, not worded.
fn verifiable(ctx: &Context, installed: &Installed, test: &Smoke) -> Result<(), String> {
    smoke::allowed(ctx, installed, test)?;
    if installed.component.smoke.contains(test) {
        return Ok(());
    }
    match &test.check {
        SmokeCheck::Http { .. } | SmokeCheck::Tcp { .. } => Ok(()),
        SmokeCheck::Exec { run } => {
            exec::resolve(ctx, installed, run).map_err(|error| chain(&error))?;
            let Some((first, rest)) = run.split_first() else { return Ok(()) };
            let name = ctx.expand_in(installed, first).map_err(|e| e.to_string())?;
            match rest.first().filter(|_| ctx.policy.commands.contains_key(&name)) {
                Some(word) => Err(chain(&ExecError::Brought { name, word: word.clone() })),
                None => Ok(()),
            }
        }
        SmokeCheck::Systemd { .. } | SmokeCheck::Journal { .. } | SmokeCheck::File { .. } => {
            Err("a switch is verified by http, tcp or exec, or by one of the release's own smoke tests".to_owned())
        }
    }
}

fn refused(order: &SwitchOrder, error: &ExecError) -> Failure {
    failure(Cause::Policy, &format!("the switch of {} cannot run: {}", order.component, chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, installed, scratch};
    use std::path::Path;
    use tidegate_protocol::release::{Service, Suite};
    use tidegate_protocol::{Digest, Millis};

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
        assert_eq!(run(&["lb-port", "${component}"]).unwrap(), ("/usr/sbin/lb".into(), words(&["green:8082", "api"]), true));
        assert_eq!(run(&["lb", "${side}", "${host}"]).unwrap().1, words(&["--component=api", "green", "web-1"]));
        assert!(matches!(run(&["bad"]), Err(ExecError::BadCommand { .. })));
        for word in ["now", "--config=/tmp/mine", "to-${side}", "${side} ", "${var.port}", ""] {
            let error = run(&["lb", "${side}", word]).unwrap_err();
            assert!(matches!(&error, ExecError::Brought { name, word: said } if name == "lb" && said == word), "{word}: {error}");
            assert!(error.to_string().contains("[commands] of agent.toml"), "{error}");
            // Confined, and shipped with the release: its own affair.
            assert!(run(&["bin/switch", word]).is_ok(), "{word}");
        }
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

    #[test]
    fn a_plan_verifies_by_asking_the_service_and_a_release_as_it_likes() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.policy.commands.insert("probe".into(), words(&["/usr/bin/probe", "--local"]));
        let mut it = on(dir.path(), Side::Green).installed;
        let test = |check| Smoke {
            id: "switch".into(),
            name: "after the switch".into(),
            suite: Suite::Critical,
            check,
            timeout: Millis(1_000),
            retry_for: Millis(0),
        };
        let exec = |run: &[&str]| test(SmokeCheck::Exec { run: words(run) });
        let http = |url: &str| test(SmokeCheck::Http { url: url.into(), status: 200, body: None });
        let tcp = test(SmokeCheck::Tcp { address: "127.0.0.1:1".into() });
        for good in [http("http://127.0.0.1/"), tcp, exec(&["bin/switch", "x"]), exec(&["probe"])] {
            assert_eq!(verifiable(&ctx, &it, &good), Ok(()), "{good:?}");
        }
        let file = test(SmokeCheck::File { path: "/etc/shadow".into(), sha256: Digest::of(b"x") });
        let journal = test(SmokeCheck::Journal { deny: words(&["x"]), watch: Millis(0) });
        let systemd = test(SmokeCheck::Systemd { max_restarts: 0 });
        for (bad, word) in [
            (http("http://db.internal/"), "not on this host"),
            (exec(&["/bin/sh", "-c", "true"]), "/bin/sh"),
            (exec(&["probe", "${side}"]), "arguments belong there"),
            (exec(&["probe", "--config=/tmp/mine"]), "arguments belong there"),
            (file.clone(), "http, tcp or exec"),
            (journal.clone(), "http, tcp or exec"),
            (systemd.clone(), "http, tcp or exec"),
        ] {
            let error = verifiable(&ctx, &it, &bad).unwrap_err();
            assert!(error.contains(word), "{bad:?}: {error}");
        }
        it.component.smoke = vec![file, journal, systemd];
        for signed in &it.component.smoke {
            assert_eq!(verifiable(&ctx, &it, signed), Ok(()), "{signed:?}");
        }
    }
}
