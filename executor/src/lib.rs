//! What does happen: ranks as processes, communicators, collectives, timing.
