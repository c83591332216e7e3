//! `cargo xtask kernels`: PTX beside the `.cu` files, built by a pinned compiler.
//!
//! The manifest holds the hash of every source and every PTX file, so that a stale PTX
//! is noticed without a compiler; `--check` rebuilds and compares byte for byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// All five are pinned: a newer front end writes PTX that ptxas 13.0 refuses.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// `(virtual architecture of the PTX, real architecture that resources are gated on)`
const TARGETS: [(&str, &str); 2] = [("compute_80", "sm_80"), ("compute_90a", "sm_90a")];

#[derive(clap::Args)]
pub struct Arguments {
    /// Change nothing; fail when a file would change.
    #[arg(long)]
    check: bool,
    /// The folder of a CUDA 13.0 toolkit that holds bin/nvcc, instead of installing
    /// the pinned one from PyPI.
    #[arg(long)]
    toolkit: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace root")?
        .to_owned();
    let target = target_dir(&root);
    let toolkit = match &arguments.toolkit {
        Some(path) => path.clone(),
        None => install(&target)?,
    };
    let built = build_all(&root.join("kernels"), &target, &toolkit)?;
    let ptx = root.join("kernels/ptx");
    let mut stale = Vec::new();
    for (name, content) in &built {
        let path = ptx.join(name);
        if std::fs::read(&path).ok().as_deref() == Some(content.as_bytes()) {
            continue;
        }
        stale.push(name.as_str());
        if !arguments.check {
            std::fs::create_dir_all(&ptx)?;
            std::fs::write(&path, content)
                .with_context(|| format!("writing {}", path.display()))?;
        }
    }
    for entry in std::fs::read_dir(&ptx)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(
            built.contains_key(&name),
            "kernels/ptx/{name} is built from no source: remove it"
        );
    }
    if arguments.check && !stale.is_empty() {
        bail!(
            "not current: {}; run 'cargo xtask kernels' and commit the result",
            stale.join(", ")
        );
    }
    println!("{} files, {} changed", built.len(), stale.len());
    Ok(())
}

fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Installs the pinned compiler once, in a virtual environment under the target folder.
fn install(target: &Path) -> Result<PathBuf> {
    let venv = target.join("nvcc-13.0.88");
    if !venv.join("complete").exists() {
        println!("installing {} in {}", PACKAGES.join(" "), venv.display());
        command(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        command(
            Command::new(venv.join("bin/pip"))
                .args(["install", "--quiet", "--no-deps"])
                .args(PACKAGES),
        )?;
        std::fs::write(venv.join("complete"), "")?;
    }
    let lib = venv.join("lib");
    for entry in std::fs::read_dir(&lib)? {
        let toolkit = entry?.path().join("site-packages/nvidia/cu13");
        if toolkit.join("bin/nvcc").exists() {
            return Ok(toolkit);
        }
    }
    bail!("no nvcc under {} after installing it", lib.display())
}

fn command(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{command:?} failed:\n{text}");
    Ok(text)
}

/// File name under `kernels/ptx` to its content.
fn build_all(kernels: &Path, target: &Path, toolkit: &Path) -> Result<BTreeMap<String, String>> {
    let sources = kernels.join("cuda");
    let mut built = BTreeMap::new();
    let mut manifest = String::from(
        "# sha256 of the sources and of the PTX built from them by 'cargo xtask kernels'\n",
    );
    let mut resources = String::from(
        "# registers and spill bytes of each kernel, by ptxas; a spill fails the build\n",
    );
    let mut names: Vec<String> = std::fs::read_dir(&sources)?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    for name in &names {
        let content = std::fs::read(sources.join(name))?;
        writeln!(manifest, "{} cuda/{name}", hash(&content))?;
    }
    for name in &names {
        let Some(stem) = name.strip_suffix(".cu") else {
            continue;
        };
        for (virtual_arch, real_arch) in TARGETS {
            let file = format!("{stem}.{virtual_arch}.ptx");
            let out = target.join(&file);
            std::fs::create_dir_all(out.parent().context("a folder for the PTX")?)?;
            // Relative paths: an absolute one would differ between checkouts.
            command(
                Command::new(toolkit.join("bin/nvcc"))
                    .current_dir(&sources)
                    .args([
                        "-std=c++17",
                        "-O3",
                        "--ptx",
                        "-Werror",
                        "all-warnings",
                        "-arch",
                        virtual_arch,
                        "-o",
                    ])
                    .arg(&out)
                    .arg(name),
            )?;
            let text = std::fs::read_to_string(&out)?;
            writeln!(manifest, "{} ptx/{file}", hash(text.as_bytes()))?;
            let report = command(
                Command::new(toolkit.join("bin/ptxas"))
                    .args(["-v", "-arch", real_arch, "-o", "/dev/null"])
                    .arg(&out),
            )?;
            for (kernel, registers, spills) in usage(&report)? {
                ensure!(
                    spills == 0,
                    "{kernel} spills {spills} bytes on {real_arch}; it must not"
                );
                writeln!(
                    resources,
                    "{real_arch} {kernel} {registers} registers {spills} spills"
                )?;
            }
            built.insert(file, text);
        }
    }
    built.insert("MANIFEST".into(), manifest);
    built.insert("RESOURCES".into(), resources);
    Ok(built)
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut s, b| {
            // Writing to a String cannot fail.
            let _ = write!(s, "{b:02x}");
            s
        })
}

/// `(kernel, registers, spilled bytes)` from `ptxas -v`, in the order of the names.
fn usage(report: &str) -> Result<Vec<(String, u32, u32)>> {
    let mut all = Vec::new();
    let (mut kernel, mut spills) = (None, 0);
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().map(str::to_owned);
        } else if line.contains("bytes spill stores") {
            spills = number_before(line, "bytes spill stores")?
                + number_before(line, "bytes spill loads")?;
        } else if line.contains("Used ") && line.contains(" registers") {
            let name = kernel
                .take()
                .context("ptxas named registers before a kernel")?;
            all.push((name, number_before(line, "registers")?, spills));
        }
    }
    ensure!(!all.is_empty(), "ptxas reported no kernel:\n{report}");
    all.sort();
    Ok(all)
}

fn number_before(line: &str, what: &str) -> Result<u32> {
    line.split(what)
        .next()
        .and_then(|before| before.split_whitespace().last())
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("no number before '{what}' in: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_ptxas_is_read() {
        let report = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
            ptxas info    : Function properties for b\n    \
            16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'a' for 'sm_80'\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 12 registers, 392 bytes cmem[0]\n";
        let want = vec![("a".to_owned(), 12, 0), ("b".to_owned(), 40, 20)];
        assert_eq!(usage(report).unwrap(), want);
        assert!(usage("nothing").is_err());
    }
}
