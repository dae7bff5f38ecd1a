//! The fleet's certificate authority: makes identities, one per role.
//!
//! ECDSA P-256 throughout (small certificates, cheap handshakes; RSA never).
//! The public key of a request is all that is taken from it: names, validity
//! and usages are the caller's.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use tidegate_protocol::{Digest, HostName};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::files::{FileError, make_private_dir, read_pem, write_public, write_secret};
use crate::identity::{IdentityError, Role, cert_pem, load_cert, name_uri, operator_roles};
use crate::token::hex;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the CA itself is good.
const CA_VALIDITY: Duration = DAY.saturating_mul(3653);
/// How long the controller's certificate is good.
const CONTROLLER_VALIDITY: Duration = DAY.saturating_mul(730);
/// How long an operator's certificate is good.
const OPERATOR_VALIDITY: Duration = DAY.saturating_mul(90);
/// Certificates start this much in the past: clocks of a fleet differ.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Largest certificate request that is parsed, bytes; ours have about 200.
const CSR_BYTES_MAX: usize = 8 * 1024;

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";

/// Something the CA could not make or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No random bytes.
    #[error("the operating system has no random bytes")]
    Random(#[source] std::io::Error),
    /// A certificate could not be made.
    #[error("the certificate of {name} could not be made")]
    Make {
        /// For whom.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A controller needs an address that agents dial.
    #[error("{name:?} is neither a DNS name nor an IP address: the controller's names are those that agents dial")]
    ControllerName {
        /// What was given.
        name: String,
    },
    /// An operator's name breaks the rules.
    #[error("{name:?} is not an operator's name: lower-case letters, digits, '-', '_' and '.'")]
    OperatorName {
        /// What was given.
        name: String,
    },
    /// An unknown operator role, or none.
    #[error("{roles:?} are not operator roles: one or more of admin, operator, viewer are wanted")]
    OperatorRoles {
        /// What was given.
        roles: Vec<String>,
    },
    /// The request cannot be read, or was not signed by its own key.
    #[error("the certificate request of {host} is malformed or not signed by its own key")]
    BadRequest {
        /// Who asked.
        host: HostName,
    },
    /// The request's key is of another kind.
    #[error("the certificate request of {host} has a key that is not ECDSA P-256")]
    KeyKind {
        /// Who asked.
        host: HostName,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The CA's certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] IdentityError),
    /// The CA's key cannot be read.
    #[error("{path}: is not the CA's private key")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// Key and certificate are not a pair.
    #[error("{dir}: ca.key is not the key of ca.crt; restore both from one backup")]
    NotAPair {
        /// Where.
        dir: PathBuf,
    },
}

/// The CA with its key.
pub struct Ca {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new CA. `name` is for people; a random part keeps two CAs apart.
    ///
    /// # Errors
    /// No random bytes, or a name that no certificate can hold.
    pub fn create(name: &str) -> Result<Self, CaError> {
        let make = |source| CaError::Make { name: name.into(), source };
        let serial = random_serial()?;
        let mut params = params(&format!("Tidegate CA {name} {}", hex(&serial[..4])), &serial, CA_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key(name)?;
        let cert = params.self_signed(&key).map_err(make)?.der().clone();
        Ok(Self { cert, issuer: Issuer::new(params, key) })
    }

    /// Reads `ca.crt` and `ca.key` of a directory. Blocks.
    ///
    /// # Errors
    /// A file that cannot be read, or a key that is not the certificate's.
    pub fn load(dir: &Path) -> Result<Self, CaError> {
        let cert = load_cert(&dir.join(CA_CERT))?;
        let path = dir.join(CA_KEY);
        let pem = String::from_utf8_lossy(&read_pem(&path)?).into_owned();
        let key = KeyPair::from_pem(&pem).map_err(|source| CaError::Key { path, source })?;
        let not_a_pair = || CaError::NotAPair { dir: dir.into() };
        let (_, parsed) = x509_parser::parse_x509_certificate(&cert).map_err(|_| not_a_pair())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(not_a_pair());
        }
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|source| CaError::Make { name: CA_CERT.into(), source })?;
        Ok(Self { cert, issuer })
    }

    /// Writes `ca.crt` (0644) and `ca.key` (0600), durably, making the directory
    /// (0700) if it is not there. Blocks.
    ///
    /// # Errors
    /// [`FileError::Write`].
    pub fn save(&self, dir: &Path) -> Result<(), CaError> {
        make_private_dir(dir)?;
        write_secret(&dir.join(CA_KEY), self.issuer.key().serialize_pem().as_bytes())?;
        write_public(&dir.join(CA_CERT), self.cert_pem().as_bytes())?;
        Ok(())
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn cert_pem(&self) -> String {
        cert_pem(&self.cert)
    }

    /// What a token pins: sha256 of the certificate's DER.
    #[must_use]
    pub fn pin(&self) -> Digest {
        Digest::of(&self.cert)
    }

    /// The controller's certificate and key, PEM, for two years. The first name
    /// that can stand in a Tidegate name is the controller's own.
    ///
    /// # Errors
    /// No name, or one that is neither DNS name nor IP address.
    pub fn issue_controller(&self, names: &[String]) -> Result<(String, String), CaError> {
        let mut sans = Vec::with_capacity(names.len() + 1);
        for name in names {
            let bad = || CaError::ControllerName { name: name.clone() };
            sans.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => {
                    let _: HostName = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
                    SanType::DnsName(name.to_ascii_lowercase().try_into().map_err(|_| bad())?)
                }
            });
        }
        if sans.is_empty() {
            return Err(CaError::ControllerName { name: String::new() });
        }
        // An IPv6 address cannot be a name; a controller that has nothing else is "controller".
        let own = names.iter().find_map(|name| name.to_ascii_lowercase().parse::<HostName>().ok());
        let own = match own {
            Some(own) => own,
            None => "controller".parse().map_err(|_| CaError::ControllerName { name: "controller".into() })?,
        };
        let key = new_key(own.as_str())?;
        let cert = self.issue(Role::Controller, &own, &[], sans, CONTROLLER_VALIDITY, &key)?;
        Ok((cert_pem(&cert), key.serialize_pem()))
    }

    /// An operator's certificate and key, PEM, for 90 days.
    ///
    /// # Errors
    /// A name or role that breaks the rules.
    pub fn issue_operator(&self, name: &str, roles: &[String]) -> Result<(String, String), CaError> {
        let own: HostName = name.parse().map_err(|_| CaError::OperatorName { name: name.into() })?;
        let roles = operator_roles(roles).ok_or_else(|| CaError::OperatorRoles { roles: roles.to_vec() })?;
        let key = new_key(name)?;
        let cert = self.issue(Role::Operator, &own, &roles, Vec::new(), OPERATOR_VALIDITY, &key)?;
        Ok((cert_pem(&cert), key.serialize_pem()))
    }

    /// A host's certificate for the key of its request, DER. Nothing else is
    /// taken from the request: a host that asks for another's name, a longer
    /// life or the controller's role gets its own all the same.
    ///
    /// # Errors
    /// A request that is malformed, not signed by its key, or not of ECDSA P-256.
    pub fn sign_host_csr(&self, csr_der: &[u8], host: &HostName, validity: Duration) -> Result<CertificateDer<'static>, CaError> {
        let bad = || CaError::BadRequest { host: host.clone() };
        if csr_der.len() > CSR_BYTES_MAX {
            return Err(bad());
        }
        let (rest, csr) = X509CertificationRequest::from_der(csr_der).map_err(|_| bad())?;
        if !rest.is_empty() {
            return Err(bad());
        }
        // Possession: without it a host could have someone else's key certified.
        csr.verify_signature().map_err(|_| bad())?;
        let key_kind = || CaError::KeyKind { host: host.clone() };
        let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw).map_err(|_| key_kind())?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(key_kind());
        }
        self.issue(Role::Host, host, &[], Vec::new(), validity, &key)
    }

    fn issue(
        &self,
        role: Role,
        name: &HostName,
        operator_roles: &[String],
        mut sans: Vec<SanType>,
        validity: Duration,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, CaError> {
        let make = |source| CaError::Make { name: name.to_string(), source };
        let uri = name_uri(role, name, operator_roles);
        sans.push(SanType::URI(uri.try_into().map_err(make)?));
        // For people who look at the certificate; nothing reads it.
        let mut params = params(&format!("{role} {name}").chars().take(64).collect::<String>(), &random_serial()?, validity);
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A host's certificate can never serve as the controller's, already below the role.
        params.extended_key_usages = vec![match role {
            Role::Controller => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Host | Role::Operator => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer).map_err(make)?.der().clone())
    }
}

/// A host's new key and its request: `(request DER, key PEM)`. The key never
/// leaves the host.
///
/// # Errors
/// The key could not be made.
pub fn make_csr() -> Result<(Vec<u8>, String), CaError> {
    const NAME: &str = "certificate request";
    let make = |source| CaError::Make { name: NAME.into(), source };
    let key = new_key(NAME)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(make)?;
    Ok((csr.der().to_vec(), key.serialize_pem()))
}

fn new_key(name: &str) -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| CaError::Make { name: name.into(), source })
}

fn params(common_name: &str, serial: &[u8], validity: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    // rcgen's own default is a digest of the key: two certificates of one key would share it.
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity).into();
    params
}

fn random_serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| CaError::Random(error.into()))?;
    // Positive and of full length, as RFC 5280 wants.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Identity, peer_identity};

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn identities_read_back() {
        let ca = Ca::create("test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca_path = file("ca.crt", &ca.cert_pem());
        let (cert, key) = ca.issue_controller(&["Ctl.example".into(), "127.0.0.1".into(), "::1".into()]).unwrap();
        let controller = Identity::load(&file("c.crt", &cert), &file("c.key", &key), &ca_path).unwrap();
        assert_eq!(controller.ca, *ca.cert());
        let own = controller.own().unwrap();
        assert_eq!((own.role, own.name.as_str()), (Role::Controller, "ctl.example"));

        let (cert, key) = ca.issue_operator("ada", &["viewer".into(), "admin".into(), "admin".into()]).unwrap();
        let own = Identity::load(&file("o.crt", &cert), &file("o.key", &key), &ca_path).unwrap().own().unwrap();
        assert_eq!((own.role, own.name.as_str()), (Role::Operator, "ada"));
        assert_eq!(own.operator_roles, ["admin", "viewer"]);

        let (csr, _) = make_csr().unwrap();
        let cert = ca.sign_host_csr(&csr, &host("web-1"), DAY).unwrap();
        let own = peer_identity(&cert).unwrap();
        assert_eq!((own.role, own.host()), (Role::Host, Some(host("web-1"))));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let left = own.not_after_unix - i64::try_from(now).unwrap();
        assert!((86_000..=86_400).contains(&left), "{left}");
        let again = peer_identity(&ca.sign_host_csr(&csr, &host("web-1"), DAY).unwrap()).unwrap();
        assert_eq!(again.spki_sha256, own.spki_sha256);
        assert_ne!(again.serial, own.serial);
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let ca = Ca::create("test").unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut greedy = CertificateParams::default();
        greedy.subject_alt_names = vec![SanType::URI("tidegate://controller/evil".try_into().unwrap())];
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = greedy.serialize_request(&key).unwrap();
        let cert = ca.sign_host_csr(csr.der(), &host("web-1"), DAY).unwrap();
        let own = peer_identity(&cert).unwrap();
        assert_eq!((own.role, own.name.as_str()), (Role::Host, "web-1"));
        assert_eq!(own.spki_sha256, Digest::of(&key.subject_public_key_info()));
    }

    #[test]
    fn bad_requests_are_refused() {
        let ca = Ca::create("test").unwrap();
        let (csr, _) = make_csr().unwrap();
        let mut forged = csr.clone();
        *forged.last_mut().unwrap() ^= 1;
        let mut longer = csr.clone();
        longer.push(0);
        for bad in [&forged[..], &longer, &csr[..csr.len() - 1], b"", &vec![0x30; CSR_BYTES_MAX + 1]] {
            assert!(matches!(ca.sign_host_csr(bad, &host("web-1"), DAY), Err(CaError::BadRequest { .. })));
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let csr = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(matches!(ca.sign_host_csr(csr.der(), &host("web-1"), DAY), Err(CaError::KeyKind { .. })));
    }

    #[test]
    fn bad_names_are_refused() {
        let ca = Ca::create("test").unwrap();
        for bad in [vec![], vec!["".to_string()], vec!["a b".into()], vec!["ok".into(), "-x".into()]] {
            assert!(matches!(ca.issue_controller(&bad), Err(CaError::ControllerName { .. })), "{bad:?}");
        }
        assert!(matches!(ca.issue_operator("a/b", &["admin".into()]), Err(CaError::OperatorName { .. })));
        for bad in [vec![], vec!["root".to_string()]] {
            assert!(matches!(ca.issue_operator("ada", &bad), Err(CaError::OperatorRoles { .. })));
        }
    }

    #[test]
    fn a_saved_ca_goes_on_and_a_mixed_one_does_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let ca = Ca::create("test").unwrap();
        ca.save(&one).unwrap();
        assert_eq!(std::fs::metadata(one.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
        let loaded = Ca::load(&one).unwrap();
        assert_eq!(loaded.pin(), ca.pin());
        loaded.issue_operator("ada", &["admin".into()]).unwrap();

        Ca::create("test").unwrap().save(&two).unwrap();
        std::fs::copy(one.join("ca.key"), two.join("ca.key")).unwrap();
        assert!(matches!(Ca::load(&two), Err(CaError::NotAPair { .. })));
        std::fs::write(two.join("ca.key"), "nonsense").unwrap();
        assert!(matches!(Ca::load(&two), Err(CaError::Key { .. })));
    }
}
