//! The rank's end of the connection to its supervisor.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};

use super::{Report, Spec};
use crate::{Error, Result};

/// Reports go out through this descriptor, so that whatever libraries print stays apart.
pub(crate) const REPORT_FD: RawFd = 3;

/// The way to the supervisor.
pub struct Channel(File);

impl Channel {
    /// Sends one report. A supervisor that is gone takes this process with it, so there
    /// is nobody to tell about a failure to report.
    pub fn send(&mut self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = self.0.write_all(&line);
        }
    }
}

/// Reads what this rank is to do from its standard input.
///
/// # Errors
/// [`Error::Unusable`] when the process was not started by a supervisor.
pub fn receive_spec() -> Result<(Spec, Channel)> {
    let not_supervised = |why: String| {
        Error::Unusable(format!(
            "this command is started by 'parplan run', not by hand: {why}"
        ))
    };
    if std::env::var_os(super::supervisor::MARK).is_none() {
        return Err(not_supervised(format!(
            "{} is not set",
            super::supervisor::MARK
        )));
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(Error::io("reading the rank's orders"))?;
    let spec = serde_json::from_str(&text)
        .map_err(|e| not_supervised(format!("its orders do not read: {e}")))?;
    // SAFETY: the supervisor, which set MARK, put the report pipe at this number before
    // it started this program, and nothing else in this process owns it.
    let channel = Channel(unsafe { File::from_raw_fd(REPORT_FD) });
    Ok((spec, channel))
}

/// Ends this process at once, without the exit handlers of its libraries: those of a GPU
/// driver wait for work that may never end. The kernel takes back what is left.
pub fn end_process(code: u8) -> ! {
    // SAFETY: ends the process; nothing of it is used after.
    unsafe { nix::libc::_exit(i32::from(code)) }
}
