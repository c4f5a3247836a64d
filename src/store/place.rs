//! Whether a project is a place where this user's cpw may leave files. Who owns a folder on the way to the runs can put
//! another one in their place at any moment; and what root leaves in a user's project is in that user's way for ever.

use std::ffi::OsString;
use std::path::Path;

use crate::base::exit::Wrong;
use crate::sys::dir::Dir;
use crate::sys::process;

/// Who sudo, or a program like it, was called by; only where it was not root itself.
fn called_by(get: impl Fn(&str) -> Option<OsString>) -> Option<OsString> {
    const BY: [&str; 3] = ["SUDO_UID", "PKEXEC_UID", "DOAS_USER"];
    BY.into_iter().filter_map(get).find(|who| !who.is_empty() && who != "0" && who != "root")
}

/// Whether this is root by sudo. Plain root, as in a container, is a user as any other.
fn is_lent() -> bool {
    process::user() == 0 && called_by(|name| std::env::var_os(name)).is_some()
}

/// Why root by sudo must not write in a project of another user.
pub fn refuse_lent_root(project: &Path) -> Result<(), Wrong> {
    if !is_lent() {
        return Ok(());
    }
    match Dir::open(project).and_then(|dir| dir.owner()) {
        Ok((owner, _)) if owner != 0 => Err(Wrong::with_hint(
            format!("{} belongs to user {owner}, and root's files would stay in it", project.display()),
            "run it without sudo",
        )),
        // What cannot be looked at cannot be written to either.
        _ => Ok(()),
    }
}

/// Why no run may be made below a folder between the project's root and its runs, if so.
pub fn check_way(dir: &Dir) -> Result<(), Wrong> {
    const ELSEWHERE: &str = "name a folder of your own as \"runs_dir\" in your own config.json (`cpw help files`)";
    let Ok((owner, mode)) = dir.owner() else { return Ok(()) };
    let (path, me) = (dir.path().display(), process::user());
    // In a container root works in what it was given; and root can do anything anyway.
    if owner != me && owner != 0 && me != 0 {
        let what = format!("{path} belongs to user {owner}, who could put another folder in the place of your runs");
        return Err(Wrong::with_hint(what, ELSEWHERE));
    }
    // A group is often the user's own; in a sticky folder everybody keeps what is theirs.
    if mode & 0o1002 == 0o002 {
        let what = format!("everybody can write to {path}, and put another folder in the place of your runs");
        return Err(Wrong::with_hint(what, format!("chmod o-w '{path}'")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_is_told_from_plain_root() {
        let by = |pairs: &'static [(&str, &str)]| {
            called_by(move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, who)| OsString::from(who))).is_some()
        };
        assert!(by(&[("SUDO_UID", "1000")]) && by(&[("DOAS_USER", "a")]) && by(&[("PKEXEC_UID", "1000")]));
        assert!(!by(&[]) && !by(&[("SUDO_UID", "0")]) && !by(&[("SUDO_UID", "")]) && !by(&[("DOAS_USER", "root")]));
    }

    #[test]
    fn a_way_that_everybody_can_change_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        for (mode, fine) in
            [(0o700, true), (0o755, true), (0o775, true), (0o777, false), (0o703, false), (0o1777, true)]
        {
            std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_way(&Dir::open(tmp.path()).unwrap()).is_ok(), fine, "{mode:o}");
        }
        // Root's folder, or one's own.
        assert!(check_way(&Dir::open("/").unwrap()).is_ok());
    }
}
