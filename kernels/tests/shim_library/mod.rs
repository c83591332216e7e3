//! The CUDA sources as a library of the host, for the tests that run them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests, helper functions included

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

/// The shim library, compiled once for this test program.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("libshim.so");
        let output = Command::new("g++")
            .args([
                "-std=c++20",
                "-O1",
                "-g",
                "-fPIC",
                "-shared",
                "-pthread",
                "-Wall",
                "-Werror",
                // "#pragma unroll" is for the GPU's compiler.
                "-Wno-unknown-pragmas",
                "-I",
            ])
            .arg(root.join("shim"))
            .arg(root.join("shim/entry.cpp"))
            .arg("-o")
            .arg(&file)
            .output()
            .expect("g++ is needed for this test (Debian: apt-get install g++)");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // SAFETY: the library was just built from this repository; its only
        // initialisers are those of the C++ runtime.
        unsafe { Library::new(&file) }.unwrap()
    })
}

pub fn symbol<F>(name: &str) -> Symbol<'static, F> {
    // SAFETY: each caller names a function of shim/entry.cpp with that signature.
    unsafe { library().get(name.as_bytes()) }.unwrap()
}
