//! The port is free.

use super::Verdict;
use parplan_planner::launch::NodeCommand;
use std::io::ErrorKind;
use std::net::TcpListener;

pub(super) fn check(host: &str, nodes: &[&NodeCommand]) -> Verdict {
    let ports: Vec<u16> = nodes.iter().filter_map(|node| node.port).collect();
    for &port in &ports {
        match TcpListener::bind((host, port)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let free = (port..=u16::MAX)
                    .skip(1)
                    .take(200)
                    .find(|&next| TcpListener::bind((host, next)).is_ok());
                return Verdict::Failed(format!(
                    "port {port} of {host} is in use{}",
                    match free {
                        Some(free) => format!("; --port {free} is free"),
                        None => "; give another with --port".to_owned(),
                    }
                ));
            }
            Err(error) => {
                return Verdict::Failed(format!(
                    "nothing can listen on {host:?} port {port}: {error}; give an address of this \
                     machine with --host, such as 127.0.0.1"
                ));
            }
        }
    }
    match ports.as_slice() {
        [] => Verdict::Passed("nothing listens on this machine".to_owned()),
        [port] => Verdict::Passed(format!("{host}:{port} is free")),
        [first, .., last] => Verdict::Passed(format!("{host}:{first} to {last} are free")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_port_in_use_is_told_with_a_free_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = NodeCommand {
            replica: 0,
            node: 0,
            machine: "node0".to_owned(),
            gpus: 1,
            port: Some(taken.local_addr().unwrap().port()),
            argv: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
        };
        match check("127.0.0.1", &[&node]) {
            Verdict::Failed(text) => assert!(text.contains("is free"), "{text}"),
            other => panic!("{other:?}"),
        }
        drop(taken);
        assert!(matches!(check("127.0.0.1", &[&node]), Verdict::Passed(_)));
        assert!(matches!(check("; rm -rf /", &[&node]), Verdict::Failed(_)));
    }
}
