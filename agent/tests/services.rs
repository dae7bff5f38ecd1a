//! Services and smoke tests against real processes and sockets.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test is a failed test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tempfile::TempDir;
use tidegate_agent::context::{Context, Installed, Policy};
use tidegate_agent::service::{Process, Services, Status, same_service, since_boot};
use tidegate_agent::smoke;
use tidegate_protocol::release::{Component, FileEntry, Proof, Service, Smoke, SmokeCheck, Suite};
use tidegate_protocol::report::SmokeStatus;
use tidegate_protocol::{BootId, Cause, Digest, Millis, ReleaseRef};
use tidegate_swap::Mark;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A host below a scratch directory.
struct Host {
    dir: TempDir,
    ctx: Arc<Context>,
}

fn boot_id() -> BootId {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().parse().unwrap()
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Services run as nobody when the tests run as root.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let ctx = Arc::new(Context {
            host: "web-1".parse().unwrap(),
            vars: [("dir".to_owned(), dir.path().display().to_string())].into(),
            labels: RwLock::default(),
            policy: Policy::default(),
            boot_id: boot_id(),
            state_dir: dir.path().join("state"),
            opt_dir: dir.path().join("opt"),
            systemd: false,
        });
        Self { dir, ctx }
    }

    /// One agent process's view of the host's services.
    fn agent(&self) -> Services {
        Services::with_launcher(Arc::clone(&self.ctx), PathBuf::from(env!("CARGO_BIN_EXE_tidegate-agent")))
    }

    /// Lays out a release whose `bin/api` is this.
    fn release(&self, version: &str, program: &[u8], service: Service) -> Installed {
        let dir = self.dir.path().join("opt/api/releases").join(version);
        let file = dir.join("bin/api");
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        // The same version again: a read-only file is replaced, not written.
        drop(std::fs::remove_file(&file));
        std::fs::write(&file, program).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o555)).unwrap();
        let entry = FileEntry { path: "bin/api".parse().unwrap(), digest: Digest::of(program), size: program.len() as u64, mode: 0o555 };
        let component = Component {
            name: "api".parse().unwrap(),
            files: vec![entry],
            links: BTreeMap::new(),
            service,
            proof: Proof::Executable,
            check: None,
            before: None,
            after: None,
            arch: None,
            keep: 3,
            smoke: Vec::new(),
        };
        let release = ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest: Digest::of(version.as_bytes()) };
        Installed { release, component, dir, side: None }
    }

    /// A real executable that sleeps.
    fn sleeper(&self, version: &str) -> Installed {
        let program = std::fs::read(std::fs::canonicalize("/bin/sleep").unwrap()).unwrap();
        self.release(version, &program, supervised(&["bin/api", "600"]))
    }

    fn script(&self, version: &str, text: &str) -> Installed {
        self.release(version, format!("#!/bin/sh\n{text}\n").as_bytes(), supervised(&["bin/api"]))
    }

    fn state_file(&self) -> PathBuf {
        self.dir.path().join("state/supervised/api.json")
    }
}

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn supervised(run: &[&str]) -> Service {
    Service::Supervised { run: argv(run), env: BTreeMap::new() }
}

fn mark() -> Mark {
    let unix_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    Mark { boot_id: boot_id(), at: since_boot(), unix_ms: u64::try_from(unix_ms).unwrap() }
}

fn test(id: &str, check: SmokeCheck, timeout_ms: u64, retry_ms: u64) -> Smoke {
    Smoke { id: id.into(), name: "a test".into(), suite: Suite::Critical, check, timeout: Millis(timeout_ms), retry_for: Millis(retry_ms) }
}

fn http(address: SocketAddr, body: Option<&str>) -> SmokeCheck {
    SmokeCheck::Http { url: format!("http://{address}/health"), status: 200, body: body.map(str::to_owned) }
}

/// Waits until `look` shows something, or the test is a failure.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never seen: {what}"))
}

async fn gone(pid: u32) {
    until(&format!("the end of {pid}"), async || Process::find(pid).is_none().then_some(())).await;
}

async fn main_of(agent: &Services, installed: &Installed) -> Process {
    agent.status(installed).await.main.expect("a main process")
}

#[tokio::test]
async fn a_supervised_service_starts_is_proven_restarts_and_stops() {
    let host = Host::new();
    let (agent, one, two) = (host.agent(), host.sleeper("1"), host.sleeper("2"));
    assert_eq!(agent.status(&one).await, Status::default());
    agent.preflight(&one).await.unwrap();
    let before = since_boot();
    agent.start(&one).await.unwrap();
    let running = agent.prove(&one).await.unwrap();
    assert_eq!(running.sha256, Some(one.component.files[0].digest));
    assert!(tidegate_agent::service::started_since(running.start_ticks, before));
    // Its own session, so that the agent's end does not reach it.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid)).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, running.pid.to_string());

    agent.start(&two).await.unwrap();
    let second = agent.prove(&two).await.unwrap();
    assert_ne!((second.pid, second.start_ticks), (running.pid, running.start_ticks));
    gone(running.pid).await;
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", second.pid)).unwrap(), two.dir.canonicalize().unwrap());

    agent.stop(&two).await.unwrap();
    assert_eq!(agent.status(&two).await, Status::default());
    assert!(Process::find(second.pid).is_none());
    assert!(!host.state_file().exists());
    agent.stop(&two).await.unwrap();
}

#[tokio::test]
async fn a_service_never_has_the_agents_privileges_and_stop_ends_its_whole_session() {
    let host = Host::new();
    let agent = host.agent();
    let it = host.script("1", "id -u; (trap '' TERM; exec sleep 600) & echo child $!; exec sleep 601");
    // The proof is of no matter here: it becomes another program.
    agent.start(&it).await.unwrap();
    let log = host.dir.path().join("state/logs/api.log");
    let text = until("the child's pid", async || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("child").then_some(text)
    })
    .await;
    let root = rustix::process::geteuid().is_root();
    assert!(!root || text.lines().next() != Some("0"), "{text}");
    let child = text.split_whitespace().last().unwrap().parse().unwrap();
    assert!(Process::find(child).is_some());
    agent.stop(&it).await.unwrap();
    assert!(Process::find(child).is_none(), "a child outlived its service");
}

#[tokio::test]
async fn a_script_is_proven_by_its_own_digest_and_a_stranger_is_named() {
    let host = Host::new();
    let agent = host.agent();
    let script = host.script("1", "while :; do sleep 1; done");
    agent.start(&script).await.unwrap();
    assert_eq!(agent.prove(&script).await.unwrap().sha256, Some(script.component.files[0].digest));

    let mut stranger = host.script("2", "exec sleep 600");
    agent.start(&stranger).await.unwrap();
    // Until it hands over, the shell does run the script.
    let pid = main_of(&agent, &stranger).await.pid;
    let exe = PathBuf::from(format!("/proc/{pid}/exe"));
    until("the script became sleep", async || std::fs::read_link(&exe).ok().filter(|to| to.ends_with("sleep"))).await;
    let failure = agent.prove(&stranger).await.unwrap_err();
    assert_eq!(failure.cause, Cause::StartFailed);
    assert!(failure.message.contains("sleep") && failure.message.contains("shop@2"), "{}", failure.message);
    stranger.component.proof = Proof::None;
    assert_eq!(agent.prove(&stranger).await.unwrap().sha256, None);
    agent.stop(&stranger).await.unwrap();
}

#[tokio::test]
async fn a_changed_script_is_no_proof() {
    let host = Host::new();
    let agent = host.agent();
    let script = host.script("1", "while :; do sleep 1; done");
    let file = script.dir.join("bin/api");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(&file, "#!/bin/sh\nwhile :; do sleep 2; done\n").unwrap();
    agent.start(&script).await.unwrap();
    assert_eq!(agent.prove(&script).await.unwrap_err().cause, Cause::StartFailed);
    agent.stop(&script).await.unwrap();
}

#[tokio::test]
async fn a_service_outlives_its_agent_is_found_again_and_not_started_twice() {
    let host = Host::new();
    let it = host.sleeper("1");
    let first = host.agent();
    first.start(&it).await.unwrap();
    let main = main_of(&first, &it).await;
    drop(first);

    let second = host.agent();
    assert_eq!(main_of(&second, &it).await, main);
    second.ensure_running(&it).await.unwrap();
    assert_eq!(main_of(&second, &it).await, main);

    // Found again means kept: when it dies it is restarted, and that is counted.
    kill(main.pid);
    let status = until("the restart", async || {
        let status = second.status(&it).await;
        (status.active && status.restarts == 1).then_some(status)
    })
    .await;
    assert_ne!(status.main.unwrap(), main);
    // An order begins the count anew.
    second.start(&it).await.unwrap();
    assert_eq!(second.status(&it).await.restarts, 0);
    second.stop(&it).await.unwrap();
}

#[tokio::test]
async fn a_second_process_looks_and_touches_nothing() {
    let host = Host::new();
    let it = host.sleeper("1");
    let agent = host.agent();
    let beside = Services::observing(Arc::clone(&host.ctx));
    assert_eq!(beside.status(&it).await, Status::default());
    agent.start(&it).await.unwrap();
    assert_eq!(beside.status(&it).await, agent.status(&it).await);
    assert_eq!(beside.prove(&it).await.unwrap(), agent.prove(&it).await.unwrap());
    assert!(beside.stop(&it).await.is_err() && beside.start(&it).await.is_err());
    let main = main_of(&agent, &it).await;
    drop(agent);
    // Only the agent restarts it.
    assert_eq!(beside.status(&it).await.main, Some(main));
    kill(main.pid);
    gone(main.pid).await;
    assert_eq!(beside.status(&it).await, Status::default());
}

#[tokio::test]
async fn asking_for_its_state_is_enough_to_keep_a_service_that_was_found() {
    let host = Host::new();
    let it = host.sleeper("1");
    let first = host.agent();
    first.start(&it).await.unwrap();
    drop(first);
    let second = host.agent();
    let main = main_of(&second, &it).await;
    kill(main.pid);
    until("the restart", async || (second.status(&it).await.restarts == 1).then_some(())).await;
    second.stop(&it).await.unwrap();
}

#[tokio::test]
async fn a_start_whose_record_was_lost_is_found_by_its_token() {
    let host = Host::new();
    let it = host.sleeper("1");
    let first = host.agent();
    first.start(&it).await.unwrap();
    let main = main_of(&first, &it).await;
    first.prove(&it).await.unwrap();
    drop(first);
    // As if the agent had died between the start and its record.
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(host.state_file()).unwrap()).unwrap();
    kept["pid"] = serde_json::Value::Null;
    kept["start_ticks"] = serde_json::Value::Null;
    std::fs::write(host.state_file(), serde_json::to_vec(&kept).unwrap()).unwrap();

    let second = host.agent();
    second.ensure_running(&it).await.unwrap();
    assert_eq!(main_of(&second, &it).await, main);
    second.stop(&it).await.unwrap();
    assert!(Process::find(main.pid).is_none());
}

#[tokio::test]
async fn a_service_of_another_boot_is_started_anew() {
    let host = Host::new();
    let it = host.sleeper("1");
    let first = host.agent();
    first.start(&it).await.unwrap();
    let main = main_of(&first, &it).await;
    drop(first);
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(host.state_file()).unwrap()).unwrap();
    kept["boot_id"] = "11111111-2222-3333-4444-555555555555".into();
    std::fs::write(host.state_file(), serde_json::to_vec(&kept).unwrap()).unwrap();
    let second = host.agent();
    // After a reboot its pid may be anyone's.
    assert_eq!(second.status(&it).await, Status::default());
    second.ensure_running(&it).await.unwrap();
    assert_ne!(main_of(&second, &it).await, main);
    second.stop(&it).await.unwrap();
    assert!(Process::find(main.pid).is_some(), "a process of another boot's record is not ours to kill");
    kill(main.pid);
}

#[tokio::test]
async fn a_program_that_ends_at_once_fails_with_its_last_words() {
    let host = Host::new();
    let agent = host.agent();
    let it = host.script("1", "echo cannot open the database >&2; exit 1");
    // The start may see it alive or not; the verdict is the same.
    let failure = match agent.start(&it).await {
        Err(failure) => failure,
        Ok(()) => smoke::run(&host.ctx, &agent, &it, false, &mark()).await.1.expect("a failure"),
    };
    assert_eq!(failure.cause, Cause::StartFailed);
    assert!(failure.message.contains("cannot open the database"), "{}", failure.message);
    until("restarts", async || (agent.status(&it).await.restarts >= 2).then_some(())).await;
    agent.stop(&it).await.unwrap();
    assert_eq!(agent.status(&it).await, Status::default());
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_says_why() {
    let host = Host::new();
    let agent = host.agent();
    let it = host.release("1", b"#!/nonexistent/interpreter\n", supervised(&["bin/api"]));
    let failure = match agent.start(&it).await {
        Err(failure) => failure,
        Ok(()) => agent.prove(&it).await.unwrap_err(),
    };
    assert_eq!(failure.cause, Cause::StartFailed);
    assert!(failure.message.contains("cannot execute"), "{}", failure.message);
    agent.stop(&it).await.unwrap();
}

const MANAGER: &str = r#"
pid_file="$2/service.pid"
case "$1" in
start) setsid sleep 600 & echo $! > "$pid_file" ;;
lie) exit 0 ;;
stop) kill "$(cat "$pid_file")"; rm "$pid_file" ;;
nothing) exit 0 ;;
status) cat "$pid_file" || exit 3 ;;
esac"#;

fn commands(start: &str, stop: &str) -> Service {
    let words = |verb: &str| argv(&["bin/api", verb, "${var.dir}"]);
    Service::Command { start: words(start), stop: words(stop), status: words("status") }
}

#[tokio::test]
async fn commands_start_restart_and_stop_a_service_that_outlives_them() {
    let host = Host::new();
    let agent = host.agent();
    let mut it = host.release("1", format!("#!/bin/sh{MANAGER}").as_bytes(), commands("start", "stop"));
    it.component.proof = Proof::None;
    agent.preflight(&it).await.unwrap();
    agent.start(&it).await.unwrap();
    let first = agent.prove(&it).await.unwrap();
    agent.start(&it).await.unwrap();
    let second = agent.prove(&it).await.unwrap();
    assert_ne!(first.pid, second.pid);
    gone(first.pid).await;
    agent.stop(&it).await.unwrap();
    assert_eq!(agent.status(&it).await, Status::default());
    gone(second.pid).await;
}

#[tokio::test]
async fn a_manager_that_says_restarted_while_the_old_process_runs_is_a_failure() {
    let host = Host::new();
    let agent = host.agent();
    let manager = format!("#!/bin/sh{MANAGER}");
    let honest = host.release("1", manager.as_bytes(), commands("start", "stop"));
    agent.start(&honest).await.unwrap();
    let main = main_of(&agent, &honest).await;

    let liar = host.release("2", manager.as_bytes(), commands("lie", "nothing"));
    assert!(!same_service(&honest.component, &liar.component));
    let failure = agent.start(&liar).await.unwrap_err();
    assert_eq!(failure.cause, Cause::StartFailed);
    assert!(failure.message.contains(&main.pid.to_string()) && failure.message.contains("still"), "{}", failure.message);
    assert_eq!(agent.stop(&liar).await.unwrap_err().cause, Cause::StartFailed);
    agent.stop(&honest).await.unwrap();
}

#[tokio::test]
async fn preflight_refuses_what_the_host_does_not_allow() {
    let host = Host::new();
    let agent = host.agent();
    let refused = async |it: &Installed, word: &str| {
        let failure = agent.preflight(it).await.unwrap_err();
        assert_eq!(failure.cause, Cause::Policy, "{}", failure.message);
        assert!(failure.message.contains(word), "{word}: {}", failure.message);
    };
    refused(&host.release("1", b"", supervised(&["/bin/sh"])), "/bin/sh").await;
    refused(&host.release("1", b"", supervised(&["bin/other"])), "bin/other").await;
    refused(&host.release("1", b"", supervised(&["bin/api", "${var.prot}"])), "var.prot").await;
    refused(&host.release("1", b"", Service::Systemd("tidegate-agent.service".into())), "the agent itself").await;
    refused(&host.release("1", b"", Service::Systemd("../x.service".into())), "not the name").await;
    let mut it = host.sleeper("1");
    it.component.smoke = vec![test("SMK-1", SmokeCheck::Tcp { address: "192.0.2.1:80".into() }, 100, 0)];
    refused(&it, "SMK-1").await;
    it.component.smoke.clear();
    it.component.before = Some(argv(&["/sbin/reboot"]));
    refused(&it, "before").await;
}

/// A server that answers each connection with the next of these, the last one for ever.
async fn server(answers: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, answers));
    address
}

async fn serve(listener: TcpListener, answers: &'static [&'static str]) {
    let mut held = Vec::new();
    for turn in 0.. {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let n = stream.read(&mut request).await.unwrap();
        let answer = answers[turn.min(answers.len() - 1)];
        if answer == "hang" {
            held.push(stream);
        } else if n > 0 {
            assert!(request.starts_with(b"GET /health HTTP/1.1\r\n"));
            let (status, body) = answer.split_once(' ').unwrap();
            let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    }
}

/// Starts a sleeper with these smoke tests and runs them.
async fn smoked(
    host: &Host,
    tests: Vec<Smoke>,
) -> (Vec<tidegate_protocol::report::SmokeResult>, Option<tidegate_protocol::report::Failure>) {
    let agent = host.agent();
    let mut it = host.sleeper("1");
    it.component.smoke = tests;
    let since = mark();
    agent.start(&it).await.unwrap();
    let outcome = smoke::run(&host.ctx, &agent, &it, false, &since).await;
    agent.stop(&it).await.unwrap();
    outcome
}

#[tokio::test]
async fn http_passes_on_status_and_body() {
    let host = Host::new();
    let address = server(&["200 Welcome home"]).await;
    let (results, failure) = smoked(&host, vec![test("SMK-1", http(address, Some("Welcome")), 2_000, 0)]).await;
    assert_eq!(failure, None);
    assert_eq!((results.len(), results[0].status), (1, SmokeStatus::Pass));
    assert_eq!(results[0].message, format!("GET http://{address}/health → 200"));
}

#[tokio::test]
async fn the_first_failed_test_is_named_and_the_rest_is_skipped() {
    let host = Host::new();
    let address = server(&["500 no database"]).await;
    let mut integration = test("SMK-0", http(address, None), 2_000, 0);
    integration.suite = Suite::Integration;
    let tests = vec![integration, test("SMK-1", http(address, None), 2_000, 0), test("SMK-2", http(address, None), 2_000, 0)];
    let (results, failure) = smoked(&host, tests).await;
    let failure = failure.unwrap();
    assert_eq!(failure.cause, Cause::Smoke);
    let message = format!("SMK-1 \"a test\": GET http://{address}/health → 500, 200 wanted; the body: no database");
    assert_eq!(failure.message, message);
    let shown: Vec<_> = results.iter().map(|r| (r.id.as_str(), r.status)).collect();
    assert_eq!(shown, [("SMK-1", SmokeStatus::Fail), ("SMK-2", SmokeStatus::Skipped)]);
}

#[tokio::test]
async fn a_missing_text_and_a_server_that_hangs_fail() {
    let host = Host::new();
    let address = server(&["200 Sorry", "hang"]).await;
    let (results, _) = smoked(&host, vec![test("SMK-1", http(address, Some("Welcome")), 2_000, 0)]).await;
    assert!(results[0].message.contains("no \"Welcome\" in the body"), "{}", results[0].message);
    let (results, failure) = smoked(&host, vec![test("SMK-1", http(address, None), 200, 0)]).await;
    assert_eq!(results[0].status, SmokeStatus::Fail);
    assert!(failure.unwrap().message.contains("nothing within 200 ms"));
}

#[tokio::test]
async fn attempts_go_on_until_the_service_answers() {
    let host = Host::new();
    let address = server(&["503 starting", "hang", "503 starting", "200 up"]).await;
    let (results, failure) = smoked(&host, vec![test("SMK-1", http(address, None), 300, 20_000)]).await;
    assert_eq!((failure, results[0].status), (None, SmokeStatus::Pass));
}

#[tokio::test]
async fn a_port_that_opens_late_is_waited_for() {
    let host = Host::new();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let tests = vec![test("SMK-1", SmokeCheck::Tcp { address: address.to_string() }, 1_000, 20_000)];
    let late = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        TcpListener::bind(address).await.unwrap()
    };
    let ((results, _), _listener) = tokio::join!(smoked(&host, tests), late);
    assert_eq!(results[0].status, SmokeStatus::Pass);
    let (results, _) = smoked(&host, vec![test("SMK-1", SmokeCheck::Tcp { address: "127.0.0.1:1".into() }, 1_000, 0)]).await;
    assert!(results[0].message.contains("127.0.0.1:1"), "{}", results[0].message);
}

#[tokio::test]
async fn programs_and_files_of_the_release_are_tested() {
    let host = Host::new();
    let digest = host.sleeper("1").component.files[0].digest;
    let file = |sha256| SmokeCheck::File { path: "bin/api".into(), sha256 };
    let passes = vec![test("SMK-1", SmokeCheck::Exec { run: argv(&["bin/api", "0"]) }, 5_000, 0), test("SMK-2", file(digest), 5_000, 0)];
    let (results, failure) = smoked(&host, passes).await;
    assert_eq!(failure, None, "{results:?}");

    let (results, _) = smoked(&host, vec![test("SMK-1", file(Digest::of(b"other")), 5_000, 0)]).await;
    assert!(results[0].message.contains(&digest.to_string()), "{}", results[0].message);
    let (results, _) = smoked(&host, vec![test("SMK-1", SmokeCheck::Exec { run: argv(&["bin/api", "x"]) }, 5_000, 0)]).await;
    assert!(results[0].message.contains("exit code 1, exit code 0 wanted"), "{}", results[0].message);
    let (results, _) = smoked(&host, vec![test("SMK-1", SmokeCheck::Exec { run: argv(&["bin/api", "60"]) }, 200, 0)]).await;
    assert_eq!(results[0].status, SmokeStatus::Fail);
    assert!(results[0].message.contains("200"), "{}", results[0].message);
}

#[tokio::test]
async fn a_denied_text_fails_but_not_one_of_the_release_before() {
    let host = Host::new();
    let agent = host.agent();
    let deny = SmokeCheck::Journal { deny: argv(&["panic"]), watch: Millis(500) };
    let run = async |it: &mut Installed| {
        it.component.smoke = vec![test("SMK-1", deny.clone(), 1_000, 5_000)];
        let since = mark();
        agent.start(it).await.unwrap();
        smoke::run(&host.ctx, &agent, it, false, &since).await
    };
    let mut bad = host.script("1", "echo all well; sleep 0.1; echo thread main: panic at 3; exec sleep 600");
    let (results, failure) = run(&mut bad).await;
    assert!(failure.unwrap().message.contains("panic at 3"));
    assert!(results[0].duration_ms < 5_000, "a message does not go away: no second attempt");

    let mut good = host.script("2", "echo all well; exec sleep 600");
    let (results, failure) = run(&mut good).await;
    assert_eq!((failure, results[0].status), (None, SmokeStatus::Pass));
    assert!(results[0].duration_ms >= 500, "it was watched for as long as was asked");
    agent.stop(&good).await.unwrap();
}

#[tokio::test]
async fn health_is_active_and_every_critical_test_at_once() {
    let host = Host::new();
    let agent = host.agent();
    let address = server(&["200 ok", "503 ill"]).await;
    let mut it = host.sleeper("1");
    it.component.smoke = vec![test("SMK-1", http(address, None), 2_000, 20_000)];
    assert!(!smoke::observe(&host.ctx, &agent, &it).await, "it does not run");
    agent.start(&it).await.unwrap();
    assert!(smoke::observe(&host.ctx, &agent, &it).await);
    assert!(!smoke::observe(&host.ctx, &agent, &it).await, "one attempt, no retry");
    agent.stop(&it).await.unwrap();
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
