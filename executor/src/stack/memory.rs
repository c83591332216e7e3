//! Working memory of a stack: buffers by name, kept from step to step.

use std::collections::HashMap;

use super::compute::Compute;
use crate::{Buffer, Result, View};

/// Buffers by name. One that is too small is replaced by a larger one; the old one is
/// kept, because a captured graph may still name it.
#[derive(Default)]
pub struct Work {
    buffers: HashMap<&'static str, Buffer>,
    retired: Vec<Buffer>,
}

impl Work {
    /// Puts in a buffer that was allocated elsewhere, such as a registered one.
    pub fn adopt(&mut self, name: &'static str, buffer: Buffer) {
        if let Some(old) = self.buffers.insert(name, buffer) {
            self.retired.push(old);
        }
    }

    /// `bytes` bytes of the buffer `name`, whatever they hold.
    ///
    /// # Errors
    /// Out of memory.
    pub fn get(&mut self, device: &dyn Compute, name: &'static str, bytes: usize) -> Result<View> {
        if self.buffers.get(name).is_none_or(|b| b.len() < bytes) {
            let buffer = device.alloc(name, bytes)?;
            self.adopt(name, buffer);
        }
        // Inserted above where it was missing.
        match self.buffers.get(name) {
            Some(buffer) => buffer.view(0, bytes),
            None => device.alloc(name, bytes)?.view(0, bytes),
        }
    }
}
