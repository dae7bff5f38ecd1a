//! The sentences of notices: what happened, then the next command.

use alloc::format;
use alloc::string::{String, ToString};

use tidegate_protocol::{RolloutId, Timestamp};

use crate::plan::Plan;

const TITLE_CHARS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 2_500;

/// What every text of one rollout says.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub(super) id: RolloutId,
    pub(super) release: String,
    pub(super) environment: Option<String>,
    pub(super) by: String,
    pub(super) since: Timestamp,
    lead: Option<String>,
}

impl Words {
    pub(super) fn new(id: &RolloutId, plan: &Plan) -> Self {
        Self {
            id: id.clone(),
            release: plan.release.id.to_string(),
            environment: plan.environment.clone(),
            by: "somebody".into(),
            since: Timestamp(0),
            lead: plan.lead.clone(),
        }
    }

    fn what(&self) -> String {
        self.environment.as_ref().map_or_else(|| self.release.clone(), |to| format!("{} to {to}", self.release))
    }

    pub(super) fn title(&self, headline: &str) -> String {
        cut(&clean(&format!("{}: {headline}", self.what())), TITLE_CHARS_MAX)
    }

    /// `happened`: without its full stop; others' texts bring theirs.
    pub(super) fn text(&self, happened: &str, next: String) -> String {
        let lead = self.lead.as_ref().map_or_else(String::new, |lead| format!(" Lead: {lead}."));
        let happened = format!("{}.", happened.trim_end().trim_end_matches('.'));
        let head = format!("Rollout {} of {}.{lead} ", self.id, self.what());
        let next = format!(" Next: {next}.");
        // What others said is cut first; the next command stays.
        let room = TEXT_CHARS_MAX.saturating_sub(head.chars().count() + next.chars().count());
        cut(&clean(&format!("{head}{}{next}", cut(&happened, room))), TEXT_CHARS_MAX)
    }

    pub(super) fn see(&self) -> String {
        format!("`tidegate rollout explain {}` says why", self.id)
    }

    pub(super) fn watch(&self) -> String {
        format!("`tidegate rollout watch {}` follows it", self.id)
    }

    pub(super) fn papers(&self) -> String {
        format!("`tidegate docs {} --out DIR` writes its documents", self.id)
    }

    pub(super) fn mend(&self) -> String {
        format!("`tidegate rollout explain {}` says what is missing; mend it and start again", self.id)
    }

    pub(super) fn approve(&self) -> String {
        format!(
            "`tidegate rollout status {0}` shows what is missing; `tidegate rollout approve {0} --role ROLE --key SSH_KEY` approves",
            self.id
        )
    }

    pub(super) fn go_on(&self) -> String {
        format!(
            "`tidegate rollout explain {0}` says what it waits for; `tidegate rollout resume {0}` goes on, `tidegate rollout promote {0}` goes past the gate, `tidegate rollout rollback {0} --reason TEXT` goes back",
            self.id
        )
    }

    pub(super) fn person_decides(&self) -> String {
        format!("`tidegate rollout status {0}` names each host; `tidegate rollout rollback {0} --reason TEXT` takes it back", self.id)
    }

    pub(super) fn mixed(&self) -> String {
        format!(
            "mend the hosts that `tidegate rollout status {0}` names, then `tidegate rollout rollback {0} --reason TEXT` takes them back",
            self.id
        )
    }
}

/// How many change.
pub(super) fn hosts(plan: &Plan) -> String {
    let of = |c: &crate::plan::ComponentPlan| format!("{} on {} host(s)", c.name, c.hosts.len());
    let all: alloc::vec::Vec<String> = plan.components.iter().take(20).map(of).collect();
    format!("{}, {} wave(s)", all.join(", "), plan.waves.len())
}

/// Others' text on one line.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}') { ' ' } else { c }).collect()
}

/// At most so many characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    let mut out: String = text.chars().take(most.saturating_sub(1)).collect();
    out.push('…');
    out
}
