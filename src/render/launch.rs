//! Launch commands, in a form that a shell can run.

use super::Page;
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
        for line in shell(node) {
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

/// One command over as many lines as it takes; the values of an option that fit no line break
/// over several.
fn shell(node: &NodeCommand) -> Vec<String> {
    const ROOM: usize = super::WIDTH - 6;
    let mut groups: Vec<Vec<String>> = node
        .env
        .iter()
        .map(|(name, value)| vec![format!("{name}={}", quoted(value))])
        .collect();
    for argument in &node.argv {
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
        let pieces = if whole.len() <= ROOM {
            vec![whole]
        } else {
            group
        };
        for piece in pieces {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + piece.len() <= ROOM => {
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
fn quoted(word: &str) -> String {
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
        let lines = shell(&node(&argv));
        assert!(lines.len() > 3);
        let fits = |line: &String| line.len() <= crate::render::WIDTH;
        assert!(lines.iter().all(fits), "{lines:?}");
        assert!(lines.iter().rev().skip(1).all(|line| line.ends_with(" \\")));
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
            shell(&node).join("\n"),
            "  A='1 2' python3 -m sglang.launch_server --model-path a/b --sizes 1 2"
        );
    }
}
