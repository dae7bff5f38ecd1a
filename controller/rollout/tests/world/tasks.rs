//! Tasks as a host runs them: once per attempt, and what it knows is said again at
//! every order.

use tidegate_protocol::*;
use tidegate_rollout::*;

use super::World;

impl World {
    /// Begins what was not begun: it ends as scripted, else well; what has ended is said.
    pub fn obey_tasks(&mut self, host: &HostName) {
        for order in self.rollout.task_orders(host) {
            let key = (order.index, order.what, order.attempt);
            if !self.tasks_run.contains(&key) {
                self.tasks_run.push(key);
                let script = self.task_ends.get(&(order.index, order.what));
                let of_attempt = |ends: &Vec<TaskState>| ends.get(order.attempt as usize - 1).or(ends.last()).copied();
                let state = script.and_then(of_attempt).unwrap_or(TaskState::Done);
                if state.is_final() {
                    self.end_task(&order, state);
                }
            }
            if let Some(report) = self.task_said.get(&key).cloned() {
                self.handle(Event::Task(host, &report)).unwrap();
            }
        }
    }

    fn end_task(&mut self, order: &TaskOrder, state: TaskState) {
        let report = TaskReport {
            rollout: order.rollout.clone(),
            index: order.index,
            what: order.what,
            attempt: order.attempt,
            state,
            note: format!("note of {}", order.index),
            started_at_unix_ms: self.now.0,
            duration_ms: 1_000,
        };
        self.task_said.insert((order.index, order.what, order.attempt), report);
    }

    /// What runs, or was lost, ends now; its host says so if it can.
    pub fn finish_tasks(&mut self, state: TaskState) {
        let hosts: Vec<HostName> = self.rollout.plan().process.tasks.iter().map(|t| t.host.clone()).collect();
        for host in hosts {
            for order in self.rollout.task_orders(&host) {
                let key = (order.index, order.what, order.attempt);
                let open = self.task_said.get(&key).is_none_or(|r| r.state == TaskState::Lost);
                if self.tasks_run.contains(&key) && open {
                    self.end_task(&order, state);
                }
            }
            if self.hears(&host) {
                self.obey_tasks(&host);
            }
        }
        self.run();
    }
}
