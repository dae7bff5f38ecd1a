//! `tidegate-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tidegate_agent::cli::main())
}
