//! Launch description of the stamp; its kernel is in `cuda/stamp.cu`.

/// Entry point `(u64* at)`: writes the GPU's clock in nanoseconds, once all that was
/// enqueued before is done. One thread.
pub const STAMP: &str = "parplan_stamp";
