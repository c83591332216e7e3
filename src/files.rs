//! Files written whole or not at all.

use crate::failure::Failure;
use std::fs::Permissions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::NamedTempFile;

/// Writes a file beside its place, then moves it there, so that nobody ever reads half of it.
///
/// # Errors
/// A folder that cannot be written to, or a file that exists already unless it may be replaced.
pub fn write_whole(path: &Path, text: &str, replace: bool) -> Result<(), Failure> {
    let cannot = |error| cannot_be_written(path, &error);
    let mut file = beside(path)?;
    file.write_all(text.as_bytes()).map_err(cannot)?;
    file.as_file().sync_all().map_err(cannot)?;
    let moved = if replace {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    match moved {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Err(Failure::unusable(
            format!("{}: exists already; nothing was written", path.display()),
        )),
        Err(error) => Err(cannot(error.error)),
    }
}

/// Whether a file can be written in this place, for those who work long before they write it.
///
/// # Errors
/// A folder that cannot be written to, or something else than a file in this place.
pub fn can_be_written(path: &Path) -> Result<(), Failure> {
    beside(path).map(drop)
}

/// A new file in the folder of `path`, which is made where it is missing.
fn beside(path: &Path) -> Result<NamedTempFile, Failure> {
    let cannot = |error| cannot_be_written(path, &error);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Moving a file onto a device, a pipe or a link would take the place of the thing itself.
    if let Ok(there) = std::fs::symlink_metadata(path)
        && !there.is_file()
    {
        return Err(Failure::failed(format!(
            "{}: is not a regular file; nothing was written, give the name of a new file",
            path.display()
        )));
    }
    std::fs::create_dir_all(folder).map_err(cannot)?;
    // Readable as any new file is: what the umask leaves.
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(cannot)
}

fn cannot_be_written(path: &Path, error: &std::io::Error) -> Failure {
    // The name of the temporary file says nothing to anybody.
    let error = error.to_string();
    let why = error.split(" at path ").next().unwrap_or_default();
    Failure::failed(format!("{}: cannot be written: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_may_read_what_they_could_read_of_any_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| {
            let about = std::fs::metadata(folder.path().join(name)).unwrap();
            about.permissions().mode()
        };
        std::fs::write(folder.path().join("plain"), "").unwrap();
        write_whole(&folder.path().join("whole"), "", false).unwrap();
        assert_eq!(mode("whole"), mode("plain"));
    }

    #[test]
    fn a_file_is_replaced_only_when_asked_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("plan.toml");
        write_whole(&path, "one", false).unwrap();
        let refused = write_whole(&path, "two", false).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        write_whole(&path, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(
            std::fs::read_dir(folder.path().join("deep"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target.toml");
        std::fs::write(&target, "kept").unwrap();
        let link = folder.path().join("link.toml");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        for path in [link.as_path(), folder.path()] {
            let refused = write_whole(path, "lost", true).unwrap_err();
            assert_eq!(refused.exit_code(), 1);
            assert!(
                refused.to_string().contains("not a regular file"),
                "{refused}"
            );
        }
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
    }

    #[test]
    fn a_folder_that_is_a_file_is_a_failure() {
        let file = NamedTempFile::new().unwrap();
        let failure = write_whole(&file.path().join("x.toml"), "", false).unwrap_err();
        assert_eq!(failure.exit_code(), 1);
    }
}
