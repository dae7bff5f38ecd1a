//! Plans as an operator would write them.

use std::fmt::Write as _;

/// The text of a plan.toml to be.
#[derive(Clone, Debug)]
pub struct Plan {
    top: Vec<String>,
    limits: Vec<String>,
}

impl Plan {
    /// `release` to the component `api` on the hosts labelled `role=api`.
    #[must_use]
    pub fn new(release: &str, strategy: &str) -> Self {
        Self::to(release, strategy, r#"{ api = "role=api" }"#)
    }

    /// `release` to `hosts`, an inline table of selectors by component.
    #[must_use]
    pub fn to(release: &str, strategy: &str, hosts: &str) -> Self {
        let top = vec![
            format!("release = \"{release}\""),
            "environment = \"test\"".to_owned(),
            "lead = \"lead@example.com\"".to_owned(),
            format!("hosts = {hosts}"),
            format!("strategy = \"{strategy}\""),
        ];
        // Shorter than the defaults: a test that waits for a deadline waits for all of it.
        let limits = vec!["healthy_deadline = \"60s\"".to_owned(), "confirm_within = \"30s\"".to_owned()];
        Self { top, limits }
    }

    /// A line more at the top level.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        put(&mut self.top, line);
        self
    }

    /// `batch`, a count or a percentage.
    #[must_use]
    pub fn batch(self, batch: &str) -> Self {
        self.line(&format!("batch = \"{batch}\""))
    }

    /// A line more in `[limits]`; a later one replaces an earlier one of its key.
    #[must_use]
    pub fn limit(mut self, line: &str) -> Self {
        put(&mut self.limits, line);
        self
    }

    /// plan.toml.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut toml = self.top.join("\n");
        let _ = write!(toml, "\n[limits]\n{}\n", self.limits.join("\n"));
        toml
    }
}

fn put(lines: &mut Vec<String>, line: &str) {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    lines.retain(|old| key(old) != key(line));
    lines.push(line.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_line_replaces_an_earlier_one_of_its_key() {
        let toml = Plan::new("shop@2.0.0", "rolling").batch("2").batch("3").limit("confirm_within = \"5s\"").toml();
        assert!(toml.contains("batch = \"3\"") && !toml.contains("batch = \"2\""), "{toml}");
        assert!(toml.contains("confirm_within = \"5s\"") && !toml.contains("\"30s\""), "{toml}");
    }
}
