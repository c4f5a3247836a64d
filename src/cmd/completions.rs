//! `cpw completions`: what a shell needs to complete cpw's command line.

use crate::base::exit::Exit;
use crate::ui::print;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Print what a shell needs to complete cpw's command line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw completions bash > ~/.local/share/bash-completion/completions/cpw\n  \
    cpw completions zsh > ~/.zfunc/_cpw\n  \
    cpw completions fish > ~/.config/fish/completions/cpw.fish\n\n\
    For bash the package bash-completion has to be there, or the file is read in ~/.bashrc. For zsh ~/.zshrc needs\n\
    `fpath+=(~/.zfunc)` before `autoload -U compinit && compinit`. They hold from the next shell on; write them anew after\n\
    an update of cpw.")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command for this definition of the command line.
pub fn run(args: &Args, mut definition: clap::Command) -> anyhow::Result<Exit> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition, "cpw", &mut script);
    print::raw(&script);
    Ok(Exit::Ok)
}
