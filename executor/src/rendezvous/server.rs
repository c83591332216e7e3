//! The side that waits for everyone.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Answer, Hello, Secret, wire};
use crate::{Deadline, Error, Result};

/// Time that one visitor has for its handshake; others are served meanwhile.
const VISIT: Duration = Duration::from_secs(3);

/// Someone who came and was sent away.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Where it came from.
    pub from: SocketAddr,
    /// Why it was refused.
    pub why: String,
}

/// A running rendezvous server; serves one gathering of `world` ranks.
pub struct Rendezvous {
    address: SocketAddr,
    cancel: Arc<AtomicBool>,
    refused: Arc<Mutex<Vec<Visit>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Rendezvous {
    /// Listens at `address` ("host:port", port 0 for any) and serves in a thread.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the address cannot be listened on.
    pub fn serve(address: &str, world: usize, secret: Secret, deadline: Deadline) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .map_err(|e| Error::Unusable(format!("cannot listen for ranks at {address}: {e}")))?;
        let address = listener
            .local_addr()
            .map_err(Error::io("the rendezvous address"))?;
        listener
            .set_nonblocking(true)
            .map_err(Error::io("the rendezvous socket"))?;
        let cancel = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(Mutex::new(Vec::new()));
        let gathering = Gathering {
            world,
            secret,
            deadline,
            address,
            cancel: Arc::clone(&cancel),
            refused: Arc::clone(&refused),
        };
        let thread = std::thread::spawn(move || gathering.run(&listener));
        Ok(Rendezvous {
            address,
            cancel,
            refused,
            thread: Some(thread),
        })
    }

    /// The address that it listens at, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Visitors that were sent away so far.
    #[must_use]
    pub fn refused(&self) -> Vec<Visit> {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends the wait for missing ranks: some rank is known to be dead.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Waits until the gathering is complete or has failed.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] naming the ranks that did not come.
    pub fn finish(mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(Error::Rendezvous {
                address: self.address.to_string(),
                why: "its thread died".into(),
            }),
        }
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        self.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Gathering {
    world: usize,
    secret: Secret,
    deadline: Deadline,
    address: SocketAddr,
    cancel: Arc<AtomicBool>,
    refused: Arc<Mutex<Vec<Visit>>>,
}

type Arrival = std::result::Result<(Hello, TcpStream), Visit>;

impl Gathering {
    fn run(&self, listener: &TcpListener) -> Result<()> {
        let (tx, rx) = channel();
        let mut present: BTreeMap<usize, (Hello, TcpStream)> = BTreeMap::new();
        while present.len() < self.world {
            self.admit(listener, &tx);
            self.place(&rx, &mut present);
            let over = self.deadline.left().is_zero();
            if over || self.cancel.load(Ordering::Relaxed) {
                let missing: Vec<usize> = (0..self.world)
                    .filter(|r| !present.contains_key(r))
                    .collect();
                let why = format!(
                    "{} of {} ranks came, missing: {}{}",
                    present.len(),
                    self.world,
                    list(&missing),
                    if over {
                        " (deadline)"
                    } else {
                        " (the run was ended)"
                    }
                );
                for (_, mut stream) in present.into_values() {
                    // The reason is a courtesy; a rank that is gone cannot take it.
                    let _ = wire::send(&mut stream, &Answer::Refused(why.clone()));
                }
                return Err(Error::Rendezvous {
                    address: self.address.to_string(),
                    why,
                });
            }
        }
        let roster: Vec<Hello> = present.values().map(|(h, _)| h.clone()).collect();
        for (rank, (_, mut stream)) in present {
            wire::send(&mut stream, &Answer::Roster(roster.clone())).map_err(|e| {
                Error::Rendezvous {
                    address: self.address.to_string(),
                    why: format!("rank {rank} left while the ranks gathered: {e}"),
                }
            })?;
        }
        Ok(())
    }

    fn admit(&self, listener: &TcpListener, tx: &Sender<Arrival>) {
        match listener.accept() {
            Ok((stream, from)) => {
                let (tx, secret) = (tx.clone(), self.secret.clone());
                std::thread::spawn(move || {
                    let arrival = greet(stream, &secret).map_err(|e| Visit {
                        from,
                        why: e.to_string(),
                    });
                    // The gathering may be over; then nobody is left to tell.
                    let _ = tx.send(arrival);
                });
            }
            // WouldBlock: nobody is at the door. Other errors concern one visitor only.
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }

    fn place(&self, rx: &Receiver<Arrival>, present: &mut BTreeMap<usize, (Hello, TcpStream)>) {
        for arrival in rx.try_iter() {
            let (hello, mut stream) = match arrival {
                Ok(ok) => ok,
                Err(visit) => {
                    self.refused
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(visit);
                    continue;
                }
            };
            let problem = if hello.world != self.world {
                Some(format!(
                    "it counts {} ranks, this run has {}",
                    hello.world, self.world
                ))
            } else if hello.rank >= self.world {
                Some(format!(
                    "it is rank {}, the ranks are 0 to {}",
                    hello.rank,
                    self.world - 1
                ))
            } else {
                present.get(&hello.rank).map(|(other, _)| {
                    format!(
                        "rank {} is taken by process {} on {}",
                        hello.rank, other.pid, other.host
                    )
                })
            };
            let Some(why) = problem else {
                present.insert(hello.rank, (hello, stream));
                continue;
            };
            // It learns the reason if it is still there to read it.
            let _ = wire::send(&mut stream, &Answer::Refused(why.clone()));
            if let Ok(from) = stream.peer_addr() {
                self.refused
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Visit { from, why });
            }
        }
    }
}

fn greet(mut stream: TcpStream, secret: &Secret) -> std::io::Result<(Hello, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(VISIT))?;
    stream.set_write_timeout(Some(VISIT))?;
    secret.accept(&mut stream)?;
    let hello = wire::receive(&mut stream)?;
    Ok((hello, stream))
}

fn list(ranks: &[usize]) -> String {
    ranks
        .iter()
        .map(|r| format!("rank {r}"))
        .collect::<Vec<_>>()
        .join(", ")
}
