//! Where everything of one agent lives on disk.
//!
//! Owns the names below the state directory; must not create anything.

use std::path::{Path, PathBuf};

use tidegate_protocol::ComponentName;

/// The configuration when no `--config` is given.
pub const SYSTEM_CONFIG: &str = "/etc/tidegate/agent.toml";
/// The state directory unless agent.toml says otherwise.
pub const SYSTEM_STATE: &str = "/var/lib/tidegate";
/// Where releases live unless agent.toml says otherwise.
pub const SYSTEM_OPT: &str = "/opt/tidegate";
/// The configuration's file name below `--dir`.
pub const CONFIG_NAME: &str = "agent.toml";

/// The directories of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// agent.toml.
    pub config: PathBuf,
    /// Ledger, identity, store: 0700.
    pub state: PathBuf,
    /// Release trees: 0755.
    pub opt: PathBuf,
}

impl Paths {
    /// One JSON file per component.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.state.join("ledger")
    }

    /// Files by digest.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state.join("store")
    }

    /// Release manifests by digest.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.state.join("manifests")
    }

    /// What stood where a component's links are now.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.state.join("links")
    }

    /// One JSON file per task of a rollout, and one per undo of it.
    #[must_use]
    pub fn tasks(&self) -> PathBuf {
        self.state.join("tasks")
    }

    /// The head of the controller's journal, the highest ever heard of.
    #[must_use]
    pub fn head(&self) -> PathBuf {
        self.state.join("head.json")
    }

    /// Certificate, key and CA.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.state.join("identity")
    }

    /// The host's labels, as the controller said them last.
    #[must_use]
    pub fn labels(&self) -> PathBuf {
        self.state.join("labels.json")
    }

    /// One number per installation.
    #[must_use]
    pub fn instance(&self) -> PathBuf {
        self.state.join("instance")
    }

    /// Held by the one agent that uses this state.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// Everything of one component.
    #[must_use]
    pub fn component(&self, component: &ComponentName) -> PathBuf {
        self.opt.join(component.as_str())
    }

    /// The link that is flipped.
    #[must_use]
    pub fn current(&self, component: &ComponentName) -> PathBuf {
        self.component(component).join("current")
    }

    /// Its release trees.
    #[must_use]
    pub fn releases(&self, component: &ComponentName) -> PathBuf {
        self.component(component).join("releases")
    }
}

/// A path of a configuration file: relative ones count from that file.
#[must_use]
pub fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new(".")).join(path)
}
