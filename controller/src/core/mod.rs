//! The one task that owns the fleet and all rollouts.
//!
//! Inputs arrive on a bounded channel and are handled in batches. What a batch
//! decided is appended to the journal in one transaction; only then is anything
//! sent or answered. If the append fails the process must stop: what is in memory
//! is ahead of the journal. Must not: decide how a rollout goes, do I/O itself.

mod ask;
mod begin;
mod facts;
mod fleet;
#[cfg(test)]
mod gate_tests;
mod papers;
#[cfg(test)]
mod process_tests;
mod ready;
mod state;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::report::AgentFacts;
use tidegate_protocol::{
    Digest, HostName, JournalHead, Outages, Release, ReleaseRef, Report, RolloutId, Samples, SidesReport, TaskReport, Timestamp, VarDigest,
};
use tidegate_rollout::gate::Group;
use tidegate_rollout::process::{Override, Role, Signed, Via};
use tidegate_rollout::{DrillScope, Fetched, Plan, Record, RolloutState, Spec};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use crate::environment::Environment;
use crate::failpoint;
use crate::notify::{self, Outcome};
use crate::operator::checks::Checks;
use crate::operator::msg::{ErrorDoc, Request};
use crate::outbox::Outbox;
use crate::registry::{Labels, NotAdmitted};
use crate::sources::Wanted;
use crate::store::{Append, FleetRecord, HostRow, Loaded, Store, StoreError};

pub(crate) use ask::{check_labels, json, no_rollout, said};
pub use state::State;
#[cfg(test)]
pub(crate) use tests::{manifest as test_manifest, started as test_started};
pub use witness::Witness;

/// Inputs that may wait; senders wait beyond it.
const QUEUE: usize = 1_024;
/// Most inputs in one batch.
const BATCH_MAX: usize = 256;
/// How often what hosts said is written down, if it changed.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// What the core reacts to.
#[derive(Debug)]
pub enum Input {
    /// An agent said hello.
    Hello {
        /// As its certificate says.
        host: HostName,
        /// Its key.
        spki: Digest,
        /// Of the messages, as agreed on.
        version: u16,
        /// Which machine and which installation.
        agent: AgentFacts,
        /// Observed state.
        report: Box<Report>,
        /// Where the core puts what it is to be told.
        outbox: Arc<Outbox>,
        /// Let in or not.
        reply: oneshot::Sender<Result<Admitted, NotAdmitted>>,
    },
    /// Observed state, whole.
    Report {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// What.
        report: Box<Report>,
    },
    /// What a host measured, whole, within the limits.
    Samples {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// One per watch.
        samples: Vec<Samples>,
    },
    /// Observed state of components with sides, whole, within the limits.
    Sides {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// One per component.
        sides: Vec<SidesReport>,
    },
    /// A host's tasks, whole, within the limits.
    Tasks {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// Those it knows of.
        tasks: Vec<TaskReport>,
    },
    /// Times without service, whole, within the limits.
    Outages {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// One per component that is observed.
        outages: Vec<Outages>,
    },
    /// A host's `[vars]` by digest, whole, within the limits.
    Vars {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// One per name.
        vars: Vec<VarDigest>,
    },
    /// The head that a host remembers.
    Head {
        /// Who.
        host: HostName,
        /// On which session.
        session: u64,
        /// What it keeps.
        head: JournalHead,
        /// Whether the store has it.
        check: HeadCheck,
    },
    /// Somebody is to judge a signature or a paper.
    Look {
        /// Of which rollout.
        id: RolloutId,
        /// None if there is none.
        reply: oneshot::Sender<Option<Looked>>,
    },
    /// A person's paper: verified and whole.
    Paper {
        /// Of which rollout.
        id: RolloutId,
        /// As it was looked at: an id may be used again.
        first_seq: u64,
        /// What.
        paper: Paperwork,
        /// The status document.
        reply: oneshot::Sender<Answer>,
    },
    /// Something that happened to the fleet, done elsewhere.
    Fleet {
        /// What.
        records: Vec<FleetRecord>,
        /// Once it is durable.
        reply: oneshot::Sender<()>,
    },
    /// What became of a notification.
    Notified(Outcome),
    /// Somebody compares the journal with what hosts remember.
    Witnesses {
        /// All that said something.
        reply: oneshot::Sender<Vec<Witness>>,
    },
    /// What was checked outside for a rollout that waits to begin.
    Checked {
        /// Which.
        rollout: RolloutId,
        /// Of its release.
        manifest: Box<Release>,
        /// What was found.
        checks: Box<Checks>,
    },
    /// A fetch ended.
    Fetched {
        /// For which rollout.
        rollout: RolloutId,
        /// As in the fetch.
        metric: String,
        /// As in the fetch.
        group: Group,
        /// What it brought, or one sentence.
        result: Result<Fetched, String>,
    },
    /// A session ended, or was silent too long.
    Gone {
        /// Who.
        host: HostName,
        /// Which session.
        session: u64,
    },
    /// A host redeemed a token; it is in the store.
    Joined(Box<HostRow>),
    /// An operator asks, authorised.
    Ask {
        /// Who.
        by: String,
        /// What.
        request: Request,
        /// For plan and start: read and looked up beforehand.
        prepared: Option<Box<Prepared>>,
        /// The JSON document.
        reply: oneshot::Sender<Answer>,
    },
    /// Somebody wants to hear of a rollout.
    Follow {
        /// Which.
        id: RolloutId,
        /// None if there is none.
        reply: oneshot::Sender<Option<Followed>>,
    },
    /// Write down what was not, and end.
    Stop,
}

/// A rollout as those see it who judge signatures and make papers.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What it carries out.
    pub plan: Box<Plan>,
    /// Who started it.
    pub by: String,
    /// Of its first record.
    pub first_seq: u64,
    /// Of its newest durable record.
    pub last_seq: u64,
}

/// What a person adds to a rollout; signatures are verified before.
#[derive(Clone, Debug)]
pub enum Paperwork {
    /// An approval.
    Approved(Role, Signed),
    /// Going past a window or a freeze.
    Overridden {
        /// Which of the two.
        what: Override,
        /// As what.
        role: Role,
        /// The proof.
        signed: Signed,
        /// Why.
        reason: String,
    },
    /// A note, an item, a sign-off, a review, the end of it.
    Paper(Box<Record>),
}

/// A head that a host remembers, compared with the record of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadCheck {
    /// The same.
    Fits,
    /// Another one.
    Differs,
    /// Not compared, or there is none of that number.
    Unknown,
}

/// A JSON document, or why not.
pub type Answer = Result<String, ErrorDoc>;

/// A host was let in.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// For its reports.
    pub session: u64,
    /// For the welcome.
    pub labels: Labels,
}

/// What plan and start need from outside the core.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// plan.toml as read.
    pub spec: Spec,
    /// The release it names.
    pub release: ReleaseRef,
    /// Its manifest.
    pub manifest: Release,
    /// A rehearsal, and on what.
    pub drill: Option<DrillScope>,
    /// What was checked outside of the core.
    pub checks: Checks,
}

/// A rollout that waits to begin, and what is to be checked of it outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToCheck {
    /// Which.
    pub rollout: RolloutId,
    /// Of its release.
    pub manifest: Digest,
    /// Whether they answer.
    pub dashboards: Vec<String>,
}

/// Who is told what else is to be done, besides hosts.
#[derive(Debug)]
pub struct Outlets {
    /// Whatever is to be fetched, when that changes.
    pub wanted: watch::Sender<Vec<Wanted>>,
    /// Which rollouts wait to begin, when that changes.
    pub to_check: watch::Sender<Vec<ToCheck>>,
    /// What people are to be told, once it is durable why; none: nobody is told.
    pub notices: Option<notify::Outbox>,
}

/// What controller.toml says, as far as the core goes by it.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// What a rollout must bring, by environment.
    pub environments: BTreeMap<String, Environment>,
    /// Notification routes and their kinds.
    pub routes: BTreeMap<String, Via>,
}

/// Where a rollout stands, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Of its newest record; everything up to it can be read from the store.
    pub seq: u64,
    /// Its state after that record.
    pub state: RolloutState,
}

/// A rollout to be followed.
#[derive(Debug)]
pub struct Followed {
    /// Of its first record: what an id's earlier, refused attempt left is not its.
    pub first_seq: u64,
    /// Changes with every batch that touched it.
    pub ticks: watch::Receiver<Tick>,
}

/// The core ended; the process is stopping.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the controller is stopping")]
pub struct Stopping;

/// How everybody else talks to the core; cheap to clone.
#[derive(Clone, Debug)]
pub struct CoreHandle {
    inputs: mpsc::Sender<Input>,
}

impl CoreHandle {
    /// A handle, and what [`run`] receives from.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(QUEUE);
        (Self { inputs }, receiver)
    }

    /// Queues an input; waits while the queue is full.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn send(&self, input: Input) -> Result<(), Stopping> {
        self.inputs.send(input).await.map_err(|_| Stopping)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// Outer: [`Stopping`]. Inner: what the operator is told.
    pub async fn ask(&self, by: &str, request: Request, prepared: Option<Box<Prepared>>) -> Result<Answer, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Ask { by: by.to_owned(), request, prepared, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// A rollout, to be judged or written about.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn look(&self, id: RolloutId) -> Result<Option<Looked>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Look { id, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Adds what a person gave; answers the status document.
    ///
    /// # Errors
    /// Outer: [`Stopping`]. Inner: what the operator is told.
    pub async fn paper(&self, id: RolloutId, first_seq: u64, paper: Paperwork) -> Result<Answer, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Paper { id, first_seq, paper, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Journals what happened to the fleet; returns once it is durable.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn fleet(&self, records: Vec<FleetRecord>) -> Result<(), Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Fleet { records, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// What hosts remember of the journal.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn witnesses(&self) -> Result<Vec<Witness>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Witnesses { reply }).await?;
        answer.await.map_err(|_| Stopping)
    }

    /// Follows a rollout.
    ///
    /// # Errors
    /// [`Stopping`].
    pub async fn follow(&self, id: RolloutId) -> Result<Option<Followed>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Follow { id, reply }).await?;
        answer.await.map_err(|_| Stopping)
    }
}

/// Runs until told to stop.
///
/// # Errors
/// The journal could not be appended to: stop the process, nothing may go on.
pub async fn run(
    store: Store,
    loaded: Loaded,
    clock: Clock,
    mut inputs: mpsc::Receiver<Input>,
    setup: Setup,
    outlets: Outlets,
) -> Result<(), StoreError> {
    let mut state = State::restore_with(loaded, setup);
    let now = clock.now();
    // What the journal has no word on was perhaps not sent.
    if let Some(notices) = &outlets.notices {
        notices.submit(state.owed(now));
    }
    state.returned(now);
    settle(&mut state, &store, now, &outlets).await?;
    let mut save_at = Instant::now() + SAVE_EVERY;
    let mut batch = Vec::with_capacity(16);
    loop {
        let timer = state.next_timeout().map_or(save_at, |at| clock.instant(at).min(save_at));
        let open = tokio::select! {
            received = inputs.recv_many(&mut batch, BATCH_MAX) => received > 0,
            () = sleep_until(timer) => true,
        };
        let now = clock.now();
        let mut stop = !open;
        for input in batch.drain(..) {
            stop |= state.handle(now, input);
        }
        state.tick(now);
        if stop || Instant::now() >= save_at {
            state.save();
            save_at = Instant::now() + SAVE_EVERY;
        }
        settle(&mut state, &store, now, &outlets).await?;
        if stop {
            return Ok(());
        }
    }
}

/// Appends what was decided, then sends and answers.
async fn settle(state: &mut State, store: &Store, now: Timestamp, outlets: &Outlets) -> Result<(), StoreError> {
    let outcome = state.settle(now);
    if !outcome.records.is_empty() || !outcome.changes.is_empty() || !outcome.fleet.is_empty() {
        let kinds: Vec<String> = outcome.records.iter().map(|r| failpoint::kind(&r.record)).collect();
        for kind in &kinds {
            failpoint::hit(|| format!("controller.append.before.{kind}"));
        }
        let touched: Vec<RolloutId> = outcome.records.iter().map(|r| r.rollout.clone()).collect();
        let appended = store.append(Append { fleet: outcome.fleet, records: outcome.records, changes: outcome.changes }).await?;
        for kind in &kinds {
            failpoint::hit(|| format!("controller.append.after.{kind}"));
        }
        state.appended(appended, &touched);
    }
    state.send(outcome.sends);
    state.tell_heads(now);
    if let Some(notices) = &outlets.notices {
        notices.submit(outcome.notices);
    }
    if let Some(fetches) = outcome.fetches {
        outlets.wanted.send_replace(fetches);
    }
    if let Some(to_check) = outcome.to_check {
        outlets.to_check.send_replace(to_check);
    }
    for reply in outcome.replies {
        reply();
    }
    Ok(())
}
