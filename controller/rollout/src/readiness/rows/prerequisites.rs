//! 1.1 Prerequisites: staging, its configuration, the drill.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Found, Look, beside, fail, named, pass, spell, when};

pub(super) fn staging(look: &Look<'_>) -> Found {
    let release = &look.plan.release;
    let Some(staging) = &look.facts.rules.staging else { return beside("this is where releases are tested first") };
    match &look.facts.staging {
        Some(ran) => {
            pass(format!("rollout {} completed in {staging} at {} with the same manifest {}", ran.rollout, when(ran.at), release.manifest))
        }
        None => fail(format!(
            "no rollout of {} (manifest {}) completed in {staging}: roll it out there first, with environment = \"{staging}\" in its plan",
            release.id, release.manifest
        )),
    }
}

pub(super) fn mirrors(look: &Look<'_>) -> Found {
    let rules = &look.facts.rules;
    let Some(staging) = &rules.staging else { return beside("there is no environment before this one to compare with") };
    let Some(compared) = look.facts.config.as_ref().filter(|c| c.here > 0 && c.there > 0) else {
        return fail(format!(
            "no host of {staging} has these components: label hosts with env={staging} and the labels that the plan selects"
        ));
    };
    if !compared.silent.is_empty() {
        return fail(format!(
            "these hosts never said what their [vars] are: {}; start their agents, or upgrade them",
            named(&compared.silent)
        ));
    }
    let wrong: Vec<&String> = compared.differs.difference(&rules.differs).collect();
    if !wrong.is_empty() {
        let all = named(&wrong);
        return fail(format!(
            "[vars] that differ from {staging}: {all}; make them equal in agent.toml, or list them in config_differs of the environment"
        ));
    }
    let allowed = named(compared.differs.intersection(&rules.differs));
    let but = if allowed.is_empty() { String::new() } else { format!(", but for those that may differ: {allowed}") };
    pass(format!("[vars] of {} host(s) here and {} in {staging} have the same digests{but}", compared.here, compared.there))
}

pub(super) fn drilled(look: &Look<'_>) -> Found {
    let max = look.facts.rules.drill_max_age;
    match &look.facts.drill {
        Some(drill) if look.now.since(drill.at) <= max => pass(format!(
            "drill {} passed at {}: {} forward, {} back",
            drill.rollout,
            when(drill.at),
            spell(drill.forward),
            spell(drill.back)
        )),
        Some(drill) => fail(format!(
            "the drill {} is of {}, older than {}: run `tidegate rollout drill -f plan.toml` again",
            drill.rollout,
            when(drill.at),
            spell(max)
        )),
        None => fail("no drill of this release passed: run `tidegate rollout drill -f plan.toml`, best in staging"),
    }
}
