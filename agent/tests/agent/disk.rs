//! A disk that is full, or fills up at a bad instant. Needs a file system of its
//! own, so these run as root only: `cargo test -p tidegate-agent -- --ignored`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate_protocol::report::ServiceState;
use tidegate_protocol::{Cause, ComponentReport, Millis, Phase, Progress, Target};

use crate::fake::FakeController;
use crate::host::{Agent, Service_, assignment, enrolled, release, release_with, roll_out, scratch, smoke};

const MIB: usize = 1024 * 1024;

/// A small file system in memory, for as long as this lives.
struct Mount(PathBuf);

impl Mount {
    fn new(dir: PathBuf, mib: usize) -> Self {
        fs::create_dir(&dir).unwrap();
        let options = format!("size={mib}m,nr_inodes=2000,mode=755");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).status().unwrap();
        assert!(done.success(), "mount needs root");
        Self(dir)
    }

    /// Leaves so many bytes free; `free_up` undoes it.
    fn fill(&self, leave: usize) {
        let fs_ = rustix::fs::statvfs(&self.0).unwrap();
        let free = usize::try_from(fs_.f_bavail * fs_.f_frsize).unwrap();
        fs::write(self.filler(), vec![1; free.saturating_sub(leave)]).unwrap();
    }

    fn free_up(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn at(n: u64, progress: Progress) -> impl Fn(&ComponentReport) -> bool {
    move |c| c.generation.n == n && c.progress == progress
}

fn incoming(dir: &Path) -> usize {
    let names = fs::read_dir(dir.join("state/store")).unwrap();
    names.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a file system: root only"]
async fn a_full_disk_is_refused_in_preflight_and_one_that_fills_later_undoes_the_swap() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let disk = Mount::new(dir.clone(), 96);
    let _service = Service_(dir.clone());
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let one = release(&controller, "1", 0).0;
    let first = roll_out(&controller, 1, &one).await;
    let untouched = |c: &ComponentReport| {
        assert_eq!(c.current.as_ref(), Some(&one));
        assert_eq!(c.running.as_ref().map(|r| r.pid), first.running.as_ref().map(|r| r.pid));
        assert_eq!(incoming(&dir), 0);
    };
    let large = |version: &str, byte: u8| {
        release_with(&controller, version, &smoke(version, 0), &[("share/large", &vec![byte; 8 * MIB])], |_| {}).0
    };

    disk.fill(20 * MIB);
    controller.assign(&assignment(2, Target::Release(large("2", 2)), Phase::Stage));
    let failed = controller.until("failed", at(2, Progress::Failed)).await;
    let failure = failed.failure.clone().unwrap();
    assert_eq!(failure.cause, Cause::Disk);
    assert!(failure.message.contains("are free"), "{}", failure.message);
    assert_eq!(failed.fetched_bytes, 0);
    untouched(&failed);
    disk.free_up();

    // Full while it is staged.
    let three = large("3", 3);
    controller.assign(&assignment(3, Target::Release(three.clone()), Phase::Preflight));
    controller.until("checked", at(3, Progress::Checked)).await;
    disk.fill(4 * MIB);
    controller.assign(&assignment(3, Target::Release(three), Phase::Swap));
    let failed = controller.until("failed", at(3, Progress::Failed)).await;
    let failure = failed.failure.clone().unwrap();
    assert_eq!(failure.cause, Cause::Disk);
    assert!(failure.message.contains("the disk is full"), "{}", failure.message);
    untouched(&failed);
    disk.free_up();

    // Full once it is staged: not even the ledger can be written.
    let four = large("4", 4);
    controller.assign(&assignment(4, Target::Release(four.clone()), Phase::Stage));
    controller.until("staged", at(4, Progress::Staged)).await;
    disk.fill(0);
    controller.assign(&assignment(4, Target::Release(four), Phase::Swap));
    let failed = controller.until("failed", at(4, Progress::Failed)).await;
    assert_eq!(failed.failure.clone().unwrap().cause, Cause::Disk);
    untouched(&failed);
    disk.free_up();

    // Full once it is healthy, and no confirmation comes: back all the same.
    let five = large("5", 5);
    let mut order = assignment(5, Target::Release(five), Phase::Swap);
    order.confirm_within = Millis::from_secs(2);
    controller.assign(&order);
    controller.until("healthy", at(5, Progress::Healthy)).await;
    disk.fill(0);
    let back = controller.until("an end", |c| c.generation.n == 5 && c.progress.is_final()).await;
    assert_eq!(back.progress, Progress::Reverted, "{:?}", back.failure);
    assert_eq!(back.failure.unwrap().cause, Cause::LeaseExpired);
    controller.until("release 1 runs", |c| c.current.as_ref() == Some(&one) && c.service == ServiceState::Running).await;
    disk.free_up();

    // What the failed attempts left behind makes room for the next.
    for (n, version) in [(6, "6"), (7, "7"), (8, "8"), (9, "9")] {
        let byte = u8::try_from(n).unwrap();
        roll_out(&controller, n, &large(version, byte)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a file system: root only"]
async fn too_few_inodes_are_refused_in_preflight() {
    let controller = FakeController::start();
    let scratch = scratch();
    let dir = scratch.path().join("web-1");
    let _disk = Mount::new(dir.clone(), 96);
    enrolled(&controller, &dir).await;
    let _agent = Agent::start(&dir);
    let texts: Vec<(String, String)> = (0..1_000).map(|n| (format!("share/f{n}"), format!("text {n}\n"))).collect();
    let files: Vec<(&str, &[u8])> = texts.iter().map(|(p, t)| (p.as_str(), t.as_bytes())).collect();
    let (one, _) = release_with(&controller, "1", &smoke("1", 0), &files, |_| {});
    controller.assign(&assignment(1, Target::Release(one), Phase::Stage));
    let failure = controller.until("failed", at(1, Progress::Failed)).await.failure.unwrap();
    assert_eq!(failure.cause, Cause::Disk);
    assert!(failure.message.contains("inodes"), "{}", failure.message);
}
