//! Whether a lock is held.

use std::fs::{File, TryLockError, read_dir};
use std::path::PathBuf;

/// Every file that is locked by somebody below these folders.
pub(crate) fn held_locks(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut held = Vec::new();
    let mut folders = folders.to_vec();
    while let Some(folder) = folders.pop() {
        for entry in read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind of file");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let file = File::open(entry.path()).expect("a file of ours");
                if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                    held.push(entry.path());
                }
            }
        }
    }
    held
}
