//! NCCL missing, too old or incomplete: with libraries made for the test.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests, helper functions included

use std::path::{Path, PathBuf};
use std::process::Command;

use parplan_executor::nccl::sys::Symbols;
use parplan_executor::nccl::{Found, Library, locate};
use parplan_executor::symmetric::{Sides, sides_needed};

/// Builds a library that reports `version` and has every required symbol but `without`.
fn fake(folder: &Path, version: i32, without: &[&str]) -> PathBuf {
    let mut source = format!("int ncclGetVersion(int* v) {{ *v = {version}; return 0; }}\n");
    for symbol in Symbols::REQUIRED
        .iter()
        .filter(|s| **s != "ncclGetVersion" && !without.contains(s))
    {
        source.push_str(&format!("int {symbol}(void) {{ return 3; }}\n"));
    }
    std::fs::create_dir_all(folder).unwrap();
    let (c, so) = (folder.join("fake.c"), folder.join("libnccl.so.2"));
    std::fs::write(&c, source).unwrap();
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&so, &c])
        .output()
        .expect("a C compiler is needed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    so
}

#[test]
fn a_library_that_will_do_is_taken_by_file_by_folder_and_by_environment() {
    let root = tempfile::tempdir().unwrap();
    let folder = root
        .path()
        .join("lib/python3.12/site-packages/nvidia/nccl/lib");
    let so = fake(&folder, 22_803, &[]);
    for path in [&so, &folder, &root.path().to_owned()] {
        let library = Library::open(Some(path)).unwrap();
        assert_eq!(library.version().to_string(), "2.28.3");
        assert_eq!(Path::new(library.path()), so);
    }
}

#[test]
fn ranks_share_gpus_from_nccl_2_30_on() {
    let root = tempfile::tempdir().unwrap();
    for (version, shares) in [(22_907, false), (23_000, true), (23_203, true)] {
        let so = fake(&root.path().join(version.to_string()), version, &[]);
        assert_eq!(Library::open(Some(&so)).unwrap().can_share_gpus(), shares);
    }
}

#[test]
fn without_a_path_the_system_comes_first_and_then_the_environment_in_use() {
    let root = tempfile::tempdir().unwrap();
    let so = fake(
        &root
            .path()
            .join("lib/python3.12/site-packages/nvidia/nccl/lib"),
        22_803,
        &[],
    );
    let env = |name: &str| (name == "VIRTUAL_ENV").then(|| root.path().display().to_string());
    assert_eq!(
        locate(None, env).unwrap(),
        [Found::System, Found::File(so.clone())]
    );
    // The environment of the python3 that is first on the path, without running it.
    std::fs::create_dir_all(root.path().join("bin")).unwrap();
    std::fs::write(root.path().join("bin/python3"), "").unwrap();
    let env =
        |name: &str| (name == "PATH").then(|| format!("/nowhere:{}/bin", root.path().display()));
    assert_eq!(locate(None, env).unwrap(), [Found::System, Found::File(so)]);
}

fn refusal(path: &Path) -> String {
    let error = Library::open(Some(path)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn a_missing_library_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = refusal(folder.path());
    assert!(message.ends_with("there is no libnccl.so.2 there; give the file, its folder, or the root of a Python environment"), "{message}");
    assert!(message.contains(&folder.path().display().to_string()));
}

#[test]
fn an_old_library_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let message = refusal(&fake(folder.path(), 21_605, &[]));
    assert!(
        message.ends_with("it is NCCL 2.16.5, 2.18.0 or newer is needed"),
        "{message}"
    );
}

#[test]
fn every_missing_symbol_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = refusal(&fake(
        folder.path(),
        22_803,
        &["ncclCommSplit", "ncclAllGather"],
    ));
    assert!(
        message.ends_with("it lacks ncclCommSplit, ncclAllGather; NCCL 2.18.0 or newer has them"),
        "{message}"
    );
}

#[test]
fn what_is_no_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libnccl.so.2");
    std::fs::write(&file, "text").unwrap();
    let message = refusal(&file);
    assert!(
        message.contains("not found; tried") && message.contains("file too short"),
        "{message}"
    );
}

#[test]
fn one_sided_registration_is_chosen_by_the_version_of_the_loaded_library() {
    let needed = |version: i32| {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(Some(&fake(folder.path(), version, &[]))).unwrap();
        ["all_gather", "reduce_scatter"].map(|c| sides_needed(library.version(), c, 4 << 20))
    };
    let both = Some(Sides {
        send: true,
        recv: true,
    });
    assert_eq!(needed(22_809), [both, both]);
    assert_eq!(
        needed(22_902),
        [
            Some(Sides {
                send: false,
                recv: true
            }),
            Some(Sides {
                send: true,
                recv: false
            })
        ]
    );
}
