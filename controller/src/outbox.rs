//! What a host is to be told, newest word only.
//!
//! Desired state, not a queue: an assignment replaces the one before it of the
//! same component, so a slow host costs no memory and never hears old orders.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tidegate_protocol::{Assignment, ComponentName};
use tokio::sync::Notify;

use crate::registry::Labels;

/// Why a session is ended from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// A newer session of the same agent took over.
    Superseded,
    /// The host joined anew with another key.
    OtherKey,
}

/// What is to be said.
#[derive(Debug, Default)]
pub struct Words {
    /// At most one per component.
    pub assignments: Vec<Assignment>,
    /// The labels, if they changed.
    pub labels: Option<Labels>,
    /// Then nothing more.
    pub goodbye: Option<Goodbye>,
}

#[derive(Debug, Default)]
struct Slots {
    assignments: BTreeMap<ComponentName, Assignment>,
    labels: Option<Labels>,
    goodbye: Option<Goodbye>,
}

/// One session's outbox: the core fills it, the session empties it.
#[derive(Debug, Default)]
pub struct Outbox {
    slots: Mutex<Slots>,
    filled: Notify,
}

impl Outbox {
    /// Replaces what was to be said about the component, unless that was newer.
    pub fn assign(&self, assignment: Assignment) {
        self.fill(|slots| match slots.assignments.get_mut(&assignment.component) {
            Some(old) if (old.generation, old.phase) > (assignment.generation, assignment.phase) => {}
            Some(old) => *old = assignment,
            None => {
                slots.assignments.insert(assignment.component.clone(), assignment);
            }
        });
    }

    /// Replaces the labels to be said.
    pub fn label(&self, labels: Labels) {
        self.fill(|slots| slots.labels = Some(labels));
    }

    /// Ends the session; the first reason counts.
    pub fn part(&self, goodbye: Goodbye) {
        self.fill(|slots| {
            slots.goodbye.get_or_insert(goodbye);
        });
    }

    fn fill(&self, with: impl FnOnce(&mut Slots)) {
        with(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner));
        self.filled.notify_one();
    }

    /// Waits for something to say and takes all of it.
    pub async fn take(&self) -> Words {
        loop {
            let words = {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                Words {
                    assignments: std::mem::take(&mut slots.assignments).into_values().collect(),
                    labels: slots.labels.take(),
                    goodbye: slots.goodbye,
                }
            };
            if !words.assignments.is_empty() || words.labels.is_some() || words.goodbye.is_some() {
                return words;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::{Generation, Intent, Millis, Phase, Target};

    fn assignment(n: u64, phase: Phase) -> Assignment {
        Assignment {
            generation: Generation::new(1, n),
            component: "api".parse().unwrap(),
            rollout: "r".parse().unwrap(),
            intent: Intent::Forward,
            target: Target::Absent,
            phase,
            healthy_deadline: Millis(1),
            confirm_within: Millis(1),
            accept_drift: false,
            integration: false,
            reversible: true,
        }
    }

    #[tokio::test]
    async fn only_the_newest_word_is_said() {
        let outbox = Outbox::default();
        outbox.assign(assignment(1, Phase::Preflight));
        outbox.assign(assignment(2, Phase::Swap));
        outbox.assign(assignment(2, Phase::Stage));
        let said = outbox.take().await.assignments;
        assert_eq!(said, [assignment(2, Phase::Swap)]);
    }
}
