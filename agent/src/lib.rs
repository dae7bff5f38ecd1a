//! The agent: one system service per host that converges on what its controller
//! assigns, and says what it observes.
//!
//! Owns: this host's disk, processes and leases. Must not: know a wave, a gate or
//! a strategy, or do anything that local policy does not allow.
//!
//! Deciding is in `tidegate-swap`; here it is done. [`driver`] runs one machine
//! per component, [`ops`] performs what it asks for, [`link`] talks to the
//! controller, [`report`] says what is seen.

pub mod cli;
pub mod config;
pub mod context;
pub mod daemon;
pub mod driver;
pub mod durable;
pub mod enroll;
pub mod error;
pub mod exec;
pub mod facts;
pub mod failpoint;
pub mod fetch;
pub mod head;
pub mod host;
pub mod launch;
pub mod ledger;
pub mod link;
pub mod links;
pub mod logs;
pub mod manifest;
pub mod observe;
pub mod ops;
pub mod outages;
pub mod paths;
pub mod preflight;
pub mod report;
pub mod service;
pub mod slot;
pub mod smoke;
pub mod stage;
pub mod status;
pub mod store;
pub mod switch;
pub mod tasks;
pub mod tidy;
pub mod tree;
pub mod vars;
pub mod work;
