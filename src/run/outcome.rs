//! How a supervised run ended, in words on standard error.

use crate::output::tell;
use std::path::Path;

use parplan_executor::ranks::Supervised;

/// Says what went wrong, first things first, and where the logs are. Logs of a good
/// run are removed unless the user named their folder.
pub fn report(run: &Supervised, logs: &Path, keep: bool) {
    for stranger in &run.strangers {
        tell!("warning: refused a visitor at the rendezvous, {stranger}");
    }
    if run.ok() {
        if !keep {
            // Left-over logs in a temporary folder hurt nobody.
            let _ = std::fs::remove_dir_all(logs);
        }
        return;
    }
    if let Some(signal) = run.interrupted {
        tell!("parplan: ended by signal {signal}; all ranks were stopped");
    } else if run.timed_out {
        tell!("parplan: the run's time is over (--limit); all ranks were stopped");
    }
    if let Some(why) = &run.rendezvous {
        tell!("parplan: {why}");
    }
    for (i, ended) in run.ended.iter().enumerate() {
        let label = if i == 0 && run.interrupted.is_none() {
            "parplan"
        } else {
            "  then"
        };
        let later = match ended.after_failure {
            Some(t) if i > 0 => format!(" ({:.1} s later)", t.as_secs_f64()),
            _ => String::new(),
        };
        tell!("{label}: {ended}{later}");
    }
    tell!("logs: {}", logs.display());
}
