//! Memory of another process's GPU, mapped into this one.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};

use super::{Gpu, Health, cuda};
use crate::{Result, View};

/// What one process gives to another so that it can map a buffer: 64 opaque bytes, and
/// where in the allocation the buffer starts.
pub struct Handle(Vec<u8>);

const HANDLE: usize = 64;

impl Handle {
    /// The handle of a buffer from [`crate::Device::alloc`] on this GPU.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`] where the platform cannot share memory.
    pub fn of(gpu: &Gpu, view: &View) -> Result<Self> {
        gpu.bind()?;
        let address = view.address()?;
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut handle: sys::CUipcMemHandle = unsafe { std::mem::zeroed() };
        // SAFETY: `address` is live memory of cuMemAlloc in the current context.
        let code = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, address) };
        cuda(|| "cuIpcGetMemHandle".into(), code.result())?;
        let (mut base, mut size) = (0, 0);
        // SAFETY: as above. The handle maps the whole allocation that the buffer is in.
        let code = unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, address) };
        cuda(|| "cuMemGetAddressRange".into(), code.result())?;
        let mut bytes: Vec<u8> = handle.reserved.iter().map(|b| *b as u8).collect();
        bytes.extend_from_slice(&(address - base).to_le_bytes());
        Ok(Handle(bytes))
    }

    /// The bytes to send.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A peer's buffer, mapped here; unmapped when dropped.
#[derive(Debug)]
pub struct Mapped {
    base: u64,
    offset: u64,
    context: Arc<CudaContext>,
    health: Health,
}

impl Mapped {
    /// Maps the buffer of a [`Handle`]'s bytes from another process on this host.
    ///
    /// # Errors
    /// [`crate::Error::Cuda`] where the GPUs are no peers; a garbled handle.
    pub fn open(gpu: &Gpu, handle: &[u8]) -> Result<Self> {
        gpu.bind()?;
        let bad = || crate::Error::Arguments {
            op: "mapping a peer's memory",
            why: format!(
                "a handle of {} bytes, {} are right",
                handle.len(),
                HANDLE + 8
            ),
        };
        let (opaque, offset) = handle.split_at_checked(HANDLE).ok_or_else(bad)?;
        let offset = u64::from_le_bytes(offset.try_into().map_err(|_| bad())?);
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut raw: sys::CUipcMemHandle = unsafe { std::mem::zeroed() };
        for (to, from) in raw.reserved.iter_mut().zip(opaque) {
            *to = *from as std::ffi::c_char;
        }
        let mut base = 0;
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        // SAFETY: the driver checks the handle; `base` outlives the call.
        let code = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut base, raw, flags) };
        cuda(|| "cuIpcOpenMemHandle".into(), code.result())?;
        Ok(Mapped {
            base,
            offset,
            context: Arc::clone(gpu.context()),
            health: gpu.health().clone(),
        })
    }

    /// Address of the buffer here.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base + self.offset
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if !self.health.is_given_up() && self.context.bind_to_thread().is_ok() {
            // SAFETY: `base` came from cuIpcOpenMemHandle and is closed once.
            let _ = unsafe { sys::cuIpcCloseMemHandle(self.base) };
        }
    }
}
