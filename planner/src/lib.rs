//! What will happen: pure prediction. No files, clocks, devices or environment in here.

pub mod layout;

pub use layout::Layout;
