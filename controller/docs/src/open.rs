//! What keeps a rollout from being closed, each with its fixed name and the
//! command that mends it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_rollout::process::{HANDOFF_ROWS, SignRole};

use crate::Open;
use crate::model::{Check, Mark};
use crate::story::Story;

/// How a signature under the handoff stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignState {
    /// Nobody signed as this.
    Missing,
    /// It covers an older handoff.
    Void,
    /// Both signed with one key; the later one does not count.
    SameKey,
    /// It counts.
    Good,
}

/// How the signature of a role stands.
pub(crate) fn sign_state(story: &Story<'_>, role: SignRole) -> SignState {
    let given = &story.facts.sign_offs;
    let current = |role| given.get(&role).filter(|s| s.document == story.handoff);
    let other = if role == SignRole::Lead { SignRole::OpsLead } else { SignRole::Lead };
    match (given.get(&role), current(role), current(other)) {
        (None, ..) => SignState::Missing,
        (Some(_), None, _) => SignState::Void,
        (_, Some(own), Some(other))
            if own.signed.key == other.signed.key && own.at >= other.at && (own.at > other.at || role == SignRole::OpsLead) =>
        {
            SignState::SameKey
        }
        _ => SignState::Good,
    }
}

/// The item of a signature that is missing.
pub(crate) const fn sign_item(role: SignRole) -> &'static str {
    match role {
        SignRole::Lead => "sign-off-lead",
        SignRole::OpsLead => "sign-off-ops-lead",
    }
}

/// What is known to be wrong with the release: its own words, or a person's.
pub(crate) fn known_issues<'a>(story: &'a Story<'_>) -> Option<&'a str> {
    let own = story.facts.release.known_issues.as_deref().filter(|t| !t.trim().is_empty());
    own.or_else(|| story.facts.attested("known-issues").map(|(_, note, _)| note))
}

/// As boxes: what is missing, and under it the command.
pub(crate) fn checks(open: &[Open]) -> Vec<Check> {
    let of = |open: &Open| {
        let (title, how) =
            open.what.rsplit_once(": tidegate ").map_or((open.what.as_str(), String::new()), |(a, b)| (a, format!("tidegate {b}")));
        Check { item: open.item.as_str().into(), title: title.into(), mark: Mark::Open, evidence: how.into(), ..Check::default() }
    };
    open.iter().map(of).collect()
}

/// All of it.
pub(crate) fn of(story: &Story<'_>) -> Vec<Open> {
    let facts = &story.facts;
    let mut open = Vec::new();
    let mut add = |item: &str, what: String| open.push(Open { item: item.to_string(), what });
    if !facts.state.is_terminal() {
        let wait = format!("tidegate rollout wait {} --for completed", facts.input.id);
        add("rollout-ended", format!("the rollout is {}: {wait}", facts.state));
    }
    for issue in story.issues.iter().filter(|i| i.is_open()) {
        let how = story.command("note", &format!("--resolves {} TEXT", issue.number));
        add(&issue.item(), format!("issue {} of the execution log has no resolution ({}): {how}", issue.number, issue.text));
    }
    if known_issues(story).is_none() {
        add("known-issues", format!("the release does not say what is known to be wrong: {}", story.attest("known-issues")));
    }
    for (item, title) in HANDOFF_ROWS {
        if facts.attested(item).is_none() {
            add(item, format!("{title}: {}", story.attest(item)));
        }
    }
    for role in [SignRole::Lead, SignRole::OpsLead] {
        let how = story.command("handoff", &format!("--role {} --key SSH_KEY", role.word()));
        let what = match sign_state(story, role) {
            SignState::Good => continue,
            SignState::Missing => format!("the handoff is not signed as {}: {how}", role.word()),
            SignState::Void => format!("the signature as {} covers an older handoff, something was added since: {how}", role.word()),
            SignState::SameKey => format!("both signatures are by one key, two people sign: {how}"),
        };
        add(sign_item(role), what);
    }
    match &facts.review {
        None => add("review", format!("there is no review: {}", story.command("review", "-f review.toml"))),
        Some((review, ..)) if review.participants.iter().all(|p| p.trim().is_empty()) => {
            add("review-participants", format!("the review names nobody who took part: {}", story.command("review", "-f review.toml")));
        }
        Some(_) => {}
    }
    for item in &mut open {
        item.what = crate::text::clean(&item.what, 2_000, false);
    }
    open
}
