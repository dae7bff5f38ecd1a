//! The head of the controller's journal: the highest one ever heard of, kept
//! durably, so that a journal that was cut off or replaced is found by this host.
//!
//! Owns which head is kept. Must not: judge the controller; it says what it saw.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_protocol::JournalHead;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::durable;

/// Far above what one takes.
const FILE_BYTES_MAX: u64 = 4 * 1024;
/// Shortest time between two writes: a busy journal has a new head with each record,
/// and only the last of them matters.
const GAP: Duration = Duration::from_millis(100);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Why the head could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The file.
    #[error("{path} cannot be read")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what the agent writes.
    #[error("{path} is damaged: which journal this host saw before is not known")]
    Malformed {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The head that is kept, if there is one. Blocks.
///
/// # Errors
/// [`HeadError`].
pub fn read(path: &Path) -> Result<Option<JournalHead>, HeadError> {
    let bytes = durable::read_bounded(path, FILE_BYTES_MAX).map_err(|source| HeadError::Read { path: path.to_owned(), source })?;
    let head = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    head.map_err(|source| HeadError::Malformed { path: path.to_owned(), source })
}

/// The highest head, which may not be durable yet.
pub struct Heads {
    path: PathBuf,
    /// What the file said at first.
    read: Option<JournalHead>,
    highest: watch::Sender<Option<JournalHead>>,
}

impl Heads {
    /// Goes on from the file. Blocks. One that does not read is said, and replaced by
    /// the next head.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let kept = read(&path).unwrap_or_else(|error| {
            tracing::error!(error = crate::error::chain(&error), "the head of the controller's journal");
            None
        });
        Self { path, read: kept, highest: watch::Sender::new(kept) }
    }

    /// Takes the controller's word. Does not block.
    pub fn offer(&self, head: JournalHead) {
        self.highest.send_if_modified(|known| {
            let newer = newer(*known, head);
            if newer {
                *known = Some(head);
            }
            newer
        });
    }

    /// Makes each highest head durable, and then tells it, until dropped.
    pub async fn keep(&self, told: watch::Sender<Option<JournalHead>>) {
        let mut highest = self.highest.subscribe();
        let mut durable = self.read;
        told.send_replace(durable);
        let mut said = false;
        loop {
            let head = *highest.borrow_and_update();
            if let Some(head) = head.filter(|_| head != durable) {
                let path = self.path.clone();
                let written = tokio::task::spawn_blocking(move || {
                    let bytes = serde_json::to_vec(&head).map_err(io::Error::other)?;
                    durable::replace(&path, &bytes, 0o600)
                });
                match written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
                    Ok(()) => {
                        (durable, said) = (Some(head), false);
                        told.send_replace(durable);
                        sleep(GAP).await;
                    }
                    Err(error) => {
                        if !said {
                            tracing::warn!(%error, path = %self.path.display(), "the head of the controller's journal was not kept; trying on");
                            said = true;
                        }
                        sleep(RETRY).await;
                    }
                }
                continue;
            }
            if highest.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Whether the head takes the place of the known one; the first of two with one
/// place stays.
fn newer(known: Option<JournalHead>, head: JournalHead) -> bool {
    match known {
        Some(known) if head.seq == known.seq && head.hash != known.hash => {
            tracing::warn!(
                seq = head.seq, kept = %known.hash, said = %head.hash,
                "the controller says another record stands at this place of its journal than before"
            );
            false
        }
        Some(known) if head.seq < known.seq => {
            tracing::debug!(kept = known.seq, said = head.seq, "the controller's journal was longer before");
            false
        }
        Some(known) => head.seq > known.seq,
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::Digest;
    use tokio::time::timeout;

    fn head(seq: u64, text: &str) -> JournalHead {
        JournalHead { seq, hash: Digest::of(text.as_bytes()) }
    }

    #[tokio::test]
    async fn the_highest_is_durable_before_it_is_told_and_the_first_of_one_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("head.json");
        for (offers, kept) in [
            (vec![head(3, "c"), head(5, "e"), head(4, "d"), head(5, "x")], head(5, "e")),
            (vec![head(5, "x"), head(1, "a")], head(5, "e")),
            (vec![head(6, "f")], head(6, "f")),
        ] {
            let heads = Heads::open(path.clone());
            offers.into_iter().for_each(|head| heads.offer(head));
            let (told, mut tells) = watch::channel(None);
            let tells = async {
                let told = timeout(Duration::from_secs(20), tells.wait_for(|told| *told == Some(kept))).await;
                assert!(told.is_ok_and(|told| told.is_ok()), "{kept:?} was not told");
            };
            tokio::select! { () = heads.keep(told) => {}, () = tells => {} }
            assert_eq!(read(&path).unwrap(), Some(kept));
        }
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(read(&path), Err(HeadError::Malformed { .. })));
    }
}
