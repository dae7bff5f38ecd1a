//! The controller of a fleet and the operator's command line.
//!
//! Owns: the daemon `tidegate-controller` (journal, depot, sessions of agents and
//! operators, tokens) and the CLI `tidegate`. Must not: decide how a rollout goes
//! (that is `tidegate-rollout`), or know how a host swaps (that is the agent).

pub mod approvers;
pub mod bundle;
pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod daemon;
pub mod depot;
pub mod environment;
pub mod error;
pub mod failpoint;
pub mod init;
pub mod notify;
pub mod operator;
pub mod outbox;
pub mod registry;
pub mod session;
pub mod sources;
pub mod store;
pub mod tokens;
pub mod windows;
