//! What a lease is for: anything with a name, or a file or folder. Both have one normal form, by which two that mean the
//! same are recognised; a folder covers what is below it. Links are resolved by the caller: nothing here looks at a disk.

use std::fmt;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

/// The longest normal form, in bytes.
pub const MAX_BYTES: usize = 1024;

/// The longest name, in bytes.
pub const MAX_NAME: usize = 128;

/// The most resources that one lease is for.
pub const MAX_TOGETHER: usize = 32;

/// How the normal form of a file begins.
const FILE: &str = "file:";

/// Something that one holds at a time, in its normal form: a name as it is, or `file:` and a path, relative to the project
/// where it is in it.
///
/// What a log names is taken as it stands there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Resource(Box<str>);

/// Why a text means no resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadResource {
    /// There is nothing in it.
    Empty,
    /// A name has other characters than names have.
    Name,
    /// It is too long.
    TooLong,
    /// It holds a control character.
    Control,
    /// Its path is not UTF-8.
    Encoding,
    /// It means a folder that the project itself is in.
    AboveProject,
}

impl fmt::Display for BadResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadResource::Empty => f.write_str("is empty"),
            BadResource::Name => write!(
                f,
                "is no name of a resource: a name has at most {MAX_NAME} letters, digits, '_', '.', ':' and '-' and \
                 begins with a letter or digit; a file is written with a '/' in it, like ./data.csv"
            ),
            BadResource::TooLong => write!(f, "is longer than {MAX_BYTES} bytes"),
            BadResource::Control => f.write_str("holds a control character"),
            BadResource::Encoding => f.write_str("leads to a path that is not UTF-8"),
            BadResource::AboveProject => f.write_str("is a folder that the project itself is in"),
        }
    }
}

impl std::error::Error for BadResource {}

/// What a person, a script or a plan has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written<'t> {
    /// A name, in its normal form already.
    Name(Resource),
    /// A file: the path as it is written, relative to where it is written.
    File(&'t str),
}

/// Tells names from files: a file has a `/` in it, or begins with `file:`.
pub fn read(text: &str) -> Result<Written<'_>, BadResource> {
    if text.len() > MAX_BYTES {
        return Err(BadResource::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(BadResource::Control);
    }
    let file = text.strip_prefix(FILE);
    if let Some(path) = file.or_else(|| text.contains('/').then_some(text)) {
        return if path.is_empty() { Err(BadResource::Empty) } else { Ok(Written::File(path)) };
    }
    let bytes = text.as_bytes();
    let begins = bytes.first().ok_or(BadResource::Empty)?.is_ascii_alphanumeric();
    let fits = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
    if !begins || bytes.len() > MAX_NAME || !bytes.iter().all(fits) {
        return Err(BadResource::Name);
    }
    Ok(Written::Name(Resource(text.into())))
}

impl Resource {
    /// A file by its absolute path, in which no component is a link any more. What is left of `.` and `..` is taken away.
    pub fn file(path: &Path, project: &Path) -> Result<Resource, BadResource> {
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => parts.push(name.to_str().ok_or(BadResource::Encoding)?),
                Component::ParentDir => drop(parts.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        let above: Vec<_> = project.components().filter(|c| matches!(c, Component::Normal(_))).collect();
        let shared = parts.iter().zip(&above).take_while(|(part, above)| above.as_os_str() == **part).count();
        let normal = if shared == above.len() {
            let below = &parts[shared..];
            if below.is_empty() { format!("{FILE}.") } else { format!("{FILE}{}", below.join("/")) }
        } else if shared == parts.len() {
            return Err(BadResource::AboveProject);
        } else {
            format!("{FILE}/{}", parts.join("/"))
        };
        if normal.len() > MAX_BYTES {
            return Err(BadResource::TooLong);
        }
        if normal.chars().any(char::is_control) {
            return Err(BadResource::Control);
        }
        Ok(Resource(normal.into()))
    }

    /// One that was brought into its normal form before, as a settled plan has it.
    pub fn of_normal(normal: &str) -> Resource {
        Resource(normal.into())
    }

    /// The normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of a file, relative to the project where it is in it.
    pub fn path(&self) -> Option<&str> {
        self.0.strip_prefix(FILE)
    }

    /// Whether who holds one of the two holds something of the other: both are the same, or one is a folder that the other
    /// is in.
    pub fn overlaps(&self, other: &Resource) -> bool {
        match (self.path(), other.path()) {
            (Some(a), Some(b)) => meet(a, b),
            _ => self == other,
        }
    }
}

/// Whether of two files, by the paths of their normal forms, one is the other or is in it.
pub fn meet(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

/// Whether the folder or file `a` is `b` or has `b` in it, by whole components.
fn covers(a: &str, b: &str) -> bool {
    if a == "." {
        return !b.starts_with('/');
    }
    b.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path().unwrap_or(&self.0))
    }
}

/// All that is wanted together, in the one order in which everybody takes it, nothing twice and nothing that another one of
/// them covers.
pub fn together(mut all: Vec<Resource>) -> Vec<Resource> {
    all.sort_unstable();
    all.dedup();
    let covered = |r: &Resource| {
        let covers_it = |o: &Resource| o != r && o.path().zip(r.path()).is_some_and(|(a, b)| covers(a, b));
        all.iter().any(covers_it)
    };
    let mut kept = all.clone();
    kept.retain(|r| !covered(r));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Resource {
        Resource::file(Path::new(path), Path::new("/p/q")).unwrap()
    }

    fn name(text: &str) -> Resource {
        match read(text) {
            Ok(Written::Name(resource)) => resource,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn names_and_files_are_told_apart() {
        for good in ["db", "port:5432", "gpu0", "a.b-c_d", "0", &"x".repeat(128)] {
            assert_eq!(name(good).as_str(), good);
        }
        for (text, path) in
            [("./db", "./db"), ("file:db", "db"), ("src/app", "src/app"), ("/x", "/x"), ("file:/x y", "/x y")]
        {
            assert_eq!(read(text), Ok(Written::File(path)), "{text}");
        }
        assert_eq!(read(""), Err(BadResource::Empty));
        assert_eq!(read("file:"), Err(BadResource::Empty));
        for bad in ["-rf", ".x", "a b", "ä", "..", &"x".repeat(129), "a@b"] {
            assert_eq!(read(bad), Err(BadResource::Name), "{bad}");
        }
        for bad in ["a\nb", "./a\u{7}", "file:a\0"] {
            assert_eq!(read(bad), Err(BadResource::Control), "{bad:?}");
        }
        assert_eq!(read(&format!("./{}", "x".repeat(MAX_BYTES))), Err(BadResource::TooLong));
    }

    #[test]
    fn one_file_has_one_normal_form() {
        for (path, normal) in [
            ("/p/q/a/../a/x", "file:a/x"),
            ("/p/q/./a//x/", "file:a/x"),
            ("/p/q", "file:."),
            ("/p/q/a/..", "file:."),
            ("/p/qq/x", "file:/p/qq/x"),
            ("/../x", "file:/x"),
            ("/p/q/A", "file:A"),
        ] {
            assert_eq!(file(path).as_str(), normal, "{path}");
        }
        for above in ["/", "/p", "/p/q/../../p"] {
            assert_eq!(Resource::file(Path::new(above), Path::new("/p/q")), Err(BadResource::AboveProject), "{above}");
        }
        let long = format!("/p/q/{}", "x/".repeat(600));
        assert_eq!(Resource::file(Path::new(&long), Path::new("/p/q")), Err(BadResource::TooLong));
    }

    #[test]
    fn a_folder_covers_what_is_in_it_by_whole_components() {
        let overlap = |a: &str, b: &str| {
            let (a, b) = (file(&format!("/p/q/{a}")), file(&format!("/p/q/{b}")));
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("src/app", "src/app"));
        assert!(overlap("src/app", "src/app/x.rs") && overlap("", "src/app/x.rs"));
        assert!(!overlap("src/app", "src/apple.rs") && !overlap("src/app", "src/ap") && !overlap("a/x", "b/x"));
        assert!(!overlap("SRC", "src"), "names of files differ by case");
        // Outside of the project.
        assert!(!file("/p/q").overlaps(&file("/x/y")) && file("/x").overlaps(&file("/x/y")));
        // A name is no file.
        assert!(!name("db").overlaps(&file("/p/q/db")) && name("db").overlaps(&name("db")));
        assert!(!name("db").overlaps(&name("db2")) && !name("db").overlaps(&name("DB")));
    }

    #[test]
    fn what_is_taken_together_has_one_order_and_nothing_twice() {
        let all = together(vec![name("db"), file("/p/q/src/a"), name("cache"), name("db"), file("/p/q/src")]);
        let texts: Vec<&str> = all.iter().map(Resource::as_str).collect();
        assert_eq!(texts, ["cache", "db", "file:src"]);
    }
}
