//! What drives Tidegate from outside: fleets of real processes on loopback and
//! of real systemd hosts, for tests and for the demo.
//!
//! Owns: starting, killing and cleaning up; packing releases and plans; asking
//! the programs and the services what is so. Must not: look into the programs'
//! memory or files beyond what the contract names — an operator could not either.

pub mod ask;
pub mod bench;
pub mod bins;
pub mod browser;
pub mod client;
pub mod fleet;
pub mod load;
pub mod logs;
pub mod mail;
pub mod nspawn;
pub mod output;
pub mod paperwork;
pub mod people;
pub mod plan;
pub mod ports;
pub mod process;
pub mod receiver;
pub mod release;
pub mod shape;
pub mod sim;
pub mod tools;
pub mod wait;

pub use fleet::{Fleet, FleetBuilder};
pub use output::Output;
pub use plan::Plan;
pub use release::{Component, Release, Task};
pub use wait::wait_until;
