//! `nagare-probe spool …`: looks after the spool of a probe that does not run.

#![forbid(unsafe_code)]

use crate::exporter::identity::take_lock;
use crate::exporter::spool::{contents, segment_files};
use crate::options::SpoolCommand;
use crate::run::replay;
use nagare_service::run::stop_on_signals;
use nagare_service::units::{Size, date, grouped};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Does what is asked for; false where it found or left something wrong.
///
/// # Errors
/// In words, for whoever typed it.
pub fn run(command: SpoolCommand) -> Result<bool, Box<dyn Error>> {
    match command {
        SpoolCommand::List(of) => list(&of.dir()?).map(|_| true),
        SpoolCommand::Verify(of) => list(&of.dir()?),
        SpoolCommand::Drop(drop) => remove(&drop.of.dir()?, drop.yes),
        SpoolCommand::Replay(options) => {
            let outcome = replay(&options.plan()?, &stop_on_signals()?)?;
            eprint!("{}", outcome.books.table());
            outcome.failures.iter().for_each(|failure| log::error!("{failure}"));
            Ok(outcome.failures.is_empty() && outcome.books.balanced())
        }
    }
}

/// The queues of a spool: a directory for each.
fn queues(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let read = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut queues: Vec<PathBuf> = read.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    queues.sort();
    Ok(queues)
}

/// Every segment is read whole: what is listed is what can be sent.
fn list(dir: &Path) -> Result<bool, Box<dyn Error>> {
    let (mut whole, mut messages, mut flows, mut octets) = (true, 0, 0, 0);
    println!("{:<24} {:>10} {:>12} {:>10}  segment", "begun", "Messages", "flows", "octets");
    for queue in queues(dir)? {
        for (epoch, first, path) in segment_files(&queue)? {
            let found = contents(&path, first)?;
            let begun = fs::metadata(&path).and_then(|metadata| metadata.created()).ok();
            let begun = begun.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let begun = begun.unwrap_or(Duration::from_millis(epoch)).as_secs();
            let (count, of) = (grouped(found.messages), grouped(found.flows));
            let wrong = match (found.damaged, found.torn) {
                (0, 0) => String::new(),
                (damaged, torn) => format!("  DAMAGED: {damaged} Messages, {torn} octets torn off the end"),
            };
            println!("{:<24} {count:>10} {of:>12} {:>10}  {}{wrong}", date(begun as i64), found.octets, path.display());
            whole &= found.damaged == 0 && found.torn == 0;
            (messages, flows, octets) = (messages + found.messages, flows + found.flows, octets + found.octets);
        }
    }
    println!("{} Messages, {} flows, {} octets ({})", grouped(messages), grouped(flows), grouped(octets), Size(octets));
    Ok(whole)
}

fn remove(dir: &Path, sure: bool) -> Result<bool, Box<dyn Error>> {
    let _lock = take_lock(dir)?;
    let mut removed = 0;
    for queue in queues(dir)? {
        for (_, _, path) in segment_files(&queue)? {
            match sure {
                true => fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?,
                false => println!("would remove {}", path.display()),
            }
            removed += 1;
        }
    }
    match sure {
        true => println!("removed {removed} segments"),
        false => {
            println!("nothing was removed: say --yes to remove these {removed} segments and lose what waits in them")
        }
    }
    Ok(true)
}
