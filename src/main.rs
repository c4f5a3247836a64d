//! The `cpw` program: a thin shell around the library.

fn main() -> std::process::ExitCode {
    cpw::cli::main()
}
