//! A CA, its identities, and a controller that takes handshakes.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::time::Duration;

use tidegate_net::{Accepted, Admission, Ca, Caller, Identity, NetError, client, client_config, connect, make_csr, quinn, server};
use tidegate_protocol::HostName;
use tokio::sync::mpsc;

pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub fn ca() -> Ca {
    Ca::create("test").unwrap()
}

pub fn controller(ca: &Ca) -> Identity {
    identity(ca, ca.issue_controller(&["127.0.0.1".into()]).unwrap())
}

pub fn operator(ca: &Ca) -> Identity {
    identity(ca, ca.issue_operator("ada", &["admin".into()]).unwrap())
}

pub fn host(ca: &Ca, name: &str, validity: Duration) -> Identity {
    let (csr, key) = make_csr().unwrap();
    let name: HostName = name.parse().unwrap();
    Identity::from_parts(ca.sign_host_csr(&csr, &name, validity).unwrap(), &key, ca.cert().clone()).unwrap()
}

fn identity(ca: &Ca, (cert, key): (String, String)) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    Identity::load(&path("crt", &cert), &path("key", &key), &path("ca", &ca.cert_pem())).unwrap()
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub struct Controller {
    pub endpoint: quinn::Endpoint,
    pub admission: Admission,
    pub accepted: mpsc::Receiver<Accepted>,
    pub addr: String,
}

impl Controller {
    pub fn start(identity: &Identity) -> Self {
        Self::with(identity, Admission::default())
    }

    pub fn with(identity: &Identity, admission: Admission) -> Self {
        let endpoint = server(LOOPBACK, identity).unwrap();
        let addr = endpoint.local_addr().unwrap().to_string();
        let (out, accepted) = mpsc::channel(4);
        let (task_endpoint, task_admission) = (endpoint.clone(), admission.clone());
        tokio::spawn(async move { tidegate_net::accept(&task_endpoint, &task_admission, &out).await });
        Self { endpoint, admission, accepted, addr }
    }

    pub async fn dial(&self, caller: Caller<'_>) -> Result<quinn::Connection, NetError> {
        connect(&client(None).unwrap(), client_config(caller)?, &self.addr).await
    }
}

/// Both ends of a host's connection.
pub async fn session() -> (Controller, Accepted, quinn::Connection) {
    let ca = ca();
    let mut controller = Controller::start(&controller(&ca));
    let host = host(&ca, "web-1", HOUR);
    let connection = controller.dial(Caller::Known(&host)).await.unwrap();
    let accepted = controller.accepted.recv().await.unwrap();
    (controller, accepted, connection)
}

/// Waits until `done`, for a state that another task brings about.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came: {what}");
}
