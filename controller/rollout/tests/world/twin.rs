//! The same world once more, for a question that must not change the first.

use super::{GOOD, World};

impl World {
    /// As it is now, with good requests only, and nothing under way.
    pub fn twin(&self) -> Self {
        Self {
            rollout: self.rollout.clone(),
            now: self.now,
            journal: self.journal.clone(),
            durable: self.durable.clone(),
            snapshots: self.snapshots.clone(),
            hosts: self.hosts.clone(),
            sides: self.sides.clone(),
            old: self.old.clone(),
            new: self.new.clone(),
            smoke_fails: self.smoke_fails.clone(),
            preflight_fails: self.preflight_fails.clone(),
            stuck: self.stuck.clone(),
            deaf: self.deaf.clone(),
            slow: self.slow.clone(),
            switch_fails: self.switch_fails.clone(),
            switch_stuck: self.switch_stuck.clone(),
            slow_back: self.slow_back,
            tree: self.tree,
            most_in_flight: self.most_in_flight,
            swaps: self.swaps.clone(),
            switched: self.switched.clone(),
            load: Box::new(|_, _| GOOD),
            counted: self.counted.clone(),
            done: self.done.clone(),
            states: self.states.clone(),
            watched: self.watched.clone(),
            tasks_run: self.tasks_run.clone(),
            task_ends: self.task_ends.clone(),
            task_said: self.task_said.clone(),
            kill_at: self.kill_at,
            killed: self.killed,
            inbox: Vec::new(),
        }
    }
}
