//! The corpus of the fuzz targets, once through what they check (`fuzz/src`): what was found once stays found, also where
//! nobody fuzzes. `.ci/fuzz` runs the targets themselves.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, clippy::panic, reason = "checks fail as tests do")]

#[expect(unreachable_pub, reason = "they are a crate of their own for the targets")]
#[path = "../fuzz/src/lib.rs"]
mod checks;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::checks;

    /// Every file of a target's corpus.
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
            .collect();
        files.sort();
        assert!((10..=40).contains(&files.len()), "{target}: {} files", files.len());
        files
    }

    fn replay(target: &str, check: impl Fn(&[u8])) {
        for (name, bytes) in corpus(target) {
            assert!(bytes.len() <= 4096, "{target}/{name} is {} bytes long", bytes.len());
            println!("{target}/{name}");
            check(&bytes);
        }
    }

    #[test]
    fn lines_of_a_log() {
        replay("line", checks::line::check);
    }

    #[test]
    fn indexes_beside_a_log() {
        let temp = tempfile::tempdir().unwrap();
        let bench = checks::index::Bench::new(temp.path());
        replay("index", |bytes| bench.check(bytes));
    }

    #[test]
    fn plans_and_configs() {
        replay("plan", checks::plan::check);
    }

    #[test]
    fn configs_and_prompts() {
        replay("config", checks::config::check);
    }

    #[test]
    fn payloads_of_hooks() {
        replay("input", checks::input::check);
    }

    #[test]
    fn prompts() {
        replay("prompt", checks::prompt::check);
    }

    #[test]
    fn templates_and_their_values() {
        replay("template", checks::template::check);
    }

    #[test]
    fn settings_files() {
        replay("settings", checks::settings::check);
    }

    #[test]
    fn s06_texts_of_others() {
        replay("text", checks::text::check);
    }
}
