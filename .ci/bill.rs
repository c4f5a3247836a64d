//! What a binary of cpw is made of: `bill sbom TARGET` prints it as `CycloneDX` JSON, `bill notices TARGET` with the texts of
//! the licences, which those ask to come with it. Of use to `.ci/release` only. Everything is asked of cargo and rustc and
//! read from `Cargo.lock` and the sources that cargo has downloaded; the same tree gives the same bytes, on any day and in any
//! folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// How the names of files begin that hold a licence or a notice, in capitals.
const NOTICES: &[&str] = &["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// What musl asks for, which comes with Rust's targets as an archive without its texts.
const MUSL: &str = "\
Copyright © 2005-2020 Rich Felker, et al.

Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
\"Software\"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

/// What a static link to the GNU C library asks for; the text of the licence is a file beside this one.
const GLIBC: &str = "\
This program is linked with the GNU C Library, Copyright © the Free Software Foundation and others, which is free software
under the GNU Lesser General Public License, version 2.1 or later (LGPL-2.1.txt). Its source is at
https://sourceware.org/git/glibc.git. To link cpw with another version of it, build cpw from its own source (README.md), which
is complete.
";

/// A crate that is in the binary.
struct Part {
    name: String,
    version: String,
    /// As an SPDX expression.
    licence: String,
    repository: Option<String>,
    /// Of what was downloaded, SHA-256; none for cpw.
    checksum: Option<String>,
    folder: PathBuf,
    /// The places of those that it uses.
    uses: BTreeSet<usize>,
}

impl Part {
    /// The name that other tools know it by.
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

/// A library in the binary that no crate stands for.
struct Library {
    name: &'static str,
    version: Option<String>,
    licence: &'static str,
    notice: &'static str,
}

impl Library {
    fn purl(&self) -> String {
        let version = self.version.as_ref().map(|version| format!("@{version}")).unwrap_or_default();
        format!("pkg:generic/{}{version}", self.name)
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, target] = args.as_slice() else { bail!("to be called as: bill sbom|notices TARGET") };
    let parts = parts(target)?;
    let libraries = libraries(target)?;
    let text = match what.as_str() {
        "sbom" => format!("{:#}\n", sbom(target, &parts, &libraries)),
        "notices" => notices(target, &parts, &libraries)?,
        _ => bail!("{what} is neither sbom nor notices"),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What a command prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What cargo prints, about the dependencies as they are locked.
fn cargo(args: &[&str]) -> Result<String> {
    output(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args).arg("--locked"))
}

/// All crates in the binary, cpw first. The tree is the truth about them: the metadata know of features for tests, too.
/// Macros run while cpw is compiled and are no part of it.
fn parts(target: &str) -> Result<Vec<Part>> {
    let tree = cargo(&["tree", "--edges=normal,no-proc-macro", "--prefix=depth", "--format= {p}", "--target", target])?;
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version=1", "--filter-platform", target])?)?;
    let packages: BTreeMap<(&str, &str), &Value> = metadata["packages"]
        .as_array()
        .context("metadata without packages")?
        .iter()
        .filter_map(|package| Some(((package["name"].as_str()?, package["version"].as_str()?), package)))
        .collect();
    let lock = std::fs::read_to_string("Cargo.lock").context("Cargo.lock")?;
    let checksums = checksums(&lock);

    let mut parts: Vec<Part> = Vec::new();
    let mut above: Vec<usize> = Vec::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(name), Some(version)) = (words.next(), words.next(), words.next()) else {
            bail!("cargo tree printed a line of another form: {line}");
        };
        let (depth, version): (usize, _) = (depth.parse()?, version.trim_start_matches('v'));
        let known = parts.iter().position(|part| part.name == name && part.version == version);
        let place = known.unwrap_or(parts.len());
        if known.is_none() {
            let package =
                packages.get(&(name, version)).with_context(|| format!("{name} {version} has no metadata"))?;
            parts.push(part(name, version, package, &checksums)?);
        }
        above.truncate(depth);
        if let Some(&user) = above.last() {
            parts[user].uses.insert(place);
        }
        above.push(place);
    }
    Ok(parts)
}

fn part(name: &str, version: &str, package: &Value, checksums: &BTreeMap<(&str, &str), &str>) -> Result<Part> {
    let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
    let licence = package["license"].as_str().with_context(|| format!("{name} {version} names no licence"))?;
    let checksum = checksums.get(&(name, version)).map(|&sum| sum.to_owned());
    if checksum.is_none() && !package["source"].is_null() {
        bail!("{name} {version} has no checksum in Cargo.lock");
    }
    Ok(Part {
        name: name.to_owned(),
        version: version.to_owned(),
        // An older way to write it.
        licence: licence.replace('/', " OR "),
        repository: package["repository"].as_str().map(str::to_owned),
        checksum,
        folder: Path::new(manifest).parent().context("a manifest without a folder")?.to_owned(),
        uses: BTreeSet::new(),
    })
}

/// The checksums of a lock file by name and version.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    lock.split("[[package]]")
        .filter_map(|block| {
            let key = |key: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
                Some(line.trim_matches('"'))
            };
            Some(((key("name")?, key("version")?), key("checksum")?))
        })
        .collect()
}

/// Rust's own library, and the C library that the target is linked with.
fn libraries(target: &str) -> Result<Vec<Library>> {
    let rustc = output(Command::new("rustc").arg("-vV"))?;
    let release = rustc.lines().find_map(|line| line.strip_prefix("release: ")).context("rustc says no version")?;
    let mut libraries = vec![Library {
        name: "rust-std",
        version: Some(release.to_owned()),
        licence: "MIT OR Apache-2.0",
        notice: "The standard library of Rust. Its texts, and those of what it contains, are in THIRD-PARTY-RUST.html.\n",
    }];
    if target.ends_with("-musl") {
        libraries.push(Library { name: "musl", version: None, licence: "MIT", notice: MUSL });
    } else if target.ends_with("-linux-gnu") {
        let version = output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
        let version = version.split_whitespace().last().map(str::to_owned);
        libraries.push(Library { name: "glibc", version, licence: "LGPL-2.1-or-later", notice: GLIBC });
    }
    Ok(libraries)
}

/// A bill of materials in the form of `CycloneDX` 1.6. It has no time and no number of its own, so that it is the same each time.
fn sbom(target: &str, parts: &[Part], libraries: &[Library]) -> Value {
    let mut components: Vec<Value> = parts[1..].iter().map(component).collect();
    components.extend(libraries.iter().map(|library| {
        let mut value = json!({
            "type": "library", "bom-ref": library.purl(), "name": library.name, "purl": library.purl(),
            "licenses": [{"expression": library.licence}],
        });
        if let Some(version) = &library.version {
            value["version"] = json!(version);
        }
        value
    }));
    components.sort_by_key(|component| component["bom-ref"].to_string());
    let mut dependencies: Vec<Value> = parts
        .iter()
        .map(|part| {
            let mut uses: Vec<String> = part.uses.iter().map(|&used| parts[used].purl()).collect();
            if part.checksum.is_none() {
                uses.extend(libraries.iter().map(Library::purl));
            }
            uses.sort();
            json!({"ref": part.purl(), "dependsOn": uses})
        })
        .chain(libraries.iter().map(|library| json!({"ref": library.purl()})))
        .collect();
    dependencies.sort_by_key(|dependency| dependency["ref"].to_string());
    let mut program = component(&parts[0]);
    program["type"] = json!("application");
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": program,
            "properties": [{"name": "cdx:rustc:sbom:target:triple", "value": target}],
        },
        "components": components,
        "dependencies": dependencies,
    })
}

fn component(part: &Part) -> Value {
    let mut value = json!({
        "type": "library", "bom-ref": part.purl(), "name": part.name, "version": part.version,
        "licenses": [{"expression": part.licence}], "purl": part.purl(),
    });
    if let Some(sum) = &part.checksum {
        value["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
    }
    if let Some(url) = &part.repository {
        value["externalReferences"] = json!([{"type": "vcs", "url": url}]);
    }
    value
}

/// A list of all that is in the binary, then each text once, with the names of those that came with it.
fn notices(target: &str, parts: &[Part], libraries: &[Library]) -> Result<String> {
    let mut text = format!(
        "What is in the program {} {} for {target} beside its own code, with the licences of it.\n\n",
        parts[0].name, parts[0].version
    );
    let mut sorted: Vec<&Part> = parts[1..].iter().collect();
    sorted.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    let mut texts: Vec<(String, Vec<String>)> = Vec::new();
    for part in sorted {
        writeln!(text, "{} {}: {}", part.name, part.version, part.licence)?;
        for (file, content) in texts_of(part)? {
            let whose = format!("{} {}, {file}", part.name, part.version);
            match texts.iter_mut().find(|(known, _)| *known == content) {
                Some((_, owners)) => owners.push(whose),
                None => texts.push((content, vec![whose])),
            }
        }
    }
    for library in libraries {
        writeln!(text, "{} {}: {}", library.name, library.version.as_deref().unwrap_or(""), library.licence)?;
        texts.push((library.notice.to_owned(), vec![library.name.to_owned()]));
    }
    for (content, owners) in texts {
        write!(text, "\n{}\n{}\n\n{content}", "=".repeat(80), owners.join("\n"))?;
    }
    Ok(text)
}

/// The licences and notices in the folder of a crate, by their names, without what differs by system or by habit.
fn texts_of(part: &Part) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&part.folder).with_context(|| part.folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && NOTICES.iter().any(|begin| name.to_uppercase().starts_with(begin)) {
            let content = std::fs::read(entry.path())?;
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<&str> = content.trim().lines().map(str::trim_end).collect();
            found.push((name, lines.join("\n") + "\n"));
        }
    }
    if found.is_empty() {
        bail!("{} {} brings no text of its licence, {}", part.name, part.version, part.licence);
    }
    found.sort();
    Ok(found)
}
