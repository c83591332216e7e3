//! Registration of buffers with an NCCL communicator.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use super::NcclCommunicator;
use super::library::{Library, WINDOWS};
use super::sys::{self, Comm};
use crate::cuda::{Freer, Gpu, Inside};
use crate::loading::Version;
use crate::symmetric::{Registrar, Registration};
use crate::{Buffer, Error, Result, View};

/// NCCL's symmetric kernels read elements of 1 and 2 bytes right from here on. Before, their
/// low-latency kernels lose the last bytes of every 8 where a part does not begin at a
/// multiple of 4 bytes (`loadPack` in src/device/op128.h).
const READS_ANY_PART: Version = Version(23_000);

/// The symmetric windows of one communicator, by their first byte: known to the
/// communicator and to its registrars.
#[derive(Clone, Default)]
pub(super) struct Windows(Arc<Mutex<BTreeMap<u64, Window>>>);

struct Window {
    end: u64,
    token: u64,
}

impl Windows {
    fn add(&self, start: u64, window: Window) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(start, window);
    }

    fn remove(&self, token: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, window| window.token != token);
    }

    fn holds(&self, address: u64) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.range(..=address).next_back();
        before.is_some_and(|(_, window)| address < window.end)
    }

    /// Refuses what NCCL `version` would read wrong: parts of `element` bytes an element in
    /// a window, the first at `first` and the others `stride` bytes apart, unless they all
    /// begin at multiples of 4 bytes. The same answer on all ranks where they give alike.
    ///
    /// # Errors
    /// [`Error::Arguments`] naming where the parts begin.
    pub(super) fn check_parts(
        &self,
        version: Version,
        op: &'static str,
        element: usize,
        first: u64,
        stride: usize,
    ) -> Result<()> {
        let misread = element < 4 && version < READS_ANY_PART;
        if misread && !(first | stride as u64).is_multiple_of(4) && self.holds(first) {
            return Err(Error::Arguments {
                op,
                why: format!(
                    "parts {stride} bytes apart in symmetric memory, the first {} bytes past a multiple of 4: NCCL {version} reads elements of {element} byte{} right only where every part begins at a multiple of 4 bytes",
                    first % 4,
                    if element == 1 { "" } else { "s" }
                ),
            });
        }
        Ok(())
    }
}

/// Registers with one communicator, which must outlive it.
pub struct NcclRegistrar {
    comm: Comm,
    library: Arc<Library>,
    gpu: Arc<Gpu>,
    windows: Windows,
}

// SAFETY: used by one thread at a time, as NCCL asks for.
unsafe impl Send for NcclRegistrar {}

impl NcclRegistrar {
    /// A registrar for `comm`.
    ///
    /// # Errors
    /// [`Error::Nccl`] when the communicator was aborted.
    pub fn new(comm: &NcclCommunicator) -> Result<Self> {
        Ok(NcclRegistrar {
            comm: comm.raw()?,
            library: Arc::clone(comm.library()),
            gpu: Arc::clone(comm.gpu()),
            windows: comm.windows().clone(),
        })
    }
}

impl Registrar for NcclRegistrar {
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<Buffer> {
        self.gpu.bind()?;
        // Whole pages: a window covers them anyway, and all ranks round alike.
        let padded = bytes.next_multiple_of(sys::WINDOW_ALIGNMENT);
        match self.library.mem_alloc(padded)? {
            Some(address) => Ok(self.gpu.adopt(
                name,
                address,
                bytes,
                Arc::clone(&self.library) as Arc<dyn Freer>,
            )),
            None => Err(self.gpu.out_of_memory(name, padded)),
        }
    }

    fn address(&self, view: &View) -> Result<u64> {
        view.address()
    }

    fn register(&mut self, buffer: &Buffer, how: Registration) -> Result<u64> {
        self.gpu.bind()?;
        let address = buffer.all().address()? as *mut c_void;
        let bytes = buffer.len().next_multiple_of(sys::WINDOW_ALIGNMENT);
        let symbols = self.library.symbols();
        let mut token: *mut c_void = std::ptr::null_mut();
        let _inside = Inside::enter();
        let code = match how {
            Registration::None => return Ok(0),
            Registration::Local => {
                let register = self.library.optional(
                    symbols.comm_register,
                    "ncclCommRegister",
                    Version(21_903),
                )?;
                // SAFETY: the buffer has that many bytes and outlives its registration.
                unsafe { register(self.comm, address, bytes, &raw mut token) }
            }
            Registration::Symmetric => {
                let register = self.library.optional(
                    symbols.comm_window_register,
                    "ncclCommWindowRegister",
                    WINDOWS,
                )?;
                // SAFETY: as above; all ranks have agreed to make this call.
                unsafe {
                    register(
                        self.comm,
                        address,
                        bytes,
                        &raw mut token,
                        sys::WIN_COLL_SYMMETRIC,
                    )
                }
            }
        };
        self.library
            .check_result("registering a buffer", code, self.comm)?;
        if token.is_null() && how == Registration::Symmetric {
            return Err(Error::Nccl {
                call: "ncclCommWindowRegister".into(),
                why: "it gave no window: symmetric memory is not available here (is NCCL_WIN_ENABLE=0, or a peer out of reach?)".into(),
            });
        }
        if how == Registration::Symmetric {
            let end = address as u64 + bytes as u64;
            let token = token as u64;
            self.windows.add(address as u64, Window { end, token });
        }
        Ok(token as u64)
    }

    fn deregister(&mut self, token: u64, how: Registration) {
        self.windows.remove(token);
        let token = token as *mut c_void;
        if token.is_null() || self.gpu.health().is_given_up() || self.gpu.bind().is_err() {
            return;
        }
        let symbols = self.library.symbols();
        let undo = match how {
            Registration::None => None,
            Registration::Local => symbols.comm_deregister,
            Registration::Symmetric => symbols.comm_window_deregister,
        };
        if let Some(undo) = undo {
            let _inside = Inside::enter();
            // SAFETY: the token came from register, is undone once, and the communicator
            // is alive. A failure leaves the registration to the communicator's end.
            let _ = unsafe { undo(self.comm, token) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_nccl_misreads_are_refused_in_windows_only() {
        let windows = Windows::default();
        windows.add(
            4096,
            Window {
                end: 8192,
                token: 1,
            },
        );
        let check = |version, element, first, stride| {
            windows.check_parts(Version(version), "all-gather", element, first, stride)
        };
        assert_eq!(
            check(22_803, 1, 4096, 14).unwrap_err().to_string(),
            "all-gather: parts 14 bytes apart in symmetric memory, the first 0 bytes past a multiple of 4: \
             NCCL 2.28.3 reads elements of 1 byte right only where every part begins at a multiple of 4 bytes"
        );
        assert!(check(22_803, 2, 4098, 16).is_err());
        for fine in [
            check(22_803, 1, 4096, 16),
            // Other memory, wider elements, and an NCCL that reads them right.
            check(22_803, 1, 8192, 14),
            check(22_803, 1, 4095, 14),
            check(22_803, 4, 4098, 14),
            check(23_000, 1, 4096, 14),
        ] {
            assert!(fine.is_ok());
        }
        windows.remove(1);
        assert!(check(22_803, 1, 4096, 14).is_ok());
    }
}
