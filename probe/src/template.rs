//! `--template`: which fields flows are exported with.
#![forbid(unsafe_code)]

use nagare_wire::ipfix::field::{CATALOGUE, Field, FlowTemplate};
use std::path::Path;

/// Octets of a template file that are read: more than all names take.
const FILE_OCTETS_MAX: u64 = 1 << 16;

/// The template that `text` names: `basic`, `full`, or a file with the name of a field on each line.
///
/// # Errors
/// A file that cannot be read, or a line of it that names no field; the message names the nearest that there is.
pub fn choose(text: &str) -> Result<FlowTemplate, String> {
    match text {
        "basic" => Ok(FlowTemplate::basic()),
        "full" => Ok(FlowTemplate::full()),
        file => read(Path::new(file)),
    }
}

fn read(file: &Path) -> Result<FlowTemplate, String> {
    let name = file.display();
    let text = std::fs::metadata(file)
        .and_then(|found| match found.len() {
            length if length > FILE_OCTETS_MAX => Err(std::io::Error::other(format!("{length} octets are too many"))),
            _ => std::fs::read_to_string(file),
        })
        .map_err(|error| format!("--template {name}: {error}; it is basic, full, help, or a file of field names"))?;
    let mut fields: Vec<&'static Field> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let field = line.split('#').next().unwrap_or_default().trim();
        if field.is_empty() {
            continue;
        }
        let found = find(field).map_err(|nearest| {
            format!("{name}, line {}: no field is called {field}; did you mean {nearest}?", number + 1)
        })?;
        if !fields.iter().any(|known| known.name == found.name) {
            fields.push(found);
        }
    }
    FlowTemplate::new(&fields).map_err(|error| format!("{name} names {error}"))
}

/// The field of a name, or the name that is nearest to it.
fn find(name: &str) -> Result<&'static Field, &'static str> {
    let exact = CATALOGUE.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    exact.ok_or_else(|| {
        let distance = |field: &&Field| strsim::damerau_levenshtein(&field.name.to_lowercase(), &name.to_lowercase());
        CATALOGUE.iter().min_by_key(distance).map_or("", |field| field.name)
    })
}

/// All fields, as `--template help` prints them.
pub fn catalogue() -> String {
    let mut out = String::from("Fields for --template FILE, one name a line:\n\n");
    for field in CATALOGUE {
        let element = match field.specifier.enterprise {
            0 => field.specifier.element.to_string(),
            enterprise => format!("{enterprise}/{}", field.specifier.element),
        };
        let line = format!("{:<42} {element:>11} {:>3}  {}", field.name, field.specifier.length, field.description);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_fields_and_errors_name_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("fields");
        let chosen = |text: &str| {
            std::fs::write(&file, text).unwrap();
            choose(file.to_str().unwrap())
        };
        let template = chosen("# ends\nsourceIPv4Address\nsourceIPv6Address # both\n\npacketDeltaCount\n").unwrap();
        assert!(!template.measures());
        assert!(chosen("sourceIPv4Address\nsourceIPv6Address\nminimumTTL\n").unwrap().measures());
        let error = chosen("sourceIPv4Address\npacketDeltaCuont\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("did you mean packetDeltaCount?"), "{error}");
        assert!(chosen("# nothing\n").unwrap_err().contains("names no field"));
        assert!(chosen("reversePacketDeltaCount\n").unwrap_err().contains("no address or port"));
        assert!(choose("no/such/file").unwrap_err().contains("no/such/file"));
        assert!(choose("full").unwrap().measures() && !choose("basic").unwrap().measures());
        assert!(catalogue().lines().count() > CATALOGUE.len());
    }
}
