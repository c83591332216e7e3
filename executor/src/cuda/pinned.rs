//! Page-locked host memory, which graphs can copy from and to.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::{Gpu, Health, cuda};
use crate::device::same_len;
use crate::{Result, View};

/// Page-locked bytes; freed when dropped. While a copy is enqueued the caller leaves
/// the bytes alone: it waits for the GPU first.
#[derive(Debug)]
pub struct Pinned {
    pointer: *mut c_void,
    len: usize,
    context: Arc<CudaContext>,
    health: Health,
}

// SAFETY: the memory is owned and reached through `&mut` only; the driver's calls are
// thread-safe once the context is current.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `len` zeroed bytes.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`].
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        gpu.bind()?;
        // SAFETY: a plain allocation, owned by the value made here.
        let pointer = unsafe { result::malloc_host(len.max(1), 0) };
        let pointer = cuda(
            || format!("allocating {len} bytes of pinned host memory"),
            pointer,
        )?;
        // SAFETY: fresh memory of that length.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, len) };
        Ok(Pinned {
            pointer,
            len,
            context: Arc::clone(gpu.context()),
            health: gpu.health().clone(),
        })
    }

    /// The bytes; not while a copy is in flight.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned memory of that length, borrowed through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.len) }
    }

    /// Enqueues a copy of all bytes to a view of the same length.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`], [`crate::Error::Cuda`].
    pub fn enqueue_to(&mut self, gpu: &Gpu, dst: &View) -> Result<()> {
        same_len("copy from pinned memory", dst.len(), self.len)?;
        let (address, stream) = (dst.address()?, gpu.stream().cu_stream());
        gpu.bind()?;
        // SAFETY: both are live and of that length; pinned memory may be read later.
        cuda(|| "copying from pinned memory".into(), unsafe {
            result::memcpy_htod_async(address, self.bytes_mut(), stream)
        })
    }

    /// Enqueues a copy of a view of the same length into the bytes.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`], [`crate::Error::Cuda`].
    pub fn enqueue_from(&mut self, gpu: &Gpu, src: &View) -> Result<()> {
        same_len("copy to pinned memory", self.len, src.len())?;
        let (address, stream) = (src.address()?, gpu.stream().cu_stream());
        gpu.bind()?;
        // SAFETY: as above.
        cuda(|| "copying to pinned memory".into(), unsafe {
            result::memcpy_dtoh_async(self.bytes_mut(), address, stream)
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if !self.health.is_given_up() && self.context.bind_to_thread().is_ok() {
            // SAFETY: from malloc_host, freed once. A failure leaves it to the process.
            let _ = unsafe { result::free_host(self.pointer) };
        }
    }
}
