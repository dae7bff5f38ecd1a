//! TLS 1.3 configurations and the checks of certificates.
//!
//! No resumption and no 0-RTT: a resumed session skips the certificate checks,
//! so a host could outlive its 24 hours, and a P-256 handshake costs under a
//! millisecond.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tidegate_protocol::Digest;
use tidegate_protocol::message::{ALPN, ALPN_ENROLL};

use crate::error::NetError;
use crate::identity::{Identity, Role, peer_identity};

/// id-kp-serverAuth, 1.3.6.1.5.5.7.3.1, as DER writes its value.
const EKU_SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];

/// Whom a client takes for its controller.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// The fleet's CA, known since enrolment.
    Ca(CertificateDer<'static>),
    /// Before enrolment: the CA with this digest, which the server sends along.
    Pin(Digest),
}

fn tls(what: &'static str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> NetError {
    NetError::Tls { what, source: error.into() }
}

/// `ring`, named explicitly: no process-wide default is read or set. AES-128
/// stands first: every host moves whole releases through it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// A client certificate is optional at this level, since a host that enrolls has
/// none; one that is shown must chain to the CA. What follows from having none
/// depends on the ALPN: see [`crate::endpoint::peer`].
pub(crate) fn server(identity: &Identity) -> Result<rustls::ServerConfig, NetError> {
    let provider = provider();
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca.clone()).map_err(|e| tls("the CA certificate", e))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| tls("the CA certificate", e))?;
    // The CA goes along: an enrolling host knows only its digest.
    let mut chain = identity.chain.clone();
    if !chain.contains(&identity.ca) {
        chain.push(identity.ca.clone());
    }
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls("TLS 1.3", e))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, identity.key.clone_key())
        .map_err(|e| tls("certificate and key", e))?;
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROLL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(crate) fn client(trust: Trust, identity: Option<&Identity>) -> Result<rustls::ClientConfig, NetError> {
    let provider = provider();
    let alpn = if identity.is_some() { ALPN } else { ALPN_ENROLL };
    let verifier = ControllerVerifier { trust, provider: provider.clone() };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls("TLS 1.3", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(|e| tls("certificate and key", e))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts a server whose certificate chains to our CA, is for server use and
/// says role *controller*.
///
/// Not checked is the DNS name that was dialled. Our CA gives that role to
/// controllers only, so the role proves more than a name would; and agents reach
/// a controller by whatever works on their network (an address behind NAT, a
/// name that moves to a standby), which then needs no new certificate.
#[derive(Debug)]
struct ControllerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ControllerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = match &self.trust {
            Trust::Ca(ca) => ca,
            // Not the leaf: what is pinned is who signed it.
            Trust::Pin(pin) => intermediates
                .iter()
                .find(|cert| Digest::of(cert) == *pin)
                .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?,
        };
        let anchor = webpki::anchor_from_trusted_cert(ca).map_err(|e| refused(&e))?;
        let leaf = webpki::EndEntityCert::try_from(end_entity).map_err(|e| refused(&e))?;
        leaf.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &[anchor],
            // Our CA signs leaves itself (path length 0). What a server sends along could only
            // blur the verdict: another fleet's CA would be blamed for its usage, not as unknown.
            &[],
            now,
            webpki::KeyUsage::required(EKU_SERVER_AUTH),
            None,
            None,
        )
        .map_err(|e| refused(&e))?;
        match peer_identity(end_entity) {
            Ok(identity) if identity.role == Role::Controller => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

/// webpki's verdict in rustls' words, so that the alert and the text tell the cases apart.
fn refused(error: &webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    let reason = match error {
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        E::BadDer | E::BadDerTime => CertificateError::BadEncoding,
        _ => CertificateError::ApplicationVerificationFailure,
    };
    reason.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

    /// What the verifier says to a leaf with this URI and these usages, all else being right.
    fn verdict(uri: &str, usages: &[ExtendedKeyUsagePurpose]) -> Result<(), rustls::Error> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca_key = KeyPair::generate().unwrap();
        let ca_cert = ca.self_signed(&ca_key).unwrap().der().clone();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        leaf.extended_key_usages = usages.to_vec();
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(ca, ca_key)).unwrap();
        let verdict = |trust| {
            ControllerVerifier { trust, provider: provider() }
                .verify_server_cert(leaf.der(), std::slice::from_ref(&ca_cert), &"x".try_into().unwrap(), &[], UnixTime::now())
                .map(|_| ())
        };
        let by_ca = verdict(Trust::Ca(ca_cert.clone()));
        assert_eq!(verdict(Trust::Pin(Digest::of(&ca_cert))), by_ca, "{uri}");
        by_ca
    }

    #[test]
    fn usage_and_role_must_both_be_a_controllers() {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        assert_eq!(verdict("tidegate://controller/ctl", &[ServerAuth]), Ok(()));
        let role = Err(CertificateError::ApplicationVerificationFailure.into());
        assert_eq!(verdict("tidegate://host/ctl", &[ServerAuth]), role);
        assert_eq!(verdict("https://ctl", &[ServerAuth]), role);
        let usage = Err(CertificateError::InvalidPurpose.into());
        assert_eq!(verdict("tidegate://controller/ctl", &[ClientAuth]), usage);
        assert_eq!(verdict("tidegate://controller/ctl", &[]), usage);
    }
}
