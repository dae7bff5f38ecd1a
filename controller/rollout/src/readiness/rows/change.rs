//! 1.3: the change request.

use alloc::format;
use alloc::vec::Vec;

use super::{Found, Look, beside, fail, named, pass, spell};
use crate::process::{ChangeSpec, ChangeType, Grade};

pub(super) fn request(look: &Look<'_>) -> Found {
    let Some(change) = &look.plan.process.change else {
        return fail("the plan has no [change]: write id, type, risk, summary, justification, downtime, rollback_time");
    };
    let why = change.justification.as_deref().unwrap_or_default().trim();
    if why.is_empty() && change.kind != ChangeType::Standard {
        return fail(format!("{}: [change] has no justification: say why the change is needed", change.id));
    }
    let why = if why.is_empty() { "none wanted for a standard change" } else { why };
    pass(format!("{}: {}; type {}, risk {}; justification: {why}", change.id, change.summary, change.kind, change.risk))
}

pub(super) fn risks(look: &Look<'_>) -> Found {
    let risks = &look.plan.process.risks;
    let bare = risks
        .iter()
        .filter(|r| r.likelihood == Grade::H && r.impact == Grade::H && r.mitigation.as_deref().unwrap_or_default().trim().is_empty());
    let bare: Vec<&str> = bare.map(|r| r.name.as_str()).collect();
    if !bare.is_empty() {
        return fail(format!("likely and bad, and nothing is done about it: {}; write mitigation", named(&bare)));
    }
    match risks.len() {
        0 => fail("the plan has no [[risk]]: write name, likelihood, impact, mitigation"),
        n => pass(format!("{n} risk(s): {}", named(risks.iter().map(|r| format!("{} ({}/{})", r.name, r.likelihood, r.impact))))),
    }
}

pub(super) fn downtime(look: &Look<'_>) -> Found {
    let Some(change) = &look.plan.process.change else {
        // Then that row says what is missing.
        let wanted = "the plan has no [change] that declares downtime and rollback_time";
        return if look.asks("change-request") { beside(format!("{wanted} (see change-request)")) } else { fail(wanted) };
    };
    let ChangeSpec { downtime: Some(downtime), rollback_time: Some(back), .. } = change else {
        return fail(format!(
            "{}: [change] declares no downtime, or no rollback_time: write for example downtime = \"0s\", rollback_time = \"5m\"",
            change.id
        ));
    };
    let (down, back) = (spell(downtime.0), back.0);
    match &look.facts.drill {
        Some(drill) if drill.back > back => fail(format!(
            "rollback_time = {} is declared, drill {} took {}: declare what was measured, or make it faster",
            spell(back),
            drill.rollout,
            spell(drill.back)
        )),
        Some(drill) => pass(format!("downtime {down}, rollback time {}; drill {} took {}", spell(back), drill.rollout, spell(drill.back))),
        None => pass(format!("downtime {down}, rollback time {}; not measured before", spell(back))),
    }
}

pub(super) fn template(look: &Look<'_>) -> Found {
    let process = &look.plan.process;
    match &process.change {
        Some(change) if change.kind == ChangeType::Standard => {}
        _ => return beside("no standard change"),
    }
    match process.template {
        Some(digest) if look.facts.rules.standard_changes.contains(&digest) => {
            pass(format!("template {digest} is approved in the environment"))
        }
        Some(digest) => fail(format!(
            "template {digest} is not in standard_changes of the environment: have it approved and listed, or write type = \"normal\""
        )),
        None => fail("the plan's template was not recorded: start it again"),
    }
}
