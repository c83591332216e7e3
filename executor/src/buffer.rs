//! Memory that collectives work on: owned buffers, and views into them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::DeviceMemory;
use crate::{Error, Result};

/// Counts the bytes that a device holds and the most that it held at once.
#[derive(Debug, Default)]
pub struct MemoryMeter {
    current: AtomicU64,
    peak: AtomicU64,
}

impl MemoryMeter {
    /// Bytes held now.
    #[must_use]
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// Most bytes held at once since the start or the last [`reset_peak`](Self::reset_peak).
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Lets the peak start again from what is held now.
    pub fn reset_peak(&self) {
        self.peak.store(self.current(), Ordering::Relaxed);
    }

    /// Notes that `bytes` were taken; giving the token back releases them.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> MeterToken {
        let now = self.current.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        MeterToken {
            meter: Arc::clone(self),
            bytes,
        }
    }
}

/// Holds its bytes in the meter until it is dropped.
#[derive(Debug)]
pub(crate) struct MeterToken {
    meter: Arc<MemoryMeter>,
    bytes: u64,
}

impl Drop for MeterToken {
    fn drop(&mut self) {
        self.meter.current.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Memory {
    Host(Mutex<Vec<u8>>),
    Device(DeviceMemory),
}

#[derive(Debug)]
struct Inner {
    memory: Memory,
    len: usize,
    name: String,
    _meter: MeterToken,
}

/// Memory of a device; freed when the last clone and the last view of it are dropped.
#[derive(Clone, Debug)]
pub struct Buffer(Arc<Inner>);

impl Buffer {
    pub(crate) fn host(name: &str, bytes: Vec<u8>, meter: MeterToken) -> Self {
        Buffer(Arc::new(Inner {
            len: bytes.len(),
            memory: Memory::Host(Mutex::new(bytes)),
            name: name.to_owned(),
            _meter: meter,
        }))
    }

    pub(crate) fn device(
        name: &str,
        memory: DeviceMemory,
        bytes: usize,
        meter: MeterToken,
    ) -> Self {
        Buffer(Arc::new(Inner {
            len: bytes,
            memory: Memory::Device(memory),
            name: name.to_owned(),
            _meter: meter,
        }))
    }

    /// Bytes in the buffer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether the buffer has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The name that it was allocated under, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The whole buffer.
    #[must_use]
    pub fn all(&self) -> View {
        View {
            buffer: self.clone(),
            offset: 0,
            len: self.len(),
        }
    }

    /// `len` bytes from `offset`.
    ///
    /// # Errors
    /// [`Error::Arguments`] when the range leaves the buffer.
    pub fn view(&self, offset: usize, len: usize) -> Result<View> {
        self.all().sub(offset, len)
    }
}

/// A range of bytes of a buffer, which it keeps alive. Views may overlap: an in-place
/// collective takes its input from inside its output.
#[derive(Clone, Debug)]
pub struct View {
    buffer: Buffer,
    offset: usize,
    len: usize,
}

impl View {
    /// Bytes in the view.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the view has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Offset in its buffer, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The buffer that it is part of.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// `len` bytes from `offset` of this view.
    ///
    /// # Errors
    /// [`Error::Arguments`] when the range leaves the view.
    pub fn sub(&self, offset: usize, len: usize) -> Result<View> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::Arguments {
                op: "view",
                why: format!(
                    "bytes {offset}..{} of '{}' asked for, it has {}",
                    offset.saturating_add(len),
                    self.buffer.name(),
                    self.len
                ),
            });
        }
        Ok(View {
            buffer: self.buffer.clone(),
            offset: self.offset + offset,
            len,
        })
    }

    /// Runs `f` on the bytes of a host view.
    pub(crate) fn with_host<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        match &self.buffer.0.memory {
            Memory::Host(bytes) => {
                // A rank that panicked while holding the lock has already failed its
                // run; the bytes themselves are still plain bytes.
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(f(&mut bytes[self.offset..self.offset + self.len]))
            }
            Memory::Device(_) => Err(self.misplaced("a GPU", "the host")),
        }
    }

    /// Device address of a view of device memory.
    pub(crate) fn address(&self) -> Result<u64> {
        match &self.buffer.0.memory {
            Memory::Device(memory) => Ok(memory.address() + self.offset as u64),
            Memory::Host(_) => Err(self.misplaced("the host", "a GPU")),
        }
    }

    fn misplaced(&self, is: &str, needs: &str) -> Error {
        Error::Arguments {
            op: "view",
            why: format!(
                "buffer '{}' is in memory of {is}, this needs memory of {needs}",
                self.buffer.name()
            ),
        }
    }
}
