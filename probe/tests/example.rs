//! The example configuration, `deploy/probe.toml`: it explains every option, and what it calls a default is one.

use clap::CommandFactory;
use nagare_probe::options::{CommandLine, Options};
use nagare_service::options::layered;
use std::collections::BTreeSet;

const EXAMPLE: &str = include_str!("../../deploy/probe.toml");
/// Keys that are given as examples.
const NO_DEFAULT: [&str; 14] = [
    "tls-crl",
    "tls-ciphers",
    "dump",
    "export-file",
    "cores",
    "stats-json",
    "metrics",
    "filter",
    "sampling",
    "sampling-by",
    "spool",
    "spool-max",
    "bind",
    "sndbuf",
];

/// The key of a line `key = value`, with or without a `#` right before it.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.strip_prefix('#').unwrap_or(line).split_once(" = ")?;
    key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-').then_some(key)
}

/// The example with the keys that `wanted` names no longer commented out.
fn with(wanted: impl Fn(&str) -> bool) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(bare) if key(line).is_some_and(&wanted) => format!("{bare}\n"),
        _ => format!("{line}\n"),
    };
    EXAMPLE.lines().map(line).collect()
}

/// All that the probe makes of `text`.
fn plan(text: &str) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("probe.toml");
    std::fs::write(&file, text).expect("written");
    let options = Options { interface: vec!["lo".into()], ..Options::default() };
    let plan = CommandLine { config: Some(file), options, command: None }.plan();
    format!("{:?}", plan.expect("the example is valid"))
}

#[test]
fn every_option_is_explained_once() {
    let command = CommandLine::command();
    let options = command.get_arguments().filter_map(|argument| argument.get_long()).filter(|name| *name != "config");
    let keys: Vec<&str> = EXAMPLE.lines().filter_map(key).collect();
    assert_eq!(keys.iter().copied().collect::<BTreeSet<_>>(), options.collect::<BTreeSet<_>>());
    assert_eq!(keys.len(), keys.iter().collect::<BTreeSet<_>>().len(), "a key stands twice");
}

#[test]
fn every_key_is_valid() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("probe.toml");
    std::fs::write(&file, with(|_| true)).expect("written");
    let options: Options = layered(Options::default(), Some(&file)).expect("every key parses");
    assert_eq!((options.cores, options.mtu), (vec![2, 3], Some(1280)));
}

#[test]
fn defaults_are_the_programs_own() {
    let bare = plan(EXAMPLE);
    for name in EXAMPLE.lines().filter(|line| line.starts_with('#')).filter_map(key) {
        if !NO_DEFAULT.contains(&name) {
            assert_eq!(plan(&with(|key| key == name)), bare, "{name}");
        }
    }
    assert_ne!(plan(&with(|key| key == "metrics")), bare, "the comparison sees a difference");
}
