//! The host machine against a model of a host: rows of DESIGN.md's tables, crash
//! points, and random runs with the invariants checked after every step.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

mod crash;
mod disk;
mod model;
mod property;
mod table;
