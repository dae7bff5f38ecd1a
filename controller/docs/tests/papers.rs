//! The documents against rollouts written by hand.

#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]
#![allow(dead_code, unreachable_pub, reason = "not every test uses all of the world, which others may use too")]

mod world;

use world::{complete, rolled_back};

#[test]
fn dump() {
    if let Some(dir) = std::env::var_os("PAPERS_OUT") {
        for (name, journal) in [("complete", complete()), ("rolled-back", rolled_back())] {
            let dir = std::path::Path::new(&dir).join(name);
            std::fs::create_dir_all(&dir).unwrap();
            for paper in journal.papers() {
                std::fs::write(dir.join(paper.name), paper.text).unwrap();
            }
        }
    }
}
