//! Text for people: tables of at most 80 columns, readable without colour.

pub mod breakdown;
pub mod comparison;
pub mod gather;
pub mod graphs;
pub mod launch;
pub mod memory;
pub mod number;
pub mod page;
pub mod plan;
pub mod ranking;
pub mod table;
pub mod volume;

pub use page::Page;
pub use table::Table;

/// Columns that every page keeps to.
pub const WIDTH: usize = 80;
