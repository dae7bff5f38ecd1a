//! The client's side of an operator's connection: what the CLI, tests and tools
//! use to ask a controller.
//!
//! Owns: finding the profile, dialling, one stream per request. Must not: print,
//! or know what documents mean.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tidegate_net::{Caller, FrameReceiver, FrameSender, Identity, IdentityError, NetError, StreamError, close, quinn};
use tidegate_protocol::limits::OPERATOR_FRAME_BYTES_MAX;
use tokio::time::timeout;

use super::msg::{ErrorCode, ErrorDoc, Frame, Request};

/// Largest profile.toml that is read, bytes.
const PROFILE_BYTES_MAX: u64 = 64 * 1024;
/// How long closing waits for the controller to hear of it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a controller is and who asks: `profile.toml` beside `operator.crt`,
/// `operator.key` and `ca.crt`.
#[derive(Debug)]
pub struct Profile {
    /// `HOST:PORT`.
    pub controller: String,
    /// The operator's certificate and key.
    pub identity: Identity,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    controller: String,
    /// Where the controller writes its port, when it listens on port 0.
    listening: Option<PathBuf>,
}

/// A controller that could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file of the profile cannot be read.
    #[error("{path}: cannot be read; give the profile with --profile DIR or $TIDEGATE_PROFILE")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// profile.toml does not read as what it should be.
    #[error("{path}: {message}")]
    Profile {
        /// Which.
        path: PathBuf,
        /// Line, column, what was found and what is wanted.
        message: String,
    },
    /// The controller listens on a port that it has not written down.
    #[error("{path}: has no port; is the controller running?")]
    NoPort {
        /// Where it should stand.
        path: PathBuf,
    },
    /// Certificate or key cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The controller could not be reached.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The connection ended before the answer did.
    #[error("the connection to the controller was lost")]
    Lost(#[source] quinn::ConnectionError),
    /// The stream ended before the answer did.
    #[error("the controller's answer broke off")]
    Stream(#[from] StreamError),
    /// The answer ended without saying so.
    #[error("the controller's answer broke off")]
    Cut,
    /// The controller said no.
    #[error(transparent)]
    Refused(#[from] ErrorDoc),
}

impl ClientError {
    /// For people and scripts.
    #[must_use]
    pub fn doc(self) -> ErrorDoc {
        let code = match self {
            Self::Refused(doc) => return doc,
            Self::Profile { .. } => ErrorCode::Usage,
            _ => ErrorCode::Unavailable,
        };
        let cause = std::error::Error::source(&self).map(ToString::to_string);
        let doc = ErrorDoc::new(code, self.to_string());
        match cause.filter(|c| !doc.message.contains(c.as_str())) {
            Some(cause) => doc.cause(cause),
            None => doc,
        }
    }
}

impl Profile {
    /// Reads a profile's directory. Blocks.
    ///
    /// # Errors
    /// A file that is missing or does not read.
    pub fn load(dir: &Path) -> Result<Self, ClientError> {
        let path = dir.join("profile.toml");
        let read = |source| ClientError::Read { path: path.clone(), source };
        let bad = |message: &str| ClientError::Profile { path: path.clone(), message: message.to_owned() };
        if fs::metadata(&path).map_err(read)?.len() > PROFILE_BYTES_MAX {
            return Err(bad("far too large for a profile"));
        }
        let text = fs::read_to_string(&path).map_err(read)?;
        let file: File = toml::from_str(&text).map_err(|e| bad(e.to_string().trim_end()))?;
        let Some((host, _)) = file.controller.rsplit_once(':') else {
            return Err(bad("controller: HOST:PORT is wanted, for example \"ctl1.example:7443\""));
        };
        let controller = match &file.listening {
            None => file.controller.clone(),
            Some(listening) => {
                let port = fs::read_to_string(listening).ok().and_then(|t| t.trim().parse::<u16>().ok());
                let port = port.ok_or_else(|| ClientError::NoPort { path: listening.clone() })?;
                format!("{host}:{port}")
            }
        };
        let identity = Identity::load(&dir.join("operator.crt"), &dir.join("operator.key"), &dir.join("ca.crt"))?;
        Ok(Self { controller, identity })
    }
}

/// A connection to a controller.
#[derive(Debug)]
pub struct Client {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

/// An answer that comes in parts.
#[derive(Debug)]
pub struct Frames {
    recv: FrameReceiver,
    /// Kept open: dropping it would tell the controller that nobody listens.
    send: FrameSender,
}

/// The next part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A JSON document.
    Document(String),
    /// One event, as a line of JSON.
    Event(String),
    /// All was said; the exit code of the contract.
    End(u8),
}

impl Client {
    /// Dials the profile's controller. Needs a tokio runtime.
    ///
    /// # Errors
    /// It cannot be reached, or refuses us.
    pub async fn connect(profile: &Profile) -> Result<Self, ClientError> {
        let endpoint = tidegate_net::client(None)?;
        let config = tidegate_net::client_config(Caller::Known(&profile.identity))?;
        let connection = tidegate_net::connect(&endpoint, config, &profile.controller).await?;
        Ok(Self { endpoint, connection })
    }

    /// Asks, and finishes the request's side of the stream.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn ask(&self, request: &Request) -> Result<Frames, ClientError> {
        let mut frames = self.begin(request).await?;
        frames.send.finish();
        Ok(frames)
    }

    /// Asks and leaves the stream open for the bytes of an upload: write them to
    /// [`Frames::body`] and call [`Frames::finish`].
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn begin(&self, request: &Request) -> Result<Frames, ClientError> {
        let (send, recv) = self.connection.open_bi().await.map_err(ClientError::Lost)?;
        let mut send = FrameSender::new(send);
        send.send(request, OPERATOR_FRAME_BYTES_MAX).await?;
        Ok(Frames { recv: FrameReceiver::new(recv), send })
    }

    /// Asks for the one document of a plain request.
    ///
    /// # Errors
    /// [`ClientError::Refused`], or the connection is lost.
    pub async fn document(&self, request: &Request) -> Result<String, ClientError> {
        self.ask(request).await?.document().await
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.connection.close(close::SHUTDOWN, b"");
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl Frames {
    /// The next part. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Refused`]; or the connection is lost.
    pub async fn next(&mut self) -> Result<Part, ClientError> {
        match self.recv.receive::<Frame>(OPERATOR_FRAME_BYTES_MAX).await? {
            Some(Frame::Document(text)) => Ok(Part::Document(text)),
            Some(Frame::Event(line)) => Ok(Part::Event(line)),
            Some(Frame::End { exit }) => Ok(Part::End(exit)),
            Some(Frame::Error(error)) => Err(error.into()),
            None => Err(ClientError::Cut),
        }
    }

    /// The one document of a plain request.
    ///
    /// # Errors
    /// As [`Frames::next`].
    pub async fn document(&mut self) -> Result<String, ClientError> {
        let mut document = None;
        loop {
            match self.next().await? {
                Part::Document(text) => document = Some(text),
                Part::Event(_) => {}
                Part::End(_) => return document.ok_or(ClientError::Cut),
            }
        }
    }

    /// Where an upload's bytes go.
    pub fn body(&mut self) -> &mut quinn::SendStream {
        &mut self.send.send
    }

    /// No more bytes.
    pub fn finish(&mut self) {
        self.send.finish();
    }
}
