//! The names of runs, tasks and workers, checked once against one alphabet, so that an id is safe as a file name, in a
//! log line and on a terminal. Ids never contain a path separator, a leading dash or `..`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest id, in bytes.
pub const MAX_ID: usize = 64;

/// Why a string is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadId {
    /// The empty string.
    Empty,
    /// More than [`MAX_ID`] bytes.
    TooLong,
    /// It begins with something else than a letter or a digit.
    Start,
    /// It contains something else than letters, digits, `_`, `.` and `-`.
    Alphabet,
    /// It contains `..`.
    Dots,
}

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadId::Empty => "is empty",
            BadId::TooLong => "is longer than 64 characters",
            BadId::Start => "must begin with a letter or a digit",
            BadId::Alphabet => "may contain only letters, digits, '_', '.' and '-'",
            BadId::Dots => "must not contain '..'",
        })
    }
}

impl std::error::Error for BadId {}

/// Checks `s` against the one alphabet of ids: `[A-Za-z0-9][A-Za-z0-9_.-]{0,63}` without `..`.
pub fn check_id(s: &str) -> Result<(), BadId> {
    let bytes = s.as_bytes();
    let Some(first) = bytes.first() else {
        return Err(BadId::Empty);
    };
    if bytes.len() > MAX_ID {
        return Err(BadId::TooLong);
    }
    if !first.is_ascii_alphanumeric() {
        return Err(BadId::Start);
    }
    if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return Err(BadId::Alphabet);
    }
    if s.contains("..") {
        return Err(BadId::Dots);
    }
    Ok(())
}

/// Folds any text into the id alphabet: foreign characters become `-`, the length is cut. The result may be empty.
pub fn fold_id(s: &str) -> String {
    let mut out = String::with_capacity(s.len().min(MAX_ID));
    for c in s.chars() {
        let c = if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' };
        if (out.is_empty() && !c.is_ascii_alphanumeric()) || (c == '.' && out.ends_with('.')) {
            continue;
        }
        if out.len() == MAX_ID {
            break;
        }
        out.push(c);
    }
    out
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes a string that fits the alphabet of ids.
            pub fn new(s: &str) -> Result<Self, BadId> {
                check_id(s)?;
                Ok(Self(s.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // Found in a map by its text, which sorts as the id does.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::new(&s).map_err(|e| serde::de::Error::custom(format_args!("id {e}")))
            }
        }
    };
}

id_type!(
    /// A run: one execution of one plan. Sorts by the time it was made, and cannot be guessed.
    RunId
);
id_type!(
    /// A task of a plan; unique in it, ignoring case.
    TaskId
);
id_type!(
    /// A checkpoint of a task; unique in it.
    CheckpointName
);
id_type!(
    /// What a run's tasks vote about; unique in its plan.
    Topic
);
id_type!(
    /// A Claude Code session, as the client names it.
    SessionId
);

/// A worker of a run, counted from 1; a number is never used again in its run. Written `W1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerNo(pub u32);

impl fmt::Display for WorkerNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "W{}", self.0)
    }
}

impl std::str::FromStr for WorkerNo {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let digits = s.strip_prefix('W').ok_or(())?;
        if digits.is_empty() || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        digits.parse().map(WorkerNo).map_err(|_| ())
    }
}

impl Serialize for WorkerNo {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WorkerNo {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(|()| serde::de::Error::custom("a worker is written W1, W2, …"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_refuses_what_could_leave_a_folder_or_look_like_an_option() {
        for good in ["a", "analyze-api", "A.b_c-9", "0", &"x".repeat(64)] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        for bad in ["", "-rf", ".x", "a/b", "../x", "a..b", "a b", "a\nb", "a\0b", "ä", "👾", &"x".repeat(65)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn folding_yields_an_id_or_nothing() {
        for s in ["api.py", "src/a b.rs", "--x", "...", "ünï", "a..b", &"y".repeat(100), "日本"] {
            let f = fold_id(s);
            assert!(f.is_empty() || check_id(&f).is_ok(), "{s:?} -> {f:?}");
        }
        assert_eq!(fold_id("src/api.py"), "src-api.py");
    }

    #[test]
    fn workers_are_written_with_a_w() {
        assert_eq!("W12".parse(), Ok(WorkerNo(12)));
        assert_eq!(WorkerNo(3).to_string(), "W3");
        for bad in ["", "W", "W0", "W01", "w1", "W-1", "W+1", "1"] {
            assert!(bad.parse::<WorkerNo>().is_err(), "{bad}");
        }
    }
}
