//! 1.1 Artifacts and Documentation.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use tidegate_protocol::release::FileRef;
use tidegate_protocol::{Component, ComponentName};

use super::{Found, Look, beside, fail, named, open, pass, size, spell, when};
use crate::process::Topic;

/// A person says that a runbook which did not change is still right.
const STILL_VALID: &str = "runbook-still-valid";

pub(super) fn artifacts(look: &Look<'_>) -> Found {
    let wanted = look.manifest.artifacts();
    let Some(held) = &look.facts.depot else { return fail("the depot was not looked at: try again") };
    match held.missing.first() {
        None => pass(format!("{} file(s) in the depot, each under its digest and with its size", wanted.len())),
        Some(first) => fail(format!(
            "{} of {} file(s) are not in the depot, the first is {first}: `tidegate release import BUNDLE` brings them",
            held.missing.len(),
            wanted.len()
        )),
    }
}

pub(super) fn checksums(look: &Look<'_>) -> Found {
    let bare: Vec<&str> = look.manifest.components.iter().filter(|c| c.files.is_empty()).map(|c| c.name.as_str()).collect();
    if !bare.is_empty() {
        return fail(format!("the manifest lists no file of {}: pack the release again", named(&bare)));
    }
    let files = look.manifest.artifacts();
    let bytes = files.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
    pass(format!("{} file(s), {}, each with its sha256 in manifest {}", files.len(), size(bytes), look.plan.release.manifest))
}

pub(super) fn configuration(look: &Look<'_>) -> Found {
    let planned: BTreeSet<&ComponentName> = look.plan.components.iter().map(|c| &c.name).collect();
    let planned: Vec<&Component> = look.manifest.components.iter().filter(|c| planned.contains(&c.name)).collect();
    let without: Vec<&str> = planned.iter().filter(|c| c.check.is_none()).map(|c| c.name.as_str()).collect();
    if !without.is_empty() {
        return fail(format!("no `check` command in release.toml: {}; it runs against the staged tree before any swap", named(&without)));
    }
    let hosts: usize = look.plan.components.iter().map(|c| c.hosts.len()).sum();
    pass(format!("{} `check` command(s), run on every host in preflight ({hosts} in all)", planned.len()))
}

/// Present, with something in it.
fn text<'a>(look: &Look<'_>, file: Option<&'a FileRef>, key: &str) -> Result<&'a FileRef, Found> {
    let file = file.ok_or_else(|| fail(format!("the release has none: name a file in release.toml, {key}")))?;
    let blank = look.facts.depot.as_ref().is_some_and(|held| held.blank.contains(&file.digest));
    if file.size == 0 || blank {
        return Err(fail(format!("{} is empty: write it, pack the release again", file.path)));
    }
    Ok(file)
}

pub(super) fn notes(look: &Look<'_>) -> Found {
    match text(look, look.manifest.notes.as_ref(), "notes = \"NOTES.md\"") {
        Ok(file) => pass(format!("{}, {}, sha256 {}", file.path, size(file.size), file.digest)),
        Err(found) => found,
    }
}

pub(super) fn deployment(look: &Look<'_>) -> Found {
    let file = match text(look, look.manifest.runbook.deploy.as_ref(), "runbook = { deploy = \"deploy.md\" }") {
        Ok(file) => file,
        Err(found) => return found,
    };
    let seen = format!("{}, {}, sha256 {}", file.path, size(file.size), file.digest);
    match &look.facts.before {
        Some(before) if before.runbook == Some(file.digest) => {
            if look.facts.attested.contains(STILL_VALID) {
                return pass(format!("{seen}; the same as in {}, and attested to be still valid", before.release));
            }
            open(format!(
                "{seen}; the same as in {}: update it, or attest that it holds: \
                 `tidegate rollout attest ID --item {STILL_VALID} --note EVIDENCE`",
                before.release
            ))
        }
        Some(before) => pass(format!("{seen}; it changed since {}", before.release)),
        None => pass(format!("{seen}; no earlier release to compare with")),
    }
}

pub(super) fn rollback(look: &Look<'_>) -> Found {
    let file = match text(look, look.manifest.runbook.rollback.as_ref(), "runbook = { rollback = \"rollback.md\" }") {
        Ok(file) => file,
        Err(found) => return found,
    };
    let seen = format!("{}, {}, sha256 {}", file.path, size(file.size), file.digest);
    match &look.facts.drill {
        Some(drill) => pass(format!("{seen}; gone through by drill {} at {}", drill.rollout, when(drill.at))),
        // That there is a drill, and how old it may be, is the row `rollback-tested`.
        None if look.asks("rollback-tested") => pass(format!("{seen}; not drilled (see rollback-tested)")),
        None => fail(format!("{seen}; no drill of this release passed: run `tidegate rollout drill -f plan.toml`")),
    }
}

pub(super) fn communication(look: &Look<'_>) -> Found {
    let (process, facts) = (&look.plan.process, look.facts);
    let told = |topic: &Topic| process.notify.iter().any(|n| n.on.contains(topic));
    let untold: Vec<&str> = [Topic::Started, Topic::Completed, Topic::Issue].iter().filter(|t| !told(t)).map(|t| t.word()).collect();
    if !untold.is_empty() {
        return fail(format!("nobody is told of: {}; write a [[notify]] in the plan for each", named(&untold)));
    }
    let routes: BTreeSet<&str> = process.notify.iter().map(|n| n.to.as_str()).collect();
    let max = facts.rules.route_test_max_age;
    let problem = |route: &&str| match facts.routes.get(*route) {
        None => Some(format!("{route} was never tested")),
        Some(test) if !test.ok => Some(format!("{route} refused its test: {}", test.detail)),
        Some(test) if look.now.since(test.at) > max => Some(format!("{route} answered at {}, over {} ago", when(test.at), spell(max))),
        Some(_) => None,
    };
    let problems: Vec<_> = routes.iter().filter_map(problem).collect();
    if !problems.is_empty() {
        return fail(format!("{}; run `tidegate notify test`", problems.join("; ")));
    }
    let answered: Vec<_> = routes.iter().filter_map(|route| Some(format!("{route} at {}", when(facts.routes.get(*route)?.at)))).collect();
    if answered.is_empty() { beside("no route is used".to_string()) } else { pass(format!("answered a test: {}", answered.join(", "))) }
}
