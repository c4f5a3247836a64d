//! A task's result as a hook hands it over: only what is there, in full, as text.

use std::io::{self, Read};
use std::path::Path;

use crate::store::run::RunDir;

/// The longest result that a Read shows instead of the file, in bytes: the client refuses much longer ones unless it is
/// asked for a part.
const MAX_SHOWN: u64 = 64 * 1024;

/// Files that the client does not show as text, by the end of their name.
const NO_TEXT: [&str; 7] = ["png", "jpg", "jpeg", "gif", "webp", "pdf", "ipynb"];

/// The first `most` bytes of a result, and how long it is. `path` is relative to the run's folder.
pub(super) fn read(folder: &RunDir, path: &str, most: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut dir = folder.dir.try_clone()?;
    let (folders, name) = path.rsplit_once('/').ok_or(io::ErrorKind::InvalidFilename)?;
    for folder in folders.split('/') {
        dir = dir.sub(folder)?;
    }
    let file = dir.open_read(name)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok((bytes, length))
}

/// Whether the client shows a result as text, and all of it.
pub(super) fn can_be_shown(folder: &RunDir, path: &str) -> bool {
    let end = Path::new(path).extension().unwrap_or_default().to_string_lossy().to_lowercase();
    !NO_TEXT.contains(&end.as_str())
        && read(folder, path, MAX_SHOWN).is_ok_and(|(bytes, length)| length <= MAX_SHOWN && is_text(&bytes))
}

/// Whether bytes are a text, or the beginning of one. What is only odd (another encoding) is.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    !bytes.contains(&0)
}
