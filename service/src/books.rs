//! The books: every packet, flow and record has a place, by name. An [`Equation`] has one total on its left and named terms on
//! its right; [`Books`] balance when every equation does.

use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::run::Stop;
use crate::units::grouped;

/// How often a [`Publisher`] writes its file.
pub const PUBLISH_INTERVAL: Duration = Duration::from_secs(2);

/// One total and the named terms that it falls into. Terms for what is on its way (`in_flight`) are terms too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// What is counted, like `packets`.
    pub name: &'static str,
    /// What tells this equation from others of its name, like the worker and the interface.
    pub labels: Vec<(&'static str, String)>,
    /// The left side.
    pub total: (String, u64),
    /// The right side.
    pub terms: Vec<(String, u64)>,
}

impl Equation {
    /// The sum of the right side. Wider than a term, so that no set of counters can overflow it.
    pub fn sum(&self) -> u128 {
        self.terms.iter().map(|(_, value)| u128::from(*value)).sum()
    }

    /// Whether the terms add up to the total.
    pub fn balanced(&self) -> bool {
        self.sum() == u128::from(self.total.1)
    }

    /// The verdict, then a line for the total and one for each term that is not 0.
    fn block(&self) -> String {
        let verdict = match self.balanced() {
            true => "balanced".to_owned(),
            false => format!("NOT BALANCED: the terms add up to {}", self.sum()),
        };
        let labels: String = self.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let shown: Vec<_> = self.terms.iter().filter(|(_, value)| *value > 0).collect();
        let width = shown.iter().map(|(name, _)| name.len()).chain([self.total.0.len()]).max().unwrap_or(0);
        let line = |sign: char, name: &str, value: u64| format!("  {sign} {name:width$} {:>22}\n", grouped(value));
        let mut out = format!("{}{labels}: {verdict}\n", self.name) + &line(' ', &self.total.0, self.total.1);
        for (index, (name, value)) in shown.into_iter().enumerate() {
            out += &line(if index == 0 { '=' } else { '+' }, name, *value);
        }
        out
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "labels": object(self.labels.iter().map(|(name, value)| (name, json!(value)))),
            "total": { "name": self.total.0, "value": self.total.1 },
            "terms": object(self.terms.iter().map(|(name, value)| (name, json!(value)))),
            "balanced": self.balanced(),
        })
    }
}

fn object(entries: impl Iterator<Item = (impl ToString, Value)>) -> Value {
    Value::Object(entries.map(|(name, value)| (name.to_string(), value)).collect::<Map<_, _>>())
}

/// A program's equations at one moment, and figures that belong to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    /// The program, like `nagare-probe`.
    pub program: &'static str,
    /// What must balance.
    pub equations: Vec<Equation>,
    /// What is good to know: memory, rates, sessions. Names carry their unit.
    pub figures: Vec<(String, u64)>,
}

impl Books {
    /// Whether every equation balances.
    pub fn balanced(&self) -> bool {
        self.equations.iter().all(Equation::balanced)
    }

    /// The books as `--stats-json` holds them, with the time of writing in milliseconds since 1970.
    pub fn to_json(&self) -> Value {
        json!({
            "program": self.program,
            "balanced": self.balanced(),
            "time_ms": now_ms(),
            "equations": self.equations.iter().map(Equation::to_json).collect::<Vec<_>>(),
            "figures": object(self.figures.iter().map(|(name, value)| (name, json!(value)))),
        })
    }

    /// The books in Prometheus' text format: `…_books` for totals and terms, `…_balanced` per equation, `…_figure`.
    pub fn to_prometheus(&self) -> String {
        let prefix = self.program.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let mut out = format!(
            "# HELP {prefix}_books One side of an equation: its terms add up to its total.\n# TYPE {prefix}_books untyped\n"
        );
        for equation in &self.equations {
            let labels = labels(equation);
            let rows =
                std::iter::once(("total", &equation.total)).chain(equation.terms.iter().map(|term| ("term", term)));
            for (side, (name, value)) in rows {
                out += &format!("{prefix}_books{{{labels},side=\"{side}\",name=\"{}\"}} {value}\n", escape(name));
            }
        }
        out += &format!(
            "# HELP {prefix}_balanced Whether the equation's terms add up to its total.\n# TYPE {prefix}_balanced gauge\n"
        );
        for equation in &self.equations {
            out += &format!("{prefix}_balanced{{{}}} {}\n", labels(equation), u8::from(equation.balanced()));
        }
        out +=
            &format!("# HELP {prefix}_figure A figure that is part of no equation.\n# TYPE {prefix}_figure untyped\n");
        for (name, value) in &self.figures {
            out += &format!("{prefix}_figure{{name=\"{}\"}} {value}\n", escape(name));
        }
        out
    }

    /// The books for people: one aligned block per equation, then the figures. Terms that are 0 are left out.
    pub fn table(&self) -> String {
        let mut blocks: Vec<String> = self.equations.iter().map(Equation::block).collect();
        if !self.figures.is_empty() {
            blocks.push(self.figures.iter().map(|(name, value)| format!("{name} {}\n", grouped(*value))).collect());
        }
        blocks.join("\n")
    }
}

/// An equation's own labels, as Prometheus writes them.
fn labels(equation: &Equation) -> String {
    let mut out = format!("equation=\"{}\"", escape(equation.name));
    for (name, value) in &equation.labels {
        out += &format!(",{name}=\"{}\"", escape(value));
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a file so that readers see the old or the new one, whole: beside it first, then renamed over it.
///
/// # Errors
/// What the file system says, naming the file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".tmp-");
    name.push(path.file_name().ok_or_else(|| io::Error::other(format!("{} is not a file's name", path.display())))?);
    let beside = path.with_file_name(name);
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        std::fs::rename(&beside, path)
    });
    written.map_err(|error| {
        std::fs::remove_file(&beside).ok();
        io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display()))
    })
}

type Snapshot = Arc<Mutex<dyn Fn() -> Books + Send>>;

fn take(snapshot: &Snapshot) -> Books {
    // A snapshot only reads; one that panicked has left nothing half-done.
    (snapshot.lock().unwrap_or_else(PoisonError::into_inner))()
}

/// Publishes the books while a program runs: a JSON file every [`PUBLISH_INTERVAL`], and Prometheus' format over HTTP.
pub struct Publisher {
    snapshot: Snapshot,
    file: Option<PathBuf>,
    server: Option<(Arc<tiny_http::Server>, SocketAddr)>,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Publisher {
    /// Starts to publish what `snapshot` returns to `file` and at `http://metrics/metrics`, each where given.
    ///
    /// # Errors
    /// The file cannot be written, or the address cannot be bound: better known at the start than at the end.
    pub fn start(
        snapshot: impl Fn() -> Books + Send + 'static,
        file: Option<PathBuf>,
        metrics: Option<SocketAddr>,
    ) -> io::Result<Publisher> {
        let snapshot: Snapshot = Arc::new(Mutex::new(snapshot));
        let server = metrics.map(bind).transpose()?;
        let mut publisher = Publisher { snapshot, file, server, stop: Stop::new(), threads: Vec::new() };
        if let Some(file) = publisher.file.clone() {
            write_whole(&file, to_text(&take(&publisher.snapshot)).as_bytes())?;
            let (snapshot, stop) = (publisher.snapshot.clone(), publisher.stop.clone());
            publisher.spawn("books", move || write_often(&snapshot, &file, &stop))?;
        }
        if let Some((server, _)) = publisher.server.clone() {
            let snapshot = publisher.snapshot.clone();
            publisher.spawn("metrics", move || serve(&snapshot, &server))?;
        }
        Ok(publisher)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    /// The address at which Prometheus is served; the port that was taken where 0 was asked for.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|(_, address)| *address)
    }

    /// Ends the threads, writes the file a last time and returns what was written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> io::Result<Books> {
        self.end();
        let books = take(&self.snapshot);
        if let Some(file) = &self.file {
            write_whole(file, to_text(&books).as_bytes())?;
        }
        Ok(books)
    }

    fn end(&mut self) {
        self.stop.set();
        if let Some((server, _)) = &self.server {
            server.unblock();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread that publishes the books panicked");
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.end();
    }
}

/// The file of `--stats-json`.
fn to_text(books: &Books) -> String {
    format!("{:#}\n", books.to_json())
}

fn bind(address: SocketAddr) -> io::Result<(Arc<tiny_http::Server>, SocketAddr)> {
    let refuse = |error| io::Error::other(format!("metrics cannot be served at {address}: {error}"));
    let server = tiny_http::Server::http(address).map_err(refuse)?;
    let bound = server.server_addr().to_ip().unwrap_or(address);
    Ok((Arc::new(server), bound))
}

fn write_often(snapshot: &Snapshot, file: &Path, stop: &Stop) {
    let mut failing = false;
    while !stop.wait_timeout(PUBLISH_INTERVAL) {
        let result = write_whole(file, to_text(&take(snapshot)).as_bytes());
        // A disk that stays full is told once, not every two seconds.
        if let Err(error) = &result
            && !failing
        {
            log::warn!("the books: {error}");
        }
        failing = result.is_err();
    }
}

fn serve(snapshot: &Snapshot, server: &tiny_http::Server) {
    let plain = tiny_http::Header::from_bytes("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        .expect("the header is ASCII");
    for request in server.incoming_requests() {
        let result = match request.url() {
            "/metrics" | "/" => {
                let response = tiny_http::Response::from_string(take(snapshot).to_prometheus());
                request.respond(response.with_header(plain.clone()))
            }
            _ => request.respond(tiny_http::Response::from_string("look at /metrics\n").with_status_code(404)),
        };
        if let Err(error) = result {
            log::debug!("metrics: the client went away: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    fn books(drops: u64) -> Books {
        let terms = [("metered", 1_234_567), ("drop.rx_ring_full", drops), ("ignore.arp", 0)];
        let packets = Equation {
            name: "packets",
            labels: vec![("worker", "0".into()), ("interface", "e\"th\n0".into())],
            total: ("wire".into(), 1_234_570),
            terms: terms.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        let flows = Equation { name: "flows", labels: vec![], total: ("ended".into(), 0), terms: vec![] };
        Books { program: "nagare-probe", equations: vec![packets, flows], figures: vec![("memory_bytes".into(), 4096)] }
    }

    #[test]
    fn an_equation_balances_or_not() {
        assert!(books(3).balanced());
        assert!(!books(4).balanced());
        let wide = Equation {
            name: "x",
            labels: vec![],
            total: ("t".into(), 0),
            terms: vec![("a".into(), u64::MAX), ("b".into(), 1)],
        };
        assert!(!wide.balanced(), "a sum that wraps to 0 is not 0");
    }

    #[test]
    fn the_table_is_for_people() {
        let expected = "packets worker=0 interface=e\"th\n0: balanced\n    wire                           1,234,570\n\
            \x20 = metered                        1,234,567\n  + drop.rx_ring_full                      3\n\n\
            flows: balanced\n    ended                      0\n\nmemory_bytes 4,096\n";
        assert_eq!(books(3).table(), expected);
        assert!(books(4).table().contains("NOT BALANCED: the terms add up to 1234571"));
    }

    #[test]
    fn prometheus_escapes_labels() {
        let text = books(4).to_prometheus();
        for line in [
            "nagare_probe_books{equation=\"packets\",worker=\"0\",interface=\"e\\\"th\\n0\",side=\"total\",name=\"wire\"} 1234570\n",
            "side=\"term\",name=\"drop.rx_ring_full\"} 4\n",
            "nagare_probe_balanced{equation=\"flows\"} 1\n",
            "nagare_probe_figure{name=\"memory_bytes\"} 4096\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(
            text.contains("nagare_probe_balanced{equation=\"packets\",worker=\"0\",interface=\"e\\\"th\\n0\"} 0\n")
        );
    }

    #[test]
    fn published_whole_and_served() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("stats.json");
        let any = "127.0.0.1:0".parse().expect("an address");
        let publisher = Publisher::start(|| books(3), Some(file.clone()), Some(any)).expect("started");
        let first: Value = serde_json::from_slice(&std::fs::read(&file).expect("there from the start")).expect("JSON");
        assert_eq!(first["balanced"], json!(true));
        assert_eq!(first["equations"][0]["terms"]["drop.rx_ring_full"], json!(3));

        let mut stream = TcpStream::connect(publisher.metrics().expect("served")).expect("connected");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.contains("nagare_probe_figure{name=\"memory_bytes\"} 4096"), "{answer}");

        assert_eq!(publisher.finish().expect("written"), books(3));
        let names: Vec<_> =
            std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("read").file_name()).collect();
        assert_eq!(names, ["stats.json"], "nothing is left beside the file");
        let nowhere = Publisher::start(|| books(3), Some("/nowhere/stats.json".into()), None).err().expect("refused");
        assert!(nowhere.to_string().contains("/nowhere/stats.json cannot be written"), "{nowhere}");
    }
}
