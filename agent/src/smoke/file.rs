//! A file has this digest.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tidegate_protocol::Digest;

use super::{Attempt, Beside};
use crate::service::read_digest;

pub(super) async fn attempt(beside: &Beside<'_>, path: &str, wanted: Digest) -> Result<String, Attempt> {
    let path = beside.expand(path)?;
    // An absolute path replaces the tree's.
    let full = beside.installed.dir.join(&path);
    let read = tokio::task::spawn_blocking(move || digest_of(&full)).await.unwrap_or_else(|e| Err(io::Error::other(e)));
    match read {
        Ok(seen) if seen == wanted => Ok(format!("{path} is {}", seen.short())),
        Ok(seen) => Err(Attempt::Fail(format!("{path} has sha256 {seen}, {wanted} wanted"))),
        Err(error) => Err(Attempt::Fail(format!("cannot read {path}: {error}"))),
    }
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    // A pipe or device in its place must not hold the agent.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    read_digest(&mut file)
}
