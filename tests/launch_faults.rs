//! `launch` and `bench` with a fake engine that fails in every way an engine can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod launch_support;

use launch_support::{Launched, Stage, signal, spawn, until};
use rustix::process::Signal;
use serde_json::Value;
use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

/// Not a test: the engine that the others start.
#[test]
fn fake_engine() {
    launch_support::act();
}

fn ended(mut launched: Launched, within: Duration) -> (Option<i32>, String) {
    let end = Instant::now() + within;
    let child = &mut launched.0;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut errors = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut errors)
                .unwrap();
            assert!(!errors.contains("panicked"), "{errors}");
            return (status.code(), errors);
        }
        if Instant::now() > end {
            panic!("still running after {within:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command that must end by itself, and soon.
fn output(mut command: Command) -> (Option<i32>, String, String) {
    use std::process::Stdio;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = |pipe: &mut dyn Read| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    };
    let out = std::thread::spawn(move || reader(&mut out));
    let err = std::thread::spawn(move || reader(&mut err));
    let mut launched = Launched(child);
    let end = Instant::now() + 2 * SOON;
    let status = loop {
        match launched.0.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > end => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    drop(launched);
    let (stdout, stderr) = (out.join().unwrap(), err.join().unwrap());
    assert!(!stderr.contains("panicked"), "{stderr}");
    let status = status.unwrap_or_else(|| panic!("{command:?} runs on: {stdout}{stderr}"));
    (status.code(), stdout, stderr)
}

const SOON: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_secs(60);

#[test]
fn a_good_engine_is_compared_and_ctrl_c_leaves_nothing() {
    let stage = Stage::new();
    let mut child = spawn(stage.launch("good", &[]));
    let text = until(&mut child, "Ready after", READY);
    assert!(text.contains("Ready after"), "{text}");
    // 121,000 tokens of 4096 bytes are about 480 MiB less than planned.
    assert!(
        text.contains("KV tokens of a rank") && text.contains("OFF by -50"),
        "{text}"
    );
    assert!(text.contains("context_mib = 1"), "{text}");
    let (code, stdout, stderr) = output({
        let mut bench = Command::new(env!("CARGO_BIN_EXE_parplan"));
        bench
            .args(["bench", &stage.url(), "--json", "--plan"])
            .arg(&stage.plan);
        bench
    });
    assert_eq!(code, Some(0), "{stderr}");
    let run: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(run["ends"]["completed"], 20);
    assert_eq!(run["ends"]["exact"], 20);
    let tpot = run["tpot_ms"]["p50"].as_f64().unwrap();
    let ttft = run["ttft_ms"]["p50"].as_f64().unwrap();
    assert!((8.0..30.0).contains(&tpot), "{tpot}");
    assert!((29.0..200.0).contains(&ttft), "{ttft}");
    assert_eq!(run["plan"][0]["what"], "tpot_ms");
    signal(&child, Signal::INT);
    let (code, errors) = ended(child, SOON);
    assert_eq!(code, Some(130), "{errors}");
    stage.is_gone();
}

#[test]
fn an_engine_that_dies_at_once_says_why() {
    let stage = Stage::new();
    let child = spawn(stage.launch("dies-at-start", &[]));
    let (code, errors) = ended(child, SOON);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("exit code 3") && errors.contains("no such luck"),
        "{errors}"
    );
    assert!(errors.contains("engine.log"), "{errors}");
}

#[test]
fn an_engine_that_is_never_ready_is_ended_in_time() {
    let stage = Stage::new();
    let child = spawn(stage.launch("never-ready", &["--deadline", "2"]));
    let (code, errors) = ended(child, SOON);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("not ready within 2 s (--deadline)"),
        "{errors}"
    );
    stage.is_gone();
}

#[test]
fn an_engine_that_dies_later_is_told() {
    let stage = Stage::new();
    let mut child = spawn(stage.launch("dies-later", &[]));
    until(&mut child, "Ready after", READY);
    let (code, errors) = ended(child, SOON);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("exit code 7") && errors.contains("out of memory"),
        "{errors}"
    );
    stage.is_gone();
}

#[test]
fn garbage_and_floods_do_no_harm() {
    for acts in ["garbage", "floods"] {
        let stage = Stage::new();
        let mut child = spawn(stage.launch(acts, &[]));
        let text = until(&mut child, "Ready after", READY);
        assert!(!text.contains('\u{1b}'), "{acts}: {text}");
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, Signal::TERM);
        let (code, errors) = ended(child, SOON);
        assert_eq!(code, Some(143), "{acts}: {errors}");
        assert!(
            errors.len() < 100_000 && !errors.contains('\u{1b}'),
            "{acts}"
        );
        stage.is_gone();
    }
}

#[test]
fn an_engine_that_ignores_sigterm_is_killed_after_its_grace() {
    let stage = Stage::new();
    let mut child = spawn(stage.launch("ignores-term", &[]));
    until(&mut child, "Ready after", READY);
    let start = Instant::now();
    signal(&child, Signal::TERM);
    let (code, errors) = ended(child, SOON);
    assert_eq!(code, Some(143), "{errors}");
    assert!(errors.contains("was killed"), "{errors}");
    assert!(
        start.elapsed() > Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    stage.is_gone();
}

#[test]
fn a_second_ctrl_c_kills_at_once() {
    let stage = Stage::new();
    let mut child = spawn(stage.launch("ignores-term", &["--grace", "600"]));
    until(&mut child, "Ready after", READY);
    signal(&child, Signal::INT);
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, Signal::INT);
    let (code, errors) = ended(child, SOON);
    assert_eq!(code, Some(130), "{errors}");
    stage.is_gone();
}

#[test]
fn nothing_is_left_when_parplan_itself_is_killed() {
    let stage = Stage::new();
    let mut child = spawn(stage.launch("good", &[]));
    until(&mut child, "Ready after", READY);
    signal(&child, Signal::KILL);
    child.0.wait().unwrap();
    stage.is_gone();
}

#[test]
fn a_detached_engine_stays_until_its_keeper_is_asked() {
    let stage = Stage::new();
    let (code, stdout, stderr) = output(stage.launch("good", &["--detach", "--json"]));
    assert_eq!(code, Some(0), "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    let server = &answer["servers"][0];
    assert_eq!(server["report"]["kv_tokens"], 121_000);
    std::thread::sleep(Duration::from_millis(500));
    assert!(std::net::TcpStream::connect(("127.0.0.1", stage.port)).is_ok());
    let keeper = server["keeper_pid"].as_i64().unwrap() as i32;
    let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
    rustix::process::kill_process(keeper, Signal::TERM).unwrap();
    stage.is_gone();
}

#[test]
fn every_text_reaches_the_engine_as_one_word() {
    let stage = Stage::new();
    let nasty = "x'; touch /tmp/parplan-injected; $(id) `id` \"\n{a,b} *";
    let model = stage.folder.path().join("model");
    let twin = stage.folder.path().join("a model; $(touch injected) 'x'");
    std::os::unix::fs::symlink(&model, &twin).unwrap();
    let path = twin.to_str().unwrap();
    let mut child = spawn(stage.launch(
        "good",
        &[
            "--model-path",
            path,
            "--served-name",
            nasty,
            "--env",
            "FAKE_NASTY=$(id); 'x' = y",
            "--skip-preflight",
            "flags",
            "--",
            "--chat-template",
            nasty,
            "$(reboot)",
        ],
    ));
    until(&mut child, "Ready after", READY);
    let argv = stage.argv();
    assert_eq!(argv[..2], ["serve".to_owned(), path.to_owned()]);
    let after = |flag: &str| argv[argv.iter().position(|word| word == flag).unwrap() + 1].clone();
    assert_eq!(after("--served-model-name"), nasty);
    assert_eq!(after("--chat-template"), nasty);
    assert_eq!(argv.last().unwrap(), "$(reboot)");
    assert_eq!(after("--host"), "127.0.0.1");
    assert_eq!(stage.env("FAKE_NASTY").unwrap(), "$(id); 'x' = y");
    signal(&child, Signal::INT);
    ended(child, SOON);
    stage.is_gone();
    assert!(!std::path::Path::new("/tmp/parplan-injected").exists());
    assert!(!stage.folder.path().join("injected").exists());
    // A host is an address, and what is none is refused before anything runs.
    let fresh = Stage::new();
    let (code, stdout, stderr) = output(fresh.launch("good", &["--host", "$(id)"]));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stdout.contains("nothing can listen on \"$(id)\""),
        "{stdout}"
    );
    assert!(!fresh.folder.path().join("argv").exists());
}

#[test]
fn the_environment_that_forbids_nvls_is_passed_on() {
    let stage = Stage::new();
    let mut command = stage.launch("good", &[]);
    command.env("NCCL_NVLS_ENABLE", "0");
    let mut child = spawn(command);
    until(&mut child, "Ready after", READY);
    assert_eq!(stage.env("NCCL_NVLS_ENABLE").unwrap(), "0");
    assert_eq!(stage.env("PARPLAN_KEEPER"), None);
    signal(&child, Signal::TERM);
    ended(child, SOON);
    stage.is_gone();
    let mut command = stage.launch("good", &["--env", "NCCL_NVLS_ENABLE=1"]);
    command.env("NCCL_NVLS_ENABLE", "0");
    let (code, _, stderr) = output(command);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("unset it here first"), "{stderr}");
}

#[test]
fn checks_stop_what_cannot_work_and_say_what_to_do() {
    let stage = Stage::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", stage.port)).unwrap();
    let (code, stdout, stderr) = output(stage.launch("good", &[]));
    assert_eq!(code, Some(1));
    assert!(
        stdout.contains("is in use") && stdout.contains("is free"),
        "{stdout}"
    );
    assert!(stderr.contains("1 of 8 checks failed"), "{stderr}");
    drop(taken);
    for (more, part) in [
        (vec!["--model-path", "/no/such/model"], "cannot be read"),
        (vec!["--", "--no-such-flag"], "has no option --no-such-flag"),
        (
            vec!["--engine", "vllm@0.33.0"],
            "plan again with --engine vllm@0.32.0",
        ),
    ] {
        let (code, stdout, _) = output(stage.launch("good", &more));
        assert_eq!(code, Some(1), "{more:?}");
        let unwrapped = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(unwrapped.contains(part), "{more:?}: {stdout}");
        assert!(
            !stage.folder.path().join("argv").exists(),
            "{more:?} started"
        );
    }
    for (more, part) in [
        (vec!["--engine", "sglang"], "the plan is for vllm@0.32.0"),
        (vec!["--engine", "vllm@9.9.9"], "9.9.9"),
        (vec!["--node", "3"], "the plan is for one machine"),
        (vec!["--venv", "/no/such/venv"], "has no bin/vllm"),
        (vec!["--skip-preflight", "nvls"], "nvls"),
        (vec!["--isl", "5"], "belongs to a question"),
        (vec!["--port", "0"], "from 1 to 65535"),
        (vec!["--deadline", "0"], "above 0"),
        (vec!["--write", "slurm"], "KIND=FILE"),
    ] {
        let mut command = stage.launch("good", &[]);
        command.args(&more);
        let (code, stdout, stderr) = output(command);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{more:?}: {stderr}");
        assert!(stderr.contains(part), "{more:?}: {stderr}");
    }
}

/// A plan file with another prediction, which its interval holds.
fn predicting(plan: &str, figure: &str) -> String {
    let mut plan: toml::Table = plan.parse().unwrap();
    let predicted = plan["predicted"][figure].as_table_mut().unwrap();
    predicted.insert("value".to_owned(), 1e6.into());
    predicted.insert("high".to_owned(), 1e9.into());
    toml::to_string(&plan).unwrap()
}

#[test]
fn a_plan_file_that_is_none_is_told_by_its_line() {
    let stage = Stage::new();
    let good = std::fs::read_to_string(&stage.plan).unwrap();
    for (text, part) in [
        ("not toml at all".to_owned(), "is no plan file"),
        ("a = 1\n".to_owned(), "no `format`"),
        (good.replacen("format = 2", "format = 99", 1), "format 99"),
        (
            good.replacen("kv_tokens_per_rank = ", "kv_tokens_per_rank = \"x\" # ", 1),
            "line 11",
        ),
        (
            good.replacen("kv_tokens_per_rank = ", "kv_tokens_per_rank = -", 1),
            "from 0",
        ),
        (
            good.replacen("tp = 1", "tp = 4", 1),
            "what is started must be what was planned",
        ),
        (good.replacen("gpu = \"", "gpu = \"x", 1), "xcpu-genoa-2c"),
        (
            good.replacen("isl = ", "isl = nan # ", 1),
            "traffic.isl is NaN, it must be a finite number",
        ),
        (
            good.replacen("weights = ", "weights = inf # ", 1),
            "memory_bytes.weights is inf",
        ),
        (
            good.replacen("weights = ", "weights = -1.0 # ", 1),
            "memory_bytes.weights is -1",
        ),
        (
            good.replacen("[traffic]", "[traffic]\nfoo = 1", 1),
            "unknown field `foo`",
        ),
        (
            good.replacen("[choice.layout]", "[choice.layout]\ncp = 2", 1),
            "unknown field `cp`",
        ),
        // Both of them: the layout is legal nowhere.
        (
            good.replace("dcp = 1", "dcp = 3"),
            "cannot run its layout: dcp 3",
        ),
        (
            good.replace("tp = 1\n", "tp = 16384\n"),
            "cannot run its layout",
        ),
        (
            good.replace("tp = 1\n", "tp = 4294967295\n")
                .replace("replicas = 1\n", "replicas = 4294967295\n"),
            "start.running_per_rank is not max_running_requests over its ranks",
        ),
        (
            predicting(&good, "requests_per_s"),
            "predicted.requests_per_s is 1000000, and its output_tokens_per_s over traffic.osl",
        ),
        (
            predicting(&good, "output_tokens_per_s_per_gpu"),
            "and its output_tokens_per_s_per_gpu times the GPUs of its layout is 1000000",
        ),
        (
            good.replacen("vllm@0.32.0", "vllm@9.9.0", 1),
            "9.9.0 is outside of the versions",
        ),
        (
            good.replacen("gpu = \"cpu-genoa-2c\"", "gpu = \"h200\"", 1),
            "memory_bytes.total",
        ),
        (
            good.replacen("memory_fraction = ", "memory_fraction = 0.9 # ", 1),
            "start.memory_fraction is not memory_fraction",
        ),
        (
            good.replacen(
                "kv_bytes_per_token_per_rank = ",
                "kv_bytes_per_token_per_rank = 7",
                1,
            ),
            "a token of its layout takes",
        ),
        (
            good.replacen("host = \"127.0.0.1\"", "host = \"127.0.0.1\"\nrm = 1", 1),
            "unknown field",
        ),
    ] {
        std::fs::write(&stage.plan, text).unwrap();
        let (code, stdout, stderr) = output(stage.launch("good", &[]));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{part}: {stderr}");
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn the_builtin_engine_becomes_our_executor() {
    let stage = Stage::new();
    let mut command = stage.launch("good", &["--engine", "builtin", "--", "--layers", "1"]);
    command.args([
        "--repeats",
        "1",
        "--context",
        "16",
        "--batch",
        "1",
        "--no-prefill",
    ]);
    command.current_dir(stage.folder.path());
    let (code, stdout, stderr) = output(command);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("decode attention"), "{stdout}");
    assert!(!stage.folder.path().join("argv").exists());
    let plan = std::fs::read_to_string(stage.folder.path().join("parplan-exec.json")).unwrap();
    assert!(plan.contains("\"running_per_rank\": 4"), "{plan}");
}

#[test]
fn the_keeper_is_not_started_by_hand() {
    let (code, _, stderr) = output({
        let mut command = Command::new(env!("CARGO_BIN_EXE_parplan"));
        command.arg("keep");
        command
    });
    assert_eq!(code, Some(2));
    assert!(stderr.contains("not by hand"), "{stderr}");
}

#[test]
fn a_benchmark_of_failing_servers_is_no_measurement() {
    for (acts, part) in [("refuses", "HTTP 503"), ("cuts-off", "cut off after")] {
        let stage = Stage::new();
        let mut child = spawn(stage.launch(acts, &[]));
        until(&mut child, "Ready after", READY);
        let (code, _, stderr) = output({
            let mut bench = Command::new(env!("CARGO_BIN_EXE_parplan"));
            bench.args([
                "bench",
                &stage.url(),
                "--requests",
                "4",
                "--concurrency",
                "2",
            ]);
            bench.args(["--isl", "fixed:8", "--osl", "fixed:8", "--warm-up", "0"]);
            bench
        });
        assert_eq!(code, Some(1), "{acts}");
        assert!(
            stderr.contains("4 of 4 requests failed") && stderr.contains(part),
            "{stderr}"
        );
        signal(&child, Signal::TERM);
        ended(child, SOON);
        stage.is_gone();
    }
    for (url, code, part) in [
        ("http://127.0.0.1:1", 1, "no connection"),
        ("http://10.1.2.3:1", 2, "--remote"),
        ("https://localhost", 2, "TLS"),
    ] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_parplan"));
        bench.args(["bench", url]);
        let (ended, _, stderr) = output(bench);
        assert_eq!(ended, Some(code), "{url}: {stderr}");
        assert!(stderr.contains(part), "{url}: {stderr}");
    }
    for option in ["--concurrency", "--requests"] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_parplan"));
        bench.args(["bench", "http://127.0.0.1:1", option, "0"]);
        let (ended, _, stderr) = output(bench);
        assert_eq!(ended, Some(2), "{option}: {stderr}");
        assert!(stderr.contains("whole number"), "{option}: {stderr}");
    }
}
