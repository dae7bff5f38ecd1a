//! One request to a metrics server, or to where notifications go: where it may go, with which secret, and how
//! much may come back. Redirects are not followed: they are said.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use base64::Engine as _;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::base::{BadBase, Base, percent_encode};

/// Longest query that goes into a URL; longer ones are posted: proxies cut URLs.
const URL_QUERY_BYTES_MAX: usize = 4 * 1024;
/// Largest answer that is read, bytes.
pub(super) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest answer's head, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest secret or CA file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How a metrics server is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Who we are; none = nobody asks.
    pub auth: Option<Auth>,
    /// PEM with the CA of its certificate; none = the system's roots.
    pub ca_file: Option<PathBuf>,
}

/// Secrets are read from their files at each request: they rotate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer …`
    Token(PathBuf),
    /// `Authorization: Basic …`
    Basic {
        /// Who.
        user: String,
        /// Where the password is.
        password_file: PathBuf,
    },
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(transparent)]
    Base(#[from] BadBase),
    #[error("the controller may not call it: name it in controller.toml, [sources.\"{0}\"]")]
    NotListed(Base),
    #[error("cannot read {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} has no certificate in PEM form")]
    NoCertificate { path: PathBuf },
    #[error("no root certificate was found on this machine; name one with ca_file")]
    NoRoots,
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the request cannot be made")]
    Request(#[from] hyper::http::Error),
    #[error("no answer in HTTP came")]
    Exchange(#[source] hyper::Error),
    #[error("the answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is over {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it answers with a redirect (HTTP {status}) to {to:?}; write that URL if it is meant")]
    Redirect { status: u16, to: String },
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
    /// `Retry-After`, as it came.
    pub(crate) retry_after: Option<String>,
}

/// Speaks to all metrics servers.
#[derive(Debug)]
pub(crate) struct Http {
    places: Vec<Place>,
    system: OnceCell<Arc<ClientConfig>>,
}

#[derive(Debug)]
struct Place {
    base: Base,
    access: Access,
    tls: OnceCell<Arc<ClientConfig>>,
}

impl Http {
    pub(crate) fn new(places: impl IntoIterator<Item = (Base, Access)>) -> Self {
        let place = |(base, access)| Place { base, access, tls: OnceCell::new() };
        let mut places: Vec<Place> = places.into_iter().map(place).collect();
        // The nearest one counts.
        places.sort_by_key(|p| std::cmp::Reverse(p.base.path.len()));
        Self { places, system: OnceCell::new() }
    }

    /// GET, or POST of a form where the query is long.
    pub(super) async fn ask(&self, base: &Base, path: &str, query: &[(&str, &str)]) -> Result<Reply, HttpError> {
        let place = self.places.iter().find(|p| p.base.covers(base));
        if place.is_none() && !base.is_loopback() {
            return Err(HttpError::NotListed(base.clone()));
        }
        let mut form = String::new();
        for (key, value) in query {
            form.push_str(if form.is_empty() { "" } else { "&" });
            percent_encode(key, &mut form);
            form.push('=');
            percent_encode(value, &mut form);
        }
        let long = form.len() > URL_QUERY_BYTES_MAX;
        let target = if long { format!("{}{path}", base.path) } else { format!("{}{path}?{form}", base.path) };
        let mut request = Request::builder()
            .method(if long { Method::POST } else { Method::GET })
            .uri(target)
            .header(HOST, base.authority())
            .header(USER_AGENT, concat!("tidegate-controller/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if long {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(auth) = place.and_then(|p| p.access.auth.as_ref()) {
            request = request.header(AUTHORIZATION, authorization(auth).await?);
        }
        let request = request.body(Full::new(Bytes::from(if long { form } else { String::new() })))?;
        self.send(base, place, request).await
    }

    /// GET of a page as a person would open it; `query` as written.
    pub(super) async fn open(&self, base: &Base, query: Option<&str>) -> Result<Reply, HttpError> {
        let place = self.places.iter().find(|p| p.base.covers(base));
        if place.is_none() && !base.is_loopback() {
            return Err(HttpError::NotListed(base.clone()));
        }
        let path = if base.path.is_empty() { "/" } else { base.path.as_str() };
        let mut request = Request::builder()
            .uri(query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")))
            .header(HOST, base.authority())
            .header(USER_AGENT, concat!("tidegate-controller/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "text/html, */*");
        if let Some(auth) = place.and_then(|p| p.access.auth.as_ref()) {
            request = request.header(AUTHORIZATION, authorization(auth).await?);
        }
        self.send(base, place, request.body(Full::new(Bytes::new()))?).await
    }

    /// POST of JSON to a place that the caller chose; `path` with its query, `ca_file`
    /// as in [`Access`].
    pub(crate) async fn post(
        &self,
        base: &Base,
        path: &str,
        ca_file: Option<&Path>,
        headers: &[(&'static str, String)],
        body: String,
    ) -> Result<Reply, HttpError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, base.authority())
            .header(USER_AGENT, concat!("tidegate-controller/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let tls = match ca_file {
            _ if !base.https => None,
            Some(ca) => Some(off_runtime(ca, roots_of).await?),
            None => Some(self.tls(None).await?),
        };
        dial(base, tls, request).await
    }

    async fn send(&self, base: &Base, place: Option<&Place>, request: Request<Full<Bytes>>) -> Result<Reply, HttpError> {
        let tls = if base.https { Some(self.tls(place).await?) } else { None };
        dial(base, tls, request).await
    }

    async fn tls(&self, place: Option<&Place>) -> Result<Arc<ClientConfig>, HttpError> {
        let config = match place.and_then(|p| p.access.ca_file.as_ref().map(|ca| (p, ca))) {
            Some((place, ca)) => place.tls.get_or_try_init(|| off_runtime(ca, roots_of)).await?,
            None => self.system.get_or_try_init(|| off_runtime(Path::new(""), |_| system_roots())).await?,
        };
        Ok(config.clone())
    }
}

async fn dial(base: &Base, tls: Option<Arc<ClientConfig>>, request: Request<Full<Bytes>>) -> Result<Reply, HttpError> {
    let tcp = TcpStream::connect((base.host.as_str(), base.port)).await.map_err(HttpError::Connect)?;
    let Some(tls) = tls else { return exchange(TokioIo::new(tcp), request).await };
    let name = ServerName::try_from(base.host.clone()).map_err(|e| HttpError::Tls(io::Error::other(e)))?;
    let tls = TlsConnector::from(tls).connect(name, tcp).await.map_err(HttpError::Tls)?;
    exchange(TokioIo::new(tls), request).await
}

async fn off_runtime(
    path: &Path,
    roots: impl FnOnce(&Path) -> Result<RootCertStore, HttpError> + Send + 'static,
) -> Result<Arc<ClientConfig>, HttpError> {
    let path = path.to_path_buf();
    let roots = tokio::task::spawn_blocking(move || roots(&path)).await.map_err(|e| HttpError::Tls(io::Error::other(e)))??;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn roots_of(path: &Path) -> Result<RootCertStore, HttpError> {
    let pem = read_file(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| HttpError::NoCertificate { path: path.into() })?;
        roots.add(certificate)?;
    }
    if roots.is_empty() { Err(HttpError::NoCertificate { path: path.into() }) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, HttpError> {
    let mut roots = RootCertStore::empty();
    // One that cannot be read only means that its servers are not trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(HttpError::NoRoots) } else { Ok(roots) }
}

fn read_file(path: &Path) -> Result<Vec<u8>, HttpError> {
    let failed = |source| HttpError::File { path: path.into(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(failed(io::Error::other(format!("over {FILE_BYTES_MAX} bytes"))));
    }
    std::fs::read(path).map_err(failed)
}

async fn authorization(auth: &Auth) -> Result<HeaderValue, HttpError> {
    let path = match auth {
        Auth::Token(path) | Auth::Basic { password_file: path, .. } => path.clone(),
    };
    let failed = |path: &Path, why: &str| HttpError::File { path: path.into(), source: io::Error::other(why.to_owned()) };
    let file = path.clone();
    let bytes = tokio::task::spawn_blocking(move || read_file(&file)).await.map_err(|e| failed(&path, &e.to_string()))??;
    let secret = String::from_utf8(bytes).map_err(|_| failed(&path, "it is not text"))?;
    let secret = secret.trim();
    if secret.is_empty() {
        return Err(failed(&path, "it is empty"));
    }
    let text = match auth {
        Auth::Token(_) => format!("Bearer {secret}"),
        Auth::Basic { user, .. } => format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"))),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| failed(&path, "it has characters that no header takes"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> Result<Reply, HttpError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let (mut sender, connection) = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(io).await.map_err(HttpError::Exchange)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(async move {
        sender.ready().await.map_err(HttpError::Exchange)?;
        let response = sender.send_request(request).await.map_err(HttpError::Exchange)?;
        let status = response.status();
        if status.is_redirection() {
            let to = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).unwrap_or_default();
            return Err(HttpError::Redirect { status: status.as_u16(), to: to.chars().take(200).collect() });
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|e| if e.is::<LengthLimitError>() { HttpError::TooLarge } else { HttpError::Body(e) })?;
        Ok(Reply { status, body: body.to_bytes().to_vec(), retry_after })
    });
    // The connection moves the bytes; dropped with this future, nothing is left of it.
    tokio::select! {
        biased;
        reply = &mut answer => reply,
        ended = &mut connection => match (answer.await, ended) {
            (Err(HttpError::Exchange(_)), Err(why)) => Err(HttpError::Exchange(why)),
            (reply, _) => reply,
        },
    }
}
