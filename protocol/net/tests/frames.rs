//! Frames on real streams: bounds, ends, slow and hostile peers.
// A panic in a helper is a failed test too.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::session;
use tidegate_net::stream::FRAME_TIMEOUT;
use tidegate_net::{FrameReceiver, FrameSender, StreamError};
use tidegate_protocol::Digest;
use tidegate_protocol::codec::{self, CodecError};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX as MAX;
use tidegate_protocol::message::{FetchHeader, FetchRequest, ToController};

fn request() -> FetchRequest {
    FetchRequest { digests: (0..40u8).map(|n| Digest::of(&[n])).collect() }
}

/// A client's raw sending half and the controller's frames of the same stream.
async fn stream(client: &quinn::Connection, server: &quinn::Connection, first: &[u8]) -> (quinn::SendStream, FrameReceiver) {
    let (mut send, _) = client.open_bi().await.unwrap();
    // A stream exists for the peer with its first byte.
    send.write_all(first).await.unwrap();
    let (_, recv) = server.accept_bi().await.unwrap();
    (send, FrameReceiver::new(recv))
}

#[tokio::test]
async fn frames_arrive_in_order_and_raw_bytes_follow_untouched() {
    let (_controller, accepted, connection) = session().await;
    let (send, recv) = connection.open_bi().await.unwrap();
    let (mut sender, mut receiver) = (FrameSender::new(send), FrameReceiver::new(recv));
    sender.send(&request(), MAX).await.unwrap();
    sender.finish();

    let (send, recv) = accepted.connection.accept_bi().await.unwrap();
    let mut requests = FrameReceiver::new(recv);
    assert_eq!(requests.receive::<FetchRequest>(MAX).await.unwrap(), Some(request()));
    assert_eq!(requests.receive::<FetchRequest>(MAX).await.unwrap(), None);
    let mut answers = FrameSender::new(send);
    answers.send(&FetchHeader::Missing, MAX).await.unwrap();
    answers.send(&FetchHeader::File { size: 3 }, MAX).await.unwrap();
    let mut raw = answers.into_inner();
    raw.write_all(b"abc").await.unwrap();
    raw.finish().unwrap();

    assert_eq!(receiver.receive(MAX).await.unwrap(), Some(FetchHeader::Missing));
    assert_eq!(receiver.receive(MAX).await.unwrap(), Some(FetchHeader::File { size: 3 }));
    assert_eq!(receiver.into_inner().read_to_end(16).await.unwrap(), b"abc");
}

#[tokio::test]
async fn an_oversized_frame_is_refused_by_its_prefix_alone() {
    let (_controller, accepted, connection) = session().await;
    for claim in [u32::try_from(MAX).unwrap() + 1, u32::MAX] {
        // Not one byte of a body is sent: waiting for it, or making room, would not end here.
        let (_send, mut frames) = stream(&connection, &accepted.connection, &claim.to_le_bytes()).await;
        let error = frames.receive::<FetchRequest>(MAX).await.unwrap_err();
        assert!(matches!(error, StreamError::Codec(CodecError::TooLarge { bytes, max: MAX }) if bytes == claim as usize), "{error:?}");
    }
    let (send, _recv) = connection.open_bi().await.unwrap();
    let error = FrameSender::new(send).send(&request(), 100).await.unwrap_err();
    assert!(matches!(error, StreamError::Codec(CodecError::TooLarge { max: 100, .. })), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error() {
    let (_controller, accepted, connection) = session().await;
    let frame = codec::encode(&request(), MAX).unwrap();
    for cut in [1, 3, 4, 5, frame.len() - 1] {
        let (mut send, mut frames) = stream(&connection, &accepted.connection, &frame[..cut]).await;
        send.finish().unwrap();
        assert!(matches!(frames.receive::<FetchRequest>(MAX).await, Err(StreamError::Truncated)), "cut at {cut}");
    }
    let (mut send, mut frames) = stream(&connection, &accepted.connection, &frame[..5]).await;
    send.reset(7u32.into()).unwrap();
    assert!(matches!(frames.receive::<FetchRequest>(MAX).await, Err(StreamError::Read(quinn::ReadError::Reset(_)))));
}

#[tokio::test]
async fn random_bytes_are_an_error_and_never_a_panic() {
    let (_controller, accepted, connection) = session().await;
    // xorshift64*, fixed seed: the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut malformed = 0;
    for round in 0..300 {
        let mut bytes: Vec<u8> = (0..1 + random() % 200).map(|_| u8::try_from(random() >> 56).unwrap()).collect();
        if round % 2 == 0 {
            // A prefix that fits, so that the body is looked at.
            let body = u32::try_from(bytes.len()).unwrap();
            bytes.splice(0..0, body.to_le_bytes());
        }
        let (mut send, mut frames) = stream(&connection, &accepted.connection, &bytes).await;
        send.finish().unwrap();
        match frames.receive::<ToController>(MAX).await {
            Err(StreamError::Codec(CodecError::Malformed | CodecError::Trailing { .. })) => malformed += 1,
            Err(StreamError::Codec(CodecError::TooLarge { .. }) | StreamError::Truncated) if round % 2 == 1 => {}
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert!(malformed >= 150, "{malformed}");
    assert!(accepted.connection.close_reason().is_none(), "one bad stream must not end the others");
}

#[tokio::test]
async fn a_frame_that_does_not_go_on_is_cut() {
    let (_controller, accepted, connection) = session().await;
    let frame = codec::encode(&request(), MAX).unwrap();
    let (_send, mut frames) = stream(&connection, &accepted.connection, &frame[..frame.len() - 1]).await;
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let received = tokio::time::timeout(FRAME_TIMEOUT * 3, frames.receive::<FetchRequest>(MAX)).await.unwrap();
    assert!(matches!(received, Err(StreamError::Slow)));
    assert!(before.elapsed() >= FRAME_TIMEOUT && before.elapsed() < FRAME_TIMEOUT + Duration::from_secs(1), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut() {
    let (_controller, accepted, connection) = session().await;
    let (send, _recv) = connection.open_bi().await.unwrap();
    let mut sender = FrameSender::new(send);
    // More than both windows: somebody has to read for it to get through.
    let frame = vec![0u8; 8 * 1024 * 1024 - 16];
    tokio::time::pause();
    let sent = tokio::time::timeout(FRAME_TIMEOUT * 3, sender.send(&frame, 8 * 1024 * 1024)).await.unwrap();
    assert!(matches!(sent, Err(StreamError::Slow)));
    let (_, mut recv) = accepted.connection.accept_bi().await.unwrap();
    let read = tokio::time::timeout(FRAME_TIMEOUT * 3, recv.read_to_end(usize::MAX)).await.unwrap();
    assert!(matches!(read, Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(_)))));
}

#[tokio::test]
async fn a_cancelled_receive_loses_nothing() {
    let (_controller, accepted, connection) = session().await;
    let frame = codec::encode(&request(), MAX).unwrap();
    let (first, rest) = frame.split_first().unwrap();
    let (mut send, mut frames) = stream(&connection, &accepted.connection, &[*first]).await;
    let mut rest = rest.chunks(97);
    let mut cancelled = 0;
    let received = loop {
        // Each turn drops a receive that waits inside the frame, then sends a little more.
        match tokio::time::timeout(Duration::from_millis(5), frames.receive::<FetchRequest>(MAX)).await {
            Ok(done) => break done.unwrap(),
            Err(_) => {
                cancelled += 1;
                if let Some(bytes) = rest.next() {
                    send.write_all(bytes).await.unwrap();
                }
            }
        }
    };
    assert_eq!(received, Some(request()));
    assert!(cancelled >= 3, "{cancelled}");
}
