//! What hosts witness beside their own state: the head of the controller's
//! journal, times without service, and what their configuration says.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{ComponentName, Digest};

/// The newest record of the controller's journal. Hosts keep the one with the
/// highest `seq` durably and say it at every welcome, so that a journal cut off at
/// its end, or replaced, is found by those who saw more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    /// Its place, from 1.
    pub seq: u64,
    /// Its hash, which covers all before it.
    pub hash: Digest,
}

/// Times at which a component gave no good answer, since its observation began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outages {
    /// Of what.
    pub component: ComponentName,
    /// What is called: `http://127.0.0.1:8080/`; empty if there is nothing to call,
    /// and then nothing is known of its outages.
    pub probe: String,
    /// Observation began, on the host's clock, Unix milliseconds.
    pub since_unix_ms: u64,
    /// In order of time, at most [`crate::limits::OUTAGES_MAX`]; the last ones grow
    /// together beyond that.
    pub intervals: Vec<Outage>,
}

/// From the first probe without a good answer to the next one with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// The first bad probe began, on the host's clock, Unix milliseconds.
    pub from_unix_ms: u64,
    /// The next good one began; 0 while it goes on.
    pub to_unix_ms: u64,
}

/// One name of `[vars]` and the digest of its value, so that configurations are
/// compared without travelling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VarDigest {
    /// The name.
    pub name: String,
    /// sha256 of `name=value`.
    pub digest: Digest,
}
