//! A pool of registered buffers that are the same on every rank.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::comm::CpuCommunicator;
use crate::{Buffer, Communicator, Error, Result, View};

/// How a buffer is registered with its communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Not at all.
    None,
    /// `ncclCommRegister`: this rank alone; zero-copy over NVLink and networks.
    Local,
    /// A symmetric window, registered by all ranks together.
    Symmetric,
}

impl Registration {
    /// Name in tables and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Registration::None => "none",
            Registration::Local => "local",
            Registration::Symmetric => "symmetric",
        }
    }
}

/// Allocates and registers; NCCL in earnest, a fake in tests.
pub trait Registrar {
    /// Allocates memory that can be registered.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming the buffer.
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Buffer>;
    /// Address of a buffer's first byte.
    ///
    /// # Errors
    /// [`Error::Arguments`] for a buffer of another device.
    fn address(&self, view: &View) -> Result<u64>;
    /// Registers a whole buffer. Collective for [`Registration::Symmetric`].
    ///
    /// # Errors
    /// [`Error::Nccl`], or [`Error::Library`] where the library cannot.
    fn register(&mut self, buffer: &Buffer, how: Registration) -> Result<u64>;
    /// Undoes a registration.
    fn deregister(&mut self, token: u64, how: Registration);
}

struct Entry {
    len: u64,
    how: Registration,
    token: u64,
    _buffer: Buffer,
}

/// Registered buffers of one communicator. Buffers stay registered until the pool is
/// dropped: deregistering is collective too, and reuse is the caller's.
pub struct WindowPool<R: Registrar> {
    registrar: R,
    /// By address of the first byte.
    entries: BTreeMap<u64, Entry>,
    sequence: u64,
}

/// What ranks must agree on before one of them allocates.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    sequence: u64,
    name: String,
    bytes: u64,
    how: Registration,
}

impl<R: Registrar> WindowPool<R> {
    /// An empty pool.
    pub fn new(registrar: R) -> Self {
        WindowPool {
            registrar,
            entries: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// The registrar.
    pub fn registrar(&mut self) -> &mut R {
        &mut self.registrar
    }

    /// Allocates and registers a buffer on every rank. All ranks call this with the
    /// same name, size and kind, in the same order; otherwise all of them refuse, and
    /// nothing reaches NCCL, where unequal windows hang or corrupt.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the ranks that differ, what each asked for, and the
    /// number of the allocation; else as the registrar.
    pub fn allocate(
        &mut self,
        control: &mut CpuCommunicator,
        name: &str,
        bytes: usize,
        how: Registration,
    ) -> Result<Buffer> {
        let claim = Claim {
            sequence: self.sequence,
            name: name.to_owned(),
            bytes: bytes as u64,
            how,
        };
        agree(control, &claim)?;
        self.sequence += 1;
        let allocated = self.registrar.allocate(name, bytes);
        // One rank without memory must not leave the others in a collective call.
        all_succeeded(control, "allocating", &allocated)?;
        let buffer = allocated?;
        if how == Registration::None {
            return Ok(buffer);
        }
        let token = self.registrar.register(&buffer, how)?;
        let address = self.registrar.address(&buffer.all())?;
        self.entries.insert(
            address,
            Entry {
                len: bytes as u64,
                how,
                token,
                _buffer: buffer.clone(),
            },
        );
        Ok(buffer)
    }

    /// How a view's memory is registered: one look into an ordered map, no driver call.
    ///
    /// # Errors
    /// As [`Registrar::address`].
    pub fn registration(&self, view: &View) -> Result<Registration> {
        let address = self.registrar.address(view)?;
        Ok(match self.entries.range(..=address).next_back() {
            Some((start, e)) if address + view.len() as u64 <= start + e.len => e.how,
            _ => Registration::None,
        })
    }
}

impl<R: Registrar> Drop for WindowPool<R> {
    fn drop(&mut self) {
        for entry in std::mem::take(&mut self.entries).into_values() {
            self.registrar.deregister(entry.token, entry.how);
        }
    }
}

/// All ranks make the same claim, or all get the same error.
fn agree(control: &mut CpuCommunicator, claim: &Claim) -> Result<()> {
    let mine = serde_json::to_vec(claim)
        .map_err(|e| Error::Mismatch(format!("a claim that does not serialise: {e}")))?;
    let mut claims = Vec::new();
    for (rank, bytes) in control.all_gather_bytes(&mine)?.iter().enumerate() {
        let claim: Claim = serde_json::from_slice(bytes).map_err(|e| {
            Error::Mismatch(format!(
                "rank {rank} sent a symmetric claim that does not read: {e}"
            ))
        })?;
        claims.push(claim);
    }
    let Some(odd) = claims.iter().position(|c| *c != claims[0]) else {
        return Ok(());
    };
    let say = |rank: usize| {
        let c = &claims[rank];
        format!(
            "rank {rank} asks for '{}' of {} bytes ({:?}) as its allocation {}",
            c.name, c.bytes, c.how, c.sequence
        )
    };
    Err(Error::Mismatch(format!(
        "symmetric memory must be allocated alike on every rank: {}, {}",
        say(0),
        say(odd)
    )))
}

fn all_succeeded<T>(control: &mut CpuCommunicator, what: &str, mine: &Result<T>) -> Result<()> {
    let text = mine
        .as_ref()
        .err()
        .map(ToString::to_string)
        .unwrap_or_default();
    let failed: Vec<String> = control
        .all_gather_bytes(text.as_bytes())?
        .iter()
        .enumerate()
        .filter(|(rank, e)| !e.is_empty() && *rank != control.rank())
        .map(|(rank, e)| format!("rank {rank}: {}", String::from_utf8_lossy(e)))
        .collect();
    if mine.is_ok() && !failed.is_empty() {
        return Err(Error::Mismatch(format!(
            "{what} symmetric memory failed on {}",
            failed.join("; ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::LocalWorld;
    use crate::{CpuDevice, Device};

    /// Host memory, and a count of what reached the "library".
    #[derive(Default)]
    struct Fake {
        device: CpuDevice,
        registered: Vec<Registration>,
        full: bool,
    }

    impl Registrar for Fake {
        fn allocate(&mut self, name: &str, bytes: usize) -> Result<Buffer> {
            if self.full {
                return Err(Error::OutOfMemory {
                    place: "GPU 1".into(),
                    buffer: name.into(),
                    asked: bytes as u64,
                    free: 5,
                    total: 9,
                });
            }
            self.device.alloc(name, bytes)
        }
        fn address(&self, view: &View) -> Result<u64> {
            view.with_host(|b| b.as_ptr() as u64)
        }
        fn register(&mut self, _: &Buffer, how: Registration) -> Result<u64> {
            self.registered.push(how);
            Ok(1)
        }
        fn deregister(&mut self, _: u64, _: Registration) {}
    }

    /// Each rank allocates what `asks` says for it, through a pool of its own.
    fn ranks(
        size: usize,
        full: Option<usize>,
        asks: fn(usize) -> Vec<(&'static str, usize)>,
    ) -> Vec<(Vec<std::result::Result<usize, String>>, usize)> {
        let threads: Vec<_> = LocalWorld::connect(size)
            .unwrap()
            .into_iter()
            .enumerate()
            .map(|(rank, mut control)| {
                std::thread::spawn(move || {
                    let mut pool = WindowPool::new(Fake {
                        full: full == Some(rank),
                        ..Fake::default()
                    });
                    let results = asks(rank)
                        .into_iter()
                        .map(|(name, bytes)| {
                            let buffer =
                                pool.allocate(&mut control, name, bytes, Registration::Symmetric);
                            buffer.map(|b| b.len()).map_err(|e| e.to_string())
                        })
                        .collect();
                    (results, pool.registrar().registered.len())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    }

    #[test]
    fn equal_allocations_are_registered_on_every_rank() {
        for (results, registered) in ranks(3, None, |_| vec![("gathered", 4096), ("logits", 100)]) {
            assert_eq!(results, [Ok(4096), Ok(100)]);
            assert_eq!(registered, 2);
        }
    }

    #[test]
    fn unequal_sizes_are_refused_on_every_rank_before_the_library_sees_them() {
        let asks = |rank| vec![("gathered", if rank == 1 { 8192 } else { 4096 })];
        for (results, registered) in ranks(3, None, asks) {
            assert_eq!(
                results,
                [Err("ranks disagree: symmetric memory must be allocated alike on every rank: rank 0 asks for 'gathered' of 4096 \
                      bytes (Symmetric) as its allocation 0, rank 1 asks for 'gathered' of 8192 bytes (Symmetric) as its allocation 0"
                    .to_owned())]
            );
            assert_eq!(registered, 0);
        }
    }

    #[test]
    fn another_order_is_refused_even_where_sizes_agree() {
        let asks = |rank| {
            if rank == 0 {
                vec![("a", 64), ("b", 64)]
            } else {
                vec![("b", 64), ("a", 64)]
            }
        };
        for (results, registered) in ranks(2, None, asks) {
            assert!(
                results.iter().all(|r| r
                    .as_ref()
                    .is_err_and(|e| e.contains("must be allocated alike"))),
                "{results:?}"
            );
            assert_eq!(registered, 0);
        }
    }

    #[test]
    fn a_rank_without_memory_keeps_the_others_from_registering() {
        let all = ranks(2, Some(1), |_| vec![("gathered", 64)]);
        let full = "out of GPU 1 memory for buffer 'gathered': asked 64 bytes, 5 bytes free of 9";
        assert_eq!(all[1].0, [Err(full.to_owned())]);
        assert_eq!(
            all[0].0,
            [Err(format!(
                "ranks disagree: allocating symmetric memory failed on rank 1: {full}"
            ))]
        );
        assert_eq!((all[0].1, all[1].1), (0, 0));
    }

    #[test]
    fn the_pool_knows_its_views_and_no_others() {
        let mut control = LocalWorld::connect(1).unwrap().remove(0);
        let mut pool = WindowPool::new(Fake::default());
        let inside = pool
            .allocate(&mut control, "in", 128, Registration::Local)
            .unwrap();
        let outside = pool.registrar().device.alloc("out", 128).unwrap();
        let of = |v: &View| pool.registration(v).unwrap();
        assert_eq!(of(&inside.all()), Registration::Local);
        assert_eq!(of(&inside.view(100, 28).unwrap()), Registration::Local);
        assert_eq!(of(&outside.all()), Registration::None);
    }
}
