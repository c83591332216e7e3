//! `parplan explore` on a real terminal: the binary inside tmux, driven by keys, killed by signals.
//! Skipped, with the reason, where tmux is missing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// How long a picture may take to appear on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal of its own.
struct Terminal {
    folder: tempfile::TempDir,
}

impl Terminal {
    /// A shell of this size; none where there is no tmux.
    fn open(width: u16, height: u16, environment: &[(&str, &str)]) -> Option<Terminal> {
        let terminal = Terminal {
            folder: tempfile::tempdir().unwrap(),
        };
        let (width, height) = (width.to_string(), height.to_string());
        let mut command = terminal.command(&["-f", "/dev/null", "new-session", "-d"]);
        command.args(["-x", &width, "-y", &height]);
        command
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PARPLAN_PROFILES")
            .env("XDG_CONFIG_HOME", "/nonexistent")
            .env("PS1", "$ ")
            .env_remove("TMUX")
            .env_remove("NO_COLOR");
        for (name, value) in environment {
            command.env(name, value);
        }
        command.args(["env", "-u", "ENV", "sh"]);
        match command.output() {
            Ok(output) if output.status.success() => Some(terminal),
            Ok(output) => panic!("tmux: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                eprintln!("skipped: tmux cannot be run ({error})");
                None
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.folder.path().join("tmux"));
        command.args(arguments);
        command
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        let mut all = vec!["send-keys"];
        all.extend(keys);
        assert!(self.tmux(&all).status.success());
    }

    fn screen(&self) -> String {
        String::from_utf8(self.tmux(&["capture-pane", "-p"]).stdout).unwrap()
    }

    /// Waits until the screen is as it should be.
    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if holds(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "{what} never came:\n{screen}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Runs the binary with these arguments, and says how it ended and how it left the terminal.
    fn start(&self, arguments: &str) {
        let line = format!(
            "clear; {} explore {arguments}; echo ended $?, $(stty -a | grep -o -e '-*icanon')",
            env!("CARGO_BIN_EXE_parplan")
        );
        self.keys(&[&line, "Enter"]);
    }

    /// The process that runs in the shell.
    fn explorer(&self) -> String {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]).stdout;
        let shell = String::from_utf8(shell).unwrap();
        let found = Command::new("pgrep")
            .args(["-P", shell.trim(), "parplan"])
            .output()
            .unwrap();
        String::from_utf8(found.stdout).unwrap().trim().to_owned()
    }

    fn signal(&self, name: &str) {
        let explorer = self.explorer();
        assert!(!explorer.is_empty(), "nothing runs");
        let status = Command::new("kill").args(["-s", name, &explorer]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

const SMALL: &str = "--model qwen3-8b --gpu h200 --gpus 2";

fn has_answered(screen: &str) -> bool {
    screen.contains("refused,")
}

#[test]
fn a_session_from_the_first_key_to_the_last() {
    let Some(terminal) = Terminal::open(80, 24, &[]) else {
        return;
    };
    terminal.start("");
    terminal.until("the empty form", |s| s.contains("--model is not given"));
    terminal.keys(&[
        "Enter", "qwen3-8b", "Enter", "j", "j", "Enter", "h200", "Enter",
    ]);
    terminal.keys(&["j", "Enter", "2", "Enter"]);
    terminal.until("the answer", has_answered);
    terminal.keys(&["Tab", "3"]);
    terminal.until("the memory", |s| s.contains("Memory of a GPU"));
    // The same session in another size.
    terminal.tmux(&["resize-window", "-x", "200", "-y", "60"]);
    terminal.until("the wide screen", |s| {
        s.contains("tokens/s a user") && s.contains("Memory of a GPU")
    });
    for (width, height) in [("20", "5"), ("1", "1"), ("100", "30")] {
        terminal.tmux(&["resize-window", "-x", width, "-y", height]);
    }
    terminal.until("the narrow screen", |s| s.contains("Memory of a GPU"));
    let path = terminal.folder.path().join("plan.toml");
    terminal.keys(&["w", "C-u", path.to_str().unwrap(), "Enter"]);
    terminal.until("the file", |s| s.contains("wrote "));
    assert!(std::fs::read_to_string(&path).unwrap().contains("qwen3-8b"));
    terminal.keys(&["?"]);
    terminal.until("the keys", |s| s.contains("In the question"));
    // Escape and a letter at once would be one key, Alt and the letter.
    terminal.keys(&["Escape"]);
    terminal.until("the view behind", |s| !s.contains("In the question"));
    terminal.keys(&["q"]);
    // The screen from before is back, and the terminal is as it was.
    terminal.until("the shell", |s| {
        s.contains("ended 0, icanon") && !s.contains("qwen3-8b on")
    });
}

/// The lines of the README and of the page that show `explore` with a screen work as printed.
#[test]
fn printed_commands_run() {
    let pages = [
        include_str!("../README.md"),
        include_str!("../docs/explore.md"),
    ];
    let mut run = 0;
    for line in pages.iter().flat_map(|page| page.lines()) {
        let Some(arguments) = line.strip_prefix("parplan explore ") else {
            continue;
        };
        if arguments.contains("--export") {
            continue;
        }
        let Some(terminal) = Terminal::open(120, 40, &[]) else {
            return;
        };
        terminal.start(arguments);
        terminal.until(line, has_answered);
        run += 1;
    }
    assert_eq!(run, 2, "the pages' commands moved");
}

#[test]
fn a_signal_ends_it_with_the_terminal_restored() {
    // A shell takes an interrupt of its child for its own, and says nothing more.
    for (name, end) in [
        ("TERM", "ended 143, icanon"),
        ("INT", "$"),
        ("HUP", "ended 129, icanon"),
    ] {
        let Some(terminal) = Terminal::open(100, 30, &[]) else {
            return;
        };
        terminal.start(SMALL);
        terminal.until("the answer", has_answered);
        terminal.signal(name);
        terminal.until(name, |s| !has_answered(s) && s.contains(end));
        terminal.keys(&["clear; stty -a | grep -o -e '-*icanon'", "Enter"]);
        terminal.until("a shell that reads lines", |s| {
            s.lines().any(|line| line == "icanon")
        });
    }
}

/// What the next test runs on a terminal.
#[test]
#[ignore = "panics on purpose; panics_leave_the_terminal_as_it_was runs it on a terminal"]
fn a_child_that_panics() {
    let _screen = parplan::explore::terminal::Screen::enter().unwrap();
    panic!("on purpose");
}

/// The same for a thread other than the first.
#[test]
#[ignore = "panics on purpose; panics_leave_the_terminal_as_it_was runs it on a terminal"]
fn a_thread_that_panics() {
    let _screen = parplan::explore::terminal::Screen::enter().unwrap();
    let thread = std::thread::spawn(|| panic!("on purpose"));
    assert!(thread.join().is_err());
    std::mem::forget(_screen);
}

#[test]
fn panics_leave_the_terminal_as_it_was() {
    for child in ["a_child_that_panics", "a_thread_that_panics"] {
        let Some(terminal) = Terminal::open(100, 30, &[]) else {
            return;
        };
        let line = format!(
            "clear; {} --ignored --exact {child} --nocapture; stty -a | grep -o -e '-*icanon'",
            std::env::current_exe().unwrap().display()
        );
        terminal.keys(&[&line, "Enter"]);
        // The message is on the screen from before, not on the one that is gone.
        terminal.until(child, |s| {
            s.contains("on purpose") && s.lines().any(|line| line == "icanon")
        });
    }
}

#[test]
fn ctrl_z_gives_the_terminal_back_until_fg() {
    let Some(terminal) = Terminal::open(100, 30, &[]) else {
        return;
    };
    terminal.keys(&["set -m", "Enter"]);
    terminal.start(SMALL);
    terminal.until("the answer", has_answered);
    terminal.keys(&["C-z"]);
    terminal.until("the shell", |s| !has_answered(s));
    terminal.keys(&["clear; stty -a | grep -o -e '-*icanon'", "Enter"]);
    terminal.until("a shell that reads lines", |s| {
        s.lines().any(|l| l == "icanon")
    });
    terminal.keys(&["fg", "Enter"]);
    terminal.until("the screen again", has_answered);
    terminal.keys(&["q"]);
    terminal.until("the shell", |s| s.contains("icanon") && !has_answered(s));
}

/// Where nobody would continue it, it does not stop.
#[test]
fn ctrl_z_without_a_shell_is_refused() {
    let Some(terminal) = Terminal::open(100, 30, &[]) else {
        return;
    };
    let line = format!("exec {} explore {SMALL}", env!("CARGO_BIN_EXE_parplan"));
    terminal.keys(&[&line, "Enter"]);
    terminal.until("the answer", has_answered);
    terminal.keys(&["C-z"]);
    terminal.until("the reason", |s| s.contains("no shell would continue"));
}

#[test]
fn without_colour_and_without_unicode() {
    let Some(terminal) = Terminal::open(80, 24, &[("NO_COLOR", "1"), ("LC_ALL", "C")]) else {
        return;
    };
    terminal.start(&format!("{SMALL} --tpot 1"));
    terminal.until("the answer", has_answered);
    terminal.keys(&["Tab", "2"]);
    terminal.until("the plot", |s| s.contains("beaten by none"));
    let screen = terminal.tmux(&["capture-pane", "-p", "-e"]).stdout;
    let screen = String::from_utf8(screen).unwrap();
    assert!(screen.is_ascii(), "{screen}");
    // Attributes other than colours remain: 30 to 49 are colours.
    for code in screen.split("\u{1b}[").skip(1) {
        let code = code.split('m').next().unwrap();
        let coloured = code
            .split(';')
            .filter_map(|part| part.parse::<u32>().ok())
            .any(|n| (30..=38).contains(&n) || (40..=48).contains(&n));
        assert!(!coloured, "{code}: {screen}");
    }
}

/// A newer question calls off an older one: keys are taken while a large search runs.
#[test]
fn keys_are_never_blocked() {
    let Some(terminal) = Terminal::open(80, 24, &[]) else {
        return;
    };
    terminal.start("--model deepseek-v3 --gpu h200 --gpus 1024");
    terminal.until("the form", |s| s.contains("deepseek-v3"));
    let pressed = Instant::now();
    terminal.keys(&["?"]);
    terminal.until("the keys", |s| s.contains("In the question"));
    let waited = pressed.elapsed();
    assert!(waited < Duration::from_secs(2), "{waited:?}");
}

#[test]
fn a_journal_is_followed() {
    let Some(terminal) = Terminal::open(100, 30, &[]) else {
        return;
    };
    let path = terminal.folder.path().join("none.jsonl");
    terminal.start(&format!("{SMALL} --watch {}", path.display()));
    terminal.until("the reason", |s| s.contains("is not there yet"));
    std::fs::write(&path, journal()).unwrap();
    terminal.until("the journal", |s| s.contains("1 of 2 measured"));
    // What was seen stays in sight when the file goes.
    std::fs::remove_file(&path).unwrap();
    terminal.until("the end", |s| {
        s.contains("is gone, as it is") && s.contains("1 of 2 measured")
    });
}

fn journal() -> String {
    use parplan_profiles::calibration::{
        Experiment, Journal, LaunchMode, Measured, Probe, Provenance,
    };
    let read = |bytes| Experiment::alone(Probe::MemoryRead { bytes }, LaunchMode::Stream, "");
    let provenance = Provenance {
        gpu: "h200".to_owned(),
        ..Provenance::default()
    };
    let experiments = [read(1 << 20), read(1 << 30)];
    let measured = Measured {
        experiment: read(1 << 20),
        implementation: "parplan 0.1.0".to_owned(),
        repeats: vec![2.0; 5],
        anchor_us: Vec::new(),
        remarks: Vec::new(),
    };
    Journal::head(&provenance, &experiments).unwrap() + &Journal::entry(&measured).unwrap()
}

#[test]
fn without_a_terminal_it_says_so() {
    let line = cli_support::refusal(&["explore", "--model", "qwen3-8b"], 2);
    assert!(line.contains("--export"), "{line}");
}

#[test]
fn files_are_written_without_a_screen() {
    let folder = tempfile::tempdir().unwrap();
    let name = |file: &str| folder.path().join(file).display().to_string();
    let files = ["plan.toml", "launch.sh", "answer.json", "front.svg"].map(name);
    let mut all = vec![
        "explore",
        "--model",
        "qwen3-30b-a3b",
        "--gpu",
        "h200",
        "--gpus",
        "2",
    ];
    for file in &files {
        all.extend(["--export", file.as_str()]);
    }
    let output = cli_support::run(&all);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    let read = |file: &str| std::fs::read_to_string(Path::new(file)).unwrap();
    assert!(read(&files[0]).contains("qwen3-30b-a3b"));
    assert!(read(&files[1]).starts_with("#!/bin/sh"));
    let answer: serde_json::Value = serde_json::from_str(&read(&files[2])).unwrap();
    assert_eq!(answer["question"]["model"], "qwen3-30b-a3b");
    assert!(read(&files[3]).ends_with("</svg>\n"));
    // The same answer as `recommend` gives, here and in the text of docs/explore.md.
    let page = include_str!("../docs/explore.md");
    assert!(page.contains("--gpus 8 --export plan.toml --export front.svg"));
    let same = cli_support::json(&[
        "recommend",
        "--model",
        "qwen3-30b-a3b",
        "--gpu",
        "h200",
        "--gpus",
        "2",
    ]);
    assert_eq!(answer["best"], same["best"]);

    let wrong = cli_support::refusal(&["explore", "--export", "x.png"], 2);
    assert!(wrong.contains(".svg the plot"), "{wrong}");
    let unknown = cli_support::refusal(&["explore", "--export", &files[0]], 2);
    assert!(unknown.contains("--model"), "{unknown}");
    let mut small = vec![
        "explore",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
        "--gpus",
        "1",
    ];
    small.extend(["--export", files[0].as_str()]);
    assert!(cli_support::refusal(&small, 1).contains("GiB"));
}
