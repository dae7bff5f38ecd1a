//! Every QUIC limit, each with its reason, and the UDP socket.
//!
//! quinn's own defaults let one peer make us hold about 250 MB. A stranger gets
//! the smallest limits; they are raised once the certificate said who it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_protocol::Digest;

use crate::endpoint::Peer;
use crate::error::NetError;

/// Bidirectional streams at once of a peer that is not known yet, and of one that
/// enrolls: one exchange. quinn keeps an entry per *permitted* stream from the
/// start, so this number costs memory for every connection.
pub const STRANGER_STREAMS: u32 = 1;
/// Of a known peer: an agent's control stream and three fetches; an operator's
/// requests.
pub const KNOWN_STREAMS: u32 = 4;
/// Unidirectional streams: no message uses one.
pub const UNI_STREAMS: u32 = 0;

/// Unread bytes the controller holds for a stranger: one enrolment is a few KiB.
pub const STRANGER_RECEIVE_BYTES: u32 = 64 * 1024;
/// Unread bytes the controller holds per stream: operators upload bundles.
pub const CONTROLLER_STREAM_RECEIVE_BYTES: u32 = 1024 * 1024;
/// Unread bytes the controller holds for a known peer, all streams together.
pub const CONTROLLER_RECEIVE_BYTES: u32 = 2 * 1024 * 1024;
/// Unacknowledged bytes the controller holds for one peer: times the hosts that
/// fetch at once, this is its memory in a big-bang. 2 MiB fill 1 Gbit/s at 16 ms.
pub const CONTROLLER_SEND_BYTES: u64 = 2 * 1024 * 1024;

/// Unread bytes an agent or CLI holds per stream: there is one controller, and
/// artifacts should arrive at the speed of the link.
pub const CLIENT_STREAM_RECEIVE_BYTES: u32 = 4 * 1024 * 1024;
/// The same, all streams together.
pub const CLIENT_RECEIVE_BYTES: u32 = 8 * 1024 * 1024;
/// Unacknowledged bytes a client holds: more than what the controller takes in
/// (2 MiB) would only wait here.
pub const CLIENT_SEND_BYTES: u64 = 2 * 1024 * 1024;

/// Handshake bytes that may arrive out of order, per connection.
const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;
/// Clients keep a NAT's mapping and the session alive.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Three lost keep-alives: the peer is gone.
pub const MAX_IDLE: Duration = Duration::from_secs(15);

/// Where every connection starts and what it falls back to: passes every path.
const MTU_START: u16 = 1_200;
/// What discovery may find. quinn sends batches of 10 segments, and 10 × 6,550
/// is what fits one UDP datagram of 65,507 bytes: above it, sends fail silently
/// and the MTU collapses.
pub const MTU_MAX: u16 = 6_400;

/// Handshakes that wait to be looked at; beyond it quinn refuses by itself.
pub const INCOMING_MAX: usize = 1_024;
/// Early packets held per waiting handshake, bytes.
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;
/// The same for all together.
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 4 * 1024 * 1024;
/// How long a retry token is good: the answer to it comes within a round trip.
const RETRY_TOKEN_LIFETIME: Duration = Duration::from_secs(10);

/// Wanted of the kernel, per direction. Its default of about 200 KiB drops
/// datagrams in bursts, and quinn takes such a loss for a broken path.
pub const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

fn common() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .initial_mtu(MTU_START)
        .min_mtu(MTU_START)
        .mtu_discovery_config(Some(mtu))
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        // Datagrams off: nothing uses them, and their receive buffer is 1.25 MB.
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .max_idle_timeout(IdleTimeout::try_from(MAX_IDLE).ok());
    config
}

/// The controller's side, as it stands before the peer is known.
pub(crate) fn server() -> Arc<TransportConfig> {
    let mut config = common();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS))
        .stream_receive_window(VarInt::from_u32(CONTROLLER_STREAM_RECEIVE_BYTES))
        .receive_window(VarInt::from_u32(STRANGER_RECEIVE_BYTES))
        .send_window(CONTROLLER_SEND_BYTES);
    Arc::new(config)
}

/// An agent's or CLI's side.
pub(crate) fn client() -> Arc<TransportConfig> {
    let mut config = common();
    config
        // The controller opens no stream.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(CLIENT_STREAM_RECEIVE_BYTES))
        .receive_window(VarInt::from_u32(CLIENT_RECEIVE_BYTES))
        .send_window(CLIENT_SEND_BYTES)
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// Raises a connection's limits to what its role needs.
pub(crate) fn grant(connection: &quinn::Connection, peer: &Peer) {
    if let Peer::Known(_) = peer {
        connection.set_receive_window(VarInt::from_u32(CONTROLLER_RECEIVE_BYTES));
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(KNOWN_STREAMS));
    }
}

pub(crate) fn limit_incoming(config: &mut quinn::ServerConfig) {
    config
        .transport_config(server())
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES)
        .retry_token_lifetime(RETRY_TOKEN_LIFETIME);
}

/// An endpoint on a socket with large buffers. A server comes with its private
/// key: what is derived from it lets a restarted controller tell its peers at
/// once, by stateless resets (RFC 9000, section 10.3), that their connections are
/// gone. Otherwise they would find out only by the idle timeout.
pub(crate) fn endpoint(addr: SocketAddr, server: Option<(quinn::ServerConfig, &[u8])>) -> Result<quinn::Endpoint, NetError> {
    let bind = |source| NetError::Bind { addr, source };
    let socket = socket(addr).map_err(bind)?;
    let mut config = EndpointConfig::default();
    // What we are ready to receive: the peer's discovery stops there.
    config.max_udp_payload_size(MTU_MAX).map_err(|e| bind(std::io::Error::other(e)))?;
    let server = server.map(|(server, key)| {
        let derived = |what: &str| Digest::of(&[what.as_bytes(), key].concat()).0;
        config.reset_key(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &derived("tidegate stateless reset"))));
        let [a, b, c, d, e, f, g, h, ..] = derived("tidegate connection ids");
        let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // A reset is smaller than what it answers; a whole fleet asks at once.
        config.min_reset_interval(Duration::from_millis(1));
        config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
        server
    });
    quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime)).map_err(bind)
}

fn socket(addr: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        // One socket for both families, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    // Asking is enough: what the kernel grants depends on its rmem_max and wmem_max.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&addr.into())?;
    // Linux reports twice what it granted, the other half for its own bookkeeping.
    let (received, sent) = (socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2);
    if received.min(sent) < SOCKET_BUFFER_BYTES {
        tracing::info!(
            received,
            sent,
            wanted = SOCKET_BUFFER_BYTES,
            "the kernel grants smaller UDP buffers than wanted; raise net.core.rmem_max and net.core.wmem_max for full speed"
        );
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_segments_fits_a_datagram() {
        assert!(u32::from(MTU_MAX) * 10 <= 65_507);
    }

    #[test]
    fn buffers_are_larger_than_the_kernels_default() {
        let plain = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        let ours = Socket::from(socket(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap());
        let max: usize = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
        assert_eq!(ours.recv_buffer_size().unwrap() / 2, max.min(SOCKET_BUFFER_BYTES));
        assert!(ours.recv_buffer_size().unwrap() >= plain.recv_buffer_size().unwrap());
    }
}
