//! Bytes that nobody of ours wrote: an error or a valid value, never a panic,
//! never more memory than the frame is worth.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Debug;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_protocol::Report;
use tidegate_protocol::codec::{CodecError, PREFIX_BYTES, decode, encode, frame_len};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX as MAX;
use tidegate_protocol::message::{EnrollReply, EnrollRequest, FetchHeader, FetchRequest, ToAgent, ToController};
use tidegate_protocol::metric::{Number, Reading};

trait Wire: Serialize + DeserializeOwned + PartialEq + Debug {}
impl<T: Serialize + DeserializeOwned + PartialEq + Debug> Wire for T {}

fn body<T: Wire>(value: &T) -> Vec<u8> {
    encode(value, MAX).unwrap().split_off(PREFIX_BYTES)
}

/// What decodes must be a value like any other: it encodes, and comes back the same.
fn decodes_or_not<T: Wire>(bytes: &[u8]) -> bool {
    let Ok(value) = decode::<T>(bytes) else { return false };
    // The bytes may have been a longer spelling of it; the value must be stable.
    assert_eq!(decode::<T>(&body(&value)), Ok(value));
    true
}

fn decode_as_everything(bytes: &[u8]) {
    decodes_or_not::<ToController>(bytes);
    decodes_or_not::<ToAgent>(bytes);
    decodes_or_not::<FetchRequest>(bytes);
    decodes_or_not::<FetchHeader>(bytes);
    decodes_or_not::<EnrollRequest>(bytes);
    decodes_or_not::<EnrollReply>(bytes);
}

fn cut_and_flipped<T: Wire>(examples: Vec<(String, T)>) {
    for (name, value) in examples {
        let good = body(&value);
        for cut in 0..good.len() {
            assert_eq!(decode::<T>(&good[..cut]), Err(CodecError::Malformed), "{name} cut at {cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(decode::<T>(&longer), Err(CodecError::Trailing { bytes: 1 }), "{name}");
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Never the value that was sent: no bit is without a meaning.
            assert_ne!(decode::<T>(&flipped).as_ref(), Ok(&value), "{name} bit {bit}");
            decodes_or_not::<T>(&flipped);
        }
    }
}

#[test]
fn cut_and_flipped_messages_are_errors_or_other_values() {
    cut_and_flipped(common::to_controller());
    cut_and_flipped(common::to_agent());
    cut_and_flipped(common::fetch_request());
    cut_and_flipped(common::fetch_header());
    cut_and_flipped(common::enroll_request());
    cut_and_flipped(common::enroll_reply());
}

#[test]
fn names_are_checked_on_the_wire() {
    let request = common::enroll_request().remove(0).1;
    let good = body(&request);
    let at = good.windows(5).position(|window| window == b"web-1").unwrap();
    for bad in [b"../..", b"WEB-1", b"web\n1", b"-web1"] {
        let mut bytes = good.clone();
        bytes[at..at + 5].copy_from_slice(bad);
        assert_eq!(decode::<EnrollRequest>(&bytes), Err(CodecError::Malformed));
    }
}

#[test]
fn a_claimed_length_is_checked_before_anything_else() {
    for bytes in [MAX + 1, u32::MAX as usize] {
        let prefix = u32::try_from(bytes).unwrap().to_le_bytes();
        assert_eq!(frame_len(prefix, MAX), Err(CodecError::TooLarge { bytes, max: MAX }));
    }
    assert_eq!(frame_len(u32::try_from(MAX).unwrap().to_le_bytes(), MAX), Ok(MAX));
}

/// bincode's variable-length integer, in its longest spelling.
fn claim(count: u64) -> Vec<u8> {
    [vec![253], count.to_le_bytes().to_vec()].concat()
}

/// Most memory this process ever had, KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_claimed_count_makes_no_memory() {
    let filler = vec![b'a'; 4_000];
    let before = peak_kib();
    for count in [1 << 16, 1 << 20, 60 << 20, 1 << 32, 1 << 40, u64::MAX] {
        // FetchRequest.digests, EnrollRequest.secret, EnrollReply::Refused.reason,
        // ToAgent::Labels, Watch, Tasks and Outages, ToController::Samples, Sides, Tasks, Outages and Vars, and after a
        // valid start ToController::Report.components.
        let digests = [claim(count), filler.clone()].concat();
        assert_eq!(decode::<FetchRequest>(&digests), Err(CodecError::Malformed), "{count}");
        assert_eq!(decode::<EnrollRequest>(&digests), Err(CodecError::Malformed), "{count}");
        let reason = [vec![1], digests.clone()].concat();
        assert_eq!(decode::<EnrollReply>(&reason), Err(CodecError::Malformed), "{count}");
        for tag in [3, 4, 7, 8] {
            let list = [vec![tag], digests.clone()].concat();
            assert_eq!(decode::<ToAgent>(&list), Err(CodecError::Malformed), "{count}");
        }
        for tag in [2, 3, 4, 5, 6] {
            let list = [vec![tag], digests.clone()].concat();
            assert_eq!(decode::<ToController>(&list), Err(CodecError::Malformed), "{count}");
        }
        let mut report = body(&ToController::Report(Report { sequence: 1, host: Default::default(), components: Vec::new() }));
        assert_eq!(report.pop(), Some(0), "the count of components stands last");
        assert_eq!(decode::<ToController>(&[report, digests].concat()), Err(CodecError::Malformed), "{count}");
    }
    let grown = peak_kib() - before;
    assert!(grown < 16 * 1024, "frames of 4 kB made {grown} KiB of memory");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        decode_as_everything(&bytes);
    }

    /// Small numbers are tags, counts and lengths: they get further than random bytes.
    #[test]
    fn random_small_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![0u8..10, b'a'..=b'z', 250u8..=255], 0..500)) {
        decode_as_everything(&bytes);
    }

    /// A piece of a real message replaced by noise.
    #[test]
    fn messages_with_noise_never_panic(at in any::<proptest::sample::Index>(), noise in proptest::collection::vec(any::<u8>(), 1..40), which in 0usize..8) {
        let mut bytes = body(&common::to_controller().swap_remove(which).1);
        let at = at.index(bytes.len());
        let end = (at + noise.len()).min(bytes.len());
        bytes.splice(at..end, noise);
        decode_as_everything(&bytes);
    }
}

#[test]
fn only_finite_numbers_come_off_the_wire() {
    let gauge = |value: f64| Reading::Gauge(Number::new(value).unwrap());
    let good = body(&gauge(1.5));
    let at = good.windows(8).position(|window| window == 1.5f64.to_le_bytes()).unwrap();
    for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&bad.to_le_bytes());
        assert_eq!(decode::<Reading>(&bytes), Err(CodecError::Malformed), "{bad}");
    }
}
