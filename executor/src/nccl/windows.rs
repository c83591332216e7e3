//! Registration of buffers with an NCCL communicator.

use std::ffi::c_void;
use std::sync::Arc;

use super::NcclCommunicator;
use super::library::{Library, Version, WINDOWS};
use super::sys::{self, Comm};
use crate::cuda::{Freer, Gpu, Inside};
use crate::symmetric::{Registrar, Registration};
use crate::{Buffer, Error, Result, View};

/// Registers with one communicator, which must outlive it.
pub struct NcclRegistrar {
    comm: Comm,
    library: Arc<Library>,
    gpu: Arc<Gpu>,
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
        Ok(token as u64)
    }

    fn deregister(&mut self, token: u64, how: Registration) {
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
