//! Releases of Debian's nginx: its real binary and a configuration, as a tree
//! behind a unit of the host.

use std::path::{Path, PathBuf};

use tidegate_integration_tests::release::{noise, write};

/// Where it listens; above 1023, so that the unprivileged `check` can try it.
pub(crate) const PORT: u16 = 8080;
/// The unit in `deploy/examples`.
pub(crate) const UNIT: &str = "shop-nginx.service";

/// A release of the component `web`.
pub(crate) struct Web<'a> {
    pub(crate) version: &'a str,
    /// What stands in `location / { … }`.
    pub(crate) location: &'a str,
    /// `check` before the swap.
    pub(crate) check: bool,
    /// Seconds that an extra smoke test takes.
    pub(crate) settle: u32,
}

impl<'a> Web<'a> {
    /// One that works.
    pub(crate) fn good(version: &'a str) -> Self {
        Self { version, location: "root share/html;", check: true, settle: 0 }
    }

    /// Lays it out below `dir`; the path of release.toml. `nginx` is the binary.
    pub(crate) fn write(&self, dir: &Path, nginx: &[u8]) -> anyhow::Result<PathBuf> {
        let tree = dir.join("dist/web");
        // Another binary in each version; bytes after the end of an ELF file do nothing.
        let binary = [nginx, format!("\nweb {}\n", self.version).as_bytes()].concat();
        write(&tree.join("sbin/nginx"), &binary, 0o755)?;
        write(&tree.join("share/html/index.html"), format!("Welcome to web {}\n", self.version).as_bytes(), 0o644)?;
        write(&tree.join("share/html/padding"), &noise(200_000, self.version), 0o644)?;
        write(&tree.join("etc/nginx.conf"), self.configuration().as_bytes(), 0o644)?;
        write(&tree.join("bin/settle"), format!("#!/bin/sh\nexec sleep {}\n", self.settle).as_bytes(), 0o755)?;
        let path = dir.join("release.toml");
        write(&path, self.toml().as_bytes(), 0o644)?;
        Ok(path)
    }

    fn configuration(&self) -> String {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("    {name}_temp_path /tmp/shop-nginx-{name};\n"))
            .concat();
        format!(
            "worker_processes 2;\nevents {{ worker_connections 256; }}\nhttp {{\n    access_log off;\n{temporary}    server {{\n        listen {PORT};\n        location / {{ {} }}\n    }}\n}}\n",
            self.location
        )
    }

    fn toml(&self) -> String {
        let mut toml = format!(
            "name = \"front\"\nversion = \"{}\"\nknown_issues = \"none\"\n[[component]]\nname = \"web\"\ntree = \"dist/web\"\nservice = {{ systemd = \"{UNIT}\" }}\n",
            self.version
        );
        if self.check {
            toml += "check = [\"sbin/nginx\", \"-t\", \"-q\", \"-p\", \".\", \"-e\", \"stderr\", \"-c\", \"etc/nginx.conf\", \"-g\", \"pid /tmp/shop-nginx-check.pid;\"]\n";
        }
        toml += &format!(
            "[[component.smoke]]\nid = \"SMK-001\"\nname = \"Front door answers\"\nhttp = {{ url = \"http://127.0.0.1:{PORT}/\", status = 200, body = \"Welcome to web ${{version}}\" }}\ntimeout = \"1s\"\nretry_for = \"3s\"\n\
             [[component.smoke]]\nid = \"SMK-002\"\nname = \"Did not restart by itself\"\nsystemd = {{ max_restarts = 0 }}\ntimeout = \"2s\"\nretry_for = \"0s\"\n"
        );
        if self.settle > 0 {
            toml += "[[component.smoke]]\nid = \"SMK-003\"\nname = \"Settles\"\nexec = { run = [\"bin/settle\"] }\ntimeout = \"30s\"\nretry_for = \"0s\"\n";
        }
        toml
    }
}
