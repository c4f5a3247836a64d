//! The state directory is private whatever the umask. Alone in its file: the umask belongs to the whole process.

use std::os::unix::fs::PermissionsExt;

use cpw::store::home::State;
use cpw::store::trust;
use nix::sys::stat::{Mode, umask};

#[test]
fn the_state_directory_is_made_private_whatever_the_umask() {
    let tmp = tempfile::tempdir().unwrap();
    for mask in [0, 0o022, 0o277, 0o777] {
        let before = umask(Mode::from_bits_truncate(mask));
        let dir = tmp.path().join(format!("{mask:o}/state/cpw"));
        let opened = State::open_at(&dir).and_then(|state| {
            trust::approve(&state, std::path::Path::new("/p/.claude/cpw.json"), b"{}")?;
            Ok(state)
        });
        umask(before);
        let state = opened.unwrap();
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(state.path()), 0o700, "umask {mask:o}");
        assert_eq!(mode(&state.path().join("trust")), 0o700, "umask {mask:o}");
        let record = std::fs::read_dir(state.path().join("trust")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(mode(&record), 0o600, "umask {mask:o}");
    }
}
