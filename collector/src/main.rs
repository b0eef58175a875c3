//! `nagare-collector`.
#![forbid(unsafe_code)]

use clap::Parser;
use nagare_collector::{commands, options::Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    match commands::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nagare-collector: {error}");
            ExitCode::FAILURE
        }
    }
}
