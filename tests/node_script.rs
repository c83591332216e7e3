//! The script that measures a node: a rehearsal on the CPU, taken up again, and told wrong.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;

use std::path::Path;
use std::process::Command;

use exec_support::{binary, finished};

fn node(work: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/node/node.py"))
        .args(["--backend", "cpu", "--ranks", "2", "--quick", "--parplan"])
        .arg(binary())
        .arg("--work")
        .arg(work)
        .args(more)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command
}

#[test]
fn a_second_run_does_what_is_missing() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("not run: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (work, packed) = (folder.path().join("work"), folder.path().join("packed"));
    let stages = ["--stages", "collectives,gather", "--pack"];
    let arguments = [&stages[..], &[packed.to_str().unwrap()]].concat();
    let first = finished(node(&work, &arguments));
    assert_eq!(first.code(), Some(0), "{}", first.stderr);
    assert!(
        !first.stdout.contains("failed") && !first.stdout.contains("left out"),
        "{}",
        first.stdout
    );
    for words in ["all_reduce ", "gather and combine"] {
        assert!(first.stdout.contains(words), "{}", first.stdout);
    }
    let case = work.join("gather/dp2-00016.json");
    let kept = std::fs::metadata(&case).unwrap().modified().unwrap();

    // One case is lost: it alone is run again.
    std::fs::remove_file(work.join("gather/dp2-00004.json")).unwrap();
    let again = finished(node(&work, &["--stages", "gather"]));
    assert_eq!(again.code(), Some(0), "{}", again.stderr);
    assert!(
        again.stdout.contains("gather: 3 cases there ("),
        "{}",
        again.stdout
    );
    assert!(work.join("gather/dp2-00004.json").exists());
    assert_eq!(std::fs::metadata(&case).unwrap().modified().unwrap(), kept);

    // From the archives alone, nothing is run.
    std::fs::remove_dir_all(&work).unwrap();
    let unpacked = finished(node(
        &work,
        &[
            "--stages",
            "gather",
            "--limit",
            "0.1",
            "--pack",
            packed.to_str().unwrap(),
        ],
    ));
    assert_eq!(unpacked.code(), Some(0), "{}", unpacked.stderr);
    assert!(
        unpacked.stdout.contains("gather: 3 cases there ("),
        "{}",
        unpacked.stdout
    );
}

#[test]
fn the_table_takes_results_alone_for_cases() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("not run: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let verify = folder.path().join("verify");
    std::fs::create_dir_all(&verify).unwrap();
    // As `verify` leaves them: its verdict, and what it measured.
    let verdict =
        r#"{"command": [], "took_s": 1.0, "result": {"summary": {"median_error": 0.016}}}"#;
    std::fs::write(verify.join("made-here.json"), verdict).unwrap();
    std::fs::write(verify.join("measured.json"), r#"{"steps": []}"#).unwrap();
    let end = finished(node(folder.path(), &["--stages", "gather", "--limit", "0"]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    assert!(
        end.stdout
            .contains("verify against made-here: median_error 0.016"),
        "{}",
        end.stdout
    );
}

#[test]
fn a_rank_is_put_on_its_cpu() {
    let seat = |ranks: &[(&str, &str)]| {
        Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/node/seat.py"))
            // A CPU that every machine has, and one that none has.
            .args(["99999,0", "python3", "-c"])
            .arg("import os; print(sorted(os.sched_getaffinity(0)))")
            .env_remove("PMI_RANK")
            .env_remove("OMPI_COMM_WORLD_RANK")
            .envs(ranks.iter().copied())
            .output()
    };
    let Ok(seated) = seat(&[("PMI_RANK", "1")]) else {
        eprintln!("not run: there is no python3");
        return;
    };
    assert_eq!(String::from_utf8_lossy(&seated.stdout), "[0]\n");
    assert!(!seat(&[("PMI_RANK", "0")]).unwrap().status.success());
    let unknown = seat(&[]).unwrap();
    let words = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        words.contains("none of PMI_RANK, OMPI_COMM_WORLD_RANK is set"),
        "{words}"
    );
}

#[test]
fn what_cannot_be_run_is_named() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("not run: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let end = finished(node(folder.path(), &["--stages", "gather,guess"]));
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr
            .contains("node.py: no stage guess; there are collectives, gather, "),
        "{}",
        end.stderr
    );
    let end = finished(node(folder.path(), &["--parplan", "/nonexistent"]));
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr
            .contains("node.py: /nonexistent is no program that can be run"),
        "{}",
        end.stderr
    );
}
