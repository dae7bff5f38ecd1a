//! The journal keeps its chain, a token its count, a group its word.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;
use tidegate_protocol::{Digest, Generation, HostName, Intent, Phase, RolloutId, Target, Timestamp};
use tidegate_rollout::Record;

use super::{
    Append, BadRecord, FleetRecord, HostChange, NewFleet, NewRecord, NewToken, Redeem, Store, StoreError, TokenRefused, verify_file,
};

fn id(text: &str) -> RolloutId {
    text.parse().unwrap()
}

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

fn record(rollout: &str, at: u64) -> NewRecord {
    NewRecord { rollout: id(rollout), at: Timestamp(at), record: Record::Returned }
}

fn ordered(rollout: &str, generation: Generation) -> NewRecord {
    let record = Record::Ordered {
        host: host("a"),
        component: "api".parse().unwrap(),
        generation,
        intent: Intent::Forward,
        target: Target::Absent,
        phase: Phase::Swap,
        integration: false,
    };
    NewRecord { rollout: id(rollout), at: Timestamp(1), record }
}

fn token(secret: &str, bound: Option<&str>, uses: u32) -> NewToken {
    NewToken {
        hash: Digest::of(secret.as_bytes()),
        host: bound.map(host),
        labels: BTreeMap::from([("role".into(), "api".into())]),
        expires: Timestamp(1_000),
        uses,
        by: "admin".into(),
    }
}

fn redeem(secret: &str, name: &str, key: &str, now: u64) -> Redeem {
    Redeem {
        hash: Digest::of(secret.as_bytes()),
        host: host(name),
        spki: Digest::of(key.as_bytes()),
        serial: "01".into(),
        now: Timestamp(now),
    }
}

async fn append(store: &Store, records: Vec<NewRecord>, changes: Vec<HostChange>) -> u64 {
    store.append(Append { fleet: vec![], records, changes }).await.unwrap().first
}

async fn written(path: &Path) {
    let (store, loaded) = Store::open(path).unwrap();
    assert_eq!((loaded.last_seq, loaded.epoch), (0, 1));
    assert_eq!(append(&store, vec![record("a", 1), record("b", 2)], vec![]).await, 1);
    assert_eq!(append(&store, vec![record("a", 3)], vec![]).await, 3);
}

#[tokio::test]
async fn what_was_appended_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    written(&path).await;
    let (store, loaded) = Store::open(&path).unwrap();
    assert_eq!((loaded.last_seq, loaded.last_at), (3, Timestamp(3)));
    let rollouts: Vec<_> = loaded.rollouts.iter().map(|r| (r.id.as_str(), r.first_seq, r.last_seq, r.records.len())).collect();
    assert_eq!(rollouts, [("a", 1, 3, 2), ("b", 2, 2, 1)]);
    let seqs: Vec<u64> = store.events(id("a"), 1).await.unwrap().iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [3]);
    assert_eq!(append(&store, vec![record("c", 4)], vec![]).await, 4, "numbers go on");
}

#[tokio::test]
async fn any_change_of_the_journal_is_found() {
    for (change, seq) in [
        ("UPDATE journal SET body = replace(body, 'returned', 'Returned') WHERE seq = 2", 2),
        ("UPDATE journal SET at_unix_ms = 0 WHERE seq = 1", 1),
        ("UPDATE journal SET rollout = 'b' WHERE seq = 3", 3),
        ("UPDATE journal SET hash = zeroblob(32) WHERE seq = 2", 2),
        ("UPDATE journal SET hash = 'x' WHERE seq = 3", 3),
        ("DELETE FROM journal WHERE seq = 2", 2),
        ("UPDATE journal SET seq = 9 WHERE seq = 3", 3),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        written(&path).await;
        let connection = Connection::open(&path).unwrap();
        let strict = connection.execute(change, []);
        let bad = verify_file(&path).unwrap().bad.map(|b| b.seq);
        assert_eq!(bad, strict.is_ok().then_some(seq), "read again: {change}");
        // A STRICT table takes no text for a BLOB: then it is whole, and opens.
        match (strict, Store::open(&path)) {
            (Ok(_), Err(StoreError::Chain { seq: found, .. })) => assert_eq!(found, seq, "{change}"),
            (Err(_), Ok(_)) if change.contains("'x'") => {}
            (done, opened) => panic!("{change}: {done:?} {:?}", opened.map(|_| ())),
        }
    }
}

#[tokio::test]
async fn two_records_that_changed_places_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    written(&path).await;
    let swap =
        "UPDATE journal SET seq = 9 WHERE seq = 1; UPDATE journal SET seq = 1 WHERE seq = 2; UPDATE journal SET seq = 2 WHERE seq = 9";
    Connection::open(&path).unwrap().execute_batch(swap).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Chain { seq: 1, .. })));
    let bad = verify_file(&path).unwrap().bad;
    assert!(matches!(&bad, Some(BadRecord { seq: 1, why }) if why.contains("record 1")), "{bad:?}");
}

#[tokio::test]
async fn what_happens_to_the_fleet_is_in_the_same_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let freeze = FleetRecord::FreezeAdded {
        freeze: 1,
        reason: "holidays".into(),
        by: "dana".into(),
        from: Timestamp(5),
        until: None,
        environment: Some("production".into()),
        selector: "role=db".into(),
    };
    let removed = FleetRecord::FreezeRemoved { freeze: 1, by: "dana".into(), reason: "over".into() };
    let (store, _) = Store::open(&path).unwrap();
    let fleet = vec![NewFleet { at: Timestamp(1), record: freeze.clone() }];
    let first = store.append(Append { fleet, records: vec![record("a", 2)], changes: vec![] }).await.unwrap();
    assert_eq!((first.first, first.head.unwrap().seq), (2, 2), "records of rollouts follow those of the fleet");
    let fleet = vec![NewFleet { at: Timestamp(3), record: removed.clone() }];
    let second = store.append(Append { fleet, ..Append::default() }).await.unwrap();
    assert_eq!(store.head().await.unwrap(), second.head);
    assert_eq!(store.hash_of(3).await.unwrap(), second.head.map(|h| h.hash));
    assert_eq!(store.hash_of(4).await.unwrap(), None);
    let whose = |rows: Vec<super::ExportRow>| rows.into_iter().map(|r| (r.seq, r.rollout)).collect::<Vec<_>>();
    assert_eq!(whose(store.export(0, None).await.unwrap()), [(1, None), (2, Some("a".into())), (3, None)]);
    assert_eq!(whose(store.export(0, Some(id("a"))).await.unwrap()), [(2, Some("a".into()))]);
    drop(store);
    let (_, loaded) = Store::open(&path).unwrap();
    assert_eq!(loaded.fleet, [(Timestamp(1), freeze), (Timestamp(3), removed)]);
    assert_eq!((loaded.head, loaded.rollouts.len()), (second.head, 1));
    Connection::open(&path).unwrap().execute("UPDATE journal SET body = replace(body, 'holidays', 'nothing') WHERE seq = 1", []).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Chain { seq: 1, .. })));
}

#[tokio::test]
async fn a_file_is_verified_while_its_owner_appends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let (store, _) = Store::open(&path).unwrap();
    let many: Vec<NewRecord> = (1..=2_500).map(|n| record("a", n)).collect();
    append(&store, many, vec![]).await;
    let head = store.head().await.unwrap();
    let verified = super::verify_and_pick(&path, &[1_700, 9_999].into()).unwrap();
    assert_eq!((verified.records, verified.head, verified.bad), (2_500, head, None));
    assert_eq!(verified.hashes.get(&1_700).copied(), store.hash_of(1_700).await.unwrap());
    assert_eq!(verified.hashes.len(), 1);
    // Its end is gone: the chain alone cannot tell, whoever remembers the head can.
    Connection::open(&path).unwrap().execute("DELETE FROM journal WHERE seq > 2400", []).unwrap();
    let cut = verify_file(&path).unwrap();
    assert_eq!((cut.bad, cut.head.map(|h| h.seq)), (None, Some(2_400)));
    assert!(verify_file(&dir.path().join("none")).is_err());
}

#[tokio::test]
async fn a_newer_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    written(&path).await;
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Schema { found: 99, .. })));
    let path = dir.path().join("other");
    std::fs::write(&path, b"this is not a database, and long enough to be looked at").unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Sqlite { .. })));
}

#[tokio::test]
async fn concurrent_appends_keep_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let (store, _) = Store::open(&path).unwrap();
    let jobs: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { append(&store, vec![record("a", n), record("b", n)], vec![]).await })
        })
        .collect();
    let mut firsts = Vec::new();
    for job in jobs {
        firsts.push(job.await.unwrap());
    }
    firsts.sort_unstable();
    assert_eq!(firsts, (0..100).map(|n| 2 * n + 1).collect::<Vec<u64>>());
    drop(store);
    assert_eq!(Store::open(&path).unwrap().1.last_seq, 200);
}

#[tokio::test]
async fn a_failed_group_leaves_nothing_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let (store, _) = Store::open(&path).unwrap();
    append(&store, vec![record("a", 1)], vec![]).await;
    store.add_token(token("s", None, 1), Timestamp(0)).await.unwrap();
    // The same primary key again: the statement fails, the group is rolled back.
    assert!(matches!(store.add_token(token("s", None, 1), Timestamp(0)).await, Err(StoreError::Sqlite { .. })));
    assert_eq!(append(&store, vec![record("a", 2)], vec![]).await, 2);
    drop(store);
    assert_eq!(Store::open(&path).unwrap().1.last_seq, 2);
}

#[tokio::test]
async fn the_fence_only_rises_and_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let (store, _) = Store::open(&path).unwrap();
    for (rollout, generation) in [("a", (1, 5)), ("b", (2, 1)), ("a", (1, 9))] {
        append(&store, vec![ordered(rollout, Generation::new(generation.0, generation.1))], vec![]).await;
    }
    drop(store);
    let generations = Store::open(&path).unwrap().1.generations;
    assert_eq!(generations, [(host("a"), "api".parse().unwrap(), Generation::new(2, 1), id("b"))]);
}

#[tokio::test]
async fn a_refused_id_used_again_starts_over() {
    // Told apart by `started`; here a journal without one keeps everything.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let (store, _) = Store::open(&path).unwrap();
    append(&store, vec![record("a", 1), crate::core::test_started("a"), record("a", 3)], vec![]).await;
    drop(store);
    let loaded = Store::open(&path).unwrap().1;
    assert_eq!(loaded.rollouts.len(), 1);
    assert_eq!((loaded.rollouts[0].first_seq, loaded.rollouts[0].records.len()), (2, 2));
}

#[tokio::test]
async fn two_hundred_hosts_race_for_one_use() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("j")).unwrap();
    store.add_token(token("s", None, 1), Timestamp(0)).await.unwrap();
    let racers: Vec<_> = (0..200)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.redeem(redeem("s", &format!("h{n}"), &format!("key{n}"), 1)).await.unwrap() })
        })
        .collect();
    let mut won = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Ok(_) => won += 1,
            Err(refused) => assert_eq!(refused, TokenRefused::Spent),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_token_is_good_for_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("j")).unwrap();
    store.add_token(token("free", None, 1), Timestamp(0)).await.unwrap();
    store.add_token(token("bound", Some("a"), 1), Timestamp(0)).await.unwrap();
    store.add_token(token("late", None, 5), Timestamp(0)).await.unwrap();

    assert_eq!(store.redeem(redeem("none", "a", "k", 1)).await.unwrap().unwrap_err(), TokenRefused::Unknown);
    assert_eq!(store.redeem(redeem("late", "a", "k", 1_000)).await.unwrap().unwrap_err(), TokenRefused::Expired);
    let other = TokenRefused::OtherName { wanted: host("a"), asked: host("b") };
    assert_eq!(store.redeem(redeem("bound", "b", "k", 1)).await.unwrap().unwrap_err(), other);

    let row = store.redeem(redeem("free", "a", "k1", 1)).await.unwrap().unwrap().row;
    assert_eq!(row.labels.get("role").map(String::as_str), Some("api"));
    // Its answer was lost: the same host asks again, and nobody else may.
    assert!(store.redeem(redeem("free", "a", "k1", 2)).await.unwrap().is_ok());
    assert_eq!(store.redeem(redeem("free", "b", "k2", 2)).await.unwrap().unwrap_err(), TokenRefused::Spent);
    // A taken name needs a token for that very name.
    assert_eq!(store.redeem(redeem("late", "a", "k3", 2)).await.unwrap().unwrap_err(), TokenRefused::Taken(host("a")));
    let row = store.redeem(redeem("bound", "a", "k3", 2)).await.unwrap().unwrap().row;
    assert_eq!(row.spki, Digest::of(b"k3"));
}

#[tokio::test]
async fn host_changes_ride_with_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let (store, _) = Store::open(&path).unwrap();
    store.add_token(token("s", None, 1), Timestamp(0)).await.unwrap();
    store.redeem(redeem("s", "a", "k", 1)).await.unwrap().unwrap();
    let labels = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    let changes = vec![
        HostChange::Labels(host("a"), labels.clone()),
        HostChange::Drained(host("a"), Some("disk".into())),
        HostChange::Seen { host: host("a"), agent: None, report: None, sides: vec![], at: Timestamp(7) },
    ];
    append(&store, vec![], changes).await;
    drop(store);
    let row = Store::open(&path).unwrap().1.hosts.remove(0);
    assert_eq!((row.labels, row.drained.as_deref(), row.last_seen), (labels, Some("disk"), Some(Timestamp(7))));
}

#[tokio::test]
async fn a_clean_stop_leaves_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("journal.sqlite")).unwrap();
    let ended = store.ended().unwrap();
    append(&store, vec![crate::core::test_started("r")], vec![]).await;
    drop(store);
    assert!(ended.recv().is_err());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["journal.sqlite"]);
}
