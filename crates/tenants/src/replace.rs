//! Files that are replaced whole: whoever reads one sees it as it was or as it is.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tempfile::Builder;

/// The file that says who may edit `path`: an empty one beside it.
pub(crate) fn lock_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

/// Waits until nobody else edits; the lock lasts as long as what is returned.
pub(crate) fn lock(lock_path: &Path) -> io::Result<File> {
    let lock = File::create(lock_path)?;
    lock.lock()?;
    Ok(lock)
}

/// Puts `text` into the place of the file `path`, whose owner and permissions stay. A new
/// file is its owner's alone to read and write.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Temporary files are private on Unix unless told otherwise.
    let mut file = Builder::new().tempfile_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    match fs::metadata(path) {
        Ok(before) => resemble(file.as_file(), &before)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Gives a file the owner and permissions of another.
fn resemble(file: &File, other: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt as _, fchown};
        let (uid, gid) = (other.uid(), other.gid());
        let own = file.metadata()?;
        // A server that runs as another user must still be able to read its file.
        if (own.uid(), own.gid()) != (uid, gid) {
            fchown(file, Some(uid), Some(gid))?;
        }
    }
    file.set_permissions(other.permissions())
}
