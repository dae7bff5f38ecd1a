//! The messages of every stream between an agent and its controller.
//!
//! One control stream (bidirectional, opened by the agent, lives as long as the
//! connection) carries [`ToController`] up and [`ToAgent`] down. Artifacts travel
//! on their own bidirectional streams: a [`FetchRequest`] up, then for each
//! digest a [`FetchHeader`] and, if it is there, exactly `size` raw bytes down.
//! Enrolment is one exchange of [`EnrollRequest`] and [`EnrollReply`] on a
//! connection without a client certificate and with its own ALPN.
//! Enums are append-only; golden bytes are in `tests/golden`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::report::AgentFacts;
use crate::{
    Assignment, ComponentName, Digest, HostName, JournalHead, Outages, Report, Samples, SideAssignment, SidesReport, SwitchOrder,
    TaskOrder, TaskReport, VarDigest, Watch,
};

/// ALPN of agents and operators with a certificate.
pub const ALPN: &[u8] = b"tidegate/1";
/// ALPN of a host that has a token and no certificate yet.
pub const ALPN_ENROLL: &[u8] = b"tidegate-enroll/1";

/// Message versions this build can speak.
/// Since 2: watches and samples, sides and switches. Since 3: tasks, outages,
/// configuration digests, the journal's head.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 3 };
/// The first version with watches, samples, sides and switches.
pub const VERSION_WATCH: u16 = 2;
/// The first version with tasks, outages, configuration digests and the journal's head.
pub const VERSION_PROCESS: u16 = 3;

/// An offer of message versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// The newest version both sides speak.
    #[must_use]
    pub fn agree(self, other: Self) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }
}

/// Agent to controller, on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToController {
    /// First, once.
    Hello {
        /// What the agent can speak.
        versions: VersionRange,
        /// Who speaks.
        agent: AgentFacts,
        /// Observed state.
        report: Report,
    },
    /// Observed state, whole.
    Report(Report),
    /// What was measured, whole: one per watch. From [`VERSION_WATCH`] on.
    Samples(Vec<Samples>),
    /// Components with two sides, whole. From [`VERSION_WATCH`] on, after every
    /// report of an agent that has any.
    Sides(Vec<SidesReport>),
    /// Tasks that the host knows of, whole, at most [`crate::limits::TASKS_MAX`].
    /// From [`VERSION_PROCESS`] on, after the welcome and at every change.
    Tasks(Vec<TaskReport>),
    /// Of every component that is observed, whole. From [`VERSION_PROCESS`] on, at
    /// every change and with each report.
    Outages(Vec<Outages>),
    /// The host's `[vars]`, whole. From [`VERSION_PROCESS`] on, after the welcome.
    Vars(Vec<VarDigest>),
    /// The highest head the host keeps. From [`VERSION_PROCESS`] on, after the
    /// welcome and once a newer one is durable.
    Head(JournalHead),
}

/// Controller to agent, on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// First, once: the version agreed on and how often to report.
    Welcome {
        /// Spoken from here on.
        version: u16,
        /// The name the certificate says.
        host: HostName,
        /// Between two reports without a change.
        report_every_ms: u64,
        /// The host's labels, for `${label.NAME}`.
        labels: BTreeMap<String, String>,
    },
    /// Instead of a welcome; the connection ends.
    Refused {
        /// The thing, the cause and the fix.
        reason: String,
    },
    /// Desired state of one component.
    Assign(Assignment),
    /// The host's labels changed.
    Labels(BTreeMap<String, String>),
    /// What shall be measured, whole: what is not in it ends. From
    /// [`VERSION_WATCH`] on, said after every welcome.
    Watch(Vec<Watch>),
    /// Desired state of one side. From [`VERSION_WATCH`] on.
    AssignSide(SideAssignment),
    /// Desired state of the switch of one component. From [`VERSION_WATCH`] on.
    Switch(SwitchOrder),
    /// Tasks of this host, whole: what is not in it may be forgotten once it ended.
    /// From [`VERSION_PROCESS`] on, said after every welcome.
    Tasks(Vec<TaskOrder>),
    /// Components whose outages shall be observed, whole: what is not in it ends.
    /// From [`VERSION_PROCESS`] on, said after every welcome.
    Outages(Vec<ComponentName>),
    /// Keep it if its `seq` is higher. From [`VERSION_PROCESS`] on.
    Head(JournalHead),
}

/// First frame of an artifact stream, agent to controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    /// In the order wanted.
    pub digests: Vec<Digest>,
}

/// Before each artifact's bytes, controller to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchHeader {
    /// Exactly so many bytes follow.
    File {
        /// Bytes.
        size: u64,
    },
    /// The depot does not have it, or this host may not have it; nothing follows.
    Missing,
}

/// A host that wants a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The token's secret part.
    pub secret: String,
    /// The name the host asks for.
    pub name: HostName,
    /// PKCS #10, DER; the key never leaves the host.
    pub csr: Vec<u8>,
    /// The agent's version.
    pub agent_version: String,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollReply {
    /// Come in.
    Granted {
        /// The name in the certificate.
        host: HostName,
        /// The host's certificate, DER.
        certificate: Vec<u8>,
        /// The CA's certificate, DER.
        ca: Vec<u8>,
    },
    /// Stay out.
    Refused {
        /// The thing, the cause and the fix.
        reason: String,
    },
}
