//! A TOML file under, the command line above.
//!
//! An option struct derives `clap::Args`, `Serialize` and `Deserialize` with
//! `#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]`; its fields are `Option`, `Vec` or `bool`, so that a key
//! of the file is the long option without its dashes.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Why options could not be put together.
#[derive(Debug)]
pub struct OptionsError {
    file: Option<PathBuf>,
    what: String,
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}: {}", file.display(), self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for OptionsError {}

/// What the command line says, and for everything that it leaves out (none, empty, false) what `file` says.
///
/// # Errors
/// The file cannot be read, is no TOML, or holds an unknown key or a value that its key cannot have; the message names the
/// file, the key and the line.
pub fn layered<T: Serialize + DeserializeOwned>(cli: T, file: Option<&Path>) -> Result<T, OptionsError> {
    let Some(path) = file else { return Ok(cli) };
    let refuse = |what: String| OptionsError { file: Some(path.to_owned()), what };
    let text = std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    // The file alone is read as `T` first: only here does the parser still know the lines.
    toml::from_str::<T>(&text).map_err(|error| refuse(error.to_string().trim_end().to_owned()))?;
    let mut merged: Table = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    let above = Table::try_from(cli).map_err(|error| refuse(format!("cannot be merged: {error}")))?;
    merged.extend(above.into_iter().filter(|(_, value)| is_said(value)));
    Value::Table(merged).try_into().map_err(|error: toml::de::Error| refuse(error.message().to_owned()))
}

/// An option that the command line leaves out is none (never serialised), empty or false.
fn is_said(value: &Value) -> bool {
    match value {
        Value::Boolean(set) => *set,
        Value::Array(list) => !list.is_empty(),
        Value::Table(table) => !table.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;
    use crate::units::Span;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
    struct Options {
        collector_port: Vec<Endpoint>,
        data: Option<PathBuf>,
        idle_timeout: Option<Span>,
        workers: Option<u32>,
        tls_insecure: bool,
        site: Vec<Site>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
    struct Site {
        name: String,
    }

    fn with_file(text: &str, cli: Options) -> Result<Options, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("nagare.toml");
        std::fs::write(&path, text).expect("written");
        layered(cli, Some(&path)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_wins() {
        let text = "collector-port = ['udp://1', 'tls://2']\nworkers = 2\nidle-timeout = '15s'\ntls-insecure = true\n\
            data = '/a'\n[[site]]\nname = 'tokyo'\n";
        let port: Endpoint = "tcp://9".parse().expect("valid");
        let cli = Options { collector_port: vec![port.clone()], workers: Some(0), ..Options::default() };
        let expected = Options {
            collector_port: vec![port],
            data: Some("/a".into()),
            idle_timeout: Some(Span::seconds(15)),
            workers: Some(0),
            tls_insecure: true,
            site: vec![Site { name: "tokyo".into() }],
        };
        assert_eq!(with_file(text, cli), Ok(expected));
        assert_eq!(with_file("", Options::default()), Ok(Options::default()));
    }

    #[test]
    fn refusals_name_file_key_and_line() {
        let cases = [
            ("workers = 1\nwrokers = 2", "unknown field `wrokers`"),
            ("[[site]]\nnmae = 'x'", "unknown field `nmae`"),
            ("workers = 'two'", "workers"),
            ("idle-timeout = '15'", "15s"),
            ("workers = ", "line 1"),
        ];
        for (text, part) in cases {
            let message = with_file(text, Options::default()).expect_err(text);
            assert!(message.contains(part) && message.contains("nagare.toml"), "{text}: {message}");
        }
        let absent = layered(Options::default(), Some(Path::new("/nowhere.toml"))).expect_err("absent").to_string();
        assert!(absent.contains("/nowhere.toml: cannot be read"), "{absent}");
    }
}
