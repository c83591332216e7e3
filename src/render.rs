//! Text for people: pages of at most 80 columns, fewer on a narrow terminal, readable without colour.

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
