//! Device memory with an owner that knows how to give it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::{CudaContext, result};

/// Takes memory back that a library allocated.
pub trait Freer: Send + Sync + std::fmt::Debug {
    /// Takes the allocation that starts at `address`, which nobody uses any more.
    fn free(&self, address: u64);
}

#[derive(Debug)]
enum Owner {
    /// From cuMemAlloc.
    Driver,
    /// From a library, which must free it.
    Library(Arc<dyn Freer>),
}

/// Whether work on a GPU was given up. Giving anything back then would wait for that
/// work, for ever where its peer is gone; the end of the process gives it all back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health(Arc<AtomicBool>);

impl Health {
    pub(crate) fn give_up(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An allocation on a GPU; freed when dropped.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    address: u64,
    owner: Owner,
    context: Arc<CudaContext>,
    health: Health,
}

impl DeviceMemory {
    /// Takes over an allocation of `cuMemAlloc`.
    pub(crate) fn driver(address: u64, context: Arc<CudaContext>, health: Health) -> Self {
        DeviceMemory {
            address,
            owner: Owner::Driver,
            context,
            health,
        }
    }

    /// Takes over an allocation that `freer` must free.
    pub(crate) fn library(
        address: u64,
        freer: Arc<dyn Freer>,
        context: Arc<CudaContext>,
        health: Health,
    ) -> Self {
        DeviceMemory {
            address,
            owner: Owner::Library(freer),
            context,
            health,
        }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // A context that is broken or gone has no memory to give back.
        if self.health.is_given_up() || self.context.bind_to_thread().is_err() {
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
