//! The side that comes: register, learn everyone's address, connect to everyone.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::{Answer, Hello, Secret, wire};
use crate::comm::{CpuCommunicator, MeshTransport};
use crate::{Deadline, Error, Result};

/// The world, joined.
pub struct Joined {
    /// All ranks, over TCP.
    pub comm: CpuCommunicator,
    /// Host name of each rank, in rank order.
    pub hosts: Vec<String>,
    /// Process id of each rank, in rank order.
    pub pids: Vec<u32>,
}

/// Registers `rank` of `world` at the rendezvous and connects to all other ranks.
///
/// # Errors
/// [`Error::Rendezvous`] naming what failed there (ranks that never came, a wrong
/// secret, a rank taken), [`Error::Deadline`], [`Error::Io`].
pub fn join(
    address: &str,
    rank: usize,
    world: usize,
    secret: &Secret,
    deadline: Deadline,
) -> Result<Joined> {
    let fail = |why: String| Error::Rendezvous {
        address: address.to_owned(),
        why,
    };
    let mut stream = connect(address, deadline)?;
    // Peers reach this rank by the interface that reaches the rendezvous.
    let local = stream
        .local_addr()
        .map_err(Error::io("the local address"))?
        .ip();
    let listener =
        TcpListener::bind((local, 0)).map_err(Error::io(format!("listening on {local}")))?;
    let listen = listener
        .local_addr()
        .map_err(Error::io("the local address"))?
        .to_string();

    stream
        .set_read_timeout(Some(deadline.check(|| "the rendezvous".into())?))
        .map_err(Error::io("socket"))?;
    secret.prove(&mut stream).map_err(|e| fail(e.to_string()))?;
    let hello = Hello {
        rank,
        world,
        listen,
        host: host_name(),
        pid: std::process::id(),
    };
    wire::send(&mut stream, &hello).map_err(|e| fail(e.to_string()))?;
    // The server has the same deadline and names who is missing: leave it the time.
    let patience = deadline.left() + Duration::from_secs(2);
    stream
        .set_read_timeout(Some(patience))
        .map_err(Error::io("socket"))?;
    let roster = match wire::receive(&mut stream).map_err(|e| fail(format!("it went away: {e}")))? {
        Answer::Roster(roster) => roster,
        Answer::Refused(why) => return Err(fail(why)),
    };
    let streams = mesh(&roster, rank, &listener, secret, deadline)?;
    Ok(Joined {
        comm: CpuCommunicator::world(Box::new(MeshTransport::new(rank, streams)?)),
        hosts: roster.iter().map(|h| h.host.clone()).collect(),
        pids: roster.iter().map(|h| h.pid).collect(),
    })
}

fn connect(address: &str, deadline: Deadline) -> Result<TcpStream> {
    loop {
        // Only a name that never resolves is final; the server may come later than its ranks.
        let attempt = address.to_socket_addrs().and_then(|mut all| {
            let one = all
                .next()
                .ok_or_else(|| std::io::Error::other("the name has no address"))?;
            TcpStream::connect_timeout(&one, Duration::from_secs(2))
        });
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(e) => {
                deadline.check(|| format!("connecting to the rendezvous at {address} ({e})"))?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Rank i connects to every lower rank and accepts every higher one.
fn mesh(
    roster: &[Hello],
    rank: usize,
    listener: &TcpListener,
    secret: &Secret,
    deadline: Deadline,
) -> Result<Vec<Option<TcpStream>>> {
    let mut streams: Vec<Option<TcpStream>> = roster.iter().map(|_| None).collect();
    for peer in &roster[..rank] {
        let io = |e: std::io::Error| Error::PeerLost {
            rank: peer.rank,
            why: format!("connecting to {}: {e}", peer.listen),
        };
        let mut stream = connect(&peer.listen, deadline)?;
        stream
            .set_read_timeout(Some(deadline.check(|| format!("rank {}", peer.rank))?))
            .map_err(io)?;
        secret.prove(&mut stream).map_err(io)?;
        wire::send(&mut stream, &rank).map_err(io)?;
        streams[peer.rank] = Some(stream);
    }
    listener
        .set_nonblocking(true)
        .map_err(Error::io("socket"))?;
    while streams[rank + 1..].iter().any(Option::is_none) {
        let Ok((mut stream, _)) = listener.accept() else {
            let missing = || {
                streams
                    .iter()
                    .enumerate()
                    .skip(rank + 1)
                    .find(|(_, s)| s.is_none())
                    .map_or(rank, |(r, _)| r)
            };
            deadline.check(|| format!("rank {rank} waiting for rank {} to connect", missing()))?;
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        // A stranger, or one that hangs up, costs its own connection only.
        let greeted = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(3))))
            .and_then(|()| secret.accept(&mut stream))
            .and_then(|()| wire::receive::<usize>(&mut stream));
        if let Ok(peer) = greeted
            && peer > rank
            && peer < streams.len()
        {
            streams[peer] = Some(stream);
        }
    }
    Ok(streams)
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "unknown".into(), |n| n.to_string_lossy().into_owned())
}
