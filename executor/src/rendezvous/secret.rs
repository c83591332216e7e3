//! The shared secret, and the handshake in which both sides prove that they know it
//! without sending it: HMAC-SHA256 over fresh nonces of both.

use std::io::{Read, Write};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{Error, Result};

const NONCE: usize = 32;
const GREETING: &[u8; 8] = b"PARPLAN1";

/// What every member of a run knows and no stranger does.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// The name of the environment variable that carries it between machines.
    pub const ENV: &'static str = "PARPLAN_SECRET";

    /// A secret given by the user.
    ///
    /// # Errors
    /// [`Error::Unusable`] when it is shorter than 8 characters.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if text.len() < 8 {
            return Err(Error::Unusable(format!(
                "the shared secret has {} characters, it needs at least 8 (set {} on every machine)",
                text.len(),
                Self::ENV
            )));
        }
        Ok(Secret(text))
    }

    /// A fresh random secret, for ranks that one supervisor starts.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no random bytes.
    pub fn random() -> Result<Self> {
        Ok(Secret(
            random()?.iter().map(|b| format!("{b:02x}")).collect(),
        ))
    }

    fn proof(&self, role: &[u8], first: &[u8], second: &[u8]) -> std::io::Result<Hmac<Sha256>> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).map_err(std::io::Error::other)?;
        mac.update(role);
        mac.update(first);
        mac.update(second);
        Ok(mac)
    }

    /// The accepting side: challenges the visitor, and answers its challenge.
    pub(crate) fn accept(&self, stream: &mut (impl Read + Write)) -> std::io::Result<()> {
        let ours = random_io()?;
        stream.write_all(&[GREETING.as_slice(), &ours].concat())?;
        let mut theirs = [0; NONCE];
        let mut proof = [0; 32];
        stream.read_exact(&mut theirs)?;
        stream.read_exact(&mut proof)?;
        self.proof(b"visitor", &ours, &theirs)?
            .verify_slice(&proof)
            .map_err(|_| std::io::Error::other("it does not know the shared secret"))?;
        stream.write_all(&self.proof(b"host", &theirs, &ours)?.finalize().into_bytes())
    }

    /// The connecting side.
    pub(crate) fn prove(&self, stream: &mut (impl Read + Write)) -> std::io::Result<()> {
        let mut greeting = [0; 8];
        let mut theirs = [0; NONCE];
        stream.read_exact(&mut greeting)?;
        if &greeting != GREETING {
            return Err(std::io::Error::other("what answers there is not parplan"));
        }
        stream.read_exact(&mut theirs)?;
        let ours = random_io()?;
        let proof = self
            .proof(b"visitor", &theirs, &ours)?
            .finalize()
            .into_bytes();
        stream.write_all(&[ours.as_slice(), &proof].concat())?;
        let mut answer = [0; 32];
        stream.read_exact(&mut answer).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
                std::io::Error::other(format!(
                    "refused: is {} the same on both sides?",
                    Secret::ENV
                ))
            }
            _ => e,
        })?;
        self.proof(b"host", &ours, &theirs)?
            .verify_slice(&answer)
            .map_err(|_| {
                std::io::Error::other("what answers there does not know the shared secret")
            })
    }
}

fn random_io() -> std::io::Result<[u8; NONCE]> {
    let mut bytes = [0; NONCE];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn random() -> Result<[u8; NONCE]> {
    random_io().map_err(Error::io("reading /dev/urandom"))
}
