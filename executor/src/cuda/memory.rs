//! Device memory with an owner that knows how to give it back.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

/// Gives memory back that a library allocated (`ncclMemFree`).
pub trait Freer: Send + Sync + std::fmt::Debug {
    /// Frees the allocation that starts at `address`.
    fn free(&self, address: u64);
}

#[derive(Debug)]
enum Owner {
    /// From cuMemAlloc.
    Driver,
    /// From a library, which must free it.
    Library(Arc<dyn Freer>),
}

/// An allocation on a GPU; freed when dropped.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    address: u64,
    owner: Owner,
    context: Arc<CudaContext>,
}

impl DeviceMemory {
    /// Takes over an allocation of `cuMemAlloc`.
    pub(crate) fn driver(address: u64, context: Arc<CudaContext>) -> Self {
        DeviceMemory {
            address,
            owner: Owner::Driver,
            context,
        }
    }

    /// Takes over an allocation that `freer` must free.
    pub(crate) fn library(address: u64, freer: Arc<dyn Freer>, context: Arc<CudaContext>) -> Self {
        DeviceMemory {
            address,
            owner: Owner::Library(freer),
            context,
        }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // A context that is broken or gone has no memory to give back.
        if self.context.bind_to_thread().is_err() {
            return;
        }
        match &self.owner {
            // SAFETY: `address` came from cuMemAlloc in this context, nobody else owns
            // it, and cuMemFree waits for work that uses it.
            Owner::Driver => drop(unsafe { result::free_sync(self.address) }),
            Owner::Library(freer) => freer.free(self.address),
        }
    }
}
