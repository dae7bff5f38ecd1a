//! 1.2: window, contacts, conflicts, freeze.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Found, Look, beside, fail, named, pass, spell};
use crate::process::{ContactRole, Opening};
use crate::readiness::needs;

/// Openings shown.
const SHOWN: usize = 3;

pub(super) fn window(look: &Look<'_>) -> Found {
    if look.plan.process.windows.is_empty() {
        return fail("the plan has no [[window]]: write days, start_time, length_minutes and time_zone");
    }
    let ahead: Vec<&str> = look.facts.openings.iter().filter(|o| look.now < o.closes).take(SHOWN).map(|o| o.text.as_str()).collect();
    if ahead.is_empty() {
        return fail("no window opens within a year: look at days, start_time and length_minutes");
    }
    pass(format!("next: {}", ahead.join(" | ")))
}

/// Whoever is wanted is named, and there.
fn covered(look: &Look<'_>, role: ContactRole) -> Result<String, String> {
    let contacts = look.plan.process.contacts.iter().filter(|c| c.role == role);
    let names: Vec<String> = contacts.map(|c| format!("{} ({})", c.name, c.phone)).collect();
    if names.is_empty() {
        return Err(format!("the plan has no [[contact]] with role = \"{role}\""));
    }
    match look.facts.cover.get(&role) {
        Some(Ok(hours)) => Ok(format!("{role}: {}, {hours}", named(names))),
        Some(Err(gap)) => Err(format!("{role}: {gap}")),
        None => Err(format!("{role}: the hours were not compared with the rollout")),
    }
}

pub(super) fn on_call(look: &Look<'_>) -> Found {
    match covered(look, ContactRole::OnCall) {
        Ok(who) => pass(who),
        Err(gap) => fail(format!("{gap}; name somebody who is on call from the start to 100 %")),
    }
}

/// The one on call has a row of their own.
pub(super) fn support(look: &Look<'_>) -> Found {
    let found: Vec<Result<String, String>> = [ContactRole::Lead, ContactRole::Escalation].map(|role| covered(look, role)).into();
    let gaps: Vec<&String> = found.iter().filter_map(|f| f.as_ref().err()).collect();
    if !gaps.is_empty() {
        return fail(format!("{}; name somebody who is there from the start to 100 %", named(gaps)));
    }
    pass(found.into_iter().filter_map(Result::ok).collect::<Vec<_>>().join("; "))
}

pub(super) fn conflicts(look: &Look<'_>) -> Found {
    match look.facts.conflicts.as_slice() {
        [] => pass("no other rollout holds a host and component of this one"),
        held => fail(format!("{}; wait for it (`tidegate rollout watch`), or end it (`tidegate rollout halt`)", named(held))),
    }
}

pub(super) fn rollback_time(look: &Look<'_>) -> Found {
    let process = &look.plan.process;
    if process.windows.is_empty() {
        return beside("no window: nothing to fit into");
    }
    let estimate = &process.estimate;
    let fits = |opening: &&Opening| opening.closes.since(opening.opens.max(look.now)) >= needs(look.plan, opening.fit);
    let ahead: Vec<&Opening> = look.facts.openings.iter().filter(|o| look.now < o.closes).collect();
    let says = |opening: &Opening| {
        format!(
            "needs {} (forward {}, back {}; {}), window {}",
            spell(needs(look.plan, opening.fit)),
            spell(estimate.forward),
            spell(estimate.back),
            estimate.from,
            if opening.closes.0 == u64::MAX || opening.opens.0 == 0 {
                "without end".into()
            } else {
                spell(opening.closes.since(opening.opens))
            },
        )
    };
    match (ahead.iter().copied().find(fits), ahead.first()) {
        (Some(opening), _) => pass(format!("{}: {}", says(opening), opening.text)),
        (None, Some(first)) => fail(format!("{}: make a window longer, the bakes shorter, or write fit = \"stage\"", says(first))),
        // That there is none is the row `window`.
        (None, None) => beside("no window opens: nothing to fit into"),
    }
}

pub(super) fn freeze(look: &Look<'_>) -> Found {
    match &look.facts.freeze {
        None => pass("no freeze covers it"),
        Some(freeze) => fail(format!("{freeze}; wait for its end, or a person with the role operations or cab goes past it by signature")),
    }
}
