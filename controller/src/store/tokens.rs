//! Enrolment tokens: stored hashed, redeemed in one transaction.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use tidegate_protocol::{Digest, HostName, Timestamp};

use super::{HostRow, Store, StoreError, at, hosts, json, ms, parsed, to_json};

/// A token to be kept. The secret itself never gets here.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Of the secret.
    pub hash: Digest,
    /// Good for this name only.
    pub host: Option<HostName>,
    /// The host gets them.
    pub labels: BTreeMap<String, String>,
    /// Not good from here on.
    pub expires: Timestamp,
    /// Good for so many hosts.
    pub uses: u32,
    /// Who made it.
    pub by: String,
}

/// A host that shows a token.
#[derive(Clone, Debug)]
pub struct Redeem {
    /// Of the secret it showed.
    pub hash: Digest,
    /// The name it wants.
    pub host: HostName,
    /// Of the key in its request.
    pub spki: Digest,
    /// Of the certificate made for it, which leaves only if this succeeds.
    pub serial: String,
    /// Now.
    pub now: Timestamp,
}

/// Let in.
#[derive(Clone, Debug)]
pub struct Grant {
    /// As it now stands in the store.
    pub row: HostRow,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// Never made, or used up and forgotten. Says no more: the asker is a stranger.
    #[error("the token is not known here; make a new one with `tidegate token create`")]
    Unknown,
    /// Too late.
    #[error("the token has expired; make a new one with `tidegate token create`")]
    Expired,
    /// Used as often as it was good for.
    #[error("the token was already used; make a new one with `tidegate token create`")]
    Spent,
    /// Bound to another name.
    #[error("the token is for host {wanted}, not for {asked}; enroll with --name {wanted}, or make a token for {asked}")]
    OtherName {
        /// In the token.
        wanted: HostName,
        /// In the request.
        asked: HostName,
    },
    /// The name is taken.
    #[error(
        "host {0} has already joined with another key; if this is the same machine set up anew, make a token for that very name: \
         `tidegate token create --host {0}`"
    )]
    Taken(HostName),
}

impl Store {
    /// Keeps a token.
    ///
    /// # Errors
    /// It was not kept.
    pub async fn add_token(&self, token: NewToken, now: Timestamp) -> Result<(), StoreError> {
        self.run("keeping a token", move |transaction, _| {
            // Expired ones have nothing more to say after a day.
            transaction.execute("DELETE FROM tokens WHERE expires_at < ?1", [ms(now).saturating_sub(86_400_000)])?;
            transaction.execute(
                "INSERT INTO tokens (hash, host, labels, expires_at, uses_left, made_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    token.hash.0,
                    token.host.as_ref().map(HostName::as_str),
                    to_json(&token.labels)?,
                    ms(token.expires),
                    token.uses,
                    token.by
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Whether the token would be refused right now: spares strangers without one
    /// the making of a certificate. Decides nothing; [`Store::redeem`] does.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn knows_token(&self, hash: Digest) -> Result<bool, StoreError> {
        self.run("looking up a token", move |transaction, _| {
            transaction.prepare_cached("SELECT 1 FROM tokens WHERE hash = ?1")?.exists([hash.0])
        })
        .await
    }

    /// Takes one use of the token and records the host, or neither. A host that
    /// asks again with the same token and key (its first answer was lost) takes no
    /// second use.
    ///
    /// # Errors
    /// Outer: the store failed. Inner: refused, nothing was taken.
    pub async fn redeem(&self, redeem: Redeem) -> Result<Result<Grant, TokenRefused>, StoreError> {
        self.run("redeeming a token", move |transaction, _| {
            let found = transaction
                .prepare_cached("SELECT host, labels, expires_at FROM tokens WHERE hash = ?1")?
                .query_row([redeem.hash.0], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?, at(row.get(2)?))))
                .optional()?;
            let Some((bound, labels, expires)) = found else {
                return Ok(Err(TokenRefused::Unknown));
            };
            if expires <= redeem.now {
                return Ok(Err(TokenRefused::Expired));
            }
            let bound: Option<HostName> = bound.map(|b: String| parsed(0, &b)).transpose()?;
            if let Some(wanted) = bound.as_ref().filter(|b| **b != redeem.host) {
                return Ok(Err(TokenRefused::OtherName { wanted: wanted.clone(), asked: redeem.host.clone() }));
            }
            let known = hosts::find(transaction, &redeem.host)?;
            let again = known.as_ref().is_some_and(|k| k.token_hash == redeem.hash && k.spki == redeem.spki);
            if known.as_ref().is_some_and(|k| k.spki != redeem.spki) && bound.is_none() {
                return Ok(Err(TokenRefused::Taken(redeem.host.clone())));
            }
            if !again {
                let taken = transaction
                    .prepare_cached("UPDATE tokens SET uses_left = uses_left - 1 WHERE hash = ?1 AND uses_left > 0 AND expires_at > ?2")?
                    .execute(params![redeem.hash.0, ms(redeem.now)])?;
                if taken == 0 {
                    return Ok(Err(TokenRefused::Spent));
                }
            }
            let labels = json(1, &labels)?;
            let row = match known {
                Some(known) => HostRow {
                    labels,
                    serial: redeem.serial,
                    token_hash: redeem.hash,
                    // A revoked key stays revoked; a new one starts afresh.
                    revoked_at: known.revoked_at.filter(|_| known.spki == redeem.spki),
                    spki: redeem.spki,
                    ..known
                },
                None => HostRow {
                    name: redeem.host,
                    labels,
                    drained: None,
                    spki: redeem.spki,
                    serial: redeem.serial,
                    token_hash: redeem.hash,
                    enrolled_at: redeem.now,
                    revoked_at: None,
                    agent: None,
                    last_report: None,
                    last_sides: Vec::new(),
                    last_seen: None,
                },
            };
            hosts::upsert(transaction, &row)?;
            Ok(Ok(Grant { row }))
        })
        .await
    }
}
