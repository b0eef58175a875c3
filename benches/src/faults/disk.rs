//! Small disks that can be filled: tmpfs in a mount namespace of the calling thread, which goes away with it.

#![forbid(unsafe_code)]

use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Octets that are written at once to fill a disk, and the least that is left free of a full one.
const BLOCK: [u8; 4096] = [0; 4096];

/// Gives the calling thread, and what it starts from now on, mounts of its own.
///
/// # Errors
/// What this machine does not permit, in words.
pub fn private_mounts() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("no mount namespace can be made here: {error}"))?;
    run("mount", &["--make-rprivate", "/"])
}

/// A tmpfs.
pub struct Disk {
    ballast: PathBuf,
    filling: Option<File>,
}

impl Disk {
    /// Mounts it on a directory, which is made; for threads with [`private_mounts`].
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount(directory: &Path, mebibytes: u32) -> Result<Disk, String> {
        std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs", &directory.to_string_lossy()])?;
        Ok(Disk { ballast: directory.join("ballast"), filling: None })
    }

    /// Begins to fill it.
    ///
    /// # Errors
    /// It takes no file at all.
    pub fn fill(&mut self) -> Result<(), String> {
        let file = File::create(&self.ballast).map_err(|error| format!("{}: {error}", self.ballast.display()))?;
        self.filling = Some(file);
        self.keep_full();
        Ok(())
    }

    /// Takes what others have set free meanwhile.
    pub fn keep_full(&mut self) {
        let Some(file) = &mut self.filling else { return };
        while file.write_all(&BLOCK).is_ok() {}
    }

    /// Makes room again.
    pub fn free(&mut self) {
        self.filling = None;
        std::fs::remove_file(&self.ballast).ok(); // Not there: there is room.
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
