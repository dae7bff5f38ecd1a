//! What every operation of every component works with on this host.
//!
//! Owns nothing by itself: it holds the parts together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_protocol::Digest;

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
    /// Trees whose every byte was compared by this process.
    pub verified: Verified,
}

/// Trees known to be as their manifests say, each by its directory, with the
/// fingerprint it had then: comparing takes long, and is not done twice for
/// nothing.
#[derive(Debug, Default)]
pub struct Verified(Mutex<BTreeMap<PathBuf, Digest>>);

/// Trees remembered; a host keeps a few of each component.
const VERIFIED_MAX: usize = 256;

impl Verified {
    /// It was compared whole and had this fingerprint before.
    pub fn remember(&self, dir: &Path, fingerprint: Digest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= VERIFIED_MAX {
            known.clear();
        }
        known.insert(dir.to_owned(), fingerprint);
    }

    /// Whether a tree with this fingerprint was compared.
    #[must_use]
    pub fn holds(&self, dir: &Path, fingerprint: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(dir) == Some(fingerprint)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tokio::sync::watch;

    /// A whole host, which starts nothing and has no connection.
    pub(crate) fn host(ctx: Context) -> Arc<Host> {
        let ctx = Arc::new(ctx);
        let state = ctx.state_dir.clone();
        std::fs::create_dir_all(&state).unwrap();
        Arc::new(Host {
            services: Services::observing(ctx.clone()),
            ledger: Ledger::open(state.join("ledger")).unwrap(),
            store: Store::open(state.join("store")).unwrap(),
            trees: Trees::open(&ctx.opt_dir).unwrap(),
            links: Links::new(state.join("links"), Vec::new()),
            manifests: Manifests::new(state.join("manifests")),
            depot: Depot::new(watch::channel(None).1),
            staging: tokio::sync::RwLock::new(()),
            verified: Verified::default(),
            ctx,
        })
    }
}
