//! `parplan calibrate` on the CPU backend: kills, full disks, wrong files, and what `recommend` makes
//! of the result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use parplan_profiles::Calibration;
use parplan_profiles::calibration::Journal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Classes that are measured: few, and quick in a debug build.
const ONLY: &str = "all_gather,sync,launch";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn parplan(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parplan"));
        command
            .env("PARPLAN_PROFILES", self.path("profiles"))
            .stdin(Stdio::null());
        command
    }

    fn calibrate(&self, out: &Path) -> Command {
        let mut command = self.parplan();
        command
            .args(["calibrate", "--backend", "cpu", "--only", ONLY, "--out"])
            .arg(out);
        command
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn journal(out: &Path) -> PathBuf {
    PathBuf::from(format!("{}.journal", out.display()))
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_kill_loses_at_most_the_sample_that_was_being_measured() {
    let folder = Folder::new();
    let out = folder.path("killed.toml");
    let mut child = folder
        .calibrate(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while lines(&journal(&out)) < 3 {
        assert!(begin.elapsed() < Duration::from_secs(120), "no samples");
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists(), "the calibration is written at the end only");
    let before = Journal::read(&std::fs::read_to_string(journal(&out)).unwrap()).unwrap();
    // A second run does not write over the journal.
    let again = folder.calibrate(&out).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
    assert!(said(&again).contains("--resume"), "{}", said(&again));
    let resumed = folder.calibrate(&out).arg("--resume").output().unwrap();
    assert_eq!(resumed.status.code(), Some(0), "{}", said(&resumed));
    let found = Calibration::from_toml("x", &std::fs::read_to_string(&out).unwrap()).unwrap();
    assert!(!journal(&out).exists());
    // The same experiments as were asked for, and what was measured before the kill unchanged.
    assert_eq!(found.samples.len(), before.experiments.len());
    for (kept, sample) in before.samples.iter().zip(&found.samples) {
        assert!(kept.experiment.same(&sample.experiment));
        assert_eq!(kept.repeats, sample.repeats);
    }
    for wanted in &before.experiments {
        assert!(
            found.samples.iter().any(|s| s.experiment.same(wanted)),
            "{wanted}"
        );
    }
    // What was measured prices plans of this machine, and says so.
    let plan = folder
        .parplan()
        .args([
            "explain", "--model", "qwen3-8b", "--gpu", "cpu", "--engine", "builtin",
        ])
        .args([
            "--tp",
            "1",
            "--weights",
            "fp8",
            "--isl",
            "64",
            "--osl",
            "64",
        ])
        .args(["--concurrency", "1", "--calibration"])
        .arg(&out)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(
        text.contains("your calibration killed"),
        "{text}{}",
        said(&plan)
    );
}

#[test]
fn a_full_disk_keeps_what_was_measured() {
    let folder = Folder::new();
    let out = folder.path("full.toml");
    // A limit on file sizes fails writes as a full disk does, without needing to be root.
    let script = format!(
        "trap '' XFSZ; ulimit -f 12; exec {} calibrate --backend cpu --only {ONLY} --out {}",
        env!("CARGO_BIN_EXE_parplan"),
        out.display()
    );
    let stopped = Command::new("sh")
        .args(["-c", &script])
        .env("PARPLAN_PROFILES", folder.path("profiles"))
        .output()
        .unwrap();
    let text = said(&stopped);
    assert_eq!(stopped.status.code(), Some(1), "{text}");
    assert!(
        text.contains("journal") && text.contains("--resume"),
        "{text}"
    );
    let kept = Journal::read(&std::fs::read_to_string(journal(&out)).unwrap()).unwrap();
    assert!(!kept.samples.is_empty() && !out.exists());
    let resumed = folder.calibrate(&out).arg("--resume").output().unwrap();
    assert_eq!(resumed.status.code(), Some(0), "{}", said(&resumed));
    let found = Calibration::from_toml("x", &std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(found.samples.len(), kept.experiments.len());
    assert_eq!(found.samples[0].repeats, kept.samples[0].repeats);
}

#[test]
fn what_cannot_be_kept_or_measured_is_refused_before_anything_is() {
    let folder = Folder::new();
    // Not even root makes files there.
    let refused = folder
        .calibrate(Path::new("/sys/kernel/parplan/c.toml"))
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("nothing was measured"),
        "{}",
        said(&refused)
    );
    let folder_itself = folder.calibrate(folder.0.path()).output().unwrap();
    assert_eq!(folder_itself.status.code(), Some(2));
    assert!(
        said(&folder_itself).contains("not a regular file"),
        "{}",
        said(&folder_itself)
    );
    let nothing = folder
        .parplan()
        .args([
            "calibrate",
            "--backend",
            "cpu",
            "--only",
            "gem,nonsense",
            "--out",
        ])
        .arg(folder.path("y.toml"))
        .output()
        .unwrap();
    assert_eq!(nothing.status.code(), Some(2));
    // `gem` is the beginning of a class; the other is named, with the classes that there are.
    for part in ["--only nonsense:", "all_gather.none"] {
        assert!(said(&nothing).contains(part), "{}", said(&nothing));
    }
}

#[test]
fn journals_of_other_machines_and_damaged_ones_are_refused_and_kept() {
    let folder = Folder::new();
    let out = folder.path("foreign.toml");
    let head = "{\"journal\":1,\"provenance\":{\"gpu\":\"h200\",\"device\":\"NVIDIA H200\",\"count\":2,\
                \"memory_bytes\":1,\"backend\":\"nccl\",\"driver\":\"\",\"cuda\":\"\",\"nccl\":\"\",\
                \"topology\":\"\",\"host\":\"\",\"date\":\"\",\"measured_by\":\"\"},\"experiments\":[]}\n";
    for (text, word) in [
        (head.to_owned(), "another machine"),
        (head.replace("\"journal\":1", "\"journal\":0"), "schema 0"),
        (format!("{head}{{\"broken\": tr\n{head}"), "line 2"),
        ("half a line".to_owned(), "nothing whole"),
    ] {
        std::fs::write(journal(&out), &text).unwrap();
        let refused = folder.calibrate(&out).arg("--resume").output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(word), "{word}: {}", said(&refused));
        assert_eq!(std::fs::read_to_string(journal(&out)).unwrap(), text);
    }
}

/// A calibration without the samples of a probe.
fn without(text: &str, probe: &str) -> String {
    let mut calibration = parplan_profiles::Calibration::from_toml("c.toml", text).unwrap();
    calibration.samples.retain(|sample| {
        parplan_profiles::calibration::Class::of(&sample.experiment).to_string() != probe
    });
    calibration.to_toml().unwrap()
}

#[test]
fn calibrations_that_cannot_price_are_refused_by_plans() {
    let folder = Folder::new();
    let plan = |gpu: &str, file: &Path| {
        folder
            .parplan()
            .args(["estimate", "--model", "qwen3-8b", "--tp", "1", "--gpu", gpu])
            .arg("--calibration")
            .arg(file)
            .output()
            .unwrap()
    };
    let shipped = parplan_profiles::calibration::shipped_files()
        .find(|(name, _)| name.starts_with("h200-x2"))
        .unwrap()
        .1;
    let file = folder.path("c.toml");
    std::fs::write(&file, shipped).unwrap();
    assert_eq!(plan("h200", &file).status.code(), Some(0));
    let foreign = plan("b200", &file);
    assert_eq!(foreign.status.code(), Some(2));
    assert!(said(&foreign).contains("h200") && said(&foreign).contains("b200"));
    for (text, word) in [
        (shipped.replacen("schema = 1", "schema = 0", 1), "schema 0"),
        (shipped[..shipped.len() / 2].to_owned(), "c.toml"),
        (
            shipped.replacen("value = ", "value = -", 1),
            "within its interval",
        ),
        ("nonsense".to_owned(), "c.toml"),
        // Its memory was measured, and the samples that say so are gone.
        (
            without(shipped, "memory_read"),
            "(memory_read) was fitted to 3 samples, and 0 of them",
        ),
    ] {
        std::fs::write(&file, &text).unwrap();
        let refused = plan("h200", &file);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(word), "{word}: {}", said(&refused));
    }
    let missing = plan("h200", &folder.path("nowhere.toml"));
    assert_eq!(missing.status.code(), Some(2));
    assert!(said(&missing).contains("nowhere.toml"));
}
