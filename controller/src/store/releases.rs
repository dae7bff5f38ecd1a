//! Which releases were imported. Their manifests and files are in the depot.

use rusqlite::{Connection, OptionalExtension, Row, params};
use tidegate_protocol::{Digest, ReleaseId, ReleaseRef, Timestamp};

use super::{Store, StoreError, at, ms, parsed};

/// An imported release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRow {
    /// Which, and its manifest.
    pub release: ReleaseRef,
    /// When.
    pub imported_at: Timestamp,
    /// By whom.
    pub imported_by: String,
}

impl Store {
    /// One release.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn release(&self, id: ReleaseId) -> Result<Option<ReleaseRow>, StoreError> {
        self.run("reading a release", move |transaction, _| find(transaction, &id)).await
    }

    /// All releases, by name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn releases(&self) -> Result<Vec<ReleaseRow>, StoreError> {
        self.run("reading the releases", |transaction, _| all(transaction)).await
    }

    /// Keeps a release unless its id is taken; returns what stands under the id then.
    ///
    /// # Errors
    /// It was not kept.
    pub async fn add_release(&self, row: ReleaseRow) -> Result<ReleaseRow, StoreError> {
        self.run("keeping a release", move |transaction, _| {
            if let Some(known) = find(transaction, &row.release.id)? {
                return Ok(known);
            }
            transaction.execute(
                "INSERT INTO releases (id, manifest, imported_at, imported_by) VALUES (?1, ?2, ?3, ?4)",
                params![row.release.id.to_string(), row.release.manifest.0, ms(row.imported_at), row.imported_by],
            )?;
            Ok(row)
        })
        .await
    }
}

fn find(connection: &Connection, id: &ReleaseId) -> rusqlite::Result<Option<ReleaseRow>> {
    connection
        .prepare_cached("SELECT id, manifest, imported_at, imported_by FROM releases WHERE id = ?1")?
        .query_row([id.to_string()], read)
        .optional()
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<ReleaseRow>> {
    connection.prepare("SELECT id, manifest, imported_at, imported_by FROM releases ORDER BY id")?.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<ReleaseRow> {
    Ok(ReleaseRow {
        release: ReleaseRef { id: parsed(0, &row.get::<_, String>(0)?)?, manifest: Digest(row.get(1)?) },
        imported_at: at(row.get(2)?),
        imported_by: row.get(3)?,
    })
}
