//! A private sshd on loopback addresses, with keys of its own, and nothing left
//! of it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::output::Output;
use crate::ports::free_port;
use crate::process::kill_below;
use crate::wait::{Look, wait_until};

const SHORT: Duration = Duration::from_secs(30);
/// Where Debian and others keep it: outside the PATH of plain users.
const PROGRAMS: [&str; 3] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];
/// sshd run by root wants this directory, which its service would have made.
const SEPARATION: &str = "/run/sshd";
/// One sshd listens on at most 16 addresses, and it must not be all of the machine's.
const ADDRESSES_MAX: usize = 10;

/// Ends sshd when its standard input ends, whatever became of this process: sshd
/// leaves its directory and renames itself, so nobody else would find it.
const GUARD: &str = r#""$SSHD" -D -e -f "$SSHD_CONFIG" </dev/null & pid=$!; read -r _; kill $pid; wait $pid"#;

/// As few processes as there can be. They end when it is dropped, with every session.
#[derive(Debug)]
pub(super) struct Sshd {
    guards: Vec<Child>,
    dir: PathBuf,
    made: bool,
    /// Every address listens on it.
    pub(super) port: u16,
}

/// The address of host `number`, from 0.
pub(super) fn address(number: usize) -> anyhow::Result<Ipv4Addr> {
    let last = u8::try_from(number + 2).context("too many hosts for 127.0.0.0/24")?;
    Ok(Ipv4Addr::new(127, 0, 0, last))
}

impl Sshd {
    /// The private key that is let in.
    pub(super) fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Starts one for `hosts` addresses from 127.0.0.2 on, with its files in `dir`.
    pub(super) fn start(dir: &Path, hosts: usize) -> anyhow::Result<Self> {
        let program = PROGRAMS.iter().map(Path::new).find(|path| path.is_file());
        let program = program.context("there is no sshd on this machine; install openssh-server")?;
        fs::create_dir_all(dir).and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700))).context("sshd's directory")?;
        for key in ["host_key", "key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            Output::of(command, SHORT)?.expect_code(0)?;
        }
        fs::copy(dir.join("key.pub"), dir.join("authorized_keys")).context("authorized_keys")?;
        let made = rustix::process::geteuid().is_root() && !Path::new(SEPARATION).exists();
        if made {
            fs::create_dir(SEPARATION).with_context(|| format!("making {SEPARATION}"))?;
        }
        let mut sshd = Self { guards: Vec::new(), dir: dir.to_owned(), made, port: free_port()? };
        let numbers: Vec<usize> = (0..hosts).collect();
        for numbers in numbers.chunks(ADDRESSES_MAX) {
            sshd.listen(program, numbers)?;
        }
        Ok(sshd)
    }

    fn listen(&mut self, program: &Path, numbers: &[usize]) -> anyhow::Result<()> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut config = format!("Port {}\nHostKey {}\nAuthorizedKeysFile {}\n", self.port, file("host_key"), file("authorized_keys"));
        for number in numbers {
            let _ = writeln!(config, "ListenAddress {}", address(*number)?);
        }
        // Nothing that a login would wait for; as many at once as hosts.
        config.push_str(
            "PidFile none\nStrictModes no\nUsePAM no\nUseDNS no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nMaxStartups 200\nMaxSessions 100\nSubsystem sftp internal-sftp\nPrintMotd no\nPrintLastLog no\n",
        );
        let path = self.dir.join(format!("sshd_config-{}", self.guards.len()));
        fs::write(&path, config).context("sshd_config")?;
        let log = File::options().create(true).append(true).open(self.dir.join("sshd.log")).context("sshd's log")?;
        let mut command = Command::new("sh");
        command.args(["-c", GUARD]).env("SSHD", program).env("SSHD_CONFIG", &path).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(log.try_clone().context("sshd's log, twice")?).stderr(log);
        let guard = command.spawn().context("starting sshd")?;
        self.guards.push(guard);
        for number in numbers {
            let at = (address(*number)?, self.port);
            let listens = wait_until("sshd listens", SHORT, || {
                Ok(Look::from_option(std::net::TcpStream::connect(at).ok(), || "nobody listens".to_owned()))
            });
            listens.with_context(|| format!("sshd says: {}", self.log()))?;
        }
        Ok(())
    }

    /// What it said.
    pub(super) fn log(&self) -> String {
        crate::fleet::tail(&self.dir.join("sshd.log"))
    }

    /// Whether a host lets us in; an error that says why not is better here than
    /// twenty of Ansible.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let mut command = Command::new("ssh");
        let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"];
        options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command.arg("-i").arg(self.key()).args(["-p", &self.port.to_string(), &address(0)?.to_string(), "true"]);
        let output = Output::of(command, SHORT)?;
        ensure!(output.code == 0, "ssh to 127.0.0.2 ended with {}: {}\nsshd: {}", output.code, output.stderr, self.log());
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // The listener first; a session goes when its control master or client goes.
        for mut guard in self.guards.drain(..) {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
        if let Err(error) = kill_below(&self.dir, &[]) {
            eprintln!("ending what sshd left: {error:#}");
        }
        if self.made {
            let _ = fs::remove_dir(SEPARATION);
        }
    }
}
