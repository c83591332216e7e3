//! Where a rank's memory lives, and the local work on it.

use std::sync::Arc;

use crate::{Buffer, MemoryMeter, Result, View};

/// Memory and local work of one rank. On a GPU, work is enqueued on the rank's stream
/// in call order; `read` waits for it.
pub trait Device: Send {
    /// Allocates `bytes` bytes whose content is undefined.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] naming the buffer, the bytes asked for and free.
    fn alloc(&self, name: &str, bytes: usize) -> Result<Buffer>;

    /// Copies host bytes to the view; both must be equally long.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] when lengths differ; a device error.
    fn write(&self, dst: &View, bytes: &[u8]) -> Result<()>;

    /// The bytes of the view, after all work enqueued before.
    ///
    /// # Errors
    /// A device error or an overrun deadline.
    fn read(&self, src: &View) -> Result<Vec<u8>>;

    /// Sets every byte of the view.
    ///
    /// # Errors
    /// A device error.
    fn fill(&self, dst: &View, byte: u8) -> Result<()>;

    /// Copies between two equally long views that do not overlap.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] when lengths differ; a device error.
    fn copy(&self, dst: &View, src: &View) -> Result<()>;

    /// Waits for all work enqueued so far.
    ///
    /// # Errors
    /// A device error or an overrun deadline.
    fn synchronize(&self) -> Result<()>;

    /// Bytes allocated through this device, now and at most.
    fn meter(&self) -> &Arc<MemoryMeter>;
}

/// The byte every output is set to before a run: as f16, bf16, f32 and f64 it is NaN,
/// as an integer it is −1, so an element that was not written cannot pass.
pub const POISON: u8 = 0xff;

pub(crate) fn same_len(op: &'static str, dst: usize, src: usize) -> Result<()> {
    if dst == src {
        return Ok(());
    }
    Err(crate::Error::Arguments {
        op,
        why: format!("the destination has {dst} bytes and the source {src}, they must be equal"),
    })
}

/// The host as a device: the reference that every other one is held to.
#[derive(Debug, Default)]
pub struct CpuDevice {
    meter: Arc<MemoryMeter>,
}

impl CpuDevice {
    /// A device with nothing allocated.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for CpuDevice {
    fn alloc(&self, name: &str, bytes: usize) -> Result<Buffer> {
        // Poisoned rather than zeroed: code that relies on fresh memory being zero
        // must fail here, as it would on a GPU.
        Ok(Buffer::host(
            name,
            vec![POISON; bytes],
            self.meter.take(bytes as u64),
        ))
    }

    fn write(&self, dst: &View, bytes: &[u8]) -> Result<()> {
        same_len("write", dst.len(), bytes.len())?;
        dst.with_host(|d| d.copy_from_slice(bytes))
    }

    fn read(&self, src: &View) -> Result<Vec<u8>> {
        src.with_host(|s| s.to_vec())
    }

    fn fill(&self, dst: &View, byte: u8) -> Result<()> {
        dst.with_host(|d| d.fill(byte))
    }

    fn copy(&self, dst: &View, src: &View) -> Result<()> {
        same_len("copy", dst.len(), src.len())?;
        // Through a copy: both views may lie in one buffer, behind one lock.
        let bytes = src.with_host(|s| s.to_vec())?;
        dst.with_host(|d| d.copy_from_slice(&bytes))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn meter(&self) -> &Arc<MemoryMeter> {
        &self.meter
    }
}
