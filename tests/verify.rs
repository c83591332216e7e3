//! `parplan verify` on the CPU backend: measurements that are kept, and judged again by other prices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn verify(folder: &Path, arguments: &[&str]) -> Output {
    let profiles = folder.join("profiles");
    std::fs::create_dir_all(&profiles).unwrap();
    Command::new(env!("CARGO_BIN_EXE_parplan"))
        .env("PARPLAN_PROFILES", profiles)
        .arg("verify")
        .args(arguments)
        .output()
        .unwrap()
}

/// Anything but a bad median error: these prices are no one's.
fn ran(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    let judged = said.is_empty() || said.contains("above --max-error");
    assert!(judged, "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn kept_measurements_are_judged_again_by_other_prices() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept.json");
    let kept = kept.to_str().unwrap();
    let run = [
        "--backend",
        "cpu",
        "--ranks",
        "2",
        "--steps",
        "4",
        "--repeats",
        "3",
    ];
    let first = ran(&verify(
        folder.path(),
        &[&run[..], &["--model", "qwen3-8b", "--keep", kept, "--json"]].concat(),
    ));
    let steps = first["steps"].as_array().unwrap();
    assert!(steps.len() >= 4, "{}", steps.len());
    // A workload ran in several layouts of two ranks.
    let choices = first["summary"]["choices"].as_array().unwrap();
    assert!(!choices.is_empty());
    let prices = first["prices"][0].as_str().unwrap();
    assert!(prices.contains("no calibration of"), "{prices}");

    let again = ran(&verify(folder.path(), &["--measured", kept, "--json"]));
    assert_eq!(again["summary"], first["summary"]);
    // Twice the same file: twice the steps, by another GPU's prices.
    let other = ran(&verify(
        folder.path(),
        &["--measured", kept, kept, "--gpu", "h200", "--json"],
    ));
    assert_eq!(other["steps"].as_array().unwrap().len(), 2 * steps.len());
    assert_eq!(other["gpu"], "h200");
    assert_eq!(
        other["steps"][0]["measured_us"], first["steps"][0]["measured_us"],
        "measurements stay"
    );
    assert_ne!(
        other["steps"][0]["predicted_us"],
        first["steps"][0]["predicted_us"]
    );
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.json");
    std::fs::write(&wrong, "{\"gpu\": \"h200\"}").unwrap();
    let wrong = wrong.to_str().unwrap();
    for (arguments, why) in [
        (
            &["--measured", "/nowhere/at-all.json"][..],
            "cannot be read",
        ),
        (&["--measured", wrong], "not what `verify --keep` writes"),
        (
            &["--backend", "cpu", "--ranks", "3"],
            "--ranks 3: it must be a power of two; give 1, 2, 4 or 8",
        ),
        (
            &["--backend", "cpu", "--model", "no-such-model"],
            "no-such-model",
        ),
    ] {
        let output = verify(folder.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
}
