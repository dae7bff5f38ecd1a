//! Tasks: once per rollout, one after the other, each on its host; undone in
//! reverse once the last host is back (rules 22 and 23).
//!
//! | task | forward | on the way back |
//! |---|---|---|
//! | not ordered | ordered, attempt 1; window closed: paused | left alone |
//! | runs | waited for; silent past its deadline = lost | the same |
//! | done | the next one | undone, if it has an undo |
//! | failed | back, from paused too | named: what it did is not undone |
//! | lost, idempotent | ordered again, three attempts in all | undone like a done one |
//! | lost | paused: a person looks (resume = again, promote = it is done) | undone like a done one |

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use tidegate_protocol::{HostName, Millis, TaskOrder, TaskReport, TaskRun, TaskState, Timestamp};

use super::{Action, GRACE, Rollout};
use crate::process::{PlannedTask, TASK_DEADLINE};
use crate::record::{Record, RolloutState, Step};

/// Attempts that an idempotent task gets by itself.
const ATTEMPTS: u32 = 3;

/// One of a task's two commands, as ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskGo {
    pub(crate) attempt: u32,
    pub(crate) since: Timestamp,
    pub(crate) ended: Option<(TaskState, String)>,
}

impl TaskGo {
    fn state(&self) -> Option<TaskState> {
        self.ended.as_ref().map(|(state, _)| *state)
    }
}

impl Rollout {
    /// The next task, or the first swap; true if something was decided.
    pub(super) fn tasks(&mut self, now: Timestamp) -> bool {
        for planned in self.plan.process.tasks.clone() {
            match self.task_state(&planned, TaskRun::Run, now) {
                None => {
                    if !self.pause_if_closed(now) {
                        self.order_task(now, &planned, TaskRun::Run);
                    }
                    return true;
                }
                Some(None) => return false,
                Some(Some(TaskState::Done)) => {}
                Some(Some(TaskState::Lost)) => {
                    if self.may_repeat(&planned, TaskRun::Run) {
                        if !self.pause_if_closed(now) {
                            self.order_task(now, &planned, TaskRun::Run);
                        }
                    } else {
                        let reason = format!(
                            "task {:?} on {} began and its end was not seen: look there, then `resume` runs it again, `promote` counts it as done, `rollback` goes back",
                            planned.name, planned.host
                        );
                        self.append(now, Record::State { to: RolloutState::Paused, reason });
                    }
                    return true;
                }
                // Looked at before, in any state.
                Some(Some(_)) => return false,
            }
        }
        self.append(now, Record::Step { step: Step::Swapping });
        true
    }

    /// One that failed, going forward.
    pub(super) fn failed_task(&self) -> Option<String> {
        self.plan.process.tasks.iter().filter(|_| self.step == Step::Tasks).find_map(|planned| {
            let (state, note) = self.task(planned.index, TaskRun::Run)?.ended.as_ref()?;
            (*state == TaskState::Failed).then(|| format!("task {:?} failed on {}: {note}", planned.name, planned.host))
        })
    }

    /// One was ordered, and its end was not seen in time or at all.
    pub(super) fn task_runs(&mut self, now: Timestamp) -> bool {
        let both = |planned: PlannedTask| [TaskRun::Run, TaskRun::Undo].map(|what| (planned.clone(), what));
        let all: Vec<_> = self.plan.process.tasks.clone().into_iter().flat_map(both).collect();
        all.into_iter().any(|(planned, what)| self.task_state(&planned, what, now) == Some(None))
    }

    /// On the way back, after the hosts: `None` = nothing is left to undo, else
    /// whether something was decided.
    pub(super) fn undo_tasks(&mut self, now: Timestamp) -> Option<bool> {
        for planned in self.plan.process.tasks.clone().into_iter().rev() {
            let undone = self.task(planned.index, TaskRun::Undo).is_some();
            match self.task_state(&planned, TaskRun::Run, now) {
                // Its end decides whether there is anything to undo.
                Some(None) => return Some(false),
                Some(Some(TaskState::Done | TaskState::Lost)) if planned.undo => {}
                // It was lost, and heard of after its undo began.
                Some(Some(_)) if undone => {}
                _ => continue,
            }
            match self.task_state(&planned, TaskRun::Undo, now) {
                None => {
                    self.order_task(now, &planned, TaskRun::Undo);
                    return Some(true);
                }
                Some(None) => return Some(false),
                Some(Some(TaskState::Lost)) if self.may_repeat(&planned, TaskRun::Undo) => {
                    self.order_task(now, &planned, TaskRun::Undo);
                    return Some(true);
                }
                // Gone past, and named at the end.
                Some(Some(_)) => {}
            }
        }
        None
    }

    /// Tasks whose undo did not end well: the outcome is mixed. And those that are
    /// not undone: named.
    pub(super) fn not_undone(&self) -> (Vec<String>, Vec<String>) {
        let (mut failed, mut named) = (Vec::new(), Vec::new());
        for planned in &self.plan.process.tasks {
            let run = self.task(planned.index, TaskRun::Run).and_then(TaskGo::state);
            let undo = self.task(planned.index, TaskRun::Undo).and_then(|t| t.ended.clone());
            match (run, undo) {
                (_, Some((TaskState::Failed | TaskState::Lost, note))) => {
                    failed.push(format!("undo of task {:?} on {} did not end well: {note}", planned.name, planned.host));
                }
                (Some(TaskState::Failed), _) => named.push(format!("task {:?} had failed and was not undone", planned.name)),
                (Some(TaskState::Done | TaskState::Lost), None) if !planned.reversible => {
                    named.push(format!("task {:?} cannot be undone", planned.name));
                }
                _ => {}
            }
        }
        (failed, named)
    }

    /// A task that cannot be taken back was begun (and did not fail): the point of
    /// no return lies behind.
    pub(crate) fn past_return(&self) -> Option<&PlannedTask> {
        self.plan.process.tasks.iter().find(|t| {
            let run = self.task(t.index, TaskRun::Run);
            !t.reversible && run.is_some_and(|run| run.state() != Some(TaskState::Failed))
        })
    }

    /// The task that a person must look at.
    pub(super) fn lost_task(&self) -> Option<PlannedTask> {
        let lost = |t: &&PlannedTask| self.task(t.index, TaskRun::Run).is_some_and(|go| go.state() == Some(TaskState::Lost));
        self.plan.process.tasks.iter().find(lost).filter(|_| self.step == Step::Tasks).cloned()
    }

    /// A person says that it shall run again.
    pub(super) fn task_again(&mut self, now: Timestamp, planned: &PlannedTask) {
        self.order_task(now, planned, TaskRun::Run);
    }

    /// A person says that it is done.
    pub(super) fn task_counts(&mut self, now: Timestamp, planned: &PlannedTask, because: &str) {
        let Some(attempt) = self.task(planned.index, TaskRun::Run).map(|t| t.attempt) else { return };
        let note = format!("counted as done: {because}");
        self.end_task(now, planned, TaskRun::Run, attempt, TaskState::Done, note, 0);
    }

    /// A host's word on a task.
    pub(super) fn task_reported(&mut self, now: Timestamp, host: &HostName, report: &TaskReport) {
        if report.rollout != self.id || !report.state.is_final() {
            return;
        }
        let planned = self.plan.process.tasks.iter().find(|t| t.index == report.index && t.host == *host).cloned();
        let (Some(planned), Some(known)) = (planned, self.task(report.index, report.what)) else { return };
        // What was given up as lost may be heard of after all.
        let news = match known.state() {
            None => true,
            Some(TaskState::Lost) => report.state != TaskState::Lost,
            Some(_) => false,
        };
        if known.attempt != report.attempt || !news || !self.is_live() {
            return;
        }
        let waited = self.lost_task().is_some();
        self.end_task(now, &planned, report.what, report.attempt, report.state, report.note.clone(), report.duration_ms);
        if waited && self.lost_task().is_none() {
            self.unpause(now, format!("task {:?} is heard of again", planned.name));
        }
    }

    /// The orders of a host: what began is said again until the rollout ends.
    #[must_use]
    pub fn task_orders(&self, host: &HostName) -> Vec<TaskOrder> {
        if !self.is_live() {
            return Vec::new();
        }
        let own = self.plan.process.tasks.iter().filter(|t| t.host == *host);
        own.flat_map(|planned| {
            [TaskRun::Run, TaskRun::Undo].into_iter().filter_map(|what| {
                let go = self.task(planned.index, what)?;
                Some(TaskOrder {
                    rollout: self.id.clone(),
                    index: planned.index,
                    release: self.plan.release.clone(),
                    what,
                    attempt: go.attempt,
                    deadline: TASK_DEADLINE,
                })
            })
        })
        .collect()
    }

    pub(crate) fn task(&self, index: u16, what: TaskRun) -> Option<&TaskGo> {
        self.tasks.get(&(index, what))
    }

    /// `None` = not ordered, `Some(None)` = runs; one that is silent for too long
    /// is lost from here on.
    fn task_state(&mut self, planned: &PlannedTask, what: TaskRun, now: Timestamp) -> Option<Option<TaskState>> {
        let go = self.task(planned.index, what)?.clone();
        if go.ended.is_none() && now.since(go.since) >= Millis(TASK_DEADLINE.0 + GRACE.0) {
            let note = "its host was not heard of in time".to_string();
            self.end_task(now, planned, what, go.attempt, TaskState::Lost, note, 0);
            return Some(Some(TaskState::Lost));
        }
        Some(go.state())
    }

    fn may_repeat(&self, planned: &PlannedTask, what: TaskRun) -> bool {
        planned.idempotent && self.task(planned.index, what).is_some_and(|t| t.attempt < ATTEMPTS)
    }

    fn order_task(&mut self, now: Timestamp, planned: &PlannedTask, what: TaskRun) {
        let attempt = self.task(planned.index, what).map_or(1, |t| t.attempt + 1);
        let (index, name, host) = (planned.index, planned.name.clone(), planned.host.clone());
        self.append(now, Record::TaskOrdered { index, name, what, attempt, host: host.clone() });
        self.actions.push_back(Action::Tasks(host));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    fn end_task(
        &mut self,
        now: Timestamp,
        planned: &PlannedTask,
        what: TaskRun,
        attempt: u32,
        state: TaskState,
        note: String,
        duration_ms: u64,
    ) {
        let (index, name) = (planned.index, planned.name.clone());
        self.append(now, Record::TaskEnded { index, name, what, attempt, state, note, duration_ms });
    }
}
