//! What can go wrong between this crate and the kernel, in words for the person at the probe.

use std::error::Error as StdError;
use std::{fmt, io};

/// Why a program could not be loaded, attached, or read.
#[derive(Debug)]
pub enum Error {
    /// The kernel forbids it to this process.
    NotPermitted,
    /// Another XDP program is attached to the interface with this index.
    AlreadyAttached {
        /// Index of the interface.
        ifindex: u32,
    },
    /// The kernel has no BPF links for XDP (it is older than 5.9).
    KernelTooOld,
    /// Anything else that the kernel refused.
    Kernel {
        /// What was being done.
        action: &'static str,
        /// What the kernel, or the loader, said.
        cause: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn new(action: &'static str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        let cause = cause.into();
        match errno(&*cause) {
            Some(libc::EPERM | libc::EACCES) if !refused_by_verifier(&*cause) => Error::NotPermitted,
            _ => Error::Kernel { action, cause },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotPermitted => f.write_str(
                "the kernel does not permit XDP here: it needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and \
                 CAP_NET_RAW (a container may take them from root too)",
            ),
            Error::AlreadyAttached { ifindex } => write!(
                f,
                "another XDP program is attached to interface number {ifindex}: is another probe running on it? \
                 `ip link show` names the program, `ip link set dev IFACE xdp off` takes it away"
            ),
            Error::KernelTooOld => f.write_str("XDP needs BPF links here: Linux 5.9 or newer"),
            Error::Kernel { action, cause } => write!(f, "{action}: {}", chain(&**cause)),
        }
    }
}

impl StdError for Error {}

/// The number of the system error at the root of `error`, if there is one.
pub(crate) fn errno(error: &(dyn StdError + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

/// The verifier refuses with EACCES too, but leaves a log.
fn refused_by_verifier(error: &(dyn StdError + 'static)) -> bool {
    error.to_string().lines().nth(1).is_some()
}

/// The error and its causes, one after another, each said once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}
