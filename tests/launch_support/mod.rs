//! A fake engine: a virtual environment whose `vllm` and `python` are scripts, the first of which
//! becomes this very test binary, acting as a server as `PARPLAN_FAKE` says. No Python is needed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A model, a plan for it, and an engine that is none.
pub struct Stage {
    pub folder: tempfile::TempDir,
    pub plan: PathBuf,
    pub port: u16,
}

/// What is left out: this machine need not be the one that the CPU profile was measured on.
pub const SKIP: &str = "gpus,memory";

impl Stage {
    pub fn new() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), CONFIG).unwrap();
        std::fs::write(model.join("model.safetensors"), "").unwrap();
        let bin = folder.path().join("venv").join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let exe = std::env::current_exe().unwrap();
        // What the engine was given, word by word, then the engine itself.
        script(
            &bin.join("vllm"),
            &format!(
                "cd \"$FAKE_FOLDER\"\nprintf '%s\\0' \"$@\" > argv\nenv -0 > env\necho $$ > pid\n\
                 if [ \"$PARPLAN_FAKE\" = ignores-term ]; then trap '' TERM INT; fi\n\
                 exec '{}' --exact fake_engine --nocapture --test-threads 1\n",
                exe.display()
            ),
        );
        script(&bin.join("python"), "echo '{\"vllm\": \"0.32.0+cpu\"}'\n");
        let plan = folder.path().join("plan.toml");
        let output = Command::new(env!("CARGO_BIN_EXE_parplan"))
            .args([
                "recommend",
                "--gpu",
                "cpu",
                "--gpus",
                "1",
                "--engine",
                "vllm@0.32.0",
            ])
            .args([
                "--isl",
                "64",
                "--osl",
                "16",
                "--concurrency",
                "4",
                "--waves",
                "5",
            ])
            .args([
                "--memory-fraction",
                "0.15",
                "--context-length",
                "2048",
                "--model",
            ])
            .arg(&model)
            .arg("--save")
            .arg(&plan)
            .env_remove("PARPLAN_PROFILES")
            .env("XDG_CONFIG_HOME", "/nonexistent")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let port = free_port();
        Stage { folder, plan, port }
    }

    /// `parplan launch` of the plan, with the fake engine acting so.
    pub fn launch(&self, acts: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parplan"));
        command
            .arg("launch")
            .arg(&self.plan)
            .arg("--venv")
            .arg(self.folder.path().join("venv"))
            .args(["--port", &self.port.to_string(), "--skip-preflight", SKIP])
            .args(["--grace", "2", "--log"])
            .arg(self.log())
            .args(more)
            .env("PARPLAN_FAKE", acts)
            .env("FAKE_FOLDER", self.folder.path())
            .env_remove("PARPLAN_PROFILES")
            .env("XDG_CONFIG_HOME", "/nonexistent")
            .env_remove("PARPLAN_ENGINE_VENV")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("engine.log")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The words that the engine was given.
    pub fn argv(&self) -> Vec<String> {
        let bytes = std::fs::read(self.folder.path().join("argv")).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        text.trim_end_matches('\0')
            .split('\0')
            .map(str::to_owned)
            .collect()
    }

    /// A variable of the environment that the engine was given.
    pub fn env(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.path().join("env")).unwrap();
        text.split('\0')
            .find_map(|pair| pair.strip_prefix(&format!("{name}=")).map(str::to_owned))
    }

    /// Processes that the engine wrote down: itself and its worker.
    pub fn pids(&self) -> Vec<Pid> {
        ["pid", "worker"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.folder.path().join(name)).ok())
            .filter_map(|text| Pid::from_raw(text.trim().parse().ok()?))
            .collect()
    }

    /// Nothing of the engine is left, soon.
    pub fn is_gone(&self) {
        let pids = self.pids();
        assert!(!pids.is_empty(), "the engine never ran");
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if pids.iter().all(|pid| !lives(*pid)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("processes are left: {pids:?}");
    }
}

/// A zombie that nobody has taken yet is dead, too.
fn lives(pid: Pid) -> bool {
    if test_kill_process(pid).is_err() {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A `parplan launch` that does not outlive its test.
pub struct Launched(pub Child);

impl Drop for Launched {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn spawn(mut command: Command) -> Launched {
    Launched(command.spawn().unwrap())
}

/// Waits until standard output has a line with `text`; what came is given back.
pub fn until(launched: &mut Launched, text: &str, within: Duration) -> String {
    let stdout = launched.0.stdout.take().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    // Reads on to the end, so that the pipe never fills.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut all = String::new();
    let end = Instant::now() + within;
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                all.push_str(&line);
                all.push('\n');
                if line.contains(text) {
                    // What was printed together comes together.
                    while let Ok(line) = receiver.recv_timeout(Duration::from_millis(300)) {
                        all.push_str(&line);
                        all.push('\n');
                    }
                    return all;
                }
            }
            Err(why) => {
                let _ = launched.0.kill();
                let mut errors = String::new();
                let _ = launched
                    .0
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut errors);
                panic!("without {text:?} ({why}): {all}\n{errors}");
            }
        }
    }
}

pub fn signal(launched: &Launched, signal: Signal) {
    kill_process(Pid::from_child(&launched.0), signal).unwrap();
}

const CONFIG: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096,
    "max_position_embeddings": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}"#;

/// The fake engine. Called by a test of that name, which does nothing unless it is the engine.
pub fn act() {
    let Ok(acts) = std::env::var("PARPLAN_FAKE") else {
        return;
    };
    let folder = PathBuf::from(std::env::var_os("FAKE_FOLDER").unwrap());
    let argv = std::fs::read(folder.join("argv")).unwrap();
    let argv: Vec<&[u8]> = argv.split(|&byte| byte == 0).collect();
    let port = argv.iter().position(|word| *word == b"--port").unwrap();
    let port: u16 = std::str::from_utf8(argv[port + 1])
        .unwrap()
        .parse()
        .unwrap();
    let mut out = std::io::stdout();
    match acts.as_str() {
        "dies-at-start" => {
            eprintln!("ERROR: no such luck");
            std::process::exit(3);
        }
        "never-ready" => sleep_forever(),
        "garbage" => {
            let bytes: Vec<u8> = (0..100_000u32).map(|n| (n * 31 % 251) as u8).collect();
            out.write_all(&bytes).unwrap();
            out.write_all(b"\x1b[2J\x1b]0;title\x07KV cache size: what tokens\n")
                .unwrap();
        }
        "floods" => {
            std::thread::spawn(|| {
                let line = format!("{}\n", "flood ".repeat(40));
                let mut out = std::io::stdout();
                for _ in 0..100_000 {
                    out.write_all(line.as_bytes()).unwrap();
                }
            });
        }
        _ => {}
    }
    // A worker that leaves its parent's process group and loses its parent.
    let worker = Command::new("sh")
        .args([
            "-c",
            "setsid sleep 1000 & echo $! > \"$FAKE_FOLDER/worker\"",
        ])
        .status()
        .unwrap();
    assert!(worker.success());
    for line in [
        "INFO Initializing a V1 LLM engine (v0.32.0) with config: 'cudagraph_capture_sizes': []",
        "INFO Auto set (0.93/12.59) GiB for KV cache on node 0, with 1.89 GiB requested memory for \
         the worker. 0.96 GiB memory was consumed by non-kv usages.",
        "INFO CPU KV cache size: 121,000 tokens, Maximum concurrency for 2,048 tokens per request: \
         59.1x",
    ] {
        println!("{line}");
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    if acts == "dies-later" {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(3));
            eprintln!("ERROR: out of memory");
            std::process::exit(7);
        });
    }
    for stream in listener.incoming().flatten() {
        let acts = acts.clone();
        std::thread::spawn(move || serve(stream, &acts));
    }
}

fn sleep_forever() {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// Answers requests of one connection until it closes.
fn serve(stream: TcpStream, acts: &str) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let answered = if head.starts_with("POST /v1/completions") {
            complete(&mut writer, &body, acts)
        } else if head.starts_with("GET /v1/models") {
            whole(&mut writer, "200 OK", r#"{"data":[{"id":"tiny"}]}"#)
        } else {
            whole(&mut writer, "200 OK", "")
        };
        if answered.is_err() {
            return;
        }
    }
}

fn whole(writer: &mut TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Streams exactly what was asked for: the first token after 30 ms, the others 10 ms apart.
fn complete(writer: &mut TcpStream, body: &[u8], acts: &str) -> std::io::Result<()> {
    let order: serde_json::Value = serde_json::from_slice(body).unwrap();
    let prompt = order["prompt"].as_array().unwrap().len();
    let tokens = order["max_tokens"].as_u64().unwrap();
    assert_eq!(order["ignore_eos"], true);
    if acts == "refuses" {
        return whole(
            writer,
            "503 Service Unavailable",
            "{\"error\":\"too\n many\"}",
        );
    }
    write!(
        writer,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    let mut chunk = |text: &str| -> std::io::Result<()> {
        write!(writer, "{:x}\r\n{text}\r\n", text.len())?;
        writer.flush()
    };
    for n in 1..=tokens {
        let wait = if n == 1 { 30 } else { 10 };
        std::thread::sleep(Duration::from_millis(wait));
        if acts == "cuts-off" && n > tokens / 2 {
            chunk("")?;
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        chunk(&format!(
            "data: {{\"choices\":[{{\"index\":0,\"text\":\"x\",\"finish_reason\":null}}],\
             \"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{n}}}}}\n\n"
        ))?;
    }
    chunk(&format!(
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{tokens}}}}}\n\n"
    ))?;
    chunk("data: [DONE]\n\n")?;
    chunk("")
}
