//! Files and marks that become durable together: all of them, or none.
//!
//! Rows are first written to temporary files. Then one small file, the commit, names them, with all marks; it is renamed into place
//! and on disk before any of them gets its own name. A process that is killed before that has stored nothing; one that is
//! killed after it is finished by the next start. The commit stays until the next one takes its place: it holds the marks.

use super::files::sync_dir;
use super::layout::at;
use super::marks::{Marks, MarksOnDisk};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const COMMIT: &str = ".commit";
const COMMIT_TEMPORARY: &str = ".commit-new";
const VERSION: u32 = 1;

/// A file that is written and has not its name yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Staged {
    /// Where it lies.
    pub(super) temporary: PathBuf,
    /// Its name to be.
    pub(super) path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Commit {
    version: u32,
    files: Vec<Staged>,
    marks: MarksOnDisk,
}

/// Makes the files and the marks durable. The files are then to be [named](name).
pub(super) fn commit(dir: &Path, files: &[Staged], marks: &Marks) -> io::Result<()> {
    // Relative, so that a data directory may be moved.
    let relative = |path: &Path| path.strip_prefix(dir).unwrap_or(path).to_owned();
    let files = files.iter().map(|file| Staged { temporary: relative(&file.temporary), path: relative(&file.path) });
    let commit = Commit { version: VERSION, files: files.collect(), marks: marks.into() };
    let text = serde_json::to_vec(&commit).map_err(io::Error::other)?;
    let temporary = dir.join(COMMIT_TEMPORARY);
    let mut file = File::create(&temporary).map_err(|error| at(&temporary, error))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(|error| at(&temporary, error))?;
    fs::rename(&temporary, dir.join(COMMIT)).map_err(|error| at(&temporary, error))?;
    // It is in force now: to report failure would store its rows twice.
    if let Err(error) = sync_dir(dir) {
        log::error!("{}: what was committed may not survive a power cut: {error}", dir.display());
    }
    Ok(())
}

/// Gives committed files their names, those that have them already not counted; may be repeated after a failure.
pub(super) fn name(files: &[Staged]) -> io::Result<()> {
    for Staged { temporary, path } in files {
        match fs::rename(temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path, error)),
            _ => {}
        }
    }
    let parents: BTreeSet<&Path> = files.iter().filter_map(|file| file.path.parent()).collect();
    // A partition may have been removed since, with all its files.
    parents.into_iter().filter(|parent| parent.exists()).try_for_each(sync_dir)
}

/// Finishes what the last process committed, and gives the marks.
pub(super) fn recover(dir: &Path) -> io::Result<Marks> {
    let path = dir.join(COMMIT);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Marks::default()),
        Err(error) => return Err(at(&path, error)),
    };
    let unreadable = |why: String| at(&path, io::Error::other(format!("{why}; it was not written by this program")));
    let Commit { version, files, marks } =
        serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    if version != VERSION {
        return Err(unreadable(format!("version {version} where this program writes {VERSION}")));
    }
    let inside = |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !files.iter().all(|file| inside(&file.temporary) && inside(&file.path)) {
        return Err(unreadable("it names files outside the directory".into()));
    }
    let files = files.into_iter().map(|file| Staged { temporary: dir.join(file.temporary), path: dir.join(file.path) });
    name(&files.collect::<Vec<_>>())?;
    Ok(marks.into())
}
