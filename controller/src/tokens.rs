//! Enrolment: a host with a token becomes a host with a certificate.
//!
//! Strangers talk here: one bounded request, one reply, done.

use std::sync::Arc;
use std::time::Duration;

use tidegate_net::token::secret_hash;
use tidegate_net::{Ca, FrameReceiver, FrameSender, close, peer_identity, quinn};
use tidegate_protocol::limits::CONTROL_FRAME_BYTES_MAX;
use tidegate_protocol::message::{EnrollReply, EnrollRequest};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::core::{CoreHandle, Input};
use crate::store::{Redeem, Store};

/// How long a host's certificate is good. Hosts do not renew theirs yet: renewal
/// on the live connection, and with it a life of 24 hours, comes with rotation.
pub const HOST_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// From the connection to the reply.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A token's secret has 32 characters; anything longer is none.
const SECRET_BYTES_MAX: usize = 256;

/// What enrolment needs.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Signs.
    pub ca: Arc<Ca>,
    /// Redeems.
    pub store: Store,
    /// Hears of the new host.
    pub core: CoreHandle,
    /// Token lifetimes.
    pub clock: Clock,
}

impl Enrolment {
    /// One exchange on a connection without a certificate.
    pub async fn serve(&self, connection: quinn::Connection) {
        let addr = connection.remote_address();
        match timeout(EXCHANGE_TIMEOUT, self.exchange(&connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%addr, error = %error, "enrolment did not come about"),
            Err(_) => tracing::debug!(%addr, "enrolment took too long"),
        }
        connection.close(close::SHUTDOWN, b"");
    }

    async fn exchange(&self, connection: &quinn::Connection) -> anyhow::Result<()> {
        let (send, recv) = connection.accept_bi().await?;
        let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
        let Some(request) = recv.receive::<EnrollRequest>(CONTROL_FRAME_BYTES_MAX).await? else {
            return Ok(());
        };
        let host = request.name.clone();
        let reply = match self.decide(request).await {
            Ok(reply) => {
                tracing::info!(%host, "a host joined");
                reply
            }
            Err(reason) => {
                tracing::info!(%host, %reason, addr = %connection.remote_address(), "a host was not let in");
                EnrollReply::Refused { reason }
            }
        };
        send.send(&reply, CONTROL_FRAME_BYTES_MAX).await?;
        send.finish();
        // Until the host has it, or gives up: closing at once would discard it.
        let _ = send.send.stopped().await;
        Ok(())
    }

    async fn decide(&self, request: EnrollRequest) -> Result<EnrollReply, String> {
        let internal = |error: &dyn std::error::Error| {
            tracing::error!(%error, "enrolment failed on our side");
            "the controller has trouble with its store; see its log, then try again".to_owned()
        };
        if request.secret.len() > SECRET_BYTES_MAX {
            return Err(crate::store::TokenRefused::Unknown.to_string());
        }
        let hash = secret_hash(&request.secret);
        // Signing costs more than looking: strangers get the look.
        if !self.store.knows_token(hash).await.map_err(|e| internal(&e))? {
            return Err(crate::store::TokenRefused::Unknown.to_string());
        }
        let certificate = self.ca.sign_host_csr(&request.csr, &request.name, HOST_VALIDITY).map_err(|e| e.to_string())?;
        let identity = peer_identity(&certificate).map_err(|e| internal(&e))?;
        // The certificate is ours alone until the token is taken, durably.
        let redeem =
            Redeem { hash, host: request.name.clone(), spki: identity.spki_sha256, serial: identity.serial, now: self.clock.now() };
        let grant = self.store.redeem(redeem).await.map_err(|e| internal(&e))?.map_err(|e| e.to_string())?;
        self.core.send(Input::Joined(Box::new(grant.row))).await.map_err(|e| e.to_string())?;
        Ok(EnrollReply::Granted { host: request.name, certificate: certificate.to_vec(), ca: self.ca.cert().to_vec() })
    }
}
