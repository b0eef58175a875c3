//! What the command line asks for, done.

#![forbid(unsafe_code)]

mod pki;
mod queries;
mod serve;

pub use serve::serve;

use crate::options::{Cli, Command};
use std::error::Error;

/// Does what the command line asks for.
///
/// # Errors
/// In words, for whoever typed it.
pub fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    match cli.command {
        None => serve(cli.service.with_file()?),
        Some(Command::Flows(options)) => queries::flows(&options),
        Some(Command::Sql(options)) => queries::sql(&options),
        Some(Command::Report(options)) => queries::report(*options),
        Some(Command::Pki(command)) => pki::run(command),
    }
}
