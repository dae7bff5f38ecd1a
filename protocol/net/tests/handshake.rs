//! Who gets in, who does not, and what each side reads about it.
// A panic in a helper is a failed test too.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Controller, HOUR, LOOPBACK, ca, controller, host, operator, session, until};
use tidegate_net::transport::{CONTROLLER_STREAM_RECEIVE_BYTES, KNOWN_STREAMS, STRANGER_RECEIVE_BYTES};
use tidegate_net::{Admission, Caller, NetError, Peer, Role, client, client_config, close, connect, explain};
use tidegate_protocol::Digest;

/// Bounds what would otherwise hang when it fails.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_host_and_an_operator_are_known_by_their_certificates() {
    let ca = ca();
    let mut server = Controller::start(&controller(&ca));
    for (identity, role, name) in [(host(&ca, "web-1", HOUR), Role::Host, "web-1"), (operator(&ca), Role::Operator, "ada")] {
        let connection = server.dial(Caller::Known(&identity)).await.unwrap();
        let accepted = server.accepted.recv().await.unwrap();
        let Peer::Known(peer) = accepted.peer else { panic!("{name} is not known") };
        assert_eq!((peer.role, peer.name.as_str()), (role, name));
        assert_eq!(peer, identity.own().unwrap());
        connection.close(close::SHUTDOWN, b"done");
        let error = explain(accepted.connection.remote_address(), &accepted.connection.closed().await);
        assert!(matches!(&error, NetError::Closed { code: 0, reason, .. } if reason == "done"), "{error}");
    }
}

#[tokio::test]
async fn a_known_peer_gets_its_streams_and_no_more() {
    let (_server, accepted, connection) = session().await;
    let mut streams = Vec::new();
    for _ in 0..KNOWN_STREAMS {
        let (mut send, recv) = tokio::time::timeout(SOON, connection.open_bi()).await.unwrap().unwrap();
        send.write_all(b"x").await.unwrap();
        streams.push((send, recv));
    }
    one_more_only_after_an_end(&accepted.connection, &connection, streams).await;
}

/// Sends until `room` bytes are out that nobody reads, then finds that one more has to wait.
async fn fills(connection: &quinn::Connection, room: u32) {
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let bytes = vec![0; room as usize];
    tokio::time::timeout(SOON, send.write_all(&bytes)).await.unwrap().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), send.write(b"x")).await.is_err(), "more than {room} bytes have room");
}

#[tokio::test]
async fn a_known_peer_may_send_more_than_a_stranger() {
    let ca = ca();
    let mut server = Controller::start(&controller(&ca));
    let (host, ca_pin) = (host(&ca, "web-1", HOUR), ca.pin());
    for (caller, room) in [(Caller::Known(&host), CONTROLLER_STREAM_RECEIVE_BYTES), (Caller::Enrolling { ca_pin }, STRANGER_RECEIVE_BYTES)]
    {
        let connection = server.dial(caller).await.unwrap();
        let _accepted = server.accepted.recv().await.unwrap();
        fills(&connection, room).await;
    }
}

#[tokio::test]
async fn a_host_enrolls_with_the_pin_alone_and_gets_one_stream() {
    let ca = ca();
    let mut server = Controller::start(&controller(&ca));
    let connection = server.dial(Caller::Enrolling { ca_pin: ca.pin() }).await.unwrap();
    let accepted = server.accepted.recv().await.unwrap();
    assert_eq!(accepted.peer, Peer::Enrolling);
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(b"x").await.unwrap();
    one_more_only_after_an_end(&accepted.connection, &connection, vec![(send, recv)]).await;
}

async fn one_more_only_after_an_end(
    server: &quinn::Connection,
    client: &quinn::Connection,
    streams: Vec<(quinn::SendStream, quinn::RecvStream)>,
) {
    let open = client.open_bi();
    tokio::pin!(open);
    // The limit is known to the client by the handshake: no packet can still raise it.
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut open).await.is_err(), "a stream over the limit was opened");
    for (mut send, _) in streams {
        send.finish().unwrap();
        let (mut answer, mut request) = server.accept_bi().await.unwrap();
        request.read_to_end(16).await.unwrap();
        answer.finish().unwrap();
    }
    tokio::time::timeout(SOON, open).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_by_the_controller() {
    let (ours, theirs) = (ca(), ca());
    let mut server = Controller::start(&controller(&ours));
    // It trusts our controller, but was made elsewhere.
    let mut stranger = host(&theirs, "web-1", HOUR);
    stranger.ca = ours.cert().clone();
    let error = server.dial(Caller::Known(&stranger)).await.unwrap_err();
    assert!(matches!(&error, NetError::CertificateRefused { addr, .. } if addr.to_string() == server.addr), "{error}");
    until("the failure is counted", || server.admission.counts().failed == 1).await;
    assert!(server.accepted.try_recv().is_err());
}

#[tokio::test]
async fn a_controller_of_another_ca_is_refused_by_the_host() {
    let (ours, theirs) = (ca(), ca());
    let mut server = Controller::start(&controller(&theirs));
    let error = server.dial(Caller::Known(&host(&ours, "web-1", HOUR))).await.unwrap_err();
    assert!(matches!(&error, NetError::NotOurController { reason, .. } if reason.contains("UnknownIssuer")), "{error:?}");
    until("the failure is counted", || server.admission.counts().failed == 1).await;
    assert!(server.accepted.try_recv().is_err());
}

#[tokio::test]
async fn hosts_and_operators_cannot_play_the_controller() {
    let ca = ca();
    for imposter in [host(&ca, "web-2", HOUR), operator(&ca)] {
        let server = Controller::start(&imposter);
        for caller in [Caller::Known(&host(&ca, "web-1", HOUR)), Caller::Enrolling { ca_pin: ca.pin() }] {
            let error = server.dial(caller).await.unwrap_err();
            assert!(matches!(&error, NetError::NotOurController { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_pin_that_does_not_match_sends_no_secret() {
    let (ours, theirs) = (ca(), ca());
    let mut server = Controller::start(&controller(&ours));
    let leaf = Digest::of(&controller(&ours).chain[0]);
    for ca_pin in [theirs.pin(), Digest::of(b""), leaf] {
        let error = server.dial(Caller::Enrolling { ca_pin }).await.unwrap_err();
        assert!(matches!(&error, NetError::NotOurController { .. }), "{error:?}");
    }
    until("the failures are counted", || server.admission.counts().failed == 3).await;
    assert!(server.accepted.try_recv().is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_named_before_dialling() {
    let ca = ca();
    let short = host(&ca, "web-1", Duration::ZERO);
    until("the certificate expires", || client_config(Caller::Known(&short)).is_err()).await;
    let error = client_config(Caller::Known(&short)).unwrap_err();
    assert!(matches!(&error, NetError::OwnCertificateExpired { name, .. } if name == "web-1"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_expires_later_is_refused_by_the_controller() {
    let ca = ca();
    let server = Controller::start(&controller(&ca));
    let short = host(&ca, "web-1", Duration::from_secs(1));
    // Made while it was good, used when it is not: as a long-lived agent would.
    let config = client_config(Caller::Known(&short)).unwrap();
    until("the certificate expires", || client_config(Caller::Known(&short)).is_err()).await;
    let error = connect(&client(None).unwrap(), config, &server.addr).await.unwrap_err();
    assert!(matches!(&error, NetError::CertificateRefused { reason, .. } if reason.contains("expired")), "{error:?}");
}

#[tokio::test]
async fn a_name_with_a_silent_address_is_reached_by_the_other() {
    let ca = ca();
    let server = Controller::start(&controller(&ca));
    // Where localhost is ::1 as well, nobody listens there.
    let port = server.endpoint.local_addr().unwrap().port();
    let config = client_config(Caller::Known(&host(&ca, "web-1", HOUR))).unwrap();
    connect(&client(None).unwrap(), config, &format!("localhost:{port}")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn silence_ends_within_the_deadline_and_names_the_address() {
    let silent = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let addr = silent.local_addr().unwrap();
    let config = client_config(Caller::Known(&host(&ca(), "web-1", HOUR))).unwrap();
    let error = connect(&client(None).unwrap(), config, &addr.to_string()).await.unwrap_err();
    assert!(matches!(&error, NetError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
}

#[tokio::test]
async fn what_is_no_address_is_named() {
    let config = client_config(Caller::Enrolling { ca_pin: Digest::of(b"") }).unwrap();
    let error = connect(&client(None).unwrap(), config, "no-port").await.unwrap_err();
    assert!(matches!(&error, NetError::Resolve { host_port, .. } if host_port == "no-port"), "{error:?}");
}

#[tokio::test]
async fn under_load_an_address_proves_itself_first() {
    let ca = ca();
    let server = Controller::with(&controller(&ca), Admission::new(1, 0));
    server.dial(Caller::Known(&host(&ca, "web-1", HOUR))).await.unwrap();
    assert_eq!(server.admission.counts().retried, 1);
}

#[tokio::test]
async fn without_a_place_a_host_is_told_to_come_back() {
    let ca = ca();
    let server = Controller::with(&controller(&ca), Admission::new(0, 0));
    let error = server.dial(Caller::Known(&host(&ca, "web-1", HOUR))).await.unwrap_err();
    assert!(matches!(error, NetError::Busy { .. }), "{error:?}");
    assert_eq!(server.admission.counts().refused, 1);
}

#[tokio::test]
async fn a_slow_receiver_holds_back_admission_and_loses_nobody() {
    let ca = ca();
    let mut server = Controller::with(&controller(&ca), Admission::new(1, 1));
    let host = host(&ca, "web-1", HOUR);
    // The channel has room for four, one more waits in its place.
    let mut connections = Vec::new();
    for _ in 0..5 {
        connections.push(server.dial(Caller::Known(&host)).await.unwrap());
    }
    for _ in 0..5 {
        server.accepted.recv().await.unwrap();
    }
    connections.push(server.dial(Caller::Known(&host)).await.unwrap());
    server.accepted.recv().await.unwrap();
}

#[tokio::test]
async fn a_storm_of_reconnects_gets_in_by_turns() {
    const FLEET: u64 = 150;
    let ca = ca();
    let mut server = Controller::start(&controller(&ca));
    let mut fleet = tokio::task::JoinSet::new();
    for n in 0..FLEET {
        let (config, addr) = (client_config(Caller::Known(&host(&ca, &format!("web-{n}"), HOUR))).unwrap(), server.addr.clone());
        fleet.spawn(async move {
            let endpoint = client(None).unwrap();
            let connection = connect(&endpoint, config, &addr).await?;
            Ok::<_, NetError>((endpoint, connection))
        });
    }
    // Each host comes out once; that its own side agrees is seen by its task's end.
    let mut names = std::collections::BTreeSet::new();
    // Kept: dropping a connection closes it, perhaps before the host knows that it is in.
    let mut sessions = Vec::new();
    let mut connected = Vec::new();
    while connected.len() < usize::try_from(FLEET).unwrap() || names.len() < connected.len() {
        tokio::select! {
            Some(accepted) = server.accepted.recv() => {
                let Peer::Known(peer) = accepted.peer else { panic!("not known") };
                assert!(names.insert(peer.name));
                sessions.push(accepted.connection);
            }
            Some(done) = fleet.join_next() => connected.push(done.unwrap().unwrap()),
        }
    }
    let counts = server.admission.counts();
    assert!(counts.retried > 0, "no address had to prove itself: {counts:?}");
    assert_eq!((counts.refused, counts.failed), (0, 0));
}

#[tokio::test]
async fn large_packets_are_found_and_kept_under_bulk() {
    const BYTES: usize = 32 << 20;
    let (_server, accepted, connection) = session().await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.finish().unwrap();
    let down = accepted.connection.clone();
    let sender = tokio::spawn(async move {
        let (mut send, _recv) = down.accept_bi().await.unwrap();
        let block = vec![7u8; 1 << 20];
        for _ in 0..BYTES >> 20 {
            send.write_all(&block).await.unwrap();
        }
        send.finish().unwrap();
        send.stopped().await.unwrap();
    });
    let mut read = 0;
    while let Some(chunk) = recv.read_chunk(1 << 20, true).await.unwrap() {
        read += chunk.bytes.len();
    }
    sender.await.unwrap();
    assert_eq!(read, BYTES);
    let path = accepted.connection.stats().path;
    assert!(path.current_mtu > 6_000, "MTU {}", path.current_mtu);
    assert_eq!(path.black_holes_detected, 0);
}

/// Carries datagrams between one client and the port that `to` says now.
async fn relay(to: tokio::sync::watch::Receiver<std::net::SocketAddr>) -> std::net::SocketAddr {
    let front = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let back = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let addr = front.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut up, mut down, mut client) = ([0; 65_536], [0; 65_536], None);
        loop {
            tokio::select! {
                got = front.recv_from(&mut up) => {
                    let Ok((n, from)) = got else { return };
                    client = Some(from);
                    let target = *to.borrow();
                    let _ = back.send_to(&up[..n], target).await;
                }
                got = back.recv_from(&mut down) => {
                    let Ok((n, from)) = got else { return };
                    if let Some(client) = client.filter(|_| from == *to.borrow()) {
                        let _ = front.send_to(&down[..n], client).await;
                    }
                }
            }
        }
    });
    addr
}

#[tokio::test]
async fn a_controller_that_was_killed_and_came_back_is_noticed_at_once() {
    let ca = ca();
    let identity = controller(&ca);
    let mut killed = Controller::start(&identity);
    let (to, towards) = tokio::sync::watch::channel(killed.endpoint.local_addr().unwrap());
    let address = relay(towards).await;
    let config = client_config(Caller::Known(&host(&ca, "web-1", HOUR))).unwrap();
    let endpoint = client(Some(LOOPBACK)).unwrap();
    let connection = connect(&endpoint, config, &address.to_string()).await.unwrap();
    let _accepted = killed.accepted.recv().await.unwrap();
    // As after kill -9: who is at the address now knows nothing of the connection.
    let successor = tidegate_net::server(LOOPBACK, &identity).unwrap();
    to.send_replace(successor.local_addr().unwrap());
    let mut stream = connection.open_bi().await.unwrap().0;
    stream.write_all(b"anybody there?").await.unwrap();
    let lost = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await.unwrap();
    assert!(matches!(lost, quinn::ConnectionError::Reset), "{lost}");
}
