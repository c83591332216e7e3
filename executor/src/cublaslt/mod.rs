//! Matrix products by cuBLASLt, through an FFI of our own in three layers: [`sys`]
//! (symbols as they are), [`Library`] (results become errors), [`Products`] (ownership,
//! the library's own choice of algorithm for each shape, its workspace).

mod library;
mod products;
pub mod sys;

pub use crate::loading::Version;
pub use library::{Library, MINIMUM};
pub use products::{Operands, Product, Products};
