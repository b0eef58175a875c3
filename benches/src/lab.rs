//! Two network namespaces joined by a veth pair, and the programs run in them. Everything is taken away on drop.

#![forbid(unsafe_code)]

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The captured end of the pair, in the probe's namespace.
pub const TAP: &str = "tap0";
/// The sending end, in the traffic's namespace.
pub const WIRE: &str = "wire0";

/// Two namespaces: `traffic` with [`WIRE`], `probe` with [`TAP`]. The probe's has a loopback for the collector.
pub struct Lab {
    name: String,
    /// Only one laboratory at a time: they would share the machine's two cores.
    _turn: File,
}

impl Lab {
    /// Makes it; the pair has so many queues.
    ///
    /// # Errors
    /// What this machine does not permit, in words.
    pub fn new(queues: u32) -> Result<Lab, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let turn = File::create(std::env::temp_dir().join("nagare-lab.lock")).map_err(|error| error.to_string())?;
        turn.lock().map_err(|error| error.to_string())?;
        let name = format!("nagare-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { name, _turn: turn };
        let (probe, traffic) = (lab.probe(), lab.traffic());
        ip(&["netns", "add", &probe])?;
        ip(&["netns", "add", &traffic])?;
        for namespace in [&probe, &traffic] {
            // The kernel's own IPv6 packets would disturb the counts.
            let quiet = ["netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"];
            ip(&quiet)?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        let queues = queues.to_string();
        let side = ["numrxqueues", &queues, "numtxqueues", &queues];
        let pair = [
            &["-n", &probe, "link", "add", TAP],
            &side[..],
            &["type", "veth", "peer", "name", WIRE, "netns", &traffic],
        ];
        ip(&[pair.concat(), side.to_vec()].concat())?;
        ip(&["-n", &probe, "link", "set", TAP, "up"])?;
        ip(&["-n", &traffic, "link", "set", WIRE, "up"])?;
        Ok(lab)
    }

    /// A laboratory for a test; where there can be none it prints why, and fails where CI=true.
    pub fn or_skip(queues: u32) -> Option<Lab> {
        let refusal = match Lab::new(queues) {
            Ok(lab) => return Some(lab),
            Err(refusal) => refusal,
        };
        println!("skipped: no network namespaces can be made here: {refusal}");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
        None
    }

    /// Name of the probe's namespace.
    pub fn probe(&self) -> String {
        format!("{}-probe", self.name)
    }

    /// Name of the traffic's namespace.
    pub fn traffic(&self) -> String {
        format!("{}-traffic", self.name)
    }

    /// Runs `work` on a thread in the traffic's namespace.
    pub fn send<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.within(&self.traffic(), work)
    }

    /// Runs `work` on a thread in one of the namespaces.
    pub fn within<T: Send>(&self, namespace: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{namespace}")).expect("the namespace was made by new");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What `ip -d link` says of the captured end.
    pub fn tap(&self) -> String {
        ip(&["-n", &self.probe(), "-d", "link", "show", "dev", TAP]).unwrap_or_else(|refusal| refusal)
    }

    /// Starts a program of this workspace in the probe's namespace, with its log captured.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Program {
        Program::start(self.command(program, arguments))
    }

    /// The command that runs a program of this workspace in the probe's namespace.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.probe()]).arg(built(program)).args(arguments);
        command
    }

    /// Runs `ip` in one of the namespaces.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, namespace: &str, arguments: &[&str]) {
        ip(&[&["-n", namespace], arguments].concat()).unwrap_or_else(|refusal| panic!("{refusal}"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [self.probe(), self.traffic()] {
            ip(&["netns", "del", &namespace]).ok();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The path of a program of this workspace, beside the test that runs.
///
/// # Panics
/// If it has not been built.
pub fn built(program: &str) -> PathBuf {
    let here = std::env::current_exe().expect("a running program has a path");
    let mut directories = here.ancestors().skip(1).take(2).map(|directory| directory.join(program));
    directories.find(|path| path.exists()).unwrap_or_else(|| panic!("{program} is not built: cargo build --release"))
}

/// A program that runs; it is killed when dropped.
pub struct Program {
    child: Option<Child>,
    log: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Program {
    /// Starts a command with its standard error captured line by line, and shown.
    pub fn start(command: Command) -> Program {
        Program::begin(command, Stdio::null(), true)
    }

    /// Starts a command that reads a pipe; its log is captured, and not shown.
    pub fn fed(command: Command) -> (Program, ChildStdin) {
        let mut program = Program::begin(command, Stdio::piped(), false);
        let input = program.child.as_mut().and_then(|child| child.stdin.take()).expect("piped");
        (program, input)
    }

    /// Starts a command whose log is captured, and not shown.
    pub fn quiet(command: Command) -> Program {
        Program::begin(command, Stdio::null(), false)
    }

    fn begin(mut command: Command, input: Stdio, shown: bool) -> Program {
        let mut child = command.stderr(Stdio::piped()).stdin(input).spawn().expect("the program starts");
        let log = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (mut stderr, sink) = (child.stderr.take().expect("piped"), log.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                if shown {
                    eprint!("{text}"); // Shown where the test fails.
                }
                sink.lock().expect("no writer panics").push_str(&text);
            }
        });
        Program { child: Some(child), log }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().expect("it is our child"))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no writer panics").clone()
    }

    /// Waits until the log holds `text`; gives the rest of the line.
    ///
    /// # Panics
    /// After 20 seconds.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_nth(text, 1)
    }

    /// Waits until the log holds `text` so many times; gives the rest of the line of the last.
    ///
    /// # Panics
    /// After 20 seconds.
    pub fn wait_for_nth(&self, text: &str, times: usize) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let log = self.log();
            if let Some((at, _)) = log.match_indices(text).nth(times - 1) {
                return log[at + text.len()..].lines().next().unwrap_or_default().to_string();
            }
            assert!(Instant::now() < deadline, "no \"{text}\" in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal (`TERM`, `KILL`, …) to the program itself.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill runs");
    }

    /// Waits for its end, 30 seconds at most.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut child = self.child.take().expect("it runs");
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                std::thread::sleep(Duration::from_millis(50)); // The log's last lines.
                return (status, self.log());
            }
            if Instant::now() > deadline {
                child.kill().ok();
                panic!("it did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, then [`Program::wait`].
    pub fn stop(self) -> (ExitStatus, String) {
        self.signal("TERM");
        self.wait()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Runs a program of this workspace to its end.
///
/// # Errors
/// It cannot be started.
pub fn run(program: &str, arguments: &[&str]) -> io::Result<Output> {
    Command::new(built(program)).args(arguments).output()
}

/// The books that a program wrote to `--stats-json`.
///
/// # Panics
/// If the file holds no books.
pub fn books(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", path.display()))
}

/// A term (or the total) of the equations of this name in the books, added up.
///
/// # Panics
/// If these are no books.
pub fn term(books: &serde_json::Value, equation: &str, name: &str) -> u64 {
    let equations = books["equations"].as_array().expect("books have equations");
    let value = |equation: &serde_json::Value| match equation["total"]["name"] == name {
        true => equation["total"]["value"].as_u64(),
        false => equation["terms"][name].as_u64(),
    };
    equations.iter().filter(|e| e["name"] == equation).map(|e| value(e).unwrap_or(0)).sum()
}

/// What a program serves to Prometheus, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Metrics(String);

impl Metrics {
    /// Of a program that was started with `--metrics`; none where it does not answer (yet).
    pub fn of_program(program: &Program) -> Option<Metrics> {
        let log = program.log();
        let (_, address) = log.split_once("metrics at http://")?;
        Metrics::of(address.split('/').next()?).ok()
    }

    /// Asks a program at this address of the machine (`127.0.0.1:9101`); two seconds at most.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn of(address: &str) -> io::Result<Metrics> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Metrics(text))
    }

    /// A figure; 0 where the program has none of this name.
    pub fn figure(&self, name: &str) -> u64 {
        self.sum(&["_figure{"], name)
    }

    /// A term (or the total) of the equations of this name, added up.
    pub fn term(&self, equation: &str, name: &str) -> u64 {
        self.sum(&["_books{", &format!("equation=\"{equation}\"")], name)
    }

    fn sum(&self, parts: &[&str], name: &str) -> u64 {
        let named = format!("name=\"{name}\"}} ");
        let lines = self.0.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.split_once(&named)?.1.parse::<u64>().ok()).sum()
    }
}

/// Keys and certificates as the two commands of the README make them: a CA, a collector named localhost, and one site.
pub struct Pki(PathBuf);

impl Pki {
    /// Makes them below a directory, by this workspace's collector.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn new(directory: &Path, site: &str) -> Pki {
        Pki::made_by(&built("nagare-collector"), directory, site)
    }

    /// The same by another collector.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn made_by(collector: &Path, directory: &Path, site: &str) -> Pki {
        let dir = directory.join("pki");
        let text = dir.to_str().expect("the harness names its directories in ASCII");
        for arguments in [["init", "--dir", text, "--name", "localhost"], ["issue", "--dir", text, "--site", site]] {
            let output = Command::new(collector).arg("pki").args(arguments).output();
            let output = output.unwrap_or_else(|error| panic!("{} cannot be started: {error}", collector.display()));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Pki(dir)
    }

    /// One of the files: `ca.pem`, `collector.pem`, `collector-key.pem`, and a site's in `sites/`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).to_string_lossy().into_owned()
    }

    /// The collector's options.
    pub fn collector(&self) -> Vec<String> {
        let files =
            [("--tls-cert", "collector.pem"), ("--tls-priv-key", "collector-key.pem"), ("--tls-client-ca", "ca.pem")];
        files.into_iter().flat_map(|(option, file)| [option.to_string(), self.text(file)]).collect()
    }

    /// The options of a site's probe.
    pub fn probe(&self, site: &str) -> Vec<String> {
        let files = [
            ("--tls-ca", "ca.pem".to_string()),
            ("--tls-cert", format!("sites/{site}.pem")),
            ("--tls-priv-key", format!("sites/{site}-key.pem")),
        ];
        files.into_iter().flat_map(|(option, file)| [option.to_string(), self.text(&file)]).collect()
    }
}

/// What a collector's log says before its port.
pub const LISTENING: &str = "listening tls 127.0.0.1:";

/// The options of a collector that stores below a directory; port 0 is any.
pub fn collector_arguments(pki: &Pki, directory: &Path, port: &str) -> Vec<String> {
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let mut arguments = vec!["--collector-port".into(), format!("tls://127.0.0.1:{port}")];
    arguments.extend(["--data".into(), path("data"), "--stats-json".into(), path("collector.json")]);
    arguments.extend(pki.collector());
    arguments
}
