//! A bare quinn transfer with Tidegate's own endpoints and limits: what artifacts
//! could reach if nothing were done with them.
//!
//! One stream, one thread and one runtime at each end, as an agent has it. The
//! server writes chunks of the size that the controller reads from its depot.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use tidegate_net::quinn::{self, Connection, VarInt};
use tidegate_net::{Admission, Ca, Caller, Identity, accept, client, client_config, connect, make_csr, server};
use tidegate_protocol::digest::Hasher;
use tokio::sync::mpsc;

/// As the controller reads its depot, and as an agent takes from the stream.
const SERVER_CHUNK: usize = 256 * 1024;
const CLIENT_CHUNK: usize = 64 * 1024;
/// Chunks between network and disk, as in the agent.
const CHUNKS: usize = 16;

/// What the client does with the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sink<'a> {
    /// Nothing.
    Discard,
    /// Hashes them and writes them to this file, on a thread beside, then syncs it.
    HashAndWrite(&'a Path),
}

/// Transfers `bytes` once; seconds from the request to the last byte (synced).
pub(super) fn transfer(bytes: u64, sink: Sink<'_>) -> anyhow::Result<f64> {
    let ca = Ca::create("bench").context("a CA")?;
    let dir = tempfile::tempdir().context("a directory for the CA")?;
    let (cert, key) = ca.issue_controller(&["127.0.0.1".to_owned()]).context("the server's certificate")?;
    let path = |name: &str| dir.path().join(name);
    for (name, text) in [("crt", &cert), ("key", &key), ("ca", &ca.cert_pem())] {
        std::fs::write(path(name), text).context("writing the server's identity")?;
    }
    let of_server = Identity::load(&path("crt"), &path("key"), &path("ca")).context("the server's identity")?;
    let (csr, key) = make_csr().context("the client's key")?;
    let host = "bench".parse().context("a name")?;
    let cert = ca.sign_host_csr(&csr, &host, std::time::Duration::from_secs(3600)).context("the client's certificate")?;
    let of_client = Identity::from_parts(cert, &key, ca.cert().clone()).context("the client's identity")?;

    let (address, listening) = std::sync::mpsc::channel();
    let serving = thread::spawn(move || runtime()?.block_on(serve(&of_server, bytes, &address)));
    let took = match listening.recv() {
        Ok(address) => runtime()?.block_on(fetch(&of_client, address, bytes, sink)),
        Err(_) => Err(anyhow!("the server did not start")),
    };
    // Without a client it would wait for ever; its error is the better one.
    if took.is_ok() || serving.is_finished() {
        serving.join().map_err(|_| anyhow!("the server panicked"))??;
    }
    took
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")
}

async fn serve(identity: &Identity, bytes: u64, address: &std::sync::mpsc::Sender<SocketAddr>) -> anyhow::Result<()> {
    let endpoint = server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), identity)?;
    address.send(endpoint.local_addr().context("the server's address")?).context("telling the address")?;
    let (out, mut accepted) = mpsc::channel(1);
    let admission = Admission::default();
    let connection = tokio::select! {
        () = accept(&endpoint, &admission, &out) => None,
        accepted = accepted.recv() => accepted,
    };
    let connection = connection.context("nobody came")?.connection;
    let (mut send, mut recv) = connection.accept_bi().await.context("the stream")?;
    recv.read_to_end(16).await.context("the request")?;
    // Unlike the controller, which reads a file: the same memory again and again.
    let chunk = vec![0x5a; SERVER_CHUNK];
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(SERVER_CHUNK).min(SERVER_CHUNK);
        send.write_all(chunk.get(..len).unwrap_or_default()).await.context("sending")?;
        left -= len as u64;
    }
    send.finish().context("the end")?;
    connection.closed().await;
    endpoint.wait_idle().await;
    Ok(())
}

async fn fetch(identity: &Identity, address: SocketAddr, bytes: u64, sink: Sink<'_>) -> anyhow::Result<f64> {
    let endpoint = client(None)?;
    let connection = connect(&endpoint, client_config(Caller::Known(identity))?, &address.to_string()).await?;
    let began = Instant::now();
    let (mut send, recv) = connection.open_bi().await.context("a stream")?;
    send.write_all(b"go").await.context("the request")?;
    send.finish().context("the request's end")?;
    let got = match sink {
        Sink::Discard => discard(recv).await?,
        Sink::HashAndWrite(path) => keep(recv, path).await?,
    };
    let took = began.elapsed().as_secs_f64();
    ensure!(got == bytes, "{got} of {bytes} bytes came");
    close(&connection, &endpoint).await;
    Ok(took)
}

async fn close(connection: &Connection, endpoint: &quinn::Endpoint) {
    connection.close(VarInt::from_u32(0), b"done");
    endpoint.wait_idle().await;
}

async fn discard(mut recv: quinn::RecvStream) -> anyhow::Result<u64> {
    let mut got = 0;
    while let Some(chunk) = recv.read_chunk(CLIENT_CHUNK, true).await.context("receiving")? {
        got += chunk.bytes.len() as u64;
    }
    Ok(got)
}

async fn keep(mut recv: quinn::RecvStream, path: &Path) -> anyhow::Result<u64> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let (chunks, mut arriving) = mpsc::channel::<quinn::Chunk>(CHUNKS);
    let writer = tokio::task::spawn_blocking(move || -> anyhow::Result<u64> {
        let mut hasher = Hasher::new();
        let mut got = 0;
        while let Some(chunk) = arriving.blocking_recv() {
            hasher.update(&chunk.bytes);
            file.write_all(&chunk.bytes).context("writing")?;
            got += chunk.bytes.len() as u64;
        }
        file.sync_all().context("syncing")?;
        std::hint::black_box(hasher.finish());
        Ok(got)
    });
    while let Some(chunk) = recv.read_chunk(CLIENT_CHUNK, true).await.context("receiving")? {
        if chunks.send(chunk).await.is_err() {
            break;
        }
    }
    drop(chunks);
    writer.await.context("the writer")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_bring_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(transfer(1_000_003, Sink::Discard).unwrap() > 0.0);
        transfer(1_000_003, Sink::HashAndWrite(&path)).unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().len(), 1_000_003);
    }
}
