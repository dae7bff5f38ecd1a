//! The real agent binary against a fake controller over real QUIC.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a panic is a failed test")]

mod basics;
mod disk;
mod fake;
mod host;
mod observe;
mod rounds;
mod sides;
mod tasks;
mod witness;
