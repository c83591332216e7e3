//! CUDA kernel sources, the PTX built from them, and a plain Rust reference of each.
