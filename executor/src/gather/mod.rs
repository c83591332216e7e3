//! Attention-DP gather and scatter: before the layer that all ranks share (the FFN or
//! the experts) every rank needs the tokens of all DP ranks, after it its own again.

mod exchange;
mod shape;

pub use exchange::{Batch, DpExchange};
pub use shape::{DpLayout, Mode, ModeRule, StepShape};
