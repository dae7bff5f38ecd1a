//! `tidegate`: the operator's command line. Everything is in the library.

fn main() -> std::process::ExitCode {
    tidegate_controller::cli::run(std::env::args_os()).into()
}
