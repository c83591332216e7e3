//! Key scripts and snapshots.
