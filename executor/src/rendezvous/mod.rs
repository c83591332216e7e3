//! How the ranks of a run find each other.
//!
//! One rendezvous server (in the supervisor of node 0, or in rank 0 where a launcher
//! started the ranks) waits for every rank, checks that each knows the shared secret,
//! and hands everyone the list of addresses. The ranks then connect to each other.

mod client;
mod secret;
mod server;

use serde::{Deserialize, Serialize};

pub use client::{Joined, join};
pub use secret::Secret;
pub use server::{Rendezvous, Visit};

/// What a rank says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub rank: usize,
    pub world: usize,
    /// Where the rank accepts its peers.
    pub listen: String,
    pub host: String,
    pub pid: u32,
}

/// What the server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Everyone is here; in rank order.
    Roster(Vec<Hello>),
    /// The rendezvous failed, or this visitor has no place in it.
    Refused(String),
}

/// Length-prefixed JSON, small enough that a stranger cannot make us allocate much.
pub(crate) mod wire {
    use std::io::{Read, Write};

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    const MAX: u32 = 4 << 20;

    pub(crate) fn send<T: Serialize>(to: &mut impl Write, value: &T) -> std::io::Result<()> {
        let body = serde_json::to_vec(value)?;
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&body);
        to.write_all(&frame)
    }

    pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> std::io::Result<T> {
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > MAX {
            return Err(std::io::Error::other(format!(
                "a frame of {len} bytes, at most {MAX} are accepted"
            )));
        }
        let mut body = vec![0; len as usize];
        from.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }
}
