//! SMTP: one plain-text mail for a notice, the mails of a rollout in one thread.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use sha2::{Digest, Sha256};
use tidegate_protocol::Timestamp;
use tidegate_rollout::notices::Notice;
use tidegate_rollout::status::rfc3339;
use tokio::task::spawn_blocking;

use super::config::{Email, MailTls};
use super::send::Sent;
use crate::sources::{chain, excerpt};

/// Of one command of the conversation.
const COMMAND_MAX: Duration = Duration::from_secs(15);
const CA_BYTES_MAX: u64 = 1024 * 1024;

pub(super) async fn send(email: &Email, route: &str, notice: &Notice) -> Sent {
    let message = match message(email, route, notice) {
        Ok(message) => message,
        Err(why) => return Sent::Dead(why),
    };
    let tls = match tls(email).await {
        Ok(tls) => tls,
        Err(why) => return Sent::Dead(why),
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(email.host.clone())
        .port(email.port)
        .tls(tls)
        .hello_name(own_name())
        .timeout(Some(COMMAND_MAX));
    let mut password = None;
    if let Some((user, at)) = &email.login {
        match at.read().await {
            Ok(secret) => {
                transport = transport.credentials(Credentials::new(user.clone(), secret.expose().to_owned()));
                password = Some(secret);
            }
            Err(why) => return Sent::Dead(why),
        }
    }
    let Err(error) = transport.build().send(message).await else { return Sent::Taken };
    // It names its cause itself. Secrets are cut out before the rest is.
    let why = format!("{}:{}: {error}", email.host, email.port);
    let why = password.map_or_else(|| why.clone(), |password| password.scrub(&why));
    // What the server refuses for good, and what this end cannot say at all.
    if error.is_permanent() || error.is_client() { Sent::Dead(excerpt(&why)) } else { Sent::Later { why: excerpt(&why), after: None } }
}

/// As this machine calls itself, for the server's log.
fn own_name() -> ClientId {
    let name = rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned();
    let fits = !name.is_empty() && name.len() <= 253 && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c));
    if fits { ClientId::Domain(name) } else { ClientId::default() }
}

async fn tls(email: &Email) -> Result<Tls, String> {
    if email.tls == MailTls::Plain {
        return Ok(Tls::None);
    }
    let (host, ca) = (email.host.clone(), email.ca_file.clone());
    // Reads files: the CA's, or all roots of the system.
    let made = spawn_blocking(move || parameters(host, ca.as_deref())).await;
    let parameters = made.map_err(|_| "the certificates were not read to their end".to_owned())??;
    Ok(if email.tls == MailTls::Wrapped { Tls::Wrapper(parameters) } else { Tls::Required(parameters) })
}

fn parameters(host: String, ca: Option<&Path>) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host);
    if let Some(path) = ca {
        let bad = |why: &str| format!("{}: {why}", path.display());
        if std::fs::metadata(path).map_err(|e| bad(&format!("cannot be read: {e}")))?.len() > CA_BYTES_MAX {
            return Err(bad("this is no certificate"));
        }
        let pem = std::fs::read(path).map_err(|e| bad(&format!("cannot be read: {e}")))?;
        let certificate = Certificate::from_pem(&pem).map_err(|_| bad("it has no certificate in PEM form"))?;
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(certificate);
    }
    builder.build().map_err(|e| format!("TLS cannot be set up: {}", chain(&e)))
}

pub(super) fn message(email: &Email, route: &str, notice: &Notice) -> Result<Message, String> {
    let id = |key: &str| message_id(email, route, notice, key);
    let mut builder = Message::builder()
        .from(email.from.clone())
        .subject(format!("[tidegate] {}", notice.title))
        .message_id(Some(id(&notice.key)))
        .date(UNIX_EPOCH + Duration::from_millis(notice.at.0))
        .header(ContentType::TEXT_PLAIN)
        .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()));
    for to in &email.to {
        builder = builder.to(to.clone());
    }
    if notice.thread != notice.key && !notice.thread.is_empty() {
        let first = id(&notice.thread);
        builder = builder.in_reply_to(first.clone()).references(first);
    }
    builder.body(body(notice)).map_err(|e| format!("the mail cannot be written: {}", chain(&e)))
}

fn body(notice: &Notice) -> String {
    let environment = notice.environment.as_deref().unwrap_or("-");
    format!(
        "{}\r\n\r\n{}\r\n\r\nRollout: {}\r\nRelease: {}\r\nEnvironment: {environment}\r\nEvent: {} ({}, {})\r\nTime: {}\r\n",
        notice.title,
        notice.text,
        notice.rollout,
        notice.release,
        notice.key,
        notice.topic.word(),
        notice.severity.word(),
        rfc3339(notice.at.0)
    )
}

/// The same whenever the same notice is sent again: a mail that comes twice is
/// shown once.
fn message_id(email: &Email, route: &str, notice: &Notice, key: &str) -> String {
    let Timestamp(since) = notice.since;
    let digest = Sha256::digest(format!("{}\n{since}\n{route}\n{key}", notice.rollout).as_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("<tidegate.{hex}@{}>", email.from.email.domain())
}
