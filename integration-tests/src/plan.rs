//! Plans as an operator would write them.

use std::fmt::Write as _;

/// The text of a plan.toml to be.
#[derive(Clone, Debug)]
pub struct Plan {
    top: Vec<String>,
    limits: Vec<String>,
    analysis: Vec<String>,
    /// `[metrics.NAME]`, `[[stage]]`, `[[rollback]]`, `[[perf]]`, `[switch]`, whole.
    tables: Vec<String>,
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
        Self { top, limits, analysis: Vec::new(), tables: Vec::new() }
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

    /// A line more in `[analysis]`; a later one replaces an earlier one of its key.
    #[must_use]
    pub fn analysis(mut self, line: &str) -> Self {
        put(&mut self.analysis, line);
        self
    }

    /// `[metrics.NAME]` with these lines; a later one of that name replaces it.
    #[must_use]
    pub fn metric(mut self, name: &str, lines: &[&str]) -> Self {
        let head = format!("[metrics.{name}]\n");
        self.tables.retain(|table| !table.starts_with(&head));
        self.table(&head, lines)
    }

    /// A canary stage: name, percent, bake, criteria.
    #[must_use]
    pub fn stage(self, name: &str, percent: u8, bake: &str, success: &[&str]) -> Self {
        self.stage_with(name, percent, &[&format!("bake = \"{bake}\""), &format!("success = {success:?}")])
    }

    /// A canary stage with these lines beside name and percent.
    #[must_use]
    pub fn stage_with(self, name: &str, percent: u8, lines: &[&str]) -> Self {
        self.table(&format!("[[stage]]\nname = \"{name}\"\npercent = {percent}\n"), lines)
    }

    /// A trigger: condition, action and what else it says.
    #[must_use]
    pub fn trigger(self, when: &str, action: &str, lines: &[&str]) -> Self {
        self.table(&format!("[[rollback]]\nwhen = \"{when}\"\naction = \"{action}\"\n"), lines)
    }

    /// A row of the performance baseline.
    #[must_use]
    pub fn perf(self, metric: &str, max: &str) -> Self {
        self.table(&format!("[[perf]]\nmetric = \"{metric}\"\nmax = \"{max}\"\n"), &[])
    }

    /// Blue-green's switch: the inside of its inline table.
    #[must_use]
    pub fn switch(self, inside: &str) -> Self {
        self.line(&format!("switch = {{ {inside} }}"))
    }

    /// Whole tables, as they shall stand at the end of the file.
    #[must_use]
    pub fn tables(self, toml: &str) -> Self {
        self.table(toml.trim_end(), &[""])
    }

    fn table(mut self, head: &str, lines: &[&str]) -> Self {
        self.tables.push(lines.iter().fold(head.to_owned(), |table, line| table + line + "\n"));
        self
    }

    /// plan.toml.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut toml = self.top.join("\n");
        let _ = write!(toml, "\n[limits]\n{}\n", self.limits.join("\n"));
        if !self.analysis.is_empty() {
            let _ = write!(toml, "[analysis]\n{}\n", self.analysis.join("\n"));
        }
        self.tables.iter().for_each(|table| toml.push_str(table));
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
    fn tables_stand_behind_lines_and_a_metric_stands_once() {
        let plan = Plan::new("shop@2.0.0", "canary")
            .stage("Canary", 5, "3s", &["error_rate < 0.1%"])
            .metric("load", &["source = \"host\""])
            .metric("load", &["source = \"exec\""])
            .trigger("error_rate > 1%", "rollback", &["min_samples = 100"])
            .analysis("interval = \"500ms\"")
            .switch("run = \"lb-switch ${side}\"")
            .toml();
        let (top, tables) = plan.split_once("[limits]").unwrap();
        assert!(top.contains("switch = { run") && !plan.contains("\"host\""), "{plan}");
        for part in ["[analysis]\ninterval", "[[stage]]\nname = \"Canary\"\npercent = 5\nbake = \"3s\"\nsuccess = [\"error_rate < 0.1%\"]"]
        {
            assert!(tables.contains(part), "{part} is not in {tables}");
        }
    }

    #[test]
    fn a_later_line_replaces_an_earlier_one_of_its_key() {
        let toml = Plan::new("shop@2.0.0", "rolling").batch("2").batch("3").limit("confirm_within = \"5s\"").toml();
        assert!(toml.contains("batch = \"3\"") && !toml.contains("batch = \"2\""), "{toml}");
        assert!(toml.contains("confirm_within = \"5s\"") && !toml.contains("\"30s\""), "{toml}");
    }
}
