//! What things are: validated descriptions of models, GPUs, engines and workloads.
