//! What the journal holds about a rollout: facts and decisions, never orders to
//! decide again. JSON; variants and fields are only added.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use tidegate_protocol::report::{Failure, SmokeResult};
use tidegate_protocol::{ComponentName, Digest, Generation, HostName, Intent, Number, Phase, ReleaseRef, Side, Target, TaskRun, TaskState};

use crate::gate::{Judgement, Observed, Verdict};
use crate::plan::Plan;
use crate::process::{Opening, Override, Role, Row, SignRole, Signed};
use crate::spec::TriggerAction;

/// One line of a rollout's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// The rollout exists: plan and host set are frozen.
    Started {
        /// What will be done.
        plan: Box<Plan>,
        /// Who asked.
        by: String,
        /// What each target ran before, and its first generation.
        from: Vec<Origin>,
    },
    /// The rollout's state changed.
    State {
        /// To what.
        to: RolloutState,
        /// Why.
        reason: String,
    },
    /// Every target has come this far together.
    Step {
        /// What is done now.
        step: Step,
    },
    /// An assignment was decided; it is sent after this record is durable. With
    /// phase `confirm` this is the `confirm-sent` of the rules.
    Ordered {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// The fence.
        generation: Generation,
        /// Which way.
        intent: Intent,
        /// What shall run.
        target: Target,
        /// How far.
        phase: Phase,
        /// The integration suite runs on this host.
        #[serde(default)]
        integration: bool,
    },
    /// A host's state in the rollout changed, by observation or by a deadline.
    Host {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// The generation it is about.
        generation: Generation,
        /// To what.
        to: TargetState,
        /// Why, where it failed or went back.
        failure: Option<Failure>,
        /// It counts against the failure budget.
        #[serde(default)]
        counted: bool,
        /// What was seen.
        seen: Option<Seen>,
    },
    /// A person's word.
    Said {
        /// Which.
        verb: Verb,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// The controller came back after it was away; leases may have run out
    /// meanwhile through no fault of a host.
    Returned,
    /// What a host really ran before, as its preflight found it: the controller
    /// knew less when the rollout started.
    Found {
        /// In place of the one in `started`.
        origin: Origin,
    },
    /// A rollout that was refused used this generation meanwhile.
    Fenced {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// The next order is above it.
        generation: Generation,
    },
    /// The values before the first swap; comparisons use them from here on.
    Baseline {
        /// Sealed.
        values: Vec<Observed>,
    },
    /// Values as seen, at most once per interval: for documents and `replay`.
    Observed {
        /// After which wave.
        wave: usize,
        /// Changed hosts, the worst of them, control group.
        values: Vec<Observed>,
    },
    /// A gate's verdict, when it changed or decided.
    Judged {
        /// Which stage of the plan, from 0.
        stage: usize,
        /// After which wave.
        wave: usize,
        /// Of all that decide.
        verdict: Verdict,
        /// Each criterion.
        judgements: Vec<Judgement>,
    },
    /// What becomes of a stage's gate.
    Gate {
        /// Which stage of the plan, from 0.
        stage: usize,
        /// After which wave.
        wave: usize,
        /// What.
        step: GateStep,
        /// Why, and who where it was a person.
        reason: String,
    },
    /// A trigger's condition holds.
    Tripped {
        /// Which of the plan's triggers, from 0; none for a person's declaration
        /// that the plan does not name.
        trigger: Option<usize>,
        /// As written.
        when: String,
        /// What it does.
        action: TriggerAction,
        /// What was seen.
        observed: Option<Number>,
        /// Beyond what.
        limit: Option<Number>,
        /// From how many samples.
        samples: u64,
        /// On which host, if one decided.
        host: Option<HostName>,
        /// One sentence.
        reason: String,
        /// From the arrival of the sample that tripped it to this record, milliseconds.
        after_ms: u64,
    },
    /// An investigation: acknowledged, or over because its condition no longer holds.
    Investigation {
        /// Which of the plan's triggers.
        trigger: usize,
        /// What.
        step: InvestigationStep,
        /// Who.
        by: Option<String>,
    },
    /// An alert fires, seen for the first time.
    Alert {
        /// Alertmanager's own name for it.
        fingerprint: String,
        /// Name, labels, summary.
        text: String,
        /// It fired before the first swap: listed apart, and does not count.
        before: bool,
    },
    /// A person attests an item.
    Attested {
        /// Which.
        item: String,
        /// Who.
        by: String,
        /// What was looked at.
        note: String,
    },
    /// The switch of one host was decided; it is sent after this record is durable.
    Switch {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// The fence.
        generation: Generation,
        /// Forward to the new side, or back.
        intent: Intent,
        /// The side that shall serve.
        to: Side,
    },
    /// How the switch of one host ended.
    Switched {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// Of which order.
        generation: Generation,
        /// The side that serves.
        active: Option<Side>,
        /// Why not the ordered one.
        failure: Option<Failure>,
    },
    /// The old side was told to stop: there is no way back by a switch any more.
    Retired {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// The fence.
        generation: Generation,
        /// The side that is stopped.
        side: Side,
    },
    /// A drill is over: how long its halves took.
    Drilled {
        /// Forward, verified, back, verified.
        passed: bool,
        /// First swap order to last confirmation, milliseconds.
        forward_ms: u64,
        /// First revert order to last host back, milliseconds.
        back_ms: u64,
    },
    /// The checklist's automatic rows, as found.
    Readiness {
        /// All of them.
        rows: Vec<Row>,
    },
    /// When it may go forward, as the plan's windows come out.
    Windows {
        /// In order of time.
        openings: Vec<Opening>,
    },
    /// A freeze covers it from here on, or none does any more.
    Freeze {
        /// Which, by whom, why.
        reason: Option<String>,
    },
    /// A person approved; the signature was verified before.
    Approved {
        /// As what.
        role: Role,
        /// The proof.
        signed: Signed,
    },
    /// A named person goes past a window or a freeze; verified before.
    Overridden {
        /// What.
        what: Override,
        /// As what.
        role: Role,
        /// The proof.
        signed: Signed,
        /// Why.
        reason: String,
    },
    /// Checklist complete, window open: it goes forward from here on.
    Began,
    /// A task was decided; it is sent after this record is durable.
    TaskOrdered {
        /// Place in the release's list.
        index: u16,
        /// For people.
        name: String,
        /// Forward, or back.
        what: TaskRun,
        /// The fence.
        attempt: u32,
        /// Where.
        host: HostName,
    },
    /// How a task's attempt ended.
    TaskEnded {
        /// Place in the release's list.
        index: u16,
        /// For people.
        name: String,
        /// Forward, or back.
        what: TaskRun,
        /// Of which order.
        attempt: u32,
        /// Done, failed, lost.
        state: TaskState,
        /// Its last line.
        note: String,
        /// How long it ran.
        duration_ms: u64,
    },
    /// It ends by itself where it stands: past a point of no return nothing is
    /// taken back by a machine.
    Stopping {
        /// Why.
        reason: String,
    },
    /// A component's answers are watched for outages: what is not probed is not
    /// known.
    Probed {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// What is called; empty if nothing can be.
        probe: String,
    },
    /// A component gave no good answer, by the host's clock.
    Outage {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// The first bad probe, Unix milliseconds.
        from_unix_ms: u64,
        /// The next good one; none: not until the rollout's end.
        to_unix_ms: Option<u64>,
    },
    /// What became of a notification.
    Notified {
        /// Once per event and route.
        key: String,
        /// The route.
        route: String,
        /// It was taken.
        ok: bool,
        /// What the other side said, if it refused.
        detail: String,
    },
    /// A person who is waited for was not heard of for an hour.
    Reminded {
        /// What for.
        reason: String,
    },
    /// A person's remark.
    Noted {
        /// Who.
        by: String,
        /// What.
        text: String,
        /// It resolves this issue of the execution log.
        resolves: Option<u32>,
    },
    /// An outstanding item of the handoff, new or changed.
    Item {
        /// From 1.
        item: u32,
        /// What is to be done.
        what: String,
        /// By whom.
        owner: String,
        /// `open`, `done`, or as people say it.
        status: String,
        /// Until when.
        eta: String,
        /// Who says so.
        by: String,
    },
    /// The handoff was signed; verified before.
    SignedOff {
        /// As what.
        role: SignRole,
        /// The proof.
        signed: Signed,
        /// The document as it was.
        document: Digest,
    },
    /// The review, whole; the last one counts.
    Reviewed {
        /// What was written.
        review: Review,
        /// By whom.
        by: String,
    },
    /// Handed over and closed.
    Closed {
        /// By whom.
        by: String,
    },
    /// A host that was an exception is where it should be.
    Healed {
        /// Where.
        host: HostName,
        /// Of what.
        component: ComponentName,
        /// What it runs now.
        release: Option<ReleaseRef>,
    },
}

/// review.toml: what only people know of a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// RFC 3339 date of the review: `2026-11-24`.
    pub date: String,
    /// Who took part.
    pub participants: Vec<String>,
    /// One line each.
    #[serde(default)]
    pub went_well: Vec<String>,
    /// One line each.
    #[serde(default)]
    pub could_improve: Vec<String>,
    /// What follows.
    #[serde(default)]
    pub action: Vec<ReviewAction>,
}

/// One action item of a review.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReviewAction {
    /// What.
    pub action: String,
    /// By whom.
    pub owner: String,
    /// Until when: `2026-12-01`.
    pub due: String,
}

/// What becomes of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateStep {
    /// Observation began.
    Opened,
    /// Inconclusive at its end: observed for the same time once more.
    Extended,
    /// Inconclusive at the end of the extension: a person is asked.
    Asked,
    /// It holds: the next wave may open.
    Passed,
    /// A named person said so.
    Overridden,
    /// It does not hold.
    Failed,
    /// A source cannot be read: neither forward nor back.
    Blind,
    /// The source answers again.
    Sighted,
}

/// What becomes of an investigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InvestigationStep {
    /// Its timer runs once more.
    Acknowledged,
    /// Its condition does not hold any more.
    Cleared,
}

/// What a target ran when the rollout started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Where.
    pub host: HostName,
    /// Of what.
    pub component: ComponentName,
    /// The first generation of this rollout there.
    pub generation: Generation,
    /// What `current` pointed at.
    pub previous: Option<ReleaseRef>,
    /// What ran, by digest.
    pub running_sha256: Option<Digest>,
    /// Its tree.
    pub tree_sha256: Option<Digest>,
}

/// What was seen of a component when its state changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What `current` points at.
    pub release: Option<ReleaseRef>,
    /// What runs.
    pub running_sha256: Option<Digest>,
    /// Its tree.
    pub tree_sha256: Option<Digest>,
    /// Start of the main process, Unix milliseconds.
    pub main_pid_started_at: Option<u64>,
    /// As unhealthy as before the swap.
    #[serde(default)]
    pub was_unhealthy: bool,
    /// Smoke tests.
    #[serde(default)]
    pub smoke: Vec<SmokeResult>,
}

/// What all targets do together before and while waves move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Every host looks, none is touched.
    Preflight,
    /// Every host fetches and verifies.
    Staging,
    /// Values are sealed before the first swap.
    Baseline,
    /// The release's tasks run, one after the other.
    Tasks,
    /// Hosts swap, in waves.
    Swapping,
    /// Blue-green: every side is prepared, traffic moves.
    Switching,
}

macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $type { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $type {
            /// Every one, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word of the contract.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl core::str::FromStr for $type {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                Self::ALL.iter().copied().find(|v| v.word() == text).ok_or(())
            }
        }
    };
}

words! {
    /// State of a rollout.
    RolloutState {
        /// Waits for signatures.
        AwaitingApproval = "awaiting-approval",
        /// Waits for its window.
        Scheduled = "scheduled",
        /// Goes forward.
        Running = "running",
        /// Admits nobody; triggers stay armed.
        Paused = "paused",
        /// Observes a wave.
        Baking = "baking",
        /// All done, still observed.
        Watching = "watching",
        /// Goes back.
        RollingBack = "rolling-back",
        /// Done.
        Completed = "completed",
        /// Every changed host runs exactly what it ran before.
        RolledBack = "rolled-back",
        /// The named hosts are neither new nor back.
        Mixed = "mixed",
        /// Ended by a person; hosts stay as they are.
        Halted = "halted",
        /// Ended before the first swap order.
        Refused = "refused",
    }
}

impl RolloutState {
    /// Nothing follows by itself.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack | Self::Mixed | Self::Halted | Self::Refused)
    }
}

words! {
    /// State of a host (of one component on it) in a rollout.
    TargetState {
        /// Not begun; preflight.
        Pending = "pending",
        /// Bytes arrive.
        Staging = "staging",
        /// Verified bytes lie on the host.
        Staged = "staged",
        /// Ordered to swap.
        Swapping = "swapping",
        /// Swapped; smoke tests run.
        Probation = "probation",
        /// Passed; confirmation under way.
        Healthy = "healthy",
        /// Kept.
        Confirmed = "confirmed",
        /// Failed before its swap.
        Failed = "failed",
        /// On the way back.
        Reverting = "reverting",
        /// Back.
        Reverted = "reverted",
        /// Could not get back.
        RevertFailed = "revert-failed",
        /// No contact.
        Unreachable = "unreachable",
        /// Left out.
        Skipped = "skipped",
    }
}

impl TargetState {
    /// Ordered to swap and neither kept nor back: it may be out of service.
    #[must_use]
    pub const fn in_flight(self) -> bool {
        matches!(self, Self::Swapping | Self::Probation | Self::Healthy | Self::Reverting)
    }
}

words! {
    /// What a person can say to a rollout.
    Verb {
        /// Admit nobody until resumed.
        Pause = "pause",
        /// Go on.
        Resume = "resume",
        /// Let what was ordered end, then stop for good.
        Halt = "halt",
        /// Take back what was done.
        Rollback = "rollback",
        /// Go past the present gate.
        Promote = "promote",
        /// Go past all gates.
        PromoteAll = "promote-all",
        /// Somebody looks at what is being investigated.
        Ack = "ack",
    }
}

words! {
    /// State of a wave.
    WaveState {
        /// Nobody of it was ordered to swap.
        Pending = "pending",
        /// Some are in flight.
        Open = "open",
        /// Observed.
        Baking = "baking",
        /// All of it is kept, or excepted within the budget.
        Passed = "passed",
        /// A named person said so.
        Overridden = "overridden",
        /// It made the rollout go back.
        Failed = "failed",
        /// It was taken back.
        RolledBack = "rolled-back",
    }
}
