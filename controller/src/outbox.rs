//! What a host is to be told, newest word only.
//!
//! Desired state, not a queue: a word replaces the one before it about the same
//! thing (an assignment that of its component, a watch list the whole list), so a
//! slow host costs no memory and never hears old orders.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tidegate_protocol::{Assignment, ComponentName, JournalHead, Side, SideAssignment, SwitchOrder, TaskOrder, Watch};
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

/// One word to a host, as the core decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Desired state of a component.
    Assign(Assignment),
    /// Desired state of one side of a component.
    Side(SideAssignment),
    /// Desired state of a component's switch.
    Switch(SwitchOrder),
    /// Everything that shall be measured there, whole.
    Watch(Vec<Watch>),
    /// The host's tasks, whole.
    Tasks(Vec<TaskOrder>),
    /// Whose outages shall be observed there, whole.
    Outages(Vec<ComponentName>),
    /// The journal's newest record.
    Head(JournalHead),
}

/// What is to be said, in this order.
#[derive(Debug, Default)]
pub struct Words {
    /// The labels, if they changed.
    pub labels: Option<Labels>,
    /// At most one per component.
    pub assignments: Vec<Assignment>,
    /// At most one per component and side.
    pub sides: Vec<SideAssignment>,
    /// At most one per component.
    pub switches: Vec<SwitchOrder>,
    /// The whole list, if it was said anew.
    pub watches: Option<Vec<Watch>>,
    /// The whole list, if it was said anew.
    pub tasks: Option<Vec<TaskOrder>>,
    /// The whole list, if it was said anew.
    pub outages: Option<Vec<ComponentName>>,
    /// The newest one.
    pub head: Option<JournalHead>,
    /// Then nothing more.
    pub goodbye: Option<Goodbye>,
}

impl Words {
    fn is_empty(&self) -> bool {
        self.labels.is_none()
            && self.assignments.is_empty()
            && self.sides.is_empty()
            && self.switches.is_empty()
            && self.watches.is_none()
            && self.tasks.is_none()
            && self.outages.is_none()
            && self.head.is_none()
            && self.goodbye.is_none()
    }
}

#[derive(Debug, Default)]
struct Slots {
    labels: Option<Labels>,
    assignments: BTreeMap<ComponentName, Assignment>,
    sides: BTreeMap<(ComponentName, Side), SideAssignment>,
    switches: BTreeMap<ComponentName, SwitchOrder>,
    watches: Option<Vec<Watch>>,
    tasks: Option<Vec<TaskOrder>>,
    outages: Option<Vec<ComponentName>>,
    head: Option<JournalHead>,
    goodbye: Option<Goodbye>,
}

/// One session's outbox: the core fills it, the session empties it.
#[derive(Debug, Default)]
pub struct Outbox {
    slots: Mutex<Slots>,
    filled: Notify,
}

impl Outbox {
    /// Replaces what was to be said about the same thing, unless that was newer.
    pub fn put(&self, word: Word) {
        self.fill(|slots| match word {
            Word::Assign(new) => newest(&mut slots.assignments, new.component.clone(), new, |a| (a.generation, a.phase)),
            Word::Side(new) => {
                let key = (new.assignment.component.clone(), new.side);
                newest(&mut slots.sides, key, new, |s| (s.assignment.generation, s.assignment.phase));
            }
            Word::Switch(new) => newest(&mut slots.switches, new.component.clone(), new, |s| s.generation),
            Word::Watch(watches) => slots.watches = Some(watches),
            Word::Tasks(tasks) => slots.tasks = Some(tasks),
            Word::Outages(components) => slots.outages = Some(components),
            Word::Head(head) => {
                if slots.head.is_none_or(|old| old.seq <= head.seq) {
                    slots.head = Some(head);
                }
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
            let words = self.now();
            if !words.is_empty() {
                return words;
            }
            self.filled.notified().await;
        }
    }

    fn now(&self) -> Words {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Words {
            labels: slots.labels.take(),
            assignments: std::mem::take(&mut slots.assignments).into_values().collect(),
            sides: std::mem::take(&mut slots.sides).into_values().collect(),
            switches: std::mem::take(&mut slots.switches).into_values().collect(),
            watches: slots.watches.take(),
            tasks: slots.tasks.take(),
            outages: slots.outages.take(),
            head: slots.head.take(),
            goodbye: slots.goodbye,
        }
    }
}

/// Keeps the word with the higher fence; the later one of two with the same.
fn newest<K: Ord, V, F: Ord>(slots: &mut BTreeMap<K, V>, key: K, new: V, fence: impl Fn(&V) -> F) {
    if slots.get(&key).is_none_or(|old| fence(old) <= fence(&new)) {
        slots.insert(key, new);
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

    fn side(side: Side, n: u64, phase: Phase) -> SideAssignment {
        SideAssignment { side, assignment: assignment(n, phase) }
    }

    fn watch(every: u64) -> Watch {
        Watch { component: "api".parse().unwrap(), rollout: "r".parse().unwrap(), side: None, every: Millis(every), observers: vec![] }
    }

    #[tokio::test]
    async fn only_the_newest_word_is_said() {
        let outbox = Outbox::default();
        outbox.put(Word::Assign(assignment(1, Phase::Preflight)));
        outbox.put(Word::Assign(assignment(2, Phase::Swap)));
        outbox.put(Word::Assign(assignment(2, Phase::Stage)));
        outbox.put(Word::Side(side(Side::Green, 4, Phase::Swap)));
        outbox.put(Word::Side(side(Side::Green, 3, Phase::Confirm)));
        outbox.put(Word::Side(side(Side::Blue, 1, Phase::Confirm)));
        outbox.put(Word::Watch(vec![watch(1), watch(2)]));
        outbox.put(Word::Watch(vec![watch(3)]));
        let said = outbox.take().await;
        assert_eq!(said.assignments, [assignment(2, Phase::Swap)]);
        assert_eq!(said.sides, [side(Side::Blue, 1, Phase::Confirm), side(Side::Green, 4, Phase::Swap)]);
        assert_eq!(said.watches, Some(vec![watch(3)]));
        assert!(outbox.now().is_empty());
    }

    #[tokio::test]
    async fn an_empty_list_is_a_word() {
        let outbox = Outbox::default();
        for word in [Word::Watch(vec![]), Word::Tasks(vec![]), Word::Outages(vec![])] {
            outbox.put(word);
        }
        let said = outbox.take().await;
        assert_eq!((said.watches, said.tasks, said.outages), (Some(vec![]), Some(vec![]), Some(vec![])));
        assert!(outbox.now().is_empty());
    }

    #[tokio::test]
    async fn only_the_newest_head_is_said() {
        let head = |seq| JournalHead { seq, hash: tidegate_protocol::Digest::of(&[1]) };
        let outbox = Outbox::default();
        for seq in [3, 9, 4] {
            outbox.put(Word::Head(head(seq)));
        }
        assert_eq!(outbox.take().await.head, Some(head(9)));
        assert!(outbox.now().is_empty());
    }
}
