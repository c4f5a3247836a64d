//! The `cpw` program: a thin shell around the library. Hooks are told apart before anything else is set up, so that a hook
//! that has nothing to do costs little more than starting a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let _program = args.next();
    if let Some(hook) = args.next().as_deref().and_then(cpw::hook::Hook::by_name) {
        return cpw::hook::main(hook, &args.collect::<Vec<_>>());
    }
    cpw::cli::main()
}
