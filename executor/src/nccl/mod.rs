//! NCCL through an FFI of our own, in three layers: [`sys`] (symbols as they are),
//! [`Library`] (results become errors), [`NcclCommunicator`] (ownership).

mod blocks;
mod comm;
mod library;
mod locate;
pub mod sys;
mod windows;

pub use crate::loading::Version;
pub use comm::NcclCommunicator;
pub use library::{Library, MINIMUM, ONE_SIDED, SHARE_GPUS, SHARED_GPUS, WINDOWS};
pub use locate::{Found, find, locate};
pub use windows::NcclRegistrar;
