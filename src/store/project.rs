//! Which folder is the project, and where its config is.

use std::io;
use std::path::{Path, PathBuf};

/// The config below a project's root.
pub const CONFIG: &str = ".claude/cpw.json";

/// The largest config that is read, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;

/// The project that a command started in `cwd` means: the nearest folder, from there upwards, with `.claude` or `.git`, else
/// `cwd` itself. Upwards ends below `home`, whose `.claude` is the user's and no project's. The result is canonical.
pub fn find(cwd: &Path, home: Option<&Path>) -> io::Result<PathBuf> {
    let cwd = std::fs::canonicalize(cwd)?;
    let home = home.and_then(|h| std::fs::canonicalize(h).ok());
    let mut upwards = cwd.ancestors().take_while(|dir| Some(*dir) != home.as_deref());
    let root = upwards.find(|dir| dir.join(".claude").is_dir() || dir.join(".git").exists());
    Ok(root.unwrap_or(&cwd).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_marked_folder_below_home_is_the_project() {
        let tmp = tempfile::tempdir().unwrap();
        let home = std::fs::canonicalize(tmp.path()).unwrap();
        for dir in [".claude", "repo/.git", "repo/src/deep", "mono/.git", "mono/pkg/.claude", "plain/x", "tree"] {
            std::fs::create_dir_all(home.join(dir)).unwrap();
        }
        std::fs::write(home.join("tree/.git"), "gitdir: elsewhere").unwrap();
        for (cwd, root) in [
            ("repo/src/deep", "repo"),
            ("mono/pkg", "mono/pkg"),
            ("mono", "mono"),
            ("plain/x", "plain/x"),
            ("tree", "tree"),
            ("", ""),
        ] {
            assert_eq!(find(&home.join(cwd), Some(&home)).unwrap(), home.join(root).components().as_path(), "{cwd}");
        }
        assert_eq!(find(&home.join("plain/x"), None).unwrap(), home);
    }
}
