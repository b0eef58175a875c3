//! Compiles the BPF programs with clang; `src/` embeds the objects.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 3] = ["nagare", "host", "generator"];

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for program in PROGRAMS {
        compile(&format!("bpf/{program}.bpf.c"), &out.join(format!("{program}.o")));
    }
}

fn compile(source: &str, object: &Path) {
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    // -g is for the type information (BTF) that the maps are described by.
    command.args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    if let Some(directory) = multiarch_headers() {
        command.arg("-I").arg(directory);
    }
    command.args(["-c", source, "-o"]).arg(object);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "{clang} could not compile {source} ({status}). If a header is missing above, install libbpf-dev and \
             linux-libc-dev (apt-get install libbpf-dev linux-libc-dev)."
        ),
        Err(error) => panic!(
            "{clang} did not start: {error}. The XDP program is compiled with clang 11 or newer: install it \
             (apt-get install clang), or name it in the environment variable CLANG."
        ),
    }
}

/// Debian keeps `asm/types.h` in a directory of the architecture, which clang does not search for the BPF target.
fn multiarch_headers() -> Option<PathBuf> {
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let directory = PathBuf::from(format!("/usr/include/{arch}-linux-gnu"));
    directory.is_dir().then_some(directory)
}
