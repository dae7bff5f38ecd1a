//! Asking the controller, and telling a lost connection from a refusal.

use std::path::Path;
use std::time::Duration;

use tidegate_net::NetError;
use tokio::time::timeout;

use super::Context;
use crate::operator::client::{Client, ClientError, Frames, Part, Profile};
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};

/// Plain requests are answered within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// A connection to the controller.
pub(super) struct Link {
    client: Client,
}

/// Why an answer did not come.
pub(super) enum Trouble {
    /// The controller was lost, or is stopping: it may come back.
    Lost(ErrorDoc),
    /// It said no, or this machine is at fault: asking again changes nothing.
    Said(ErrorDoc),
}

impl Trouble {
    pub(super) const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

/// Made by this side: final.
impl From<ErrorDoc> for Trouble {
    fn from(error: ErrorDoc) -> Self {
        Self::Said(error)
    }
}

impl From<Trouble> for ErrorDoc {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Lost(error) | Trouble::Said(error)) = trouble;
        error
    }
}

fn trouble(error: ClientError, profile: &Path) -> Trouble {
    let lost = match &error {
        ClientError::Refused(doc) => matches!(doc.code, ErrorCode::Unavailable | ErrorCode::Detached),
        ClientError::Net(net) => !matches!(
            net,
            NetError::OwnCertificateExpired { .. }
                | NetError::Identity(_)
                | NetError::Tls { .. }
                | NetError::NotOurController { .. }
                | NetError::CertificateRefused { .. }
                | NetError::Protocol { .. }
        ),
        ClientError::NoPort { .. } | ClientError::Lost(_) | ClientError::Stream(_) | ClientError::Cut => true,
        ClientError::Read { .. } | ClientError::Profile { .. } | ClientError::Identity(_) => false,
    };
    let fix = match &error {
        ClientError::Read { .. } => Some(
            "make a profile with `tidegate-controller init` (DIR/operators/admin), and name it with --profile DIR or $TIDEGATE_PROFILE"
                .into(),
        ),
        ClientError::Profile { .. } => Some("correct that line, or copy the profile again".into()),
        ClientError::Identity(_) => Some(format!("copy operator.crt, operator.key and ca.crt into {} again", profile.display())),
        ClientError::Refused(_) => None,
        ClientError::Net(NetError::NotOurController { .. } | NetError::CertificateRefused { .. }) => {
            Some(format!("use the profile of this fleet: --profile DIR or $TIDEGATE_PROFILE, now {}", profile.display()))
        }
        _ if lost => {
            Some(format!("check that `tidegate-controller serve` runs at the address in {}", profile.join("profile.toml").display()))
        }
        _ => None,
    };
    let mut doc = error.doc();
    if let (None, Some(fix)) = (&doc.fix, fix) {
        doc = doc.fix(fix);
    }
    if lost { Trouble::Lost(doc) } else { Trouble::Said(doc) }
}

impl Link {
    /// Reads the profile (a restarted controller may have another port) and dials.
    pub(super) async fn open(context: &Context) -> Result<Self, Trouble> {
        let dir = context.profile.clone();
        let profile = tokio::task::spawn_blocking(move || Profile::load(&dir))
            .await
            .map_err(|e| ErrorDoc::new(ErrorCode::Internal, "read the profile").cause(e.to_string()))?
            .map_err(|e| trouble(e, &context.profile))?;
        let client = Client::connect(&profile).await.map_err(|e| trouble(e, &context.profile))?;
        Ok(Self { client })
    }

    /// The one document of a plain request.
    pub(super) async fn ask(&self, context: &Context, request: Request) -> Result<String, Trouble> {
        match timeout(ANSWER_WITHIN, self.client.document(&request)).await {
            Ok(answer) => answer.map_err(|e| trouble(e, &context.profile)),
            Err(_) => Err(Trouble::Lost(
                ErrorDoc::new(ErrorCode::Unavailable, format!("no answer within {} s", ANSWER_WITHIN.as_secs()))
                    .fix("try again in a few seconds"),
            )),
        }
    }

    /// An answer in parts.
    pub(super) async fn stream<'a>(&self, context: &'a Context, request: &Request) -> Result<Answers<'a>, Trouble> {
        let frames = self.client.ask(request).await.map_err(|e| trouble(e, &context.profile))?;
        Ok(Answers { frames, context })
    }

    /// A request whose bytes follow.
    pub(super) async fn begin<'a>(&self, context: &'a Context, request: &Request) -> Result<Answers<'a>, Trouble> {
        let frames = self.client.begin(request).await.map_err(|e| trouble(e, &context.profile))?;
        Ok(Answers { frames, context })
    }

    /// Says goodbye, so that the controller need not wait for a time-out.
    pub(super) async fn close(self) {
        self.client.close().await;
    }
}

/// An answer that comes in parts.
pub(super) struct Answers<'a> {
    pub(super) frames: Frames,
    context: &'a Context,
}

impl Answers<'_> {
    pub(super) async fn next(&mut self) -> Result<Part, Trouble> {
        self.frames.next().await.map_err(|e| trouble(e, &self.context.profile))
    }

    /// The one document after an upload.
    pub(super) async fn document(&mut self) -> Result<String, Trouble> {
        match timeout(ANSWER_WITHIN, self.frames.document()).await {
            Ok(answer) => answer.map_err(|e| trouble(e, &self.context.profile)),
            Err(_) => Err(Trouble::Lost(
                ErrorDoc::new(ErrorCode::Unavailable, "the upload was not answered").fix("import again: what arrived is kept"),
            )),
        }
    }
}
