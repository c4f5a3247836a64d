//! What comes from others, and what goes out to others: the dependencies are those of docs/dependencies.md and come from one
//! registry, every build is by the lock, the fuzz targets and the package are what they are meant to be, and a release's
//! archive holds what it says, the same each time. `.ci/deny` judges the rest.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;

#[cfg(test)]
#[path = "support/skip.rs"]
mod skip;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The lines of a table of a TOML file, without comments.
fn table(text: &str, name: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| line.trim() != name)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// What a manifest names in one of its tables of dependencies.
fn dependencies(manifest: &str, name: &str) -> BTreeSet<String> {
    table(manifest, name).iter().map(|line| line.split([' ', '=']).next().unwrap().to_owned()).collect()
}

/// The cells of a page's table below a heading, by their first one, which is a name in code.
fn rows(page: &str, heading: &str) -> BTreeMap<String, Vec<String>> {
    page.lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| {
            let cells: Vec<String> = line.strip_prefix('|')?.split('|').map(|cell| cell.trim().to_owned()).collect();
            let name = cells[0].strip_prefix('`')?.strip_suffix('`')?.to_owned();
            Some((name, cells[1..cells.len() - 1].to_vec()))
        })
        .collect()
}

/// A package of a lock file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

fn locked(lock: &str) -> Vec<Locked> {
    let text = page(lock);
    let packages: Vec<Locked> = text
        .split("[[package]]")
        .skip(1)
        .map(|block| {
            let value = |key: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
                line.map(|line| line.trim_matches('"').to_owned())
            };
            Locked {
                name: value("name").unwrap(),
                version: value("version").unwrap(),
                source: value("source"),
                checksum: value("checksum"),
            }
        })
        .collect();
    assert!(packages.len() > 50, "{lock}: {} packages were found", packages.len());
    packages
}

/// The calls of cargo in a text that resolve or build something, each as one line.
fn calls(text: &str) -> Vec<String> {
    let word =
        r"\bcargo\s+(?:build|test|run|check|clippy|bench|install|tree|metadata|fetch|deny|package)\s+[^|;&)`#\n]*";
    let text = text.replace("\\\n", " ");
    Regex::new(word).unwrap().find_iter(&text).map(|found| found.as_str().trim().to_owned()).collect()
}

fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = || String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}", said());
    output
}

fn text_of(command: &mut Command) -> String {
    String::from_utf8(ok(command).stdout).unwrap()
}

/// Every file below a folder, by its path in it.
fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut left = vec![folder.to_owned()];
    let mut found = BTreeMap::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::Value;

    use super::*;

    #[test]
    fn s25_every_dependency_has_its_reason() {
        let manifest = page("Cargo.toml");
        let page = page("docs/dependencies.md");

        let named = dependencies(&manifest, "[dependencies]");
        let rows_ = rows(&page, "## In the program");
        assert!(named.len() > 10, "{named:?}");
        assert!(named.len() <= 20, "{} direct dependencies", named.len());
        assert_eq!(named, rows_.keys().cloned().collect(), "Cargo.toml, docs/dependencies.md");
        for (name, cells) in &rows_ {
            assert_eq!(cells.len(), 5, "{name}");
            assert!(cells.iter().all(|cell| !cell.is_empty()), "{name}: {cells:?}");
        }
        assert!(page.contains(&format!("{} direct ones", named.len())), "the page counts others than {}", named.len());

        let named = dependencies(&manifest, "[dev-dependencies]");
        assert_eq!(named, rows(&page, "## For tests alone").into_keys().collect(), "for tests");
        // There is no other place to name one.
        assert!(
            !Regex::new(r"(?m)^\[(build-dependencies|patch|replace|target\.|dependencies\.)")
                .unwrap()
                .is_match(&manifest)
        );
    }

    #[test]
    fn s25_the_features_of_a_dependency_are_those_of_its_page() {
        let features = rows(&page("docs/dependencies.md"), "## In the program");
        let quoted = Regex::new(r#""([a-z0-9_-]+)""#).unwrap();
        for line in table(&page("Cargo.toml"), "[dependencies]") {
            let name = line.split([' ', '=']).next().unwrap();
            let list = line.split_once("features = [").map_or("", |(_, list)| list);
            for feature in quoted.captures_iter(list) {
                let feature = format!("`{}`", &feature[1]);
                assert!(features[name][1].contains(&feature), "{name} has {feature}, the page: {}", features[name][1]);
            }
        }
    }

    #[test]
    fn s25_all_comes_from_one_registry_with_its_checksum() {
        let sum = Regex::new("^[0-9a-f]{64}$").unwrap();
        for (lock, own) in [("Cargo.lock", &["cpw"][..]), ("fuzz/Cargo.lock", &["cpw", "cpw-fuzz"])] {
            let mut ours = Vec::new();
            for package in locked(lock) {
                match (&package.source, &package.checksum) {
                    (None, None) => ours.push(package.name),
                    (Some(source), Some(checksum)) if source == REGISTRY => {
                        assert!(sum.is_match(checksum), "{lock}: {checksum}");
                    }
                    _ => panic!("{lock}: {package:?}"),
                }
            }
            assert_eq!(ours, own, "{lock}");
        }
        let manifests = page("Cargo.toml") + &page("fuzz/Cargo.toml");
        assert!(!Regex::new(r"\b(git|registry|branch|rev)\s*=").unwrap().is_match(&manifests), "another source");
        for rules in ["deny.toml", "fuzz/deny.toml"] {
            let sources = table(&page(rules), "[sources]").join("\n");
            let allowed = REGISTRY.trim_start_matches("registry+");
            for rule in [
                "unknown-registry = \"deny\"",
                "unknown-git = \"deny\"",
                "allow-git = []",
                &format!("allow-registry = [\"{allowed}\"]"),
            ] {
                assert!(sources.lines().any(|line| line == rule), "{rules} lacks: {rule}");
            }
            assert!(table(&page(rules), "[advisories]").contains(&"yanked = \"deny\"".to_owned()), "{rules}");
        }
    }

    #[test]
    fn s25_every_build_is_by_the_lock() {
        let mut texts: Vec<String> =
            files(&root().join("docs")).into_keys().map(|name| format!("docs/{name}")).collect();
        texts.extend(files(&root().join(".ci")).into_keys().map(|name| format!(".ci/{name}")));
        texts.extend(["README.md".to_owned(), "fuzz/rustc".to_owned()]);
        // `.ci/bill.rs` has one place that calls cargo, and that with --locked.
        texts.retain(|name| name != ".ci/bill.rs");
        let mut seen = 0;
        for name in texts {
            for call in calls(&page(&name)) {
                seen += 1;
                // What a page calls by name alone is no command of it.
                let bare = call.split_whitespace().count() == 2 && !name.starts_with(".ci/");
                let version = call == "cargo clippy --version" || call.starts_with("cargo deny --version");
                assert!(bare || version || call.contains("--locked"), "{name}: `{call}` lacks --locked");
            }
        }
        assert!(seen > 40, "only {seen} calls of cargo were found");
    }

    #[test]
    fn s25_calls_of_cargo_are_found() {
        let text = "cargo build --release\nx=(cargo run -- a) # cargo\n`cargo test NAME`, A=1 cargo clippy \\\n  --locked; cargo fmt --check";
        assert_eq!(
            calls(text),
            ["cargo build --release", "cargo run -- a", "cargo test NAME", "cargo clippy    --locked"]
        );
    }

    #[test]
    fn s25_every_fuzz_target_is_run_and_has_a_corpus() {
        let manifest = page("fuzz/Cargo.toml");
        let targets: BTreeSet<String> = Regex::new(r#"path = "targets/([a-z_]+)\.rs""#)
            .unwrap()
            .captures_iter(&manifest)
            .map(|found| found[1].to_owned())
            .collect();
        let sources =
            files(&root().join("fuzz/targets")).into_keys().map(|name| name.trim_end_matches(".rs").to_owned());
        assert_eq!(targets, sources.collect(), "fuzz/Cargo.toml, fuzz/targets");
        let corpora = fs::read_dir(root().join("fuzz/corpus")).unwrap();
        let corpora: BTreeSet<String> =
            corpora.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(targets, corpora, "fuzz/Cargo.toml, fuzz/corpus");
        let named = text_of(Command::new(root().join(".ci/fuzz")).arg("--list"));
        assert_eq!(targets, named.split_whitespace().map(str::to_owned).collect(), "fuzz/Cargo.toml, .ci/fuzz");
    }

    #[test]
    fn s25_a_package_holds_what_it_is_meant_to() {
        let mut command = Command::new("cargo");
        command.args(["package", "--list", "--locked", "--allow-dirty", "--offline"]).current_dir(root());
        let listed = text_of(&mut command);
        let folders = ["src/", "docs/", "examples/"];
        let names = [
            "Cargo.toml",
            "Cargo.toml.orig",
            "Cargo.lock",
            ".cargo_vcs_info.json",
            "LICENSE",
            "README.md",
            "hooks.example.json",
        ];
        for line in listed.lines() {
            assert!(
                folders.iter().any(|folder| line.starts_with(folder)) || names.contains(&line),
                "{line} is packaged"
            );
        }
        for name in ["Cargo.lock", "LICENSE", "README.md", "src/main.rs"] {
            assert!(listed.lines().any(|line| line == name), "{name} is not packaged");
        }
        let licence = page("LICENSE");
        for text in
            ["\nMIT License\n", "The above copyright notice and this permission notice", "Version 2.0, January 2004"]
        {
            assert!(licence.contains(text), "LICENSE lacks {text:?}");
        }
    }

    #[test]
    fn s25_what_is_not_committed_or_not_written_down_is_not_released() {
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path();
        for name in [".ci/release", "Cargo.toml", "docs/changelog.md"] {
            fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
            fs::copy(root().join(name), tree.join(name)).unwrap();
        }
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.current_dir(tree).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
            ok(command.args(["-c", "user.name=cpw", "-c", "user.email=cpw@localhost"]).args(args));
        };
        let commit = || git(&["commit", "--quiet", "--all", "--message", "a state"]);
        let refusal = || {
            let output = Command::new(tree.join(".ci/release")).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(output.stdout.is_empty(), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let changelog = |from: &str, to: &str| {
            let text = fs::read_to_string(tree.join("docs/changelog.md")).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(tree.join("docs/changelog.md"), text.replace(from, to)).unwrap();
        };
        let heading = format!("## {}", env!("CARGO_PKG_VERSION"));
        git(&["init", "--quiet"]);
        git(&["add", "--all"]);
        commit();

        changelog(&heading, "## 0.0.0");
        assert!(refusal().starts_with("not released: the tree is not what was committed"), "{}", refusal());
        commit();
        assert!(refusal().contains("has no section"), "{}", refusal());
        // A longer number is another version.
        changelog("## 0.0.0", &format!("{heading}1"));
        commit();
        assert!(refusal().contains("has no section"), "{}", refusal());
        fs::write(tree.join("docs/changelog.md"), format!("# Changes\n\n{heading}, unreleased\n")).unwrap();
        commit();
        assert!(refusal().contains("unreleased"), "{}", refusal());
        fs::write(tree.join("new"), "").unwrap();
        assert!(refusal().starts_with("not released: the tree"), "a file that git does not know: {}", refusal());
    }

    /// What the program under test was built for, as far as an archive cares.
    fn target() -> String {
        format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
    }

    /// The archive of the program under test, made and unpacked.
    struct Archive {
        temp: tempfile::TempDir,
        name: String,
        program: PathBuf,
    }

    impl Archive {
        fn new() -> Option<Archive> {
            let name = "s25_an_archive_is_what_it_says";
            if !Command::new("git")
                .args(["rev-parse", "HEAD"])
                .current_dir(root())
                .output()
                .is_ok_and(|o| o.status.success())
            {
                skip::skip(name, "not in a git repository", "CPW_REQUIRE_CLIENT");
                return None;
            }
            let program =
                std::env::var_os("CPW_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_cpw").into(), PathBuf::from);
            let archive = Archive {
                temp: tempfile::tempdir().unwrap(),
                name: format!("cpw-{}-{}", env!("CARGO_PKG_VERSION"), target()),
                program: fs::canonicalize(program).unwrap(),
            };
            archive.made("one", "0022", "UTC");
            ok(Command::new("tar").arg("-xzf").arg(archive.path("one")).arg("-C").arg(archive.temp.path()));
            Some(archive)
        }

        /// Makes it below the folder `into`.
        fn made(&self, into: &str, mask: &str, zone: &str) {
            let script = r#"umask "$1"; shift; exec "$@""#;
            ok(Command::new("sh")
                .args(["-c", script, "sh", mask])
                .arg(root().join(".ci/release"))
                .arg("--into")
                .arg(self.temp.path().join(into))
                .arg("--trial")
                .arg(&self.program)
                .arg(target())
                .env("TZ", zone)
                .current_dir("/"));
        }

        fn path(&self, into: &str) -> PathBuf {
            self.temp.path().join(into).join(format!("{}.tar.gz", self.name))
        }

        fn folder(&self) -> PathBuf {
            self.temp.path().join(&self.name)
        }
    }

    #[test]
    fn s25_an_archive_is_what_it_says() {
        let Some(archive) = Archive::new() else { return };
        ok(Command::new("sha256sum")
            .args(["--check", "--strict", "SHA256SUMS"])
            .current_dir(archive.temp.path().join("one")));

        let mut list = Command::new("tar");
        let list = text_of(list.args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(archive.path("one")));
        for line in list.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(["-rw-r--r--", "-rwxr-xr-x", "drwxr-xr-x"].contains(&words[0]), "a mode: {line}");
            assert_eq!(words[1], "0/0", "an owner: {line}");
            assert!(words[5].starts_with(&format!("{}/", archive.name)), "outside its folder: {line}");
        }

        let found = files(&archive.folder());
        for name in [
            "cpw",
            "LICENSE",
            "README.md",
            "THIRD-PARTY.txt",
            "cpw.cdx.json",
            "completions/cpw.bash",
            "completions/_cpw",
            "completions/cpw.fish",
            "man/cpw.1",
            "man/cpw-run.1",
            "docs/security.md",
            "examples/files.json",
        ] {
            assert!(found.contains_key(name), "{name} is missing: {:?}", found.keys());
        }
        assert!(
            found.values().all(|path| path.metadata().unwrap().len() > 0 || path.ends_with("app")),
            "an empty file"
        );
        assert!(fs::read(&found["cpw"]).unwrap() == fs::read(&archive.program).unwrap(), "another program");
        assert_eq!(found["cpw"].metadata().unwrap().permissions().mode() & 0o777, 0o755);
        ok(Command::new(root().join(".ci/static")).arg(&found["cpw"]));
        materials(&found);

        archive.made("two", "0077", "Asia/Tokyo");
        let (one, two) = (fs::read(archive.path("one")).unwrap(), fs::read(archive.path("two")).unwrap());
        assert!(one == two, "two archives of one program differ");
    }

    /// The bill of materials and the notices of an unpacked archive, against the lock and the page.
    fn materials(found: &BTreeMap<String, PathBuf>) {
        let bill: Value = serde_json::from_slice(&fs::read(&found["cpw.cdx.json"]).unwrap()).unwrap();
        assert_eq!(
            (&bill["bomFormat"], &bill["specVersion"], &bill["version"]),
            (&"CycloneDX".into(), &"1.6".into(), &1.into())
        );
        assert!(bill.get("serialNumber").is_none() && bill["metadata"].get("timestamp").is_none(), "differs each time");
        assert_eq!(bill["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(bill["metadata"]["component"]["type"], "application");

        let locked: BTreeMap<(String, String), String> = locked("Cargo.lock")
            .into_iter()
            .filter_map(|package| Some(((package.name, package.version), package.checksum?)))
            .collect();
        let notices = fs::read_to_string(&found["THIRD-PARTY.txt"]).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
        let mut refs = BTreeSet::from([text(&bill["metadata"]["component"]["bom-ref"])]);
        let mut crates = BTreeSet::new();
        for component in bill["components"].as_array().unwrap() {
            let (name, purl) = (text(&component["name"]), text(&component["purl"]));
            assert!(refs.insert(text(&component["bom-ref"])), "twice: {purl}");
            let licence = text(&component["licenses"][0]["expression"]);
            assert!(!licence.contains('/') && !licence.is_empty(), "{purl}: {licence}");
            assert!(
                notices.lines().any(|line| line.starts_with(&format!("{name} ")) && line.ends_with(&licence)),
                "{name}"
            );
            if let Some(crate_) = purl.strip_prefix("pkg:cargo/") {
                let version = text(&component["version"]);
                assert_eq!(crate_, format!("{name}@{version}"));
                assert_eq!(component["hashes"][0]["content"], *locked[&(name.clone(), version)], "{name}");
                assert!(notices.contains(&format!("\n{crate_}, ").replace('@', " ")), "{name} has no text");
                crates.insert(name);
            }
        }
        for dependency in bill["dependencies"].as_array().unwrap() {
            let used = dependency["dependsOn"].as_array().into_iter().flatten();
            for name in used.chain([&dependency["ref"]]) {
                assert!(refs.contains(name.as_str().unwrap()), "{name} is nobody");
            }
        }
        let direct = dependencies(&page("Cargo.toml"), "[dependencies]");
        assert!(direct.is_subset(&crates), "{:?} are not in the bill", direct.difference(&crates));
        let others = ["insta", "proptest", "stateright", "tempfile", "vt100", "serde_derive", "syn", "libfuzzer-sys"];
        assert!(others.iter().all(|name| !crates.contains(*name)), "what is not in the program is in the bill");
        let page = page("docs/dependencies.md");
        assert!(
            page.contains(&format!("are {} crates of others", crates.len())),
            "the page counts others than {}",
            crates.len()
        );
    }
}
