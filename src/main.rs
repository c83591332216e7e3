//! parplan: plan, check and start the parallel layout of an LLM server.

fn main() {}
