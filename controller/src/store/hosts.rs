//! Rows of hosts.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use tidegate_protocol::report::AgentFacts;
use tidegate_protocol::{Digest, HostName, Report, SidesReport, Timestamp};

use super::{Store, StoreError, at, json, ms, parsed, to_json};

/// A host as it is kept over restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRow {
    /// As its certificate says.
    pub name: HostName,
    /// They decide targeting.
    pub labels: BTreeMap<String, String>,
    /// Left out by a person, with the reason.
    pub drained: Option<String>,
    /// sha256 of its public key: the name alone is not enough.
    pub spki: Digest,
    /// Of its certificate, hex.
    pub serial: String,
    /// Of the token it joined with: the same host may ask twice.
    pub token_hash: Digest,
    /// When it joined.
    pub enrolled_at: Timestamp,
    /// Its certificate is no longer good.
    pub revoked_at: Option<Timestamp>,
    /// From its last hello.
    pub agent: Option<AgentFacts>,
    /// Written lazily: so that a restarted controller knows what hosts run.
    pub last_report: Option<Report>,
    /// Written with it.
    pub last_sides: Vec<SidesReport>,
    /// Last contact, as of the last write.
    pub last_seen: Option<Timestamp>,
}

/// A change of one column or a few: a row is never written back whole, for a
/// host may join anew at the same moment.
#[derive(Clone, Debug)]
pub enum HostChange {
    /// By an operator.
    Labels(HostName, BTreeMap<String, String>),
    /// By an operator: with a reason left out, without one taken in again.
    Drained(HostName, Option<String>),
    /// What the host said last.
    Seen {
        /// Which.
        host: HostName,
        /// From its hello.
        agent: Option<AgentFacts>,
        /// Whole.
        report: Option<Report>,
        /// Whole.
        sides: Vec<SidesReport>,
        /// When.
        at: Timestamp,
    },
}

/// What stands in the column of the last report: the report, and beside its
/// fields those that came later.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    report: Report,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sides: Vec<SidesReport>,
}

fn kept(report: Option<&Report>, sides: &[SidesReport]) -> rusqlite::Result<Option<String>> {
    report.map(|report| to_json(&Kept { report: report.clone(), sides: sides.to_vec() })).transpose()
}

impl Store {
    /// One host.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn host(&self, name: HostName) -> Result<Option<HostRow>, StoreError> {
        self.run("reading a host", move |transaction, _| find(transaction, &name)).await
    }
}

const COLUMNS: &str = "name, labels, drained, spki, serial, token_hash, enrolled_at, revoked_at, agent, last_report, last_seen_at";

pub(super) fn find(connection: &Connection, name: &HostName) -> rusqlite::Result<Option<HostRow>> {
    let mut query = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM hosts WHERE name = ?1"))?;
    let mut rows = query.query_map([name.as_str()], read)?;
    rows.next().transpose()
}

pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<HostRow>> {
    connection.prepare(&format!("SELECT {COLUMNS} FROM hosts ORDER BY name"))?.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<HostRow> {
    // What a host once said is a convenience: an older form of it is forgotten, not fatal.
    let lenient = |text: Option<String>| text.and_then(|t| serde_json::from_str(&t).ok());
    let kept: Option<Kept> = lenient(row.get(9)?);
    let (last_report, last_sides) = kept.map(|k| (k.report, k.sides)).unzip();
    Ok(HostRow {
        name: parsed(0, &row.get::<_, String>(0)?)?,
        labels: json(1, &row.get::<_, String>(1)?)?,
        drained: row.get(2)?,
        spki: Digest(row.get(3)?),
        serial: row.get(4)?,
        token_hash: Digest(row.get(5)?),
        enrolled_at: at(row.get(6)?),
        revoked_at: row.get::<_, Option<i64>>(7)?.map(at),
        agent: row.get::<_, Option<String>>(8)?.and_then(|t| serde_json::from_str(&t).ok()),
        last_report,
        last_sides: last_sides.unwrap_or_default(),
        last_seen: row.get::<_, Option<i64>>(10)?.map(at),
    })
}

pub(super) fn change(transaction: &Transaction<'_>, change: &HostChange) -> rusqlite::Result<()> {
    match change {
        HostChange::Labels(host, labels) => {
            transaction.prepare_cached("UPDATE hosts SET labels = ?2 WHERE name = ?1")?.execute(params![host.as_str(), to_json(labels)?])?
        }
        HostChange::Drained(host, reason) => {
            transaction.prepare_cached("UPDATE hosts SET drained = ?2 WHERE name = ?1")?.execute(params![host.as_str(), reason])?
        }
        HostChange::Seen { host, agent, report, sides, at } => {
            let agent = agent.as_ref().map(to_json).transpose()?;
            let report = kept(report.as_ref(), sides)?;
            transaction
                .prepare_cached("UPDATE hosts SET agent = ?2, last_report = ?3, last_seen_at = ?4 WHERE name = ?1")?
                .execute(params![host.as_str(), agent, report, ms(*at)])?
        }
    };
    Ok(())
}

pub(super) fn upsert(transaction: &Transaction<'_>, row: &HostRow) -> rusqlite::Result<()> {
    let agent = row.agent.as_ref().map(to_json).transpose()?;
    let report = kept(row.last_report.as_ref(), &row.last_sides)?;
    transaction
        .prepare_cached(&format!("INSERT OR REPLACE INTO hosts ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"))?
        .execute(params![
            row.name.as_str(),
            to_json(&row.labels)?,
            row.drained,
            row.spki.0,
            row.serial,
            row.token_hash.0,
            ms(row.enrolled_at),
            row.revoked_at.map(ms),
            agent,
            report,
            row.last_seen.map(ms),
        ])?;
    Ok(())
}
