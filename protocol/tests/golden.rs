//! The bytes of every message, pinned: released wire types are frozen.
//!
//! A difference here breaks agents and controllers that are out there. A change
//! is a new variant at the end of an enum, with new files; `TIDEGATE_BLESS=1`
//! writes them.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use common::Variants;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_protocol::codec::{PREFIX_BYTES, decode, encode, frame_len};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{ToAgent, ToController};
use tidegate_protocol::metric::Source;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn bless() -> bool {
    std::env::var_os("TIDEGATE_BLESS").is_some_and(|value| value == "1")
}

/// Whole frame, 32 bytes a line.
fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Encodes as pinned, and the pinned bytes decode to the same value. Returns the file names.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(examples: Vec<(String, T)>) -> Vec<String> {
    let mut names = Vec::new();
    for (name, value) in examples {
        let frame = encode(&value, CONTROL_FRAME_BYTES_MAX).unwrap();
        let file = format!("{name}.hex");
        let path = folder().join(&file);
        if bless() {
            fs::write(&path, hex(&frame)).unwrap();
        }
        let pinned = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}; a new message needs TIDEGATE_BLESS=1 once"));
        assert_eq!(hex(&frame), pinned, "{file}: these bytes are frozen");
        let pinned = unhex(&pinned);
        let (prefix, body) = pinned.split_first_chunk::<PREFIX_BYTES>().unwrap();
        assert_eq!(frame_len(*prefix, CONTROL_FRAME_BYTES_MAX), Ok(body.len()), "{file}");
        assert_eq!(decode::<T>(body).as_ref(), Ok(&value), "{file}");
        names.push(file);
    }
    names
}

#[test]
fn every_message_has_its_bytes() {
    let mut files = Vec::new();
    files.extend(check(common::to_controller()));
    files.extend(check(common::to_agent()));
    files.extend(check(common::fetch_request()));
    files.extend(check(common::fetch_header()));
    files.extend(check(common::enroll_request()));
    files.extend(check(common::enroll_reply()));
    let files: BTreeSet<String> = files.into_iter().collect();
    let there: BTreeSet<String> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, files, "left: files in golden/, right: messages; a released message never goes away");
}

fn covered<'a, T: Variants + 'a>(values: impl IntoIterator<Item = &'a T>) {
    let seen: BTreeSet<&str> = values.into_iter().map(Variants::variant).collect();
    let all: BTreeSet<&str> = T::ALL.iter().copied().collect();
    assert_eq!(seen, all, "{}: a variant has no example", std::any::type_name::<T>());
}

#[test]
fn every_variant_has_an_example() {
    let (up, down) = (common::to_controller(), common::to_agent());
    let (headers, replies) = (common::fetch_header(), common::enroll_reply());
    covered(up.iter().map(|(_, m)| m));
    covered(down.iter().map(|(_, m)| m));
    covered(headers.iter().map(|(_, m)| m));
    covered(replies.iter().map(|(_, m)| m));

    let assignments = || down.iter().filter_map(|(_, m)| if let ToAgent::Assign(a) = m { Some(a) } else { None });
    covered(assignments().map(|a| &a.phase));
    covered(assignments().map(|a| &a.intent));
    covered(assignments().map(|a| &a.target));

    for (_, message) in &up {
        let (ToController::Hello { report, .. } | ToController::Report(report)) = message else { continue };
        covered(report.components.iter().map(|c| &c.progress));
        covered(report.components.iter().filter_map(|c| c.failure.as_ref()).map(|f| &f.cause));
        covered(report.components.iter().map(|c| &c.service));
        covered(report.components.iter().flat_map(|c| &c.smoke).map(|s| &s.status));
    }
}

#[test]
fn every_variant_of_watches_samples_and_sides_has_an_example() {
    let (up, down) = (common::to_controller(), common::to_agent());
    let watches: Vec<_> = down.iter().filter_map(|(_, m)| if let ToAgent::Watch(w) = m { Some(w) } else { None }).flatten().collect();
    let sources = || watches.iter().flat_map(|w| &w.observers).map(|o| &o.source);
    covered(watches.iter().filter_map(|w| w.side.as_ref()));
    covered(sources());
    covered(sources().filter_map(|s| if let Source::Probe { read, .. } = s { Some(read) } else { None }));
    covered(sources().filter_map(|s| if let Source::Scrape { read, .. } = s { Some(read) } else { None }));
    covered(sources().filter_map(|s| if let Source::Journal { what, .. } = s { Some(what) } else { None }));

    let samples: Vec<_> = up.iter().filter_map(|(_, m)| if let ToController::Samples(s) = m { Some(s) } else { None }).flatten().collect();
    covered(samples.iter().filter_map(|s| s.side.as_ref()));
    covered(samples.iter().flat_map(|s| &s.readings).map(|r| &r.reading));

    let sides: Vec<_> = up.iter().filter_map(|(_, m)| if let ToController::Sides(s) = m { Some(s) } else { None }).flatten().collect();
    covered(sides.iter().map(|s| &s.progress));
    covered(sides.iter().filter_map(|s| s.active.as_ref()));
    covered(sides.iter().flat_map(|s| &s.sides).map(|s| &s.side));

    covered(down.iter().filter_map(|(_, m)| if let ToAgent::AssignSide(a) = m { Some(&a.side) } else { None }));
    let switches = || down.iter().filter_map(|(_, m)| if let ToAgent::Switch(s) = m { Some(s) } else { None });
    covered(switches().map(|s| &s.to));
    covered(switches().filter_map(|s| s.verify.as_ref()).map(|v| &v.check));
    covered(switches().filter_map(|s| s.verify.as_ref()).map(|v| &v.suite));
}

#[test]
fn every_variant_of_tasks_and_outages_has_an_example() {
    let (up, down) = (common::to_controller(), common::to_agent());
    let orders: Vec<_> = down.iter().filter_map(|(_, m)| if let ToAgent::Tasks(t) = m { Some(t) } else { None }).flatten().collect();
    covered(orders.iter().map(|order| &order.what));
    let tasks: Vec<_> = up.iter().filter_map(|(_, m)| if let ToController::Tasks(t) = m { Some(t) } else { None }).flatten().collect();
    covered(tasks.iter().map(|task| &task.what));
    covered(tasks.iter().map(|task| &task.state));
    let outages: Vec<_> = up.iter().filter_map(|(_, m)| if let ToController::Outages(o) = m { Some(o) } else { None }).flatten().collect();
    assert!(outages.iter().any(|one| one.probe.is_empty()));
    let intervals: Vec<_> = outages.iter().flat_map(|one| &one.intervals).collect();
    assert!(intervals.iter().any(|one| one.to_unix_ms == 0) && intervals.iter().any(|one| one.to_unix_ms > 0));
}
