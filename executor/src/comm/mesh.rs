//! Ranks as processes: one TCP connection for each pair, driven by one poll loop.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::transport::{Message, Transport};
use crate::{Deadline, Error, Result};

/// Label of the notice that a failing rank sends before it leaves, so that all name
/// the origin and not the neighbour through which they learned of it.
const NOTICE: u64 = u64::MAX;

/// Bytes of a message's header: label and length.
const HEADER: usize = 16;

/// How long a failing rank keeps its connections for peers to read its notice.
const LINGER: Duration = Duration::from_millis(300);

/// A message that is being received.
#[derive(Default)]
struct Incoming {
    header: [u8; HEADER],
    have: usize,
    body: Vec<u8>,
}

impl Incoming {
    /// Reads what is there. `Some` when a message is complete.
    fn progress(&mut self, stream: &mut TcpStream) -> std::io::Result<Option<Message>> {
        loop {
            let target: &mut [u8] = if self.have < HEADER {
                &mut self.header[self.have..]
            } else {
                &mut self.body[self.have - HEADER..]
            };
            if !target.is_empty() {
                match stream.read(target) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(n) => self.have += n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            let (label, len) = self.parts();
            if self.have == HEADER {
                self.body.resize(len, 0);
            }
            if self.have >= HEADER && self.have == HEADER + len {
                let bytes = std::mem::take(&mut self.body);
                self.have = 0;
                return Ok(Some(Message { label, bytes }));
            }
        }
    }

    fn parts(&self) -> (u64, usize) {
        let [
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            n0,
            n1,
            n2,
            n3,
            n4,
            n5,
            n6,
            n7,
        ] = self.header;
        let label = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        (
            label,
            u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]) as usize,
        )
    }
}

/// A message that is being sent.
struct Outgoing {
    to: usize,
    frame: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn new(to: usize, message: &Message) -> Self {
        let mut frame = Vec::with_capacity(HEADER + message.bytes.len());
        frame.extend_from_slice(&message.label.to_le_bytes());
        frame.extend_from_slice(&(message.bytes.len() as u64).to_le_bytes());
        frame.extend_from_slice(&message.bytes);
        Outgoing { to, frame, sent: 0 }
    }

    /// Writes what fits. `true` when all is written.
    fn progress(&mut self, stream: &mut TcpStream) -> std::io::Result<bool> {
        while self.sent < self.frame.len() {
            match stream.write(&self.frame[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

/// The TCP transport of one rank.
pub struct MeshTransport {
    rank: usize,
    /// By world rank; none at this rank's own place.
    streams: Vec<Option<TcpStream>>,
    incoming: Vec<Incoming>,
    /// How long an exchange polls before it sleeps.
    polls: Duration,
}

impl MeshTransport {
    /// Takes one connected stream for each other rank.
    ///
    /// # Errors
    /// [`Error::Io`] when a socket cannot be set up.
    pub fn new(rank: usize, streams: Vec<Option<TcpStream>>) -> Result<Self> {
        for stream in streams.iter().flatten() {
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_nonblocking(true))
                .map_err(Error::io("setting up a rank's socket"))?;
        }
        Ok(MeshTransport {
            rank,
            incoming: streams.iter().map(|_| Incoming::default()).collect(),
            streams,
            polls: Duration::ZERO,
        })
    }

    fn stream(&mut self, rank: usize) -> Result<&mut TcpStream> {
        self.streams
            .get_mut(rank)
            .and_then(Option::as_mut)
            .ok_or(Error::PeerLost {
                rank,
                why: "this rank has closed its connection to it".into(),
            })
    }

    fn drive(
        &mut self,
        send: Vec<(usize, Message)>,
        from: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<Message>> {
        let mut sends: Vec<Outgoing> = send.iter().map(|(to, m)| Outgoing::new(*to, m)).collect();
        let mut got: Vec<Option<Message>> = from.iter().map(|_| None).collect();
        let begin = Instant::now();
        loop {
            let mut stuck = Vec::with_capacity(sends.len());
            for mut out in sends {
                let to = out.to;
                match out.progress(self.stream(to)?) {
                    Ok(true) => {}
                    Ok(false) => stuck.push(out),
                    Err(e) => return Err(self.lost_peer(to, &e)),
                }
            }
            sends = stuck;
            for (slot, &src) in got.iter_mut().zip(from) {
                if slot.is_some() {
                    continue;
                }
                let incoming = &mut self.incoming[src];
                let Some(stream) = self.streams[src].as_mut() else {
                    return Err(Error::PeerLost {
                        rank: src,
                        why: "this rank has closed its connection to it".into(),
                    });
                };
                match incoming.progress(stream) {
                    Ok(Some(message)) if message.label == NOTICE => {
                        return Err(notice(src, &message.bytes));
                    }
                    Ok(message) => *slot = message,
                    Err(e) => return Err(self.lost_peer(src, &e)),
                }
            }
            if sends.is_empty() && got.iter().all(Option::is_some) {
                return Ok(got.into_iter().flatten().collect());
            }
            if begin.elapsed() < self.polls {
                // Whoever else wants this core gets it.
                std::thread::yield_now();
            } else {
                self.wait(&sends, &got, from, deadline)?;
            }
        }
    }

    /// Sleeps until a socket that matters is ready.
    fn wait(
        &self,
        sends: &[Outgoing],
        got: &[Option<Message>],
        from: &[usize],
        deadline: Deadline,
    ) -> Result<()> {
        let awaited = || {
            from.iter()
                .zip(got)
                .filter(|(_, g)| g.is_none())
                .map(|(r, _)| *r)
        };
        let left = deadline.check(|| {
            let late: Vec<String> = awaited()
                .chain(sends.iter().map(|s| s.to))
                .map(|r| r.to_string())
                .collect();
            format!("rank {} waiting for rank {}", self.rank, late.join(", "))
        })?;
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for (rank, stream) in self.streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let mut flags = PollFlags::empty();
            if awaited().any(|r| r == rank) {
                flags |= PollFlags::POLLIN;
            }
            if sends.iter().any(|s| s.to == rank) {
                flags |= PollFlags::POLLOUT;
            }
            if !flags.is_empty() {
                fds.push(PollFd::new(stream.as_fd(), flags));
            }
        }
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::Io {
                what: "waiting for ranks".into(),
                source: e.into(),
            }),
        }
    }

    /// A notice from the peer says more than the broken connection.
    fn lost_peer(&mut self, rank: usize, e: &std::io::Error) -> Error {
        let incoming = &mut self.incoming[rank];
        if let Some(stream) = self.streams[rank].as_mut() {
            while let Ok(Some(message)) = incoming.progress(stream) {
                if message.label == NOTICE {
                    return notice(rank, &message.bytes);
                }
            }
        }
        let why = match e.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "its process ended".into()
            }
            _ => e.to_string(),
        };
        Error::PeerLost { rank, why }
    }

    fn tell_everyone(&mut self, error: &Error) {
        let (origin, why) = match error {
            Error::PeerLost { rank, why } => (*rank, why.clone()),
            Error::Deadline { .. } => (self.rank, format!("it gave up: {error}")),
            _ => return,
        };
        let Ok(bytes) = serde_json::to_vec(&(origin, why)) else {
            return;
        };
        let message = Message {
            label: NOTICE,
            bytes,
        };
        for (to, stream) in self.streams.iter_mut().enumerate() {
            if let Some(stream) = stream {
                // Best effort: a peer with a full socket will see the connection end.
                let _ = Outgoing::new(to, &message).progress(stream);
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
        self.drain();
    }
}

impl MeshTransport {
    /// Reads what peers still send, until they have closed too or a moment is over. A
    /// socket that is closed with unread bytes resets the connection, and the reset
    /// overtakes the notice that was sent before it.
    fn drain(&mut self) {
        let deadline = Deadline::after(LINGER);
        let mut scratch = vec![0; 64 * 1024];
        let mut open: Vec<&mut TcpStream> = self.streams.iter_mut().flatten().collect();
        while !open.is_empty() && !deadline.left().is_zero() {
            open.retain_mut(|stream| match stream.read(&mut scratch) {
                Ok(n) => n > 0,
                Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            });
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn notice(from: usize, bytes: &[u8]) -> Error {
    match serde_json::from_slice::<(usize, String)>(bytes) {
        Ok((rank, why)) if rank == from => Error::PeerLost { rank, why },
        Ok((rank, why)) => Error::PeerLost {
            rank,
            why: format!("{why} (rank {from} says so)"),
        },
        Err(_) => Error::PeerLost {
            rank: from,
            why: "it left with a garbled notice".into(),
        },
    }
}

impl Transport for MeshTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.streams.len()
    }

    fn implementation(&self) -> &'static str {
        "cpu-process"
    }

    fn exchange(
        &mut self,
        send: Vec<(usize, Message)>,
        from: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<Message>> {
        self.drive(send, from, deadline)
            .inspect_err(|e| self.tell_everyone(e))
    }

    fn poll_before_sleep(&mut self, time: Duration) {
        self.polls = time;
    }

    fn lost(&mut self) -> Option<(usize, String)> {
        let gone = |stream: &TcpStream| {
            // nix does not name this flag of Linux.
            let flags = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
            let mut fds = [PollFd::new(stream.as_fd(), flags)];
            let ready = poll(&mut fds, PollTimeout::ZERO).unwrap_or(0);
            ready > 0
        };
        let rank = self
            .streams
            .iter()
            .position(|s| s.as_ref().is_some_and(gone))?;
        let error = self.lost_peer(rank, &ErrorKind::UnexpectedEof.into());
        match error {
            Error::PeerLost { rank, why } => Some((rank, why)),
            other => Some((rank, other.to_string())),
        }
    }

    fn close(&mut self) {
        self.streams.iter_mut().for_each(|s| *s = None);
    }
}
