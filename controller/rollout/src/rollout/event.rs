//! What the rollout machine takes in and asks for.

use tidegate_protocol::report::HostFacts;
use tidegate_protocol::{
    Assignment, ComponentReport, HostName, Outages, RolloutId, Samples, SideAssignment, SidesReport, SwitchOrder, TaskReport,
};

use super::Fetched;
#[cfg(doc)]
use super::{Fetch, Rollout};
use crate::gate::Group;
use crate::process::{Opening, Override, Role, Row, Signed};
use crate::record::{Record, Verb};

/// What the machine asks of its driver, in the order polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make it durable before anything that follows.
    Append(Record),
    /// Tell the host, if it is connected; a reconnect asks [`Rollout::assignments`].
    Send(HostName, Assignment),
    /// The same for one side of a component; a reconnect asks [`Rollout::sides`].
    SendSide(HostName, SideAssignment),
    /// The same for a switch; a reconnect asks [`Rollout::switches`].
    SendSwitch(HostName, SwitchOrder),
    /// What this rollout wants measured on the host changed: tell it all of its
    /// [`Rollout::watches`], those of other rollouts included.
    Watch(HostName),
    /// The tasks of the host changed: tell it all of its [`Rollout::task_orders`],
    /// those of other rollouts included.
    Tasks(HostName),
    /// Whose outages shall be observed there changed: tell it all of its
    /// [`Rollout::outage_watches`], those of other rollouts included.
    Outages(HostName),
}

/// What the machine reacts to, besides time passing.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A host's component as just reported.
    Report(&'a HostName, &'a ComponentReport),
    /// A host's sides as just reported.
    Sides(&'a HostName, &'a SidesReport),
    /// The machine's own numbers, as just reported.
    Facts(&'a HostName, &'a HostFacts),
    /// What a host measured, as just reported.
    Samples(&'a HostName, &'a Samples),
    /// A fetch ended; the error is one sentence.
    Fetched {
        /// As in the [`Fetch`].
        metric: &'a str,
        /// As in the [`Fetch`].
        group: Group,
        /// What it brought.
        result: Result<&'a Fetched, &'a str>,
    },
    /// A person declares that something happened.
    Declared {
        /// `data-corruption`, `security-incident`, or what the plan names.
        what: &'a str,
        /// Who.
        by: &'a str,
        /// What they saw.
        reason: &'a str,
    },
    /// A person attests an item of a stage.
    Attested {
        /// Which.
        item: &'a str,
        /// Who.
        by: &'a str,
        /// What they looked at.
        note: &'a str,
    },
    /// The checklist's automatic rows as found now: said while it waits to begin.
    Readiness(&'a [Row]),
    /// The openings of its windows, those that ended left out: said at the start,
    /// and again whenever all that were told are over.
    Windows(&'a [Opening]),
    /// A freeze covers it, or none does any more.
    Frozen(Option<&'a str>),
    /// A person approved; the signature was verified.
    Approved {
        /// As what.
        role: Role,
        /// The proof.
        signed: &'a Signed,
    },
    /// A person goes past a window or a freeze; the signature was verified.
    Overridden {
        /// What.
        what: Override,
        /// As what.
        role: Role,
        /// The proof.
        signed: &'a Signed,
        /// Why.
        reason: &'a str,
    },
    /// A host says how a task is.
    Task(&'a HostName, &'a TaskReport),
    /// A host says when a component gave no good answer.
    Outages(&'a HostName, &'a Outages),
    /// What became of a notification.
    Notified {
        /// As in the notice.
        key: &'a str,
        /// The route.
        route: &'a str,
        /// Nothing, or what went wrong for good.
        result: Result<(), &'a str>,
    },
    /// A remark, a resolution, an item, a review, a sign-off, the end of it all:
    /// appended if it fits the state.
    Paper(&'a Record),
    /// A newer rollout takes over what this one only watches.
    Superseded(&'a RolloutId),
    /// A host came into contact, or was lost.
    Contact(&'a HostName, bool),
    /// A person's word.
    Said {
        /// Which.
        verb: Verb,
        /// Who.
        by: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The controller came back and folded the journal. Say it once per rollout
    /// that has not ended, after [`Rollout::fold`].
    Returned,
    /// The time of [`Rollout::poll_timeout`] has come.
    Timeout,
}
