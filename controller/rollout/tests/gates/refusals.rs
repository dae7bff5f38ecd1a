//! What a plan must not say: every refusal names the key and the fix.

use super::*;

const PROBE: &str = "[metrics.error_rate]\nsource = \"probe\"\nurl = \"http://127.0.0.1/\"\n";

fn refused(strategy: &str, rest: &str) -> String {
    match gating(strategy, rest) {
        Ok(gating) => panic!("taken: {rest}\n{gating:?}"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn conditions_that_cannot_be_judged() {
    for (line, parts) in [
        ("success = [\"error_rate < 0.1%\"]", &["success: ", "error_rate has no source", "[metrics.error_rate]", "\"probe\""][..]),
        ("success = [\"latency < 1s\"]", &["success: ", "latency_p50 has no source", "[metrics.latency]"]),
        ("success = [\"queue_depth < 5\"]", &["success: ", "queue_depth has no source", "[metrics.queue_depth]", "exec"]),
        ("success = [\"alerts == 0\"]", &["[metrics.alerts]", "alertmanager"]),
        ("success = [\"stable\"]", &["\"stable\" has nothing to decide by", "[metrics.error_rate]"]),
        ("success = [\"no_degradation\"]", &["\"no_degradation\" has nothing to decide by"]),
        ("success = [\"declared data-corruption\"]", &["[[rollback]]", "attest"]),
        ("success = [\"critical_errors within 10% of baseline\"]", &["critical_errors", "has no baseline"]),
        ("success = [\"restarts > 200% of baseline\"]", &["restarts", "has no baseline"]),
        ("success = [\"critical_errors < 5%\"]", &["critical_errors takes a plain number"]),
        ("success = [\"host_cpu < 500ms\"]", &["host_cpu takes a percentage, such as 0.1%"]),
        ("[[rollback]]\nwhen = \"queue > 5\"\naction = \"rollback\"", &["rollback[1].when", "queue has no source"]),
        ("[[rollback]]\nwhen = \"stable\"\naction = \"rollback\"", &["rollback[1].when", "what must not be"]),
        ("[[rollback]]\nwhen = \"host_cpu within 10% of baseline\"\naction = \"rollback\"", &["what must not be"]),
        ("[[rollback]]\nwhen = \"restarts > 2\"\naction = \"rollback\"\nafter = \"1m\"", &["after", "\"investigate\""]),
        ("[[rollback]]\nwhen = \"declared data-corruption\"\naction = \"emergency\"\nmin_samples = 2", &["remove min_samples"]),
        ("[[perf]]\nmetric = \"latency_p99\"\nmax = \"500ms\"", &["perf[1].metric", "latency_p99 has no source"]),
        ("[[perf]]\nmetric = \"host_cpu\"\nmax = \"500ms\"", &["perf[1].max", "a percentage"]),
        ("[[perf]]\nmetric = \"host_cpu\"\nmax = \"much\"", &["perf[1].max", "\"0.5%\""]),
        ("bake = \"0s\"\nsuccess = [\"critical_errors == 0\"]", &["bake: ", "more than 0s"]),
        ("[analysis]\ninterval = \"10ms\"", &["analysis.interval", "100ms to 5m"]),
        ("[analysis]\ninterval = \"6m\"", &["analysis.interval"]),
        ("[analysis]\nwindow = \"1s\"", &["analysis.window", "at least the interval"]),
        ("[analysis]\ndeadline = \"0s\"", &["analysis.deadline"]),
        ("success = [\"host_cpu within 10% of baseline\"]\n[analysis]\nbaseline = \"1s\"", &["analysis.baseline", "at least the interval"]),
    ] {
        says(&refused("rolling", line), parts);
    }
    says(&refused("rolling", &format!("success = [\"error_rate < 10ms\"]\n{PROBE}")), &["error_rate takes a percentage"]);
    says(&refused("rolling", &format!("success = [\"error_rate < 0.1\"]\n{PROBE}")), &["error_rate takes a percentage, such as 0.1%"]);
    says(&refused("rolling", &format!("success = [\"latency < 5%\"]\n{PROBE}")), &["latency_p50 takes a duration, such as 500ms"]);
}

#[test]
fn a_first_install_has_nothing_to_compare_with() {
    let first = |rest: &str| resolve(&spec("rolling", rest), &release(&["api"]), true).unwrap_err().to_string();
    for line in
        ["success = [\"latency within 10% of baseline\"]", "success = [\"stable\"]", "success = [\"latency_p99 < 120% of baseline\"]"]
    {
        says(&first(&format!("{line}\n{PROBE}")), &["success: ", "no host runs it yet", "a limit of its own"]);
    }
    says(
        &first(&format!("{PROBE}[[rollback]]\nwhen = \"latency_p50 > 200% of baseline\"\naction = \"rollback\"")),
        &["rollback[1].when", "no host runs it yet"],
    );
}

#[test]
fn sources_take_their_own_keys_only() {
    let block = |name: &str, text: &str| refused("rolling", &format!("[metrics.{name}]\n{}", text.replace("; ", "\n")));
    for (name, text, parts) in [
        ("error_rate", "source = \"probe\"", &["metrics.error_rate: ", "the key url"][..]),
        ("error_rate", "source = \"probe\"; url = \"https://x/\"", &["metrics.error_rate.url", "http://"]),
        (
            "error_rate",
            "source = \"probe\"; url = \"http://x/\"; bad = \"x\"",
            &["metrics.error_rate.bad", "\"probe\" does not take it", "rate"],
        ),
        ("error_rate", "source = \"probe\"; url = \"http://x/\"; rate = \"101/s\"", &["metrics.error_rate.rate", "\"100/s\""]),
        ("error_rate", "source = \"probe\"; url = \"http://x/\"; rate = \"10\"", &["\"10\"", "\"10/s\""]),
        ("error_rate", "source = \"probe\"; url = \"http://x/\"; rate = \"0/m\"", &["\"0/m\""]),
        ("error_rate", "source = \"probe\"; url = \"http://x/\"; timeout = \"0s\"", &["metrics.error_rate.timeout"]),
        ("error_rate", "source = \"probe\"; url = \"http://x/\"; min_samples = 0", &["metrics.error_rate.min_samples", "at least 1"]),
        (
            "error_rate",
            "source = \"probe\"; url = \"http://x/\"; component = \"web\"",
            &["metrics.error_rate.component", "no hosts for component web"],
        ),
        ("error_rate", "source = \"probe\"; url = \"http://x/\"; tolerance = \"20ms\"", &["metrics.error_rate.tolerance", "(%)"]),
        ("error_rate", "source = \"scrape\"; url = \"http://x/\"", &["needs one of: bad and total, histogram"]),
        ("error_rate", "source = \"scrape\"; url = \"http://x/\"; bad = \"b\"", &["the key total"]),
        (
            "error_rate",
            "source = \"scrape\"; url = \"http://x/\"; counter = \"b\"",
            &["a counter does not serve error_rate", "bad and total"],
        ),
        ("error_rate", "source = \"scrape\"; url = \"http://x/\"; counter = \"b\"; gauge = \"g\"", &["needs one of"]),
        ("error_rate", "source = \"host\"", &["\"host\" serves cpu, memory and restarts only"]),
        ("error_rate", "source = \"journal\"", &["\"journal\" serves critical_errors"]),
        ("error_rate", "source = \"alertmanager\"; url = \"http://x\"", &["[metrics.alerts] only"]),
        ("error_rate", "source = \"prometheus\"; url = \"http://x\"", &["the key query"]),
        ("error_rate", "source = \"prometheus\"; url = \"x:9090\"; query = \"q\"", &["http:// or https://"]),
        (
            "error_rate",
            "source = \"prometheus\"; url = \"http://x\"; query = \"q\"; unit = \"ms\"",
            &["metrics.error_rate.unit", "\"ratio\" or \"percent\""],
        ),
        ("latency", "source = \"prometheus\"; url = \"http://x\"; query = \"q\"", &["[metrics.latency_p50] and [metrics.latency_p99]"]),
        ("latency", "source = \"scrape\"; url = \"http://x/\"; gauge = \"g\"", &["one gauge is one metric"]),
        ("latency", "source = \"exec\"; run = \"x\"", &["one command is one metric"]),
        ("latency", "source = \"scrape\"; url = \"http://x/\"; bad = \"b\"; total = \"t\"", &["does not serve latency_p50"]),
        ("host_cpu", "source = \"probe\"; url = \"http://x/\"", &["\"probe\" does not serve host_cpu"]),
        ("critical_errors", "source = \"prometheus\"; url = \"http://x\"; query = \"q\"", &["a count of events", "another name"]),
        ("critical_errors", "source = \"journal\"; deny = [\"\"]", &["metrics.critical_errors.deny"]),
        ("critical_errors", "source = \"journal\"; tolerance = \"10%\"", &["metrics.critical_errors.tolerance", "remove it"]),
        ("new_errors", "source = \"journal\"; deny = [\"x\"]", &["metrics.new_errors.deny", "[metrics.critical_errors]"]),
        ("alerts", "source = \"alertmanager\"; url = \"http://x\"; matchers = [\"job\"]", &["metrics.alerts.matchers", "job=\"shop\""]),
        ("mine", "source = \"exec\"", &["metrics.mine: ", "needs run"]),
        ("mine", "source = \"exec\"; run = \"x\"; unit = \"s\"", &["metrics.mine.unit", "\"ms\" or \"percent\""]),
        ("mine", "source = \"scrape\"; url = \"http://x/\"; histogram = \"h\"", &["[metrics.mine_p99]"]),
        ("mine", "source = \"scrape\"; url = \"http://x/\"; counter = \"h\"; unit = \"ms\"", &["metrics.mine.unit", "only a gauge"]),
        ("Mine", "source = \"exec\"; run = \"x\"", &["metrics.Mine", "a word of a-z"]),
        ("stable", "source = \"exec\"; run = \"x\"", &["metrics.stable", "not stable"]),
    ] {
        says(&block(name, text), parts);
    }
    let silent = resolve(&spec("rolling", "[metrics.critical_errors]\nsource = \"journal\"\n"), &release(&["api:command"]), false);
    says(&silent.unwrap_err().to_string(), &["\"journal\" does not serve critical_errors", "`command`"]);
}

#[test]
fn more_observers_than_an_agent_takes() {
    let (mut blocks, mut success) = (String::new(), Vec::new());
    for i in 0..32 {
        blocks.push_str(&format!("[metrics.m{i}]\nsource = \"exec\"\nrun = \"x\"\n"));
        success.push(format!("\"m{i} < 5\""));
    }
    says(&refused("rolling", &format!("success = [{}]\n{blocks}", success.join(", "))), &["metrics: ", "33 metrics", "at most 31"]);
}

#[test]
fn canary_stages_that_make_no_sense() {
    let stage = |keys: &str| format!("[[stage]]\nname = \"S\"\n{}\n", keys.replace("; ", "\n"));
    let two = |one: &str, two: &str| refused("canary", &format!("{}{}", stage(one), stage(two)));
    says(&two("percent = 50; bake = \"1m\"", "percent = 50"), &["stage \"S\".percent", "rise from stage to stage"]);
    says(&two("percent = 0; bake = \"1m\"", "percent = 100"), &["from 1 to 100"]);
    says(&two("percent = 5; bake = \"1m\"", "percent = 90; bake = \"1m\""), &["write percent = 100"]);
    says(&two("percent = 5", "percent = 100"), &["stage \"S\".bake", "bake = \"30m\""]);
    says(&two("percent = 5; bake = \"1m\"; watch = \"1h\"", "percent = 100"), &["stage \"S\".watch", "only the last stage"]);
    says(&two("percent = 5; bake = \"1m\"", "percent = 100; success = [\"critical_errors == 0\"]"), &["stage \"S\".bake"]);
    says(&two("percent = 5; bake = \"1m\"; attest = [\" \"]", "percent = 100"), &["stage \"S\".attest"]);
    says(&two("percent = 5; bake = \"1m\"; success = [\"error_rate < 1%\"]", "percent = 100"), &["stage \"S\".success", "no source"]);
    says(&refused("canary", &format!("watch = \"2h\"\n{}", stage("percent = 100; watch = \"1h\""))), &["watch: ", "keep one of the two"]);
    says(&refused("canary", &format!("{}[[perf]]\nmetric = \"host_cpu\"\nmax = \"50%\"", stage("percent = 100"))), &["perf: ", "bake"]);
    let many: String = (1..=21).map(|i| stage(&format!("percent = {i}; bake = \"1m\""))).collect();
    says(&refused("canary", &many), &["stage: ", "at most 20"]);
    // The guide's criteria without a source: the plan must name its own.
    says(
        &refused("canary", ""),
        &["stage: ", "the guide's stages judge by it", "error_rate has no source", "[[stage]] with success of your own"],
    );
}
