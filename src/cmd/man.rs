//! `cpw man`: manual pages, made from the definition of the command line.

use std::path::{Path, PathBuf};

use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::base::exit::{Exit, Wrong};
use crate::base::text::one_line;
use crate::cmd::above;
use crate::ui::print;

/// Print a manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw man | man -l -                        about cpw as a whole\n  \
    cpw man run | man -l -                    about one command\n  \
    cpw man --dir ~/.local/share/man/man1     write them all; then: man cpw-run")]
pub struct Args {
    /// The command (cpw as a whole where absent); a command of a command by both names
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder, which is made where it is not there
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs the command for this definition of the command line.
pub fn run(args: &Args, mut definition: clap::Command) -> anyhow::Result<Exit> {
    // Names the pages of commands `cpw-run` and fills in what their pages say of the whole.
    definition.build();
    if let Some(dir) = &args.dir {
        return write(definition, dir);
    }
    let mut command = &definition;
    for name in &args.command {
        command = command.find_subcommand(name).ok_or_else(|| no_command(name))?;
    }
    print::raw(&page(command)?.1);
    Ok(Exit::Ok)
}

fn no_command(name: &str) -> Wrong {
    Wrong::with_hint(format!("there is no command '{}'", one_line(name, 80)), "`cpw help` lists them")
}

/// A page with its file's name. Clap's generator lets the lines of examples flow into each other: they are set here.
fn page(command: &clap::Command) -> std::io::Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone()).source(concat!("cpw ", env!("CARGO_PKG_VERSION")));
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    if let Some(text) = command.get_after_help() {
        out.extend(notes(&text.to_string()).to_roff().into_bytes());
    }
    Ok((man.get_filename(), out))
}

/// What stands below the options in a command's help: a heading for what begins with a line that ends in a colon, lines that
/// are indented as they are, all other text flowing.
fn notes(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut set = false;
    for line in text.lines() {
        let indented = line.starts_with(' ');
        if indented != set {
            roff.control(if indented { "nf" } else { "fi" }, []);
            set = indented;
        }
        match line.strip_suffix(':') {
            Some(title) if !indented => drop(roff.control("SH", [title.to_uppercase().as_str()])),
            _ if line.is_empty() => drop(roff.control("PP", [])),
            _ => drop(roff.text([roman(line)])),
        }
    }
    if set {
        roff.control("fi", []);
    }
    roff
}

fn write(definition: clap::Command, dir: &Path) -> anyhow::Result<Exit> {
    let shown = one_line(&dir.to_string_lossy(), 500);
    let cannot = |e: std::io::Error| Wrong::with_hint(format!("cannot write to {shown}: {e}"), "name another folder");
    above::refuse_to_write("no pages are written")?;
    std::fs::create_dir_all(dir).map_err(cannot)?;
    let mut pages = vec![definition];
    let mut count = 0;
    while let Some(command) = pages.pop() {
        pages.extend(command.get_subcommands().filter(|c| !c.is_hide_set()).cloned());
        let (name, page) = page(&command)?;
        std::fs::write(dir.join(name), page).map_err(cannot)?;
        count += 1;
    }
    print::out(format_args!("{count} pages are in {shown}"));
    Ok(Exit::Ok)
}
