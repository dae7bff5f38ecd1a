//! QUIC endpoints: the controller's, the agents', the operators'.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;
use tidegate_protocol::Digest;
use tidegate_protocol::message::{ALPN, ALPN_ENROLL};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{NetError, explain};
use crate::identity::{Identity, PeerIdentity, Role, peer_identity};
use crate::{tls, transport};

/// From a name to an accepted certificate, all addresses together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the next address is tried beside the ones before it (RFC 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(300);
/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Sent as the TLS server name. Always the same: nothing is decided by it, and
/// a network need not learn which controller is meant.
const SERVER_NAME: &str = "controller.tidegate";

/// Who dials.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// An agent or an operator, with a certificate.
    Known(&'a Identity),
    /// A host with a token: no certificate yet, and of the CA only its digest.
    Enrolling {
        /// From the token.
        ca_pin: Digest,
    },
}

/// Who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Came with the enrolment ALPN. Whatever certificate it may have counts for nothing.
    Enrolling,
    /// Came with a certificate of our CA; a host or an operator.
    Known(PeerIdentity),
}

/// The controller's endpoint. Needs a tokio runtime. Port 0 is allowed; see
/// `local_addr` of the endpoint. Handshakes are taken with [`crate::accept`].
///
/// # Errors
/// [`NetError::Tls`], [`NetError::Bind`].
pub fn server(addr: SocketAddr, identity: &Identity) -> Result<quinn::Endpoint, NetError> {
    transport::endpoint(addr, Some((server_config(identity)?, identity.key.secret_der())))
}

/// What [`server`] runs with; for `set_server_config` when the certificate was renewed.
///
/// # Errors
/// [`NetError::Tls`].
pub fn server_config(identity: &Identity) -> Result<quinn::ServerConfig, NetError> {
    let crypto =
        QuicServerConfig::try_from(tls::server(identity)?).map_err(|e| NetError::Tls { what: "cipher suites", source: Box::new(e) })?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    transport::limit_incoming(&mut config);
    Ok(config)
}

/// An endpoint that only dials. Needs a tokio runtime. Without an address it takes
/// both IP families, or IPv4 where the system has no IPv6.
///
/// # Errors
/// [`NetError::Bind`].
pub fn client(bind: Option<SocketAddr>) -> Result<quinn::Endpoint, NetError> {
    match bind {
        Some(addr) => transport::endpoint(addr, None),
        None => transport::endpoint(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), None)
            .or_else(|_| transport::endpoint(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), None)),
    }
}

/// What a caller dials with. Make a new one when the certificate was renewed.
///
/// # Errors
/// [`NetError::Tls`], [`NetError::Identity`], [`NetError::OwnCertificateExpired`].
pub fn client_config(caller: Caller<'_>) -> Result<quinn::ClientConfig, NetError> {
    let tls = match caller {
        Caller::Known(identity) => {
            let own = identity.own()?;
            // Said here, in words, rather than by the controller, with a TLS alert.
            let now =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| i64::try_from(t.as_secs()).unwrap_or(i64::MAX));
            if own.not_after_unix < now {
                return Err(NetError::OwnCertificateExpired { name: own.name, hours: (now - own.not_after_unix) / 3600 });
            }
            tls::client(tls::Trust::Ca(identity.ca.clone()), Some(identity))?
        }
        Caller::Enrolling { ca_pin } => tls::client(tls::Trust::Pin(ca_pin), None)?,
    };
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| NetError::Tls { what: "cipher suites", source: Box::new(e) })?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport::client());
    Ok(config)
}

/// Who is at the other end, on the controller's side, after the handshake.
///
/// # Errors
/// [`NetError::NoCertificate`] without a certificate on the main ALPN,
/// [`NetError::WrongRole`] for a controller's, [`NetError::Identity`] for one
/// that does not say whose it is, [`NetError::Protocol`] for an unknown ALPN.
pub fn peer(connection: &quinn::Connection) -> Result<Peer, NetError> {
    let addr = connection.remote_address();
    let alpn = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()).and_then(|data| data.protocol);
    match alpn.as_deref() {
        Some(ALPN_ENROLL) => Ok(Peer::Enrolling),
        Some(ALPN) => {
            let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
            let leaf = chain.as_ref().and_then(|chain| chain.first()).ok_or(NetError::NoCertificate { addr })?;
            let identity = peer_identity(leaf)?;
            match identity.role {
                Role::Host | Role::Operator => Ok(Peer::Known(identity)),
                Role::Controller => Err(NetError::WrongRole { addr, role: identity.role }),
            }
        }
        _ => Err(NetError::Protocol { addr }),
    }
}

/// Dials `HOST:PORT`. Returns once the controller has accepted our certificate
/// (TLS 1.3 clients are done before it has looked), within [`CONNECT_TIMEOUT`].
/// Of several addresses the first that answers wins; each gets a head start over
/// the next.
///
/// # Errors
/// Each names the address, the cause and the fix.
pub async fn connect(endpoint: &quinn::Endpoint, config: quinn::ClientConfig, host_port: &str) -> Result<quinn::Connection, NetError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let resolve = |source| NetError::Resolve { host_port: host_port.into(), source };
    let addrs = match timeout_at(deadline, tokio::net::lookup_host(host_port)).await {
        Ok(Ok(addrs)) => addrs.take(ADDRESSES_MAX).collect(),
        Ok(Err(error)) => return Err(resolve(Some(error))),
        Err(_) => return Err(resolve(None)),
    };
    connect_any(endpoint, config, host_port, addrs, deadline).await
}

/// The first address that accepts us.
async fn connect_any(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    host_port: &str,
    mut waiting: VecDeque<SocketAddr>,
    deadline: Instant,
) -> Result<quinn::Connection, NetError> {
    let Some(mut last) = waiting.front().copied() else {
        return Err(NetError::Resolve { host_port: host_port.into(), source: None });
    };
    let mut attempts = JoinSet::new();
    let mut next = Instant::now();
    let mut failure = None;
    loop {
        if attempts.is_empty() {
            next = Instant::now();
        }
        if waiting.is_empty() && attempts.is_empty() {
            break;
        }
        tokio::select! {
            // Dropping the set ends the attempts that lost.
            Some(done) = attempts.join_next() => match done {
                Ok(Ok(connection)) => return Ok(connection),
                // What a controller answered says more than that another address is silent.
                Ok(Err(error)) => failure = match failure {
                    Some(kept) if matches!(error, NetError::Unreachable { .. } | NetError::Dial { .. }) => Some(kept),
                    _ => Some(error),
                },
                Err(_) => {}
            },
            () = sleep_until(next), if !waiting.is_empty() => {
                if let Some(addr) = waiting.pop_front() {
                    last = addr;
                    attempts.spawn(dial(endpoint.clone(), config.clone(), addr, deadline, host_port.to_string()));
                    next = Instant::now() + NEXT_ADDRESS;
                }
            }
        }
    }
    Err(failure.unwrap_or_else(|| unreachable(host_port, last)))
}

fn unreachable(host_port: &str, addr: SocketAddr) -> NetError {
    NetError::Unreachable { host_port: host_port.into(), addr, seconds: CONNECT_TIMEOUT.as_secs() }
}

async fn dial(
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    addr: SocketAddr,
    deadline: Instant,
    host_port: String,
) -> Result<quinn::Connection, NetError> {
    let connecting = endpoint.connect_with(config, addr, SERVER_NAME).map_err(|source| NetError::Dial { addr, source })?;
    let accepted = async {
        let connection = connecting.await?;
        tokio::select! {
            error = connection.closed() => Err(error),
            () = confirmed(&connection) => Ok(connection),
        }
    };
    match timeout_at(deadline, accepted).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => Err(unreachable(&host_port, addr)),
        Ok(Err(error)) => Err(explain(addr, &error)),
    }
}

/// Until the controller's HANDSHAKE_DONE, which it sends after it has checked our
/// certificate. quinn has no event for it, only the count; the caller bounds the wait.
async fn confirmed(connection: &quinn::Connection) {
    let mut pause = Duration::from_millis(1);
    while connection.stats().frame_rx.handshake_done == 0 {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Admission, Ca, accept, close, make_csr};

    /// A TLS client that does not keep to the pairing of ALPN and certificate.
    fn odd_client(trust: tls::Trust, identity: Option<&Identity>, alpn: &[u8]) -> quinn::ClientConfig {
        let mut config = tls::client(trust, identity).unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        config.transport_config(transport::client());
        config
    }

    fn controller(ca: &Ca) -> quinn::Endpoint {
        let (cert, key) = ca.issue_controller(&["127.0.0.1".into()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("crt"), cert).unwrap();
        std::fs::write(dir.path().join("key"), key).unwrap();
        std::fs::write(dir.path().join("ca"), ca.cert_pem()).unwrap();
        let identity = Identity::load(&dir.path().join("crt"), &dir.path().join("key"), &dir.path().join("ca")).unwrap();
        server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &identity).unwrap()
    }

    #[tokio::test]
    async fn a_silent_address_does_not_keep_the_next_one_waiting() {
        let ca = Ca::create("test").unwrap();
        let endpoint = controller(&ca);
        let addr = endpoint.local_addr().unwrap();
        let (out, _accepted) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move { accept(&endpoint, &Admission::default(), &out).await });
        let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let config = client_config(Caller::Enrolling { ca_pin: ca.pin() }).unwrap();
        let addrs = VecDeque::from([silent.local_addr().unwrap(), addr]);
        // Half of what the silent one may take.
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let client = client(None).unwrap();
        let dialled = connect_any(&client, config, "two addresses", addrs, deadline);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT / 2, dialled).await.unwrap().unwrap();
        assert_eq!(connection.remote_address().port(), addr.port());
    }

    #[tokio::test]
    async fn the_alpn_decides() {
        let ca = Ca::create("test").unwrap();
        let endpoint = controller(&ca);
        let addr = endpoint.local_addr().unwrap();
        let (out, mut accepted) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move { accept(&endpoint, &Admission::default(), &out).await });
        let client = client(None).unwrap();
        let trust = tls::Trust::Ca(ca.cert().clone());

        let unknown = odd_client(trust.clone(), None, b"h3");
        let error = connect(&client, unknown, &addr.to_string()).await.unwrap_err();
        assert!(matches!(error, NetError::Protocol { .. }), "{error:?}");

        // TLS lets it in, since enrolment needs that; the answer comes right after.
        let nameless = odd_client(trust.clone(), None, ALPN);
        let error = match connect(&client, nameless, &addr.to_string()).await {
            Ok(connection) => explain(addr, &connection.closed().await),
            Err(error) => error,
        };
        let refused = close::REFUSED.into_inner();
        assert!(
            matches!(&error, NetError::Closed { code, reason, .. } if *code == refused && reason.contains("no certificate")),
            "{error:?}"
        );
        assert!(accepted.try_recv().is_err());

        // A certificate on the enrolment ALPN gives nothing that enrolment would not.
        let (csr, key) = make_csr().unwrap();
        let cert = ca.sign_host_csr(&csr, &"web-1".parse().unwrap(), Duration::from_secs(60)).unwrap();
        let host = Identity::from_parts(cert, &key, ca.cert().clone()).unwrap();
        let _connection = connect(&client, odd_client(trust, Some(&host), ALPN_ENROLL), &addr.to_string()).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap().peer, Peer::Enrolling);
    }
}
