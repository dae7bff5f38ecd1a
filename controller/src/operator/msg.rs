//! What an operator can ask of the controller, and the frames it answers with.
//!
//! One request per bidirectional stream (ALPN `tidegate/1`, operator certificate):
//! a [`Request`] frame up, then [`Frame`]s down, the last one always
//! [`Frame::End`] or [`Frame::Error`]. Who asks comes from the certificate and
//! never from a request. Documents and events are JSON, made from the structs of
//! [`super::doc`], so that the CLI can print them as they are.
//!
//! Frames down, per request:
//! - plain requests: one `Document`, `End`
//! - [`Request::ReleaseUpload`]: raw bytes follow the request up the same stream,
//!   then the client finishes it; one `Document` ([`super::doc::UploadDoc`]), `End`
//! - [`Request::RolloutEvents`]: `Event`s, `End`
//! - [`Request::RolloutWatch`]: `Document` (status now), `Event`s as they are
//!   journaled, `Document` (status at the end), `End`
//! - [`Request::RolloutWait`]: `Document` (status at the end), `End`
//!
//! Both enums are append-only; a frame is at most `OPERATOR_FRAME_BYTES_MAX`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_protocol::{Digest, HostName, Millis, ReleaseId, RolloutId, Timestamp};
use tidegate_rollout::process::{Override, Role, SignRole};
use tidegate_rollout::{DrillScope, RolloutState, Verb};

/// Most files in one [`Request::ReleaseUpload`].
pub const UPLOAD_FILES_MAX: usize = 1_000;
/// Most digests in one [`Request::ReleaseMissing`].
pub const MISSING_DIGESTS_MAX: usize = 100_000;

/// Everything behind the CLI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// `--version` of the controller: [`super::doc::VersionDoc`].
    Version,
    /// [`super::doc::TokenDoc`].
    TokenCreate {
        /// Bound to this name; else the host names itself.
        host: Option<HostName>,
        /// The host gets them when it joins.
        labels: BTreeMap<String, String>,
        /// Good for so long.
        ttl: Millis,
        /// Good for so many hosts.
        uses: u32,
    },
    /// A list of [`super::doc::HostDoc`].
    HostList {
        /// Label selector; empty selects all.
        selector: String,
    },
    /// [`super::doc::HostDoc`].
    HostShow {
        /// Which.
        host: HostName,
    },
    /// [`super::doc::HostDoc`] as it is then.
    HostLabel {
        /// Which.
        host: HostName,
        /// A value sets (`k=v`), none removes (`k-`).
        set: BTreeMap<String, Option<String>>,
    },
    /// Leave the host out of new rollouts; [`super::doc::HostDoc`].
    HostDrain {
        /// Which.
        host: HostName,
        /// Why.
        reason: String,
    },
    /// Take it in again; [`super::doc::HostDoc`].
    HostUndrain {
        /// Which.
        host: HostName,
        /// Why.
        reason: String,
    },
    /// [`super::doc::ExplainDoc`].
    HostExplain {
        /// Which.
        host: HostName,
    },
    /// Which of these the depot lacks: [`super::doc::MissingDoc`].
    ReleaseMissing {
        /// At most [`MISSING_DIGESTS_MAX`].
        digests: Vec<Digest>,
    },
    /// The bytes of these files follow, one after the other, `size` bytes each.
    /// A file that is there already is read and dropped.
    ReleaseUpload {
        /// At most [`UPLOAD_FILES_MAX`].
        files: Vec<Blob>,
    },
    /// Once all its files are uploaded: [`super::doc::ImportDoc`].
    ReleaseImport {
        /// The manifest's bytes, as packed.
        manifest: Vec<u8>,
    },
    /// A list of [`super::doc::ReleaseDoc`].
    ReleaseList,
    /// [`super::doc::ReleaseShowDoc`].
    ReleaseShow {
        /// Which.
        release: ReleaseId,
    },
    /// Touches nothing: [`super::doc::PlanDoc`].
    RolloutPlan {
        /// plan.toml.
        spec_text: String,
        /// Its name, for errors.
        file_name: String,
    },
    /// [`super::doc::StartDoc`].
    RolloutStart {
        /// plan.toml.
        spec_text: String,
        /// Its name, for errors.
        file_name: String,
        /// Makes the start idempotent.
        run_id: Option<RolloutId>,
        /// Refuse unless the plan has this digest.
        confirm: Option<Digest>,
    },
    /// A list of [`super::doc::RolloutDoc`], newest first.
    RolloutList,
    /// `tidegate_rollout::status::StatusDoc`.
    RolloutStatus {
        /// Which.
        id: RolloutId,
    },
    /// Events as they happen, until the rollout ends.
    RolloutWatch {
        /// Which.
        id: RolloutId,
        /// Only events with a higher `seq`; 0 = all.
        after_seq: u64,
        /// Ends, with exit code 3, when the rollout waits for a person.
        stop_at_person: bool,
    },
    /// All events so far ([`super::doc::EventDoc`]).
    RolloutEvents {
        /// Which.
        id: RolloutId,
    },
    /// Until one of the states, or until none of them can come any more.
    RolloutWait {
        /// Which.
        id: RolloutId,
        /// What to wait for; empty = any terminal state.
        until: Vec<Until>,
        /// Then exit code 7.
        timeout: Option<Millis>,
    },
    /// pause, resume, promote, ack, halt, rollback: the status document as it is then.
    RolloutVerb {
        /// Which.
        id: RolloutId,
        /// What.
        verb: Verb,
        /// Why.
        reason: String,
    },
    /// [`super::doc::ExplainDoc`].
    RolloutExplain {
        /// Which.
        id: RolloutId,
    },
    /// Somebody saw what no metric shows: the status document as it is then.
    RolloutDeclare {
        /// Which.
        id: RolloutId,
        /// `data-corruption`, `security-incident`, or what the plan names.
        what: String,
        /// What was seen.
        reason: String,
    },
    /// A person vouches for an item of a stage: the status document as it is then.
    RolloutAttest {
        /// Which.
        id: RolloutId,
        /// As the plan names it.
        item: String,
        /// What was looked at.
        note: String,
    },
    /// A plan judged against what a rollout journaled; touches nothing:
    /// `tidegate_rollout::replay::ReplayDoc`.
    RolloutReplay {
        /// Which rollout's journal.
        id: RolloutId,
        /// plan.toml.
        spec_text: String,
        /// Its name, for errors.
        file_name: String,
    },
    /// As [`Request::RolloutStart`], for a rehearsal: forward, verify, back, verify.
    RolloutDrill {
        /// plan.toml.
        spec_text: String,
        /// Its name, for errors.
        file_name: String,
        /// Makes the start idempotent.
        run_id: Option<RolloutId>,
        /// On which hosts of the plan.
        scope: DrillScope,
    },
    /// What a signature has to cover: [`super::doc::PayloadDoc`].
    Payload {
        /// Which rollout.
        id: RolloutId,
        /// For what.
        purpose: Purpose,
    },
    /// An approval, an override or a sign-off, signed over the payload: the status
    /// document as it is then; of a sign-off [`super::doc::HandoffDoc`].
    RolloutSign {
        /// Which rollout.
        id: RolloutId,
        /// For what.
        purpose: Purpose,
        /// Armored, namespace `tidegate-approval`.
        signature: String,
    },
    /// A remark, or how an issue of the execution log was resolved: the status
    /// document as it is then.
    RolloutNote {
        /// Which.
        id: RolloutId,
        /// What.
        text: String,
        /// The number in the log.
        resolves: Option<u32>,
    },
    /// An outstanding item, new or changed: [`super::doc::HandoffDoc`].
    RolloutItem {
        /// Which.
        id: RolloutId,
        /// None = a new one.
        item: Option<u32>,
        /// None = as before.
        what: Option<String>,
        /// None = as before.
        owner: Option<String>,
        /// None = as before; of a new one `open`.
        status: Option<String>,
        /// None = as before.
        eta: Option<String>,
    },
    /// What is handed over and what is still open: [`super::doc::HandoffDoc`].
    RolloutHandoff {
        /// Which.
        id: RolloutId,
    },
    /// The review: the status document as it is then.
    RolloutReview {
        /// Which.
        id: RolloutId,
        /// review.toml; none = answer a template with what is known.
        review_text: Option<String>,
        /// Its name, for errors.
        file_name: String,
    },
    /// Handed over, reviewed, nothing open: the status document as it is then.
    RolloutClose {
        /// Which.
        id: RolloutId,
    },
    /// The six deliverables: one [`super::doc::PaperDoc`] frame each.
    RolloutDocs {
        /// Which.
        id: RolloutId,
    },
    /// Nobody goes forward meanwhile: [`super::doc::FreezeDoc`].
    FreezeAdd {
        /// Why.
        reason: String,
        /// None = now.
        from: Option<Timestamp>,
        /// None = until it is removed.
        until: Option<Timestamp>,
        /// Only rollouts of this environment.
        environment: Option<String>,
        /// Only rollouts that touch a host it selects; empty = all.
        selector: String,
    },
    /// A list of [`super::doc::FreezeDoc`].
    FreezeList {
        /// Those that are over, too.
        all: bool,
    },
    /// [`super::doc::FreezeDoc`] as it was.
    FreezeRemove {
        /// Its number.
        freeze: u32,
        /// Why.
        reason: String,
    },
    /// A test message over each route: a list of [`super::doc::RouteDoc`].
    NotifyTest {
        /// Which; empty = all.
        routes: Vec<String>,
    },
    /// Reads the journal again from disk and compares it with what hosts
    /// remember: [`super::doc::AuditDoc`].
    AuditVerify,
    /// The journal's records, oldest first, as `Event`s.
    AuditExport {
        /// Only with a higher `seq`; 0 = all.
        after_seq: u64,
        /// Only of this rollout.
        rollout: Option<RolloutId>,
    },
}

/// What a signature is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// An approval.
    Approve(Role),
    /// Going past a window or a freeze.
    Override {
        /// Which of the two.
        what: Override,
        /// As what.
        role: Role,
        /// Why; it is signed too.
        reason: String,
    },
    /// The handoff.
    Handoff(SignRole),
}

/// A file to be uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// sha256 of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// What `rollout wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// The rollout is in this state.
    State(RolloutState),
    /// `wave:N`: this wave has passed.
    Wave(u32),
}

/// An answer's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// A JSON document.
    Document(String),
    /// One event, as a line of JSON.
    Event(String),
    /// It did not work; nothing follows.
    Error(ErrorDoc),
    /// All was said.
    End {
        /// The exit code of the contract: 0 for plain requests, the rollout's
        /// for those that wait.
        exit: u8,
    },
}

/// What went wrong, for people and scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorDoc {
    /// The class; decides the exit code.
    pub code: ErrorCode,
    /// The thing.
    pub message: String,
    /// Why.
    pub cause: Option<String>,
    /// What to do.
    pub fix: Option<String>,
}

impl ErrorDoc {
    /// An error of that class, without cause or fix.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None, fix: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// With why.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

/// Classes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The command line, or a file that does not read as what it should be.
    Usage,
    /// Refused before anything was touched.
    Refused,
    /// No such thing.
    NotFound,
    /// The certificate's roles do not allow it.
    Denied,
    /// Not now: overloaded or stopping.
    Unavailable,
    /// The controller's own trouble.
    Internal,
    /// The command no longer watches; the rollout goes on.
    Detached,
    /// It does not fit the state that the thing is in.
    Conflict,
}

impl ErrorCode {
    /// The exit code of the contract: the one place that maps them.
    #[must_use]
    pub const fn exit(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Refused => 5,
            Self::Detached => 7,
            Self::NotFound | Self::Denied | Self::Unavailable | Self::Internal | Self::Conflict => 1,
        }
    }
}

/// The exit code of a command that waited for a rollout and saw it end so.
#[must_use]
pub const fn exit_of(state: RolloutState) -> u8 {
    match state {
        RolloutState::Completed => 0,
        RolloutState::RolledBack => 4,
        RolloutState::Refused => 5,
        RolloutState::Mixed => 6,
        RolloutState::Halted => 8,
        // It goes on; the command does not.
        RolloutState::AwaitingApproval
        | RolloutState::Scheduled
        | RolloutState::Running
        | RolloutState::Paused
        | RolloutState::Baking
        | RolloutState::Watching
        | RolloutState::RollingBack => 7,
    }
}

/// The exit code of a command that ends because a person is waited for.
pub const EXIT_PERSON: u8 = 3;
/// The exit code of a command that ended before what it waited for.
pub const EXIT_DETACHED: u8 = 7;
