//! What every operation of every component works with on this host.
//!
//! Owns nothing by itself: it holds the parts together.

use std::sync::Arc;

use crate::context::Context;
use crate::fetch::Depot;
use crate::ledger::Ledger;
use crate::links::Links;
use crate::manifest::Manifests;
use crate::service::Services;
use crate::store::Store;
use crate::tree::Trees;

/// The parts of one agent.
pub struct Host {
    /// Who and what policy.
    pub ctx: Arc<Context>,
    /// Start, stop, prove.
    pub services: Services,
    /// The durable records.
    pub ledger: Ledger,
    /// Verified bytes.
    pub store: Store,
    /// Release trees.
    pub trees: Trees,
    /// Links outside the trees.
    pub links: Links,
    /// Manifests by digest.
    pub manifests: Manifests,
    /// Bytes from the controller.
    pub depot: Depot,
    /// Held for reading while files wait in the store for their tree, and for
    /// writing while the store is cleaned: a file is not dropped between its
    /// arrival and its use.
    pub staging: tokio::sync::RwLock<()>,
}
