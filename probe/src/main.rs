//! The program `nagare-probe`.
#![forbid(unsafe_code)]

use clap::Parser;
use nagare_probe::options::{Command, CommandLine};
use nagare_probe::run::run;
use nagare_service::run::{init_log, stop_on_signals};
use std::process::ExitCode;

fn main() -> ExitCode {
    init_log();
    let command_line = CommandLine::parse();
    if command_line.options.template.as_deref() == Some("help") {
        print!("{}", nagare_probe::template::catalogue());
        return ExitCode::SUCCESS;
    }
    if command_line.options.tls_ciphers.iter().any(|name| name == "help") {
        print!("{}", nagare_service::tls::ciphers());
        return ExitCode::SUCCESS;
    }
    if let Some(Command::Spool(command)) = command_line.command {
        return match nagare_probe::spools::run(command) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                log::error!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let outcome = command_line
        .plan()
        .map_err(Into::into)
        .and_then(|plan| stop_on_signals().map_err(Into::into).and_then(|stop| run(&plan, &stop)));
    match outcome {
        Ok(outcome) => {
            eprint!("{}", outcome.books.table());
            outcome.failures.iter().for_each(|failure| log::error!("{failure}"));
            let good = outcome.failures.is_empty() && outcome.books.balanced();
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
