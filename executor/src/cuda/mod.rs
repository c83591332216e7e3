//! The CUDA layer: one GPU with one stream as a [`crate::Device`], memory with an
//! owner, graphs, events, kernels.

mod device;
mod gpu;
mod graph;
mod ipc;
mod kernels;
mod memory;
mod pinned;
mod stuck;

pub use gpu::{Gpu, Watch, device_count};
pub use graph::{Event, Graph};
pub use ipc::{Handle, Mapped};
pub use kernels::{Argument, Grid, Kernels};
pub use memory::Freer;
pub(crate) use memory::{DeviceMemory, Health};
pub use pinned::Pinned;
pub(crate) use stuck::Inside;
pub use stuck::watch_calls;

use cudarc::driver::DriverError;

use crate::{Error, Result};

/// Gives a driver error its call.
pub(crate) fn cuda<T>(
    call: impl FnOnce() -> String,
    result: std::result::Result<T, DriverError>,
) -> Result<T> {
    result.map_err(|e| Error::Cuda {
        call: call(),
        why: describe(e),
    })
}

/// The driver's name and text of an error.
pub(crate) fn describe(error: DriverError) -> String {
    let text = |r: std::result::Result<&std::ffi::CStr, DriverError>| {
        r.ok().map(|s| s.to_string_lossy().into_owned())
    };
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(text)) => format!("{name}: {text}"),
        _ => format!("error {}", error.0 as i32),
    }
}
