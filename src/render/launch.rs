//! Launch commands, in a form that a shell can run.

use super::Page;
use super::table::wrap;
use crate::output::WIDTH;
use parplan_planner::launch::{LaunchError, LaunchPlan, NodeCommand};

/// Nodes of the first replica whose commands are printed; JSON has all.
const SHOWN: usize = 2;
/// Lines of a file that are printed.
const LINES: usize = 12;

/// The commands, or why there are none.
pub fn commands(page: &mut Page, launch: &Result<LaunchPlan, LaunchError>) {
    page.heading("Launch");
    let plan = match launch {
        Ok(plan) => plan,
        Err(error) => return page.text(&format!("no command: {error}")),
    };
    let first = plan.nodes.iter().filter(|node| node.replica == 0);
    let shown: Vec<&NodeCommand> = first.take(SHOWN).collect();
    for node in &shown {
        page.aside(&format!(
            "replica {} node {}, on {}:",
            node.replica, node.node, node.machine
        ));
        for line in shell(node, page.style().width()) {
            page.verbatim(&line);
        }
        for (name, content) in &node.files {
            page.aside(&format!("with a file {name} beside it:"));
            let lines: Vec<&str> = content.lines().collect();
            for line in lines.iter().take(LINES) {
                page.verbatim(&format!("    {line}"));
            }
            if lines.len() > LINES {
                page.aside(&format!(
                    "  ... {} lines in all, which --json has",
                    lines.len()
                ));
            }
        }
    }
    match plan.nodes.len() - shown.len() {
        0 => {}
        1 => page.aside("and one more like it, which --json lists"),
        more => page.aside(&format!("and {more} more like it, which --json lists")),
    }
    for note in &plan.notes {
        page.text(&format!("note: {note}"));
    }
}

/// The commands as a POSIX shell script. With several nodes or replicas its argument says which of
/// them this machine is: `sh launch.sh REPLICA.NODE`.
pub fn script(plan: &LaunchPlan) -> String {
    let mut out = format!(
        "#!/bin/sh\n# {} {}, as planned by parplan\n",
        plan.engine, plan.version
    );
    for note in &plan.notes {
        for line in wrap(note, WIDTH - 2) {
            out.push_str(&format!("# {line}\n"));
        }
    }
    out.push_str("set -eu\n");
    let [only] = plan.nodes.as_slice() else {
        let names: Vec<String> = plan.nodes.iter().map(name).collect();
        out.push_str("case \"${1:-}\" in\n");
        for node in &plan.nodes {
            out.push_str(&format!("{}) # on {}\n", name(node), node.machine));
            start(&mut out, node);
            out.push_str(";;\n");
        }
        out.push_str(&format!(
            "*)\necho {} >&2\nexit 2\n;;\nesac\n",
            quoted(&format!(
                "say which part this machine is, REPLICA.NODE: {}",
                names.join(", ")
            ))
        ));
        return out;
    };
    start(&mut out, only);
    out
}

/// What the argument of a script calls a node.
fn name(node: &NodeCommand) -> String {
    format!("{}.{}", node.replica, node.node)
}

/// The files of a node and its command.
fn start(out: &mut String, node: &NodeCommand) {
    for (name, content) in &node.files {
        out.push_str(&format!(
            "printf '%s' {} > {}\n",
            quoted(content),
            quoted(name)
        ));
    }
    let lines = shell(node, WIDTH);
    let command: Vec<&str> = lines.iter().map(|line| line.trim_start()).collect();
    // `exec` takes no variables in front of it, `env` does.
    let env = if node.env.is_empty() { "" } else { "env " };
    out.push_str(&format!("exec {env}{}\n", command.join("\n  ")));
}

/// The command of a node with its environment, as [`shell_words`] breaks it.
pub fn shell(node: &NodeCommand, width: usize) -> Vec<String> {
    let env = node
        .env
        .iter()
        .map(|(name, value)| vec![format!("{name}={}", quoted(value))])
        .collect();
    broken(env, &node.argv, width)
}

/// One command over as many lines as it takes in so many columns; the values of an option that fit
/// no line break over several.
pub fn shell_words(argv: &[String], width: usize) -> Vec<String> {
    broken(Vec::new(), argv, width)
}

/// A command behind words that stand before it.
fn broken(mut groups: Vec<Vec<String>>, argv: &[String], width: usize) -> Vec<String> {
    let room = width.saturating_sub(6).max(1);
    for argument in argv {
        let word = quoted(argument);
        match groups.last_mut() {
            Some(group) if !argument.starts_with('-') && group[0].starts_with("--") => {
                group.push(word);
            }
            _ => groups.push(vec![word]),
        }
    }
    let mut lines: Vec<String> = Vec::new();
    for group in groups {
        let whole = group.join(" ");
        let pieces = if whole.len() <= room {
            vec![whole]
        } else {
            group
        };
        for piece in pieces {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + piece.len() <= room => {
                    line.push(' ');
                    line.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    let last = lines.len().saturating_sub(1);
    lines
        .into_iter()
        .enumerate()
        .map(|(i, line)| {
            let indent = if i == 0 { "  " } else { "    " };
            let more = if i == last { "" } else { " \\" };
            format!("{indent}{line}{more}")
        })
        .collect()
}

/// A word as a POSIX shell reads it back.
pub fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_word_comes_back_through_a_shell() {
        for word in [
            "plain-word/1.5",
            "with space",
            "it's",
            "",
            "$HOME `x`",
            "{\"a\": 1}",
        ] {
            let out = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }

    fn node(argv: &[&str]) -> NodeCommand {
        NodeCommand {
            replica: 0,
            node: 0,
            machine: "node0".to_owned(),
            gpus: 8,
            port: Some(30_000),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::from([("A".to_owned(), "1 2".to_owned())]),
            files: Vec::new(),
        }
    }

    #[test]
    fn many_values_break_over_lines_of_the_page() {
        let sizes: Vec<String> = (1..60).map(|n| (n * 1000).to_string()).collect();
        let mut argv = vec!["serve", "--sizes"];
        argv.extend(sizes.iter().map(String::as_str));
        let lines = shell(&node(&argv), WIDTH);
        assert!(lines.len() > 3);
        let fits = |line: &String| line.len() <= WIDTH;
        assert!(lines.iter().all(fits), "{lines:?}");
        assert!(lines.iter().rev().skip(1).all(|line| line.ends_with(" \\")));
    }

    /// What the script starts is what was planned, whatever the words hold.
    #[test]
    fn a_script_starts_each_part_with_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let hostile = "it's $HOME `x` \"y\"\n; echo no";
        let mut first = node(&["printf", "%s|", "first", hostile]);
        first.files = vec![("a file.yml".to_owned(), hostile.to_owned())];
        let mut second = node(&["sh", "-c", "printf %s \"$A\""]);
        second.node = 1;
        let mut plan = LaunchPlan {
            engine: "any".to_owned(),
            version: "1".to_owned(),
            verified: true,
            nodes: vec![first.clone(), second],
            notes: vec!["a note".to_owned()],
        };
        let run = |plan: &LaunchPlan, part: &[&str]| {
            let out = std::process::Command::new("sh")
                .arg("-c")
                .arg(script(plan))
                .arg("launch.sh")
                .args(part)
                .current_dir(folder.path())
                .output()
                .unwrap();
            (String::from_utf8(out.stdout).unwrap(), out.status.code())
        };
        let printed = format!("first|{hostile}|");
        assert_eq!(run(&plan, &["0.0"]), (printed.clone(), Some(0)));
        let file = std::fs::read_to_string(folder.path().join("a file.yml")).unwrap();
        assert_eq!(file, hostile);
        assert_eq!(run(&plan, &["0.1"]), ("1 2".to_owned(), Some(0)));
        assert_eq!(run(&plan, &[]), (String::new(), Some(2)));
        plan.nodes = vec![first];
        assert_eq!(run(&plan, &[]), (printed, Some(0)));
    }

    #[test]
    fn options_stay_with_their_values() {
        let node = node(&[
            "python3",
            "-m",
            "sglang.launch_server",
            "--model-path",
            "a/b",
            "--sizes",
            "1",
            "2",
        ]);
        assert_eq!(
            shell(&node, WIDTH).join("\n"),
            "  A='1 2' python3 -m sglang.launch_server --model-path a/b --sizes 1 2"
        );
    }
}
