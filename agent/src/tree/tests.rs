use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use tidegate_protocol::release::{FileEntry, Proof, Service};

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    trees: Trees,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let trees = Trees::open(&dir.path().join("opt")).unwrap();
    Bench { _dir: dir, store, trees }
}

fn release(bench: &Bench, version: &str, files: &[(&str, &[u8], u32)]) -> (ReleaseRef, Component) {
    let mut entries = Vec::new();
    for (path, bytes, mode) in files {
        let digest = Digest::of(bytes);
        let mut incoming = bench.store.incoming(digest, bytes.len() as u64).unwrap();
        incoming.write(bytes).unwrap();
        let mut batch = bench.store.batch().unwrap();
        batch.add(incoming.finish().unwrap());
        batch.keep().unwrap();
        entries.push(FileEntry { path: path.parse().unwrap(), digest, size: bytes.len() as u64, mode: *mode });
    }
    let component = Component {
        name: "api".parse().unwrap(),
        files: entries,
        links: std::collections::BTreeMap::new(),
        service: Service::Supervised { run: vec!["bin/api".into()], env: std::collections::BTreeMap::new() },
        proof: Proof::Executable,
        check: None,
        before: None,
        after: None,
        arch: None,
        keep: 2,
        smoke: Vec::new(),
    };
    let release = ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest: Digest::of(version.as_bytes()) };
    (release, component)
}

fn lay_out(bench: &Bench, version: &str, text: &[u8]) -> Installed {
    let (release, component) = release(bench, version, &[("bin/api", text, 0o555), ("etc/a/api.conf", b"x = 1", 0o444)]);
    bench.trees.lay_out(&bench.store, &release, &component, None, &|| true).unwrap()
}

fn api() -> Slot {
    "api".parse().unwrap()
}

fn side(side: Side) -> Slot {
    Slot::side("api".parse().unwrap(), side)
}

#[test]
fn a_tree_has_its_files_modes_and_name() {
    let bench = bench();
    let tree = lay_out(&bench, "1.0.0", b"one");
    assert_eq!(fs::read(tree.dir.join("bin/api")).unwrap(), b"one");
    assert_eq!(fs::metadata(tree.dir.join("bin/api")).unwrap().permissions().mode() & 0o7777, 0o555);
    assert_eq!(fs::metadata(tree.dir.join("etc/a")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(tree.dir.join("bin/api")).unwrap().nlink(), 1);
    let name = tree.dir.file_name().unwrap().to_str().unwrap();
    assert_eq!(name, format!("1.0.0-{}", tree.component.tree_digest().short()));
    assert_eq!(bench.trees.locate(&api(), &tree.release).unwrap().unwrap(), tree);
    assert!(bench.trees.read_current(&api()).unwrap().is_none());
}

#[test]
fn flip_changes_the_link_and_nothing_else() {
    let bench = bench();
    let one = lay_out(&bench, "1.0.0", b"one");
    let two = lay_out(&bench, "2.0.0", b"two");
    bench.trees.flip(&api(), &Target::Release(one.release.clone())).unwrap();
    // A leftover of a flip that was cut short does not stand in the way.
    std::os::unix::fs::symlink("nowhere", bench.trees.current_path(&api()).with_file_name(".tmp-current")).unwrap();
    bench.trees.flip(&api(), &Target::Release(two.release.clone())).unwrap();
    assert_eq!(bench.trees.read_current(&api()).unwrap().unwrap().release, two.release);
    let gone = ReleaseRef { id: "shop@3".parse().unwrap(), manifest: Digest::of(b"3") };
    assert!(matches!(bench.trees.flip(&api(), &Target::Release(gone)), Err(TreeError::Gone { .. })));
    assert_eq!(bench.trees.read_current(&api()).unwrap().unwrap().release, two.release);
    bench.trees.flip(&api(), &Target::Absent).unwrap();
    assert!(bench.trees.read_current(&api()).unwrap().is_none());
    assert!(one.dir.is_dir() && two.dir.is_dir());
}

#[test]
fn current_is_complete_whoever_looks_and_whenever() {
    let bench = bench();
    let targets = [lay_out(&bench, "1.0.0", b"one"), lay_out(&bench, "2.0.0", b"two")];
    bench.trees.flip(&api(), &Target::Release(targets[0].release.clone())).unwrap();
    let file = bench.trees.current_path(&api()).join("bin/api");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                bench.trees.flip(&api(), &Target::Release(targets[n % 2].release.clone())).unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let bytes = fs::read(&file).unwrap();
            assert!(bytes == b"one" || bytes == b"two");
        }
    });
}

#[test]
fn drift_names_files_and_is_repaired_while_extra_files_stay() {
    let bench = bench();
    let tree = lay_out(&bench, "1.0.0", b"one");
    fs::write(tree.dir.join("data.log"), "mine").unwrap();
    assert_eq!(drift(&tree, &|| true).unwrap(), []);
    let before = fingerprint(&tree);
    assert_eq!(before, fingerprint(&tree));
    fs::set_permissions(tree.dir.join("bin/api"), Permissions::from_mode(0o755)).unwrap();
    assert_ne!(before, fingerprint(&tree));
    fs::write(tree.dir.join("bin/api"), "two").unwrap();
    fs::set_permissions(tree.dir.join("bin/api"), Permissions::from_mode(0o555)).unwrap();
    fs::remove_file(tree.dir.join("etc/a/api.conf")).unwrap();
    let drifted = drift(&tree, &|| true).unwrap();
    assert_eq!(name_drift(&drifted), "bin/api (changed), etc/a/api.conf (missing)");
    // The store was not changed with the tree.
    let again = bench.trees.lay_out(&bench.store, &tree.release, &tree.component, None, &|| true).unwrap();
    assert_eq!(again, tree);
    assert_eq!(drift(&tree, &|| true).unwrap(), []);
    assert_eq!(fs::read(tree.dir.join("data.log")).unwrap(), b"mine");
}

#[test]
fn a_stored_file_that_rotted_is_refused_and_leaves_no_tree() {
    let bench = bench();
    let (release, component) = release(&bench, "1.0.0", &[("bin/api", b"one", 0o555)]);
    let stored = bench.store.path(&component.files[0].digest);
    fs::set_permissions(&stored, Permissions::from_mode(0o600)).unwrap();
    fs::write(&stored, "onf").unwrap();
    let error = bench.trees.lay_out(&bench.store, &release, &component, None, &|| true).unwrap_err();
    assert!(matches!(error, TreeError::Corrupt { .. }), "{error}");
    assert_eq!(error.failure().cause, Cause::Verify);
    assert!(!stored.exists());
    assert!(bench.trees.locate(&api(), &release).unwrap().is_none());
}

#[test]
fn same_version_and_files_under_another_manifest_is_another_tree() {
    let bench = bench();
    let one = lay_out(&bench, "1.0.0", b"one");
    let other = ReleaseRef { manifest: Digest::of(b"other"), ..one.release.clone() };
    let two = bench.trees.lay_out(&bench.store, &other, &one.component, None, &|| true).unwrap();
    assert_ne!(one.dir, two.dir);
    assert_eq!(bench.trees.locate(&api(), &one.release).unwrap().unwrap(), one);
    assert_eq!(bench.trees.locate(&api(), &other).unwrap().unwrap(), two);
}

#[test]
fn collect_keeps_current_and_what_it_is_told_to() {
    let bench = bench();
    let trees: Vec<Installed> = (1..=5).map(|n| lay_out(&bench, &format!("{n}.0.0"), format!("v{n}").as_bytes())).collect();
    bench.trees.flip(&api(), &Target::Release(trees[1].release.clone())).unwrap();
    fs::create_dir(trees[0].dir.with_file_name(".tmp-9.0.0-abc")).unwrap();
    assert_eq!(bench.trees.collect(&api().component, std::slice::from_ref(&trees[0].release)).unwrap(), 3);
    let left: Vec<bool> = trees.iter().map(|t| t.dir.exists()).collect();
    assert_eq!(left, [true, true, false, false, false]);
    assert_eq!(bench.trees.names(&api().component).unwrap().len(), 2);
    assert!(!trees[0].dir.with_file_name(".tmp-9.0.0-abc").exists());
}

#[test]
fn a_current_made_by_someone_else_is_not_guessed_at() {
    let bench = bench();
    let tree = lay_out(&bench, "1.0.0", b"one");
    let current = bench.trees.current_path(&api());
    std::os::unix::fs::symlink("/usr", &current).unwrap();
    assert!(matches!(bench.trees.read_current(&api()), Err(TreeError::Foreign { .. })));
    bench.trees.flip(&api(), &Target::Release(tree.release.clone())).unwrap();
    fs::remove_dir_all(&tree.dir).unwrap();
    assert!(matches!(bench.trees.read_current(&api()), Err(TreeError::Gone { .. })));
}

#[test]
fn sides_have_their_own_links_and_never_stand_beside_current() {
    let bench = bench();
    let trees: Vec<Installed> = (1..=5).map(|n| lay_out(&bench, &format!("{n}.0.0"), format!("v{n}").as_bytes())).collect();
    let to = |n: usize| Target::Release(trees[n].release.clone());
    bench.trees.flip(&side(Side::Blue), &to(0)).unwrap();
    bench.trees.flip(&side(Side::Green), &to(1)).unwrap();
    let on = |s: Side| bench.trees.read_current(&side(s)).unwrap().map(|tree| (tree.release, tree.side));
    assert_eq!(on(Side::Blue), Some((trees[0].release.clone(), Some(Side::Blue))));
    assert_eq!(on(Side::Green), Some((trees[1].release.clone(), Some(Side::Green))));
    assert!(bench.trees.read_current(&api()).unwrap().is_none());
    let error = bench.trees.flip(&api(), &to(2)).unwrap_err();
    assert_eq!(error.failure().cause, Cause::Policy);
    assert!(error.to_string().contains("runs with sides"), "{error}");

    // What either link names stays, whatever the other side's machine keeps.
    assert_eq!(bench.trees.collect(&api().component, &[]).unwrap(), 3);
    assert_eq!(trees.iter().map(|t| t.dir.exists()).collect::<Vec<_>>(), [true, true, false, false, false]);

    for s in Side::ALL {
        bench.trees.flip(&side(s), &Target::Absent).unwrap();
    }
    bench.trees.flip(&api(), &to(0)).unwrap();
    let error = bench.trees.check_sides(&side(Side::Green)).unwrap_err();
    assert!(error.to_string().contains("runs without sides"), "{error}");
    assert!(matches!(bench.trees.flip(&side(Side::Green), &to(1)), Err(TreeError::Mixed { .. })));
}

#[test]
fn while_one_side_has_the_releases_the_other_waits_and_nothing_is_collected() {
    let bench = bench();
    let one = lay_out(&bench, "1.0.0", b"one");
    let claim = bench.trees.try_claim(&api().component).unwrap();
    assert_eq!(bench.trees.collect(&api().component, &[]).unwrap(), 0);
    assert!(one.dir.exists());
    let (release, component) = release(&bench, "2.0.0", &[("bin/api", b"two", 0o555)]);
    let lay_out = |go_on: &dyn Fn() -> bool| bench.trees.lay_out(&bench.store, &release, &component, Some(Side::Green), go_on);
    assert!(matches!(lay_out(&|| false), Err(TreeError::Cancelled)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bench.trees.lay_out(&bench.store, &release, &component, Some(Side::Green), &|| true));
        drop(claim);
        assert_eq!(waiting.join().unwrap().unwrap().side, Some(Side::Green));
    });
}
