//! Tasks on a real agent: each runs once, whatever happens to the agent.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidegate_agent::service::Process;
use tidegate_protocol::release::{FileEntry, Task};
use tidegate_protocol::{Millis, ReleaseRef, TaskOrder, TaskReport, TaskRun, TaskState};

use crate::fake::FakeController;
use crate::host::{Agent, Service_, enrolled, publish, release, scratch, status, until};

/// A host, and a directory that every user may write.
struct Bed {
    controller: FakeController,
    _scratch: tempfile::TempDir,
    _processes: Service_,
    dir: PathBuf,
    out: PathBuf,
}

impl Bed {
    async fn new() -> Self {
        let (controller, scratch) = (FakeController::start(), scratch());
        let (dir, out) = (scratch.path().join("web-1"), scratch.path().join("out"));
        std::fs::create_dir(&out).unwrap();
        std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o777)).unwrap();
        enrolled(&controller, &dir).await;
        Self { controller, _processes: Service_(dir.clone()), _scratch: scratch, dir, out }
    }

    /// A release with these tasks; each is a script that gets `run` or `undo`, and
    /// knows where it may write as `$1`.
    fn release(&self, version: &str, scripts: &[&str]) -> ReleaseRef {
        let task = |(i, script): (usize, &&str)| {
            let text = format!("#!/bin/sh\nout={}\n{script}\n", self.out.display());
            let file = FileEntry {
                path: "bin/t".parse().unwrap(),
                digest: self.controller.store(text.as_bytes()),
                size: text.len() as u64,
                mode: 0o555,
            };
            Task {
                name: format!("Task {i}"),
                files: vec![file],
                run: vec!["bin/t".into(), "run".into(), "${host}".into()],
                undo: (i == 0).then(|| vec!["bin/t".into(), "undo".into(), "${version}".into()]),
                reversible: true,
                idempotent: false,
                on: String::new(),
            }
        };
        let (_, component) = release(&self.controller, version, 0);
        publish(&self.controller, version, &component, scripts.iter().enumerate().map(task).collect())
    }

    /// Another agent; what the one before said does not count any more.
    async fn again(&self) -> Agent {
        let before = self.controller.session();
        let agent = Agent::start(&self.dir);
        self.controller.until_witness("the next session", |w| w.session > before).await;
        agent
    }

    fn written(&self, name: &str) -> String {
        std::fs::read_to_string(self.out.join(name)).unwrap_or_default()
    }

    async fn until_written(&self, name: &str, lines: usize) -> Vec<String> {
        until(name, || self.written(name).lines().count() >= lines).await;
        self.written(name).lines().map(str::to_owned).collect()
    }

    async fn ended(&self, index: u16, what: TaskRun, attempt: u32) -> TaskReport {
        let is = |t: &TaskReport| (t.index, t.what, t.attempt) == (index, what, attempt) && t.state.is_final();
        self.controller.until_task(&format!("the end of {index} {what:?} {attempt}"), is).await
    }

    async fn running(&self, index: u16) -> TaskReport {
        self.controller.until_task("running", |t| t.index == index && t.state == TaskState::Running).await
    }

    fn trees(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("opt/.tasks")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

fn order(release: &ReleaseRef, index: u16, what: TaskRun, attempt: u32) -> TaskOrder {
    let rollout = "r-1".parse().unwrap();
    TaskOrder { rollout, index, release: release.clone(), what, attempt, deadline: Millis::from_secs(60) }
}

async fn gone(pids: &[String]) {
    let pids: Vec<u32> = pids.iter().map(|pid| pid.parse().unwrap()).collect();
    until("the end of its processes", || pids.iter().all(|pid| Process::find(*pid).is_none())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_runs_once_however_often_it_is_ordered() {
    use TaskRun::{Run, Undo};
    let bed = Bed::new().await;
    let agent = Agent::start(&bed.dir);
    let log = "echo \"$1 $2 $TIDEGATE_ROLLOUT $TIDEGATE_TASK $TIDEGATE_RELEASE\" >> $out/log; [ \"$HOME\" = \"$(pwd)\" ] && printf 'first\\nall \\033[1mwell\\n\\n'";
    let one = bed.release("1.0.0", &[log, "echo other >> $out/log"]);
    let first = order(&one, 0, Run, 1);
    for _ in 0..3 {
        bed.controller.tasks(std::slice::from_ref(&first));
    }
    let done = bed.ended(0, Run, 1).await;
    assert_eq!((done.state, done.note.as_str()), (TaskState::Done, "all  [1mwell"));
    assert!(done.started_at_unix_ms > 1_700_000_000_000 && done.duration_ms < 30_000, "{done:?}");
    assert_eq!(bed.written("log"), "run web-1 r-1 Task 0 shop@1.0.0\n");
    assert_eq!(bed.trees(), ["task-0"]);

    // Known after a restart, and not run again; the other one shows that the list was heard.
    drop(agent);
    let _agent = bed.again().await;
    assert_eq!(bed.ended(0, Run, 1).await, done);
    bed.controller.tasks(&[first.clone(), order(&one, 1, Run, 1)]);
    assert_eq!(bed.ended(1, Run, 1).await.state, TaskState::Done);
    assert_eq!(bed.written("log").lines().count(), 2);

    // A higher attempt does, and a lower one is late.
    bed.controller.tasks(&[order(&one, 0, Run, 2)]);
    bed.ended(0, Run, 2).await;
    bed.controller.tasks(&[first, order(&one, 1, Run, 2)]);
    bed.ended(1, Run, 2).await;
    assert_eq!(bed.written("log").matches("run web-1").count(), 2);

    // Back, with the run still in the list; one without an undo has none.
    bed.controller.tasks(&[order(&one, 0, Run, 2), order(&one, 0, Undo, 1), order(&one, 1, Undo, 1)]);
    assert_eq!(bed.ended(0, Undo, 1).await.state, TaskState::Done);
    assert!(bed.written("log").ends_with("undo 1.0.0 r-1 Task 0 shop@1.0.0\n"));
    let none = bed.ended(1, Undo, 1).await;
    assert_eq!((none.state, none.started_at_unix_ms), (TaskState::Failed, 0));
    assert!(none.note.contains("no undo"), "{}", none.note);

    // Nobody asks any more: the files go, what happened stays.
    bed.controller.tasks(&[]);
    until("no tree", || bed.trees().is_empty()).await;
    let witness = bed.controller.until_witness("all", |w| w.tasks.as_ref().is_some_and(|t| t.len() == 4)).await;
    assert!(witness.tasks.unwrap().iter().all(|task| task.state.is_final()));
    let told = tokio::task::block_in_place(|| status(&bed.dir));
    assert_eq!(told["tasks"].as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_when_the_agent_was_killed_is_lost_and_nothing_of_it_goes_on() {
    let bed = Bed::new().await;
    let mut agent = Agent::start(&bed.dir);
    let script = "[ $1 = undo ] && exit 0; [ -e $out/go ] && exit 0; sleep 600 & echo $! >> $out/pids; env -i sleep 601 & echo $! >> $out/pids; echo $$ >> $out/pids; wait";
    let one = bed.release("1.0.0", &[script]);
    bed.controller.tasks(&[order(&one, 0, TaskRun::Run, 1)]);
    let running = bed.running(0).await;
    assert!(running.started_at_unix_ms > 0);
    let pids = bed.until_written("pids", 3).await;
    agent.signal(Signal::KILL);
    agent.wait();
    assert!(Process::find(pids[0].parse().unwrap()).is_some(), "a dead agent cannot end it");

    let _agent = bed.again().await;
    let lost = bed.ended(0, TaskRun::Run, 1).await;
    assert_eq!((lost.state, lost.started_at_unix_ms), (TaskState::Lost, running.started_at_unix_ms));
    assert!(pids.iter().all(|pid| Process::find(pid.parse().unwrap()).is_none()), "before it is said");

    // Not by itself again; when it is asked for, it is. An undo needs no run that is known.
    std::fs::write(bed.out.join("go"), "").unwrap();
    bed.controller.tasks(&[order(&one, 0, TaskRun::Run, 1), order(&one, 0, TaskRun::Undo, 1)]);
    assert_eq!(bed.ended(0, TaskRun::Undo, 1).await.state, TaskState::Done);
    assert_eq!(bed.ended(0, TaskRun::Run, 1).await.state, TaskState::Lost);
    bed.controller.tasks(&[order(&one, 0, TaskRun::Run, 2)]);
    assert_eq!(bed.ended(0, TaskRun::Run, 2).await.state, TaskState::Done);
    assert_eq!(bed.written("pids").lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_around_the_record_never_runs_it_twice() {
    for (point, state, ran) in [
        ("agent.task.persist.before.running", TaskState::Done, 1),
        ("agent.task.persist.after.running", TaskState::Lost, 0),
        ("agent.task.persist.before.done", TaskState::Lost, 1),
        ("agent.task.persist.after.done", TaskState::Done, 1),
    ] {
        let bed = Bed::new().await;
        let mut agent = Agent::start_with(&bed.dir, &[("TIDEGATE_CRASH_AT", point)]);
        let one = bed.release("1.0.0", &["echo ran >> $out/log"]);
        bed.controller.tasks(&[order(&one, 0, TaskRun::Run, 1)]);
        assert_eq!(agent.wait().signal(), Some(9), "{point}");
        let _agent = bed.again().await;
        assert_eq!(bed.ended(0, TaskRun::Run, 1).await.state, state, "{point}");
        assert_eq!(bed.written("log").lines().count(), ran, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_says_what_it_said_last_and_a_late_one_is_killed_whole() {
    let bed = Bed::new().await;
    let _agent = Agent::start(&bed.dir);
    let late = "sleep 600 & echo $! >> $out/pids; setsid sleep 601 & echo $! >> $out/pids; echo $$ >> $out/pids; echo half way; wait";
    let one = bed.release("1.0.0", &["echo step 2; echo 'no space left' >&2; exit 3", late, "kill -9 $$"]);
    let mut orders = [0, 1, 2].map(|index| order(&one, index, TaskRun::Run, 1));
    orders[1].deadline = Millis(1_500);
    bed.controller.tasks(&orders);
    let failed = bed.ended(0, TaskRun::Run, 1).await;
    assert_eq!((failed.state, failed.note.as_str()), (TaskState::Failed, "ended with exit code 3; it said: no space left"));
    let killed = bed.ended(2, TaskRun::Run, 1).await;
    assert_eq!((killed.state, killed.note.as_str()), (TaskState::Failed, "ended with signal 9"));
    let late = bed.ended(1, TaskRun::Run, 1).await;
    assert_eq!((late.state, late.note.as_str()), (TaskState::Failed, "killed at its deadline of 1500ms; it said: half way"));
    assert!((1_500..20_000).contains(&late.duration_ms), "{late:?}");
    let pids = bed.until_written("pids", 3).await;
    gone(&pids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_run_does_not_begin() {
    let bed = Bed::new().await;
    let _agent = Agent::start(&bed.dir);
    let (_, component) = release(&bed.controller, "1.0.0", 0);
    let task = |run: &[&str]| Task {
        name: "T".into(),
        files: Vec::new(),
        run: run.iter().map(|&word| word.to_owned()).collect(),
        undo: None,
        reversible: true,
        idempotent: false,
        on: String::new(),
    };
    let tasks = vec![task(&["/bin/sh", "-c", "true"]), task(&["${component}"]), task(&["${var.nothing}"])];
    let one = publish(&bed.controller, "1.0.0", &component, tasks);
    bed.controller.tasks(&[0, 1, 2, 7].map(|index| order(&one, index, TaskRun::Run, 1)));
    for (index, why) in [(0, "/bin/sh"), (1, "component"), (2, "var.nothing"), (7, "no task 7")] {
        let refused = bed.ended(index, TaskRun::Run, 1).await;
        assert_eq!((refused.state, refused.started_at_unix_ms), (TaskState::Failed, 0));
        assert!(refused.note.contains(why), "{}", refused.note);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_waits_for_the_run_and_a_run_that_has_not_begun_stays_away() {
    let bed = Bed::new().await;
    let _agent = Agent::start(&bed.dir);
    let script = "if [ $1 = run ]; then echo begun >> $out/log; while [ ! -e $out/go ]; do sleep 0.01; done; fi; echo $1 >> $out/log";
    let one = bed.release("1.0.0", &[script]);
    let (run, undo) = (order(&one, 0, TaskRun::Run, 1), order(&one, 0, TaskRun::Undo, 1));
    bed.controller.tasks(std::slice::from_ref(&run));
    bed.until_written("log", 1).await;
    bed.controller.tasks(&[undo.clone(), run]);
    // Another rollout's task of the same place shows that the list was heard.
    let beside = TaskOrder { rollout: "r-2".parse().unwrap(), ..order(&one, 7, TaskRun::Run, 1) };
    bed.controller.tasks(&[undo.clone(), beside]);
    bed.controller.until_task("the other", |t| t.index == 7 && t.state.is_final()).await;
    std::fs::write(bed.out.join("go"), "").unwrap();
    bed.ended(0, TaskRun::Undo, 1).await;
    assert_eq!(bed.written("log"), "begun\nrun\nundo\n");

    // To be undone, and never begun: it does not begin.
    let late = TaskOrder { rollout: "r-3".parse().unwrap(), ..order(&one, 0, TaskRun::Run, 1) };
    let back = TaskOrder { what: TaskRun::Undo, ..late.clone() };
    bed.controller.tasks(&[late, back]);
    bed.controller.until_task("undone", |t| t.rollout.as_str() == "r-3" && t.what == TaskRun::Undo && t.state == TaskState::Done).await;
    assert_eq!(bed.written("log"), "begun\nrun\nundo\nundo\n");
}

fn recorded(dir: &Path) -> serde_json::Value {
    let bytes = std::fs::read(dir.join("state/tasks/r-1@0-run.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_agent_lets_a_task_end_and_kills_it_when_told_twice() {
    let script = "echo $$ >> $out/pids; while [ ! -e $out/go ]; do sleep 0.01; done; echo ended by itself";
    for twice in [false, true] {
        let bed = Bed::new().await;
        let mut agent = Agent::start(&bed.dir);
        let one = bed.release("1.0.0", &[script]);
        bed.controller.tasks(&[order(&one, 0, TaskRun::Run, 1)]);
        let pids = bed.until_written("pids", 1).await;
        let ended = bed.controller.endings();
        let asked = Instant::now();
        agent.signal(Signal::TERM);
        bed.controller.ended(ended + 1).await;
        assert!(Process::find(pids[0].parse().unwrap()).is_some());
        if twice {
            agent.signal(Signal::TERM);
        } else {
            std::fs::write(bed.out.join("go"), "").unwrap();
        }
        assert!(agent.wait().success());
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        gone(&pids).await;
        let record = recorded(&bed.dir);
        let (state, note) =
            if twice { ("failed", "the agent was stopped, and the task killed with it") } else { ("done", "ended by itself") };
        assert_eq!((&record["state"], &record["note"]), (&state.into(), &note.into()));
        let _agent = bed.again().await;
        assert_eq!(bed.ended(0, TaskRun::Run, 1).await.note, note);
        assert_eq!(bed.written("pids").lines().count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_lost_and_not_run_again_by_itself() {
    let bed = Bed::new().await;
    let agent = Agent::start(&bed.dir);
    let one = bed.release("1.0.0", &["echo ran >> $out/log"]);
    let first = order(&one, 0, TaskRun::Run, 1);
    bed.controller.tasks(&[first]);
    bed.ended(0, TaskRun::Run, 1).await;
    drop(agent);
    std::fs::write(bed.dir.join("state/tasks/r-1@0-run.json"), "{").unwrap();
    let _agent = bed.again().await;
    let lost = bed.ended(0, TaskRun::Run, 1).await;
    assert!(lost.state == TaskState::Lost && lost.note.contains("r-1@0-run.json"), "{lost:?}");
    bed.controller.tasks(&[order(&one, 0, TaskRun::Run, 2)]);
    assert_eq!(bed.ended(0, TaskRun::Run, 2).await.state, TaskState::Done);
    assert_eq!(bed.written("log").lines().count(), 2);
}
