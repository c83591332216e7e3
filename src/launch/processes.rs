//! The processes under this one, by `/proc`.

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use std::collections::HashMap;

/// All living processes that descend from this one. This process adopts orphans of its children (a
/// subreaper), so none of an engine's can escape by losing its parent.
pub fn descendants() -> Vec<Pid> {
    reap();
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    for entry in folder.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that is gone by now has no line.
        if let Ok(stat) = std::fs::read_to_string(entry.path().join("stat"))
            && let Some((parent, state)) = parent_and_state(&stat)
            && state != 'Z'
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut out = Vec::new();
    let mut next = vec![getpid().as_raw_nonzero().get()];
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            next.push(child);
            out.extend(Pid::from_raw(child));
        }
    }
    out
}

/// Parent and state of a line of `/proc/PID/stat`; the name in it may hold anything.
fn parent_and_state(stat: &str) -> Option<(i32, char)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((words.next()?.parse().ok()?, state))
}

/// Signals every descendant; those that ended meanwhile do not matter.
pub fn signal_all(signal: Signal) -> usize {
    let all = descendants();
    for pid in &all {
        let _ = kill_process(*pid, signal);
    }
    all.len()
}

/// Takes the exit codes of adopted processes, so that they leave no zombies. Only called when the
/// engine's own code was taken, or not at all wanted.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let stat = "12 (a) b) c) S 7 12 12 0";
        assert_eq!(parent_and_state(stat), Some((7, 'S')));
        assert_eq!(parent_and_state("garbage"), None);
    }
}
