//! What happens to the fleet as a whole: records of no rollout, in the same chain.

use serde::{Deserialize, Serialize};
use tidegate_protocol::Timestamp;

/// Stands where other records have their rollout: no rollout can be called so.
pub(super) const FLEET: &str = "~fleet";

/// One line of the fleet's history. JSON; variants and fields are only added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FleetRecord {
    /// Nobody whom it covers goes forward meanwhile.
    FreezeAdded {
        /// Its number, from 1.
        freeze: u32,
        /// Why.
        reason: String,
        /// Who.
        by: String,
        /// From.
        from: Timestamp,
        /// None: until it is removed.
        until: Option<Timestamp>,
        /// Only rollouts of this environment.
        environment: Option<String>,
        /// Only rollouts that change a host it selects; empty = all.
        selector: String,
    },
    /// It is over before its end.
    FreezeRemoved {
        /// Its number.
        freeze: u32,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// A test message was sent over a notification route.
    RouteTested {
        /// Its name.
        route: String,
        /// Its kind: slack, email, pagerduty, webhook.
        via: String,
        /// The other side took it.
        ok: bool,
        /// What it said.
        detail: String,
        /// Who asked.
        by: String,
    },
}

/// A record of the fleet to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFleet {
    /// When it was decided.
    pub at: Timestamp,
    /// What.
    pub record: FleetRecord,
}
