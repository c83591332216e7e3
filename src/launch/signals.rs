//! SIGINT and SIGTERM, as events of a loop.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for SIGINT or SIGTERM and gives its number. Never ends where the process cannot listen,
/// which leaves the signals their default effect.
pub async fn any() -> i32 {
    async fn one(kind: SignalKind) -> i32 {
        match signal(kind) {
            Ok(mut stream) => wait(&mut stream, kind).await,
            Err(_) => std::future::pending().await,
        }
    }
    tokio::select! {
        number = one(SignalKind::interrupt()) => number,
        number = one(SignalKind::terminate()) => number,
    }
}

async fn wait(stream: &mut Signal, kind: SignalKind) -> i32 {
    match stream.recv().await {
        Some(()) => kind.as_raw_value(),
        None => std::future::pending().await,
    }
}
