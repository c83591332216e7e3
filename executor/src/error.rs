//! What can go wrong while ranks run, and the exit code that each failure means.

use thiserror::Error;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the executor. Each says what was wrong, the value, and what would do.
#[derive(Debug, Error)]
pub enum Error {
    /// The request itself cannot be run; nothing was started.
    #[error("{0}")]
    Unusable(String),

    /// Arguments of a collective do not fit each other.
    #[error("{op}: {why}")]
    Arguments {
        /// Collective or operation.
        op: &'static str,
        /// What does not fit, with the values.
        why: String,
    },

    /// A wait ended because its time was over.
    #[error("{what}: no answer within {seconds:.1} s (raise --deadline if that is too short)")]
    Deadline {
        /// What was waited for, and from which rank.
        what: String,
        /// The time that was granted.
        seconds: f64,
    },

    /// A rank of the group is gone.
    #[error("rank {rank} is gone: {why}")]
    PeerLost {
        /// World rank of the peer.
        rank: usize,
        /// How that was noticed.
        why: String,
    },

    /// Ranks of a group called different collectives or with different sizes.
    #[error("ranks disagree: {0}")]
    Mismatch(String),

    /// Memory for a named buffer could not be had.
    #[error(
        "out of {place} memory for buffer '{buffer}': asked {asked} bytes, {free} bytes free of {total}"
    )]
    OutOfMemory {
        /// "GPU 0" or "host".
        place: String,
        /// Name of the buffer that was asked for.
        buffer: String,
        /// Bytes asked for.
        asked: u64,
        /// Bytes free at that time.
        free: u64,
        /// Bytes that the place has in all.
        total: u64,
    },

    /// A rendezvous failed.
    #[error("rendezvous at {address}: {why}")]
    Rendezvous {
        /// Address of the rendezvous.
        address: String,
        /// What went wrong.
        why: String,
    },

    /// A shared library is missing, too old or lacks a symbol.
    #[error("{library}: {why}")]
    Library {
        /// Name or path of the library.
        library: String,
        /// What is wrong with it and what would be right.
        why: String,
    },

    /// CUDA returned an error.
    #[error("CUDA: {call} failed: {why}")]
    Cuda {
        /// The driver call, with the values that matter.
        call: String,
        /// The driver's name of the error and its text.
        why: String,
    },

    /// NCCL returned an error.
    #[error("NCCL: {call} failed: {why}")]
    Nccl {
        /// The NCCL call.
        call: String,
        /// NCCL's name of the error and its last message.
        why: String,
    },

    /// cuBLASLt returned an error.
    #[error("cuBLASLt: {call} failed: {why}")]
    Cublas {
        /// The call, with the shape.
        call: String,
        /// The library's text.
        why: String,
    },

    /// A result differs from the reference.
    #[error("wrong result: {0}")]
    Wrong(String),

    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// Exit code of a process that ends with this error: 1 ran and failed, 2 unusable
    /// input (nothing was run, and trying again unchanged is pointless).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Unusable(_) | Error::Library { .. } => 2,
            _ => 1,
        }
    }

    /// An [`Error::Io`] with its context.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
