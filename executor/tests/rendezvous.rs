//! Ranks that meet over TCP: the conformance suite, and those who must not meet.

#![allow(clippy::unwrap_used)] // tests, helper functions included

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use parplan_executor::conformance::{self, Scope};
use parplan_executor::rendezvous::{Joined, Rendezvous, Secret, join};
use parplan_executor::{Communicator, CpuDevice, Deadline, Result};

fn secret() -> Secret {
    Secret::new("correct horse").unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn serve(world: usize, deadline: Deadline) -> (Rendezvous, String) {
    let server = Rendezvous::serve("127.0.0.1:0", world, secret(), deadline).unwrap();
    let address = server.address().to_string();
    (server, address)
}

/// Each rank in its own thread, over real sockets.
fn meet<R: Send + 'static>(
    world: usize,
    f: impl Fn(usize, Result<Joined>) -> R + Send + Copy + 'static,
) -> Vec<R> {
    let (server, address) = serve(world, soon());
    let threads: Vec<_> = (0..world)
        .map(|rank| {
            let address = address.clone();
            std::thread::spawn(move || f(rank, join(&address, rank, world, &secret(), soon())))
        })
        .collect();
    let results = threads.into_iter().map(|t| t.join().unwrap()).collect();
    server.finish().unwrap();
    results
}

fn conforms(world: usize) {
    let cases = meet(world, |_, joined| {
        let mut comm = joined.unwrap().comm;
        conformance::run(&CpuDevice::new(), &mut comm, Scope::default()).unwrap()
    });
    assert!(cases.iter().all(|c| *c > 400), "{cases:?}");
}

macro_rules! at {
    ($($name:ident: $size:literal),*) => {$(
        #[test]
        fn $name() { conforms($size); }
    )*};
}
at!(one_rank: 1, two_ranks: 2, three_ranks: 3, four_ranks: 4, eight_ranks: 8, sixteen_ranks: 16);

#[test]
fn large_messages_in_both_directions_do_not_deadlock() {
    // Far more than the socket buffers hold.
    let sums = meet(2, |rank, joined| {
        let mut comm = joined.unwrap().comm;
        let all = comm
            .all_gather_bytes(&vec![rank as u8 + 1; 32 << 20])
            .unwrap();
        all.iter()
            .map(|b| b.iter().map(|v| u64::from(*v)).sum::<u64>())
            .collect::<Vec<_>>()
    });
    assert_eq!(sums, [[32 << 20, 64 << 20], [32 << 20, 64 << 20]]);
}

#[test]
fn everyone_names_the_rank_that_left_and_not_the_messenger() {
    let errors = meet(3, |rank, joined| {
        let mut comm = joined.unwrap().comm;
        comm.barrier().unwrap();
        if rank == 2 {
            return String::new();
        }
        if rank == 1 {
            // Learns of rank 2's end later than rank 0, and from either of them.
            std::thread::sleep(Duration::from_millis(200));
        }
        comm.barrier().unwrap_err().to_string()
    });
    assert_eq!(errors[0], "rank 2 is gone: its process ended");
    assert!(
        errors[1].starts_with("rank 2 is gone: its process ended"),
        "{}",
        errors[1]
    );
}

#[test]
fn a_stranger_does_not_get_in_and_does_not_hold_up_the_others() {
    let (server, address) = serve(2, soon());
    // One that knows another secret, one that speaks another protocol, one that says nothing.
    let wrong = join(
        &address,
        0,
        2,
        &Secret::new("wrong secret").unwrap(),
        soon(),
    )
    .map(drop)
    .unwrap_err();
    assert!(
        wrong
            .to_string()
            .contains("is PARPLAN_SECRET the same on both sides?"),
        "{wrong}"
    );
    let mut web = TcpStream::connect(&address).unwrap();
    web.write_all(&[b"GET / HTTP/1.1\r\n".as_slice(), &[b'x'; 64]].concat())
        .unwrap();
    let mut answer = Vec::new();
    // Reset or closed; either way only the greeting came.
    let _ = web.read_to_end(&mut answer);
    assert!(answer.len() <= 40);
    let _silent = TcpStream::connect(&address).unwrap();

    let start = Instant::now();
    let other = address.clone();
    let one =
        std::thread::spawn(move || join(&other, 1, 2, &secret(), soon()).map(|j| j.comm.size()));
    assert_eq!(
        join(&address, 0, 2, &secret(), soon()).unwrap().comm.size(),
        2
    );
    assert_eq!(one.join().unwrap().unwrap(), 2);
    assert!(start.elapsed() < Duration::from_secs(2));
    let refused: Vec<String> = server.refused().into_iter().map(|v| v.why).collect();
    assert_eq!(refused, vec!["it does not know the shared secret"; 2]);
    server.finish().unwrap();
}

#[test]
fn a_missing_rank_is_named_to_those_who_came() {
    let (server, address) = serve(3, Deadline::after(Duration::from_millis(300)));
    let error = join(&address, 1, 3, &secret(), soon())
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("1 of 3 ranks came, missing: rank 0, rank 2 (deadline)"),
        "{error}"
    );
    assert_eq!(server.finish().unwrap_err().to_string(), error);
}

#[test]
fn a_rank_that_is_taken_or_counts_differently_is_told_so() {
    let (server, address) = serve(2, soon());
    let first = address.clone();
    let holder = std::thread::spawn(move || join(&first, 0, 2, &secret(), soon()).map(drop));
    while server.refused().is_empty() {
        // Until rank 0 is in, the second may be the one that gets the place; then it waits.
        std::thread::sleep(Duration::from_millis(100));
        let e = join(
            &address,
            0,
            2,
            &secret(),
            Deadline::after(Duration::from_secs(5)),
        )
        .map(drop)
        .unwrap_err();
        assert!(e.to_string().contains("rank 0 is taken by process"), "{e}");
    }
    let e = join(&address, 1, 3, &secret(), soon())
        .map(drop)
        .unwrap_err();
    assert!(
        e.to_string().contains("it counts 3 ranks, this run has 2"),
        "{e}"
    );
    join(&address, 1, 2, &secret(), soon()).map(drop).unwrap();
    holder.join().unwrap().unwrap();
}

#[test]
fn a_short_secret_is_refused() {
    let e = Secret::new("abc").unwrap_err();
    assert_eq!(
        e.to_string(),
        "the shared secret has 3 characters, it needs at least 8 (set PARPLAN_SECRET on every machine)"
    );
    assert_eq!(e.exit_code(), 2);
}

#[test]
fn ranks_that_poll_before_they_sleep_meet_late_ones_and_keep_their_deadline() {
    let outcomes = meet(2, |rank, joined| {
        let mut comm = joined.unwrap().comm;
        comm.poll_before_sleep(Duration::from_millis(30));
        if rank == 1 {
            // Later than the other polls.
            std::thread::sleep(Duration::from_millis(120));
        }
        let met = comm.all_gather_bytes(&[rank as u8]).unwrap();
        if rank == 1 {
            // Stays, and does not enter.
            std::thread::sleep(Duration::from_millis(900));
            return (met, String::new());
        }
        comm.set_deadline(Duration::from_millis(200));
        let begin = Instant::now();
        let late = comm.all_gather_bytes(&[0]).unwrap_err().to_string();
        assert!(begin.elapsed() < Duration::from_millis(800), "{late}");
        (met, late)
    });
    for (met, _) in &outcomes {
        assert_eq!(met, &[vec![0], vec![1]]);
    }
    assert!(outcomes[0].1.contains("rank 1"), "{}", outcomes[0].1);
}
