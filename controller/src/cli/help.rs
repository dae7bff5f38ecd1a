//! What `tidegate rollout VERB --help` teaches below its options.

pub(super) const DRILL_HELP: &str = "\
Without --host or --stage: the first host of each component. Bakes and gates are left out, triggers are armed. The
journal keeps how long both ways took. Exits 0 when the release went forward, was verified, went back and was verified
again; 4 when it did not pass and every host runs what it ran before.

Examples:
  tidegate rollout drill -f plan.toml
  tidegate rollout drill -f plan.toml --host web-1
  tidegate rollout drill -f plan.toml --stage 1 --output ndjson | jq 'select(.kind == \"drilled\").record'";

pub(super) const REPLAY_HELP: &str = "\
Takes the values that the rollout's journal holds and says what the gates and triggers of this plan.toml would have made
of them: a way to tune limits before they count. Only what was measured then can be judged.

Examples:
  tidegate rollout replay shop-1 -f stricter.toml";

pub(super) const PROMOTE_HELP: &str = "\
A gate that says fail, or whose source cannot be read, is not passed by a word: roll back, or mend the source.
The journal keeps who said it and why; the wave is shown as overridden. Triggers stay armed.
With blue-green and switch_mode = \"manual\", this is the word that moves the traffic.

Examples:
  tidegate rollout promote shop-1 --reason \"low traffic at night, looked at the logs\"
  tidegate rollout promote shop-1 --all --reason \"hotfix, CR-1042\"";

pub(super) const ACK_HELP: &str = "\
A trigger with action \"investigate\" pauses the rollout and rolls it back when its time is over. `ack` starts that
time anew, once. Then decide: `resume` goes on, `rollback` goes back.

Examples:
  tidegate rollout ack shop-1 --reason \"I look at the latency\"";

pub(super) const DECLARE_HELP: &str = "\
What follows is written in the plan: [[rollback]] when = \"declared NAME\" with an action. data-corruption and
security-incident need no trigger: both are emergencies when the plan does not say otherwise, and all hosts go back
at once.

Examples:
  tidegate rollout declare shop-1 data-corruption --reason \"orders have negative totals\"
  tidegate rollout declare shop-1 security-incident --reason \"token in the access log\"";

pub(super) const ATTEST_HELP: &str = "\
Fixed names: before the start security-exit, images-signed, runbook-still-valid, alert-thresholds, low-traffic; at the
handoff on-call-briefed, alerts-reviewed, runbook-tested. Plans add names of their own (attest = [..]). The approval of an
optional role is waived by attesting its row.

Examples:
  tidegate rollout attest shop-1 --item security-exit --note \"report of 2026-11-20, https://wiki.example/sec/214\"
  tidegate rollout attest shop-1 --item no-customer-complaints --note \"ticket queue of the last hour is empty\"
  tidegate rollout attest shop-1 --item approval-product-owner --note \"n/a: no visible change\"";

pub(super) const PLAN_HELP: &str = "\
plan.toml:
  release = \"shop@2.1.0\"
  environment = \"production\"                     # optional: hosts with another label env are left out
  hosts = { api = \"role=api\" }                   # a selector per component
  strategy = \"rolling\"                           # or big-bang, canary, blue-green
  batch = \"10%\"                                  # rolling: hosts at a time; big-bang: max_hosts = 10
  success = [\"error_rate < 0.1%\", \"latency_p99 within 10% of baseline\", \"no_degradation\"]
  bake = \"10m\"                                   # observation before the criteria decide
  on_unreachable = \"fail\"                        # or wait, skip
  [limits]                                       # all optional
  max_parallel = \"25%\"
  max_failed_hosts = 0                           # beyond it everything is rolled back
  min_healthy = \"66%\"
  healthy_deadline = \"5m\"
  confirm_within = \"120s\"
  rollback_parallel = \"50%\"
  [[stage]]                                      # canary; omitted = 5% 30m, 25% 1h, 75% 2h, 100% watched 24h
  name = \"Canary\"
  percent = 5
  bake = \"30m\"
  success = [\"error_rate < 0.1%\", \"critical_errors == 0\"]
  [[rollback]]                                   # triggers; omitted = the built-in ones that have a source
  when = \"error_rate > 1%\"                      # or: declared data-corruption
  action = \"rollback\"                           # or investigate (after = \"15m\"), emergency
  [metrics.error_rate]                           # sources: probe, scrape, prometheus, alertmanager, host, journal, exec
  source = \"prometheus\"
  url = \"https://prom.example\"                  # beyond loopback: [sources.\"https://…\"] of controller.toml
  query = 'sum(rate(errors{host=~\"$hosts\"}[2m])) / sum(rate(requests{host=~\"$hosts\"}[2m]))'
  unit = \"ratio\"
  [[perf]]                                       # Expected / Actual in status
  metric = \"latency_p99\"
  max = \"500ms\"
  [[approval]]                                   # signed with `rollout approve` before it begins
  role = \"tech-lead\"                            # or security, operations, product-owner (optional = true), cab
  [[window]]                                     # outside of it nothing goes forward
  days = [\"Tue\", \"Wed\"]
  start_time = \"22:00\"
  length_minutes = 360
  time_zone = \"Europe/Berlin\"
  [[contact]]
  role = \"on-call\"                              # or lead, escalation
  name = \"Ravi\"
  phone = \"+49 30 5550\"
  available = \"22:00-06:00\"
  [[notify]]
  on = [\"issue\", \"paused\", \"rollback\"]         # or started, stage, completed
  to = \"on-call\"                                # [routes.on-call] of controller.toml
  via = \"pagerduty\"                             # or slack, email, webhook
  [change]
  id = \"CR-1042\"
  type = \"normal\"                               # or standard, emergency
  risk = \"medium\"                               # or low, high (two approvers)
  summary = \"Shop 2.1.0\"
  justification = \"a faster checkout\"
  [[risk]]
  name = \"the migration locks a table\"
  likelihood = \"L\"
  impact = \"H\"
  mitigation = \"run it at night\"

[environments.NAME] of controller.toml may demand more of these; a plan adds demands and never drops them.
Exits 5 if `start` would refuse the plan now, and says why.

Examples:
  tidegate rollout plan -f plan.toml
  tidegate rollout start -f plan.toml --confirm $(tidegate rollout plan -f plan.toml --output json | jq -r .plan_digest)";

pub(super) const START_EXAMPLES: &str = "\
Progress goes to stderr, how it ended to stdout. Ctrl-C ends the watching (exit 7), never the rollout.
While approvals or attestations are missing it lists each with its command and, in scripts, exits 3: the rollout begins
by itself once they are given.

Examples:
  tidegate rollout start -f plan.toml
  tidegate rollout start -f plan.toml --run-id build-1042 --output json > result.json
  ID=$(tidegate rollout start -f plan.toml --detach --output json | jq -r .id)";

pub(super) const EVENTS_HELP: &str = "\
--output json and ndjson print every record as it was journaled.

Examples:
  tidegate rollout events shop-1
  tidegate rollout events shop-1 --full
  tidegate rollout events shop-1 --output ndjson | jq -r 'select(.kind == \"state\") | [.at, .message] | @tsv'";

pub(super) const WATCH_EXAMPLES: &str = "\
Examples:
  tidegate rollout watch shop-1
  tidegate rollout watch shop-1 --output ndjson | jq -r 'select(.host) | [.host, .message] | @tsv'";

pub(super) const WAIT_EXAMPLES: &str = "\
States: awaiting-approval scheduled running paused baking watching rolling-back
        completed rolled-back mixed halted refused

Examples:
  tidegate rollout wait shop-1 --for completed --timeout 30m
  tidegate rollout wait shop-1 --for wave:2,rolled-back";
