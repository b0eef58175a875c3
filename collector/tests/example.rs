//! The example configuration, `deploy/collector.toml`: it explains every option, and what it calls a default is one.

use clap::CommandFactory;
use nagare_collector::options::{Cli, DRAIN_TIMEOUT, ServiceOptions};
use std::collections::BTreeSet;

const EXAMPLE: &str = include_str!("../../deploy/collector.toml");
/// Keys of a `[[site]]` table; the command line has none for them.
const OF_A_SITE: [&str; 4] = ["name", "customer", "exporters", "local"];

/// The key of a line `key = value`, with or without a `#` right before it.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.strip_prefix('#').unwrap_or(line).split_once(" = ")?;
    key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-').then_some(key)
}

fn options(text: &str) -> ServiceOptions {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("collector.toml");
    std::fs::write(&file, text).expect("written");
    ServiceOptions { config: Some(file), ..ServiceOptions::default() }.with_file().expect("the example is valid")
}

#[test]
fn every_option_is_explained_once() {
    let command = Cli::command();
    let options = command.get_arguments().filter_map(|argument| argument.get_long()).filter(|name| *name != "config");
    let keys: Vec<&str> = EXAMPLE.lines().filter_map(key).collect();
    assert_eq!(keys.iter().copied().collect::<BTreeSet<_>>(), options.chain(OF_A_SITE).collect::<BTreeSet<_>>());
    assert_eq!(keys.len(), keys.iter().collect::<BTreeSet<_>>().len(), "a key stands twice");
}

#[test]
fn every_key_is_valid_and_defaults_are_the_programs_own() {
    let bare = options(EXAMPLE);
    assert!(bare.server_tls().is_ok_and(|tls| tls.is_some()) && bare.data().is_ok() && bare.site.is_empty());

    let bare_line =
        |line: &str| line.strip_prefix('#').filter(|_| key(line).is_some() || line == "#[[site]]").map(str::to_owned);
    let text: String = EXAMPLE.lines().map(|line| bare_line(line).unwrap_or(line.into()) + "\n").collect();
    let full = options(&text);
    assert_eq!(full.drain_timeout, Some(DRAIN_TIMEOUT));
    assert!(full.stats_json.is_some() && full.metrics.is_some());
    let site = &full.site[0];
    assert_eq!((site.name.as_str(), site.customer.as_deref()), ("tokyo", Some("Example KK")));
    assert_eq!((site.exporters.len(), site.local.len()), (2, 2));
}
