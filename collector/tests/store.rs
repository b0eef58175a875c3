//! The store from rows to queries: what goes in comes out, each row once, whatever happens to the process and the disk.

use nagare_collector::query::{self, Engine, RowFormat, SqlFormat};
use nagare_collector::store::{
    Batch, BookRow, FlowRow, Mark, Row, SessionRow, Store, StoreCounters, StoreError, StoreOptions,
};
use nagare_wire::flow::{CSV_HEADER, Counters, FlowKey, FlowRecord};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 2026-11-24T00:00:00Z.
const DAY_MS: u64 = 1_795_478_400_000;
const HOUR_MS: u64 = 3_600_000;
const ALWAYS: (i64, i64) = (i64::MIN, i64::MAX);
const SITES: [&str; 4] = ["tokyo", "osaka.example", "10.0.0.1", "odd/../name %"];

/// SplitMix64: the whole test follows from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn site(&mut self) -> Arc<str> {
        SITES[self.below(4) as usize].into()
    }

    fn address(&mut self, v6: bool) -> IpAddr {
        if v6 {
            Ipv6Addr::from(u128::from(self.next()) << 64 | u128::from(self.below(1 << 20))).into()
        } else {
            Ipv4Addr::from(0x0A00_0000 | self.below(1 << 12) as u32).into()
        }
    }

    fn counters(&mut self) -> Counters {
        Counters { packets: self.below(1000), octets: self.below(1 << 40), tcp_flags: self.below(0x200) as u16 }
    }

    fn flow(&mut self, start_ms: u64) -> FlowRow {
        let v6 = self.below(4) == 0;
        let key = FlowKey {
            source: self.address(v6),
            destination: self.address(v6),
            source_port: self.next() as u16,
            destination_port: self.below(1024) as u16,
            protocol: [1, 6, 17, 132][self.below(4) as usize],
            vlan: self.below(3) as u16,
            ..FlowKey::default()
        };
        let (end_ms, tos, end_reason) = (start_ms + self.below(120_000), self.next() as u8, self.below(6) as u8);
        let (forward, reverse) = (self.counters(), self.counters());
        FlowRow {
            site: self.site(),
            exporter: "192.0.2.7".into(),
            domain: self.below(3) as u32,
            received_ms: end_ms + 1,
            flow: FlowRecord {
                key,
                start_us: start_ms * 1000,
                end_us: end_ms * 1000,
                forward,
                reverse,
                tos,
                end_reason,
                ..FlowRecord::default()
            },
        }
    }

    fn book(&mut self, time_ms: u64) -> BookRow {
        BookRow {
            site: self.site(),
            exporter: "2001:db8::7".into(),
            domain: 1,
            time_ms,
            process: "metering",
            process_id: 1,
            name: "drop.rx_ring_full".to_owned(),
            value: self.below(1 << 30),
        }
    }

    fn session(&mut self, time_ms: u64) -> SessionRow {
        SessionRow {
            site: self.site(),
            exporter: "2001:db8::7".into(),
            transport: "tls",
            time_ms,
            start_ms: DAY_MS,
            event: "running",
            records: self.below(1 << 30),
            lost: 0,
            messages: 1,
            octets: 1,
            note: "a \"note\", 日本語".to_owned(),
        }
    }

    fn row(&mut self) -> Row {
        let time_ms = DAY_MS + self.below(6 * HOUR_MS);
        match self.below(20) {
            0 => Row::Book(self.book(time_ms)),
            1 => Row::Session(self.session(time_ms)),
            _ => Row::Flow(self.flow(time_ms)),
        }
    }
}

/// Options that make every moving part move within a test.
fn quick() -> StoreOptions {
    StoreOptions {
        flush_interval: Duration::from_millis(20),
        merge_files_min: 3,
        merge_grace: Duration::ZERO,
        settle_after: Duration::from_millis(200),
        ..StoreOptions::default()
    }
}

fn open(dir: &Path, options: StoreOptions) -> Store {
    Store::open(dir, options).expect("the store opens")
}

fn offer(store: &Store, rows: Vec<Row>) {
    offer_batch(store, Batch::of(rows));
}

fn offer_batch(store: &Store, mut batch: Batch) {
    while let Err(refused) = store.offer(batch) {
        batch = refused;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first line of a query's result, without the header.
fn answer(dir: &Path, query: &str) -> String {
    let mut out = Vec::new();
    query::sql(dir, query, SqlFormat::Csv, &mut out).unwrap_or_else(|error| panic!("{query}: {error}"));
    let text = String::from_utf8(out).expect("CSV is text");
    text.lines().nth(1).unwrap_or_else(|| panic!("{query}: {text}")).to_owned()
}

fn numbers(line: &str) -> Vec<u64> {
    line.split(',').map(|number| number.parse().unwrap_or_else(|_| panic!("numbers, not {line}"))).collect()
}

fn flow_lines(dir: &Path, site: Option<&str>, (from_ms, to_ms): (i64, i64)) -> Vec<String> {
    let mut out = Vec::new();
    let rows = query::flows(dir, site, from_ms, to_ms, RowFormat::Csv, &mut out).expect("the store can be read");
    let text = String::from_utf8(out).expect("CSV is text");
    let mut lines = text.lines().map(str::to_owned);
    assert_eq!(lines.next(), Some(format!("{CSV_HEADER},site,exporter,domain")));
    let lines: Vec<String> = lines.collect();
    assert_eq!(lines.len() as u64, rows);
    assert!(lines.is_sorted_by_key(|line| numbers(&line[..line.find(',').expect("columns")])), "sorted by start");
    lines
}

fn expected_line(row: &FlowRow) -> String {
    let mut line = String::new();
    row.flow.write_csv(&mut line);
    format!("{},{},{},{}", line.trim_end(), row.site, row.exporter, row.domain)
}

fn data_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the directory can be read").flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(data_files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    found
}

fn assert_adds_up(counters: &StoreCounters) {
    let tallies = [counters.flows, counters.books, counters.sessions];
    for tally in tallies {
        assert_eq!(tally.taken, tally.stored + tally.failed + tally.in_flight, "{counters:?}");
    }
    assert_eq!(counters.taken, tallies.iter().map(|tally| tally.taken).sum::<u64>());
    assert_eq!(counters.taken, counters.stored + counters.failed + counters.in_flight, "{counters:?}");
}

fn skipped(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "skipped with CI=true: {reason}");
    eprintln!("skipped: {reason}");
}

#[test]
fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut random = Random(1);
    let (mut flows, mut books, mut sessions) = (Vec::new(), 0, 0);
    for _ in 0..4 {
        let store = open(dir.path(), quick());
        for _ in 0..30 {
            let batch: Vec<Row> = (0..random.below(300)).map(|_| random.row()).collect();
            for row in &batch {
                match row {
                    Row::Flow(row) => flows.push(row.clone()),
                    Row::Book(row) => books += row.value,
                    Row::Session(row) => sessions += row.records,
                }
            }
            offer(&store, batch);
            std::thread::sleep(Duration::from_millis(random.below(8)));
            assert_adds_up(&store.counters());
        }
        let counters = store.close().expect("the store closes");
        assert_adds_up(&counters);
        assert_eq!((counters.in_flight, counters.failed, counters.write_errors, counters.merge_errors), (0, 0, 0, 0));
    }

    assert_eq!(answer(dir.path(), "SELECT sum(value) FROM books"), books.to_string());
    assert_eq!(answer(dir.path(), "SELECT sum(records) FROM sessions WHERE note LIKE '%日本語'"), sessions.to_string());
    let hour = |hours: u64| (DAY_MS + hours * HOUR_MS) as i64;
    for (site, period) in [
        (None, ALWAYS),
        (Some("osaka.example"), ALWAYS),
        (Some(SITES[3]), (hour(0) + 1_800_000, hour(4))),
        (None, (hour(2), hour(2) + 1_800_000)),
        (Some("nowhere"), ALWAYS),
    ] {
        let wanted = |row: &&FlowRow| {
            let start = row.flow.start_ms() as i64;
            site.is_none_or(|site| *row.site == *site) && period.0 <= start && start < period.1
        };
        let mut expected: Vec<String> = flows.iter().filter(wanted).map(expected_line).collect();
        let mut lines = flow_lines(dir.path(), site, period);
        expected.sort();
        lines.sort();
        assert_eq!(lines, expected, "{site:?} {period:?}");
    }
}

#[test]
fn merging_shows_each_row_once_to_readers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), StoreOptions { flush_interval: Duration::from_millis(4), ..quick() });
    let mut random = Random(2);
    let (mut offered, mut octets, mut reads) = (0, 0, 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        let batch = (0..=random.below(20)).map(|_| {
            let start_ms = DAY_MS + random.below(1000);
            let row = FlowRow { site: "tokyo".into(), received_ms: offered, ..random.flow(start_ms) };
            offered += 1;
            octets += row.flow.forward.octets;
            Row::Flow(row)
        });
        offer(&store, batch.collect());
        let stored = store.counters().stored;
        let seen = numbers(&answer(dir.path(), "SELECT count(*), count(DISTINCT received_ms) FROM flows"));
        assert_eq!(seen[0], seen[1], "a row was seen twice");
        assert!(stored <= seen[0] && seen[0] <= offered, "{stored} <= {} <= {offered}", seen[0]);
        reads += 1;
    }
    wait_until("a settled partition is one file", || data_files(dir.path()).len() == 1);
    let counters = store.close().expect("the store closes");
    assert_eq!((counters.stored, counters.merge_errors), (offered, 0));
    assert!(counters.merges > 10 && reads > 10, "{counters:?}, {reads} reads");
    assert_eq!(answer(dir.path(), "SELECT count(*), sum(octets) FROM flows"), format!("{offered},{octets}"));
    assert_eq!(flow_lines(dir.path(), None, ALWAYS).len() as u64, offered);
}

/// The mark of a Message that holds one row, of that number.
fn mark(number: u64) -> Mark {
    Mark { site: "tokyo".into(), probe: [7; 16], epoch: 1, first: number, last: number }
}

/// No test of its own: what [`a_killed_process_leaves_whole_files`] starts and kills.
#[test]
fn child_that_stores_until_killed() {
    let Some(dir) = std::env::var_os("NAGARE_TEST_STORE") else { return };
    let store = open(Path::new(&dir), quick());
    let mut random = Random(11);
    let base: u64 = std::env::var("NAGARE_TEST_BASE").ok().and_then(|base| base.parse().ok()).expect("a number");
    for number in base.. {
        let start_ms = DAY_MS + random.below(3 * HOUR_MS);
        let rows = vec![Row::Flow(FlowRow { received_ms: number, ..random.flow(start_ms) })];
        offer_batch(&store, Batch { rows, marks: vec![mark(number)] });
        if number % 100 == 0 {
            println!("stored {}", store.counters().stored);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_killed_process_leaves_whole_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut before = 0;
    for round in 0..3 {
        let promised = before + store_and_kill(dir.path(), round * 1_000_000_000);
        let leftover = data_files(dir.path())[0].with_file_name(".tmp-0000009999-0000009999.parquet");
        fs::write(&leftover, "half a file").expect("the leftover is written");
        let seen = numbers(&answer(dir.path(), "SELECT count(*), count(DISTINCT received_ms) FROM flows"));
        assert_eq!(seen[0], seen[1]);
        assert!(seen[0] >= promised, "{} rows of {promised} that were counted as stored", seen[0]);
        let store = open(dir.path(), quick());
        let marks = store.marks();
        store.close().expect("the store closes");
        assert!(!leftover.exists());
        // What was committed and had no name yet has one now; a row is there if and only if its Message is marked.
        let last = numbers(&answer(dir.path(), "SELECT max(received_ms) FROM flows"))[0];
        let counted = numbers(&answer(dir.path(), "SELECT count(*), count(DISTINCT received_ms) FROM flows"));
        assert!(counted[0] == counted[1] && counted[0] >= seen[0], "{counted:?} after {seen:?}");
        let base = round * 1_000_000_000;
        assert!((base..=last).all(|number| marks.contains("tokyo", &[7; 16], 1, number)));
        assert!((last + 1..last + 10_000).all(|number| !marks.contains("tokyo", &[7; 16], 1, number)));
        before = counted[0];
    }
}

/// Returns how many rows the child counted as stored before it was killed.
fn store_and_kill(dir: &Path, base: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("a test knows its program"))
        .args(["--exact", "child_that_stores_until_killed", "--nocapture"])
        .env("NAGARE_TEST_STORE", dir)
        .env("NAGARE_TEST_BASE", base.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
    let (mut stored, begin) = (0, Instant::now());
    for line in lines {
        if let Some(number) = line.expect("the child writes text").strip_prefix("stored ") {
            stored = number.parse().expect("a number");
        }
        if stored > 2_000 && begin.elapsed() > Duration::from_millis(700) {
            break;
        }
    }
    let refused = Store::open(dir, quick()).err().expect("the child owns the directory");
    child.kill().expect("the child can be killed");
    child.wait().expect("the child ends");
    assert!(matches!(&refused, StoreError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("process {}:", child.id())), "{refused}");
    assert!(stored > 2_000, "the child stored {stored} rows");
    stored
}

#[test]
fn what_was_taken_waits_for_a_disk_that_refuses() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // A file stands where a site's directory must be made; root is refused as well.
    let obstacle = dir.path().join("flows/site=tokyo");
    fs::create_dir_all(dir.path().join("flows")).and_then(|()| fs::write(&obstacle, "")).expect("the obstacle stands");
    let store = Store::open(dir.path(), quick()).err().expect("a file where a directory should be").to_string();
    assert!(store.contains("flows/site=tokyo"), "{store}");
    fs::remove_file(&obstacle).expect("the obstacle goes");
    let store = open(dir.path(), StoreOptions { rows_max: 1_000, ..quick() });
    fs::write(&obstacle, "").expect("the obstacle stands again");

    let mut random = Random(3);
    let mut batch = || (0..1_000).map(|_| Row::Flow(FlowRow { site: "tokyo".into(), ..random.flow(DAY_MS) })).collect();
    let mut taken = 0;
    while store.offer(Batch::of(batch())).is_ok() {
        taken += 1_000;
    }
    assert!(taken > 100_000, "the queue holds more than {taken} rows");
    wait_until("writing is tried again", || store.counters().write_errors > 1);
    let counters = store.counters();
    assert_adds_up(&counters);
    assert_eq!((counters.taken, counters.in_flight), (taken, taken));
    fs::remove_file(&obstacle).expect("the obstacle goes");
    offer(&store, batch());
    let counters = store.close().expect("the store closes");
    assert_eq!((counters.stored, counters.failed), (taken + 1_000, 0));
    assert_eq!(answer(dir.path(), "SELECT count(*) FROM flows"), (taken + 1_000).to_string());
}

#[test]
fn rows_that_cannot_be_written_are_counted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), quick());
    fs::create_dir(dir.path().join("books")).expect("a directory is made");
    let obstacle = dir.path().join("books/site=tokyo");
    fs::write(&obstacle, "").expect("the obstacle stands");
    let mut random = Random(4);
    let mut book = |site: &str| Row::Book(BookRow { site: site.into(), ..random.book(DAY_MS) });
    offer_batch(&store, Batch { rows: vec![book("tokyo"), book("osaka")], marks: vec![mark(1)] });
    wait_until("writing is tried again", || store.counters().write_errors > 1);
    // All or nothing: what could be written alone is not, and nothing may be acknowledged.
    assert_eq!((store.durable(), store.counters().stored), (0, 0));
    let counters = store.close().expect("the store closes");
    assert_adds_up(&counters);
    assert_eq!((counters.books.failed, counters.books.stored), (2, 0));
    fs::remove_file(&obstacle).expect("the obstacle goes");
    let store = open(dir.path(), quick());
    assert!(!store.marks().contains("tokyo", &[7; 16], 1, 1), "what is not stored is not marked");
    offer_batch(&store, Batch { rows: vec![book("tokyo")], marks: vec![mark(1)] });
    wait_until("it is durable", || store.durable() == 1);
    drop(store);
    assert!(open(dir.path(), quick()).marks().contains("tokyo", &[7; 16], 1, 1));
    assert_eq!(answer(dir.path(), "SELECT count(*) FROM books"), "1");

    // A store that is full and waits for its disk still closes.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), StoreOptions { rows_max: 5, ..quick() });
    fs::write(dir.path().join("books"), "").expect("the obstacle stands");
    (0..20).for_each(|_| offer(&store, vec![book("tokyo"); 10]));
    wait_until("it is full", || store.counters().write_errors > 0);
    let (begin, counters) = (Instant::now(), store.close().expect("the store closes"));
    assert!(begin.elapsed() < Duration::from_secs(5), "closing took {:?}", begin.elapsed());
    assert_adds_up(&counters);
    assert_eq!((counters.taken, counters.failed), (200, 200));
}

#[test]
fn long_texts_are_cut() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), quick());
    offer(&store, vec![Row::Book(BookRow { name: "流れ".repeat(20_000), ..Random(12).book(DAY_MS) })]);
    store.close().expect("the store closes");
    assert_eq!(answer(dir.path(), "SELECT name FROM books"), "流れ".repeat(20_000)[..255]);
}

/// No test of its own: what [`a_full_disk_loses_nothing`] starts in a mount namespace, on a small tmpfs.
#[test]
fn child_on_a_full_disk() {
    let Some(dir) = std::env::var_os("NAGARE_TEST_FULL_DISK").map(PathBuf::from) else { return };
    let filler = dir.join("filler");
    let store = open(&dir, quick());
    let mut file = fs::File::create(&filler).expect("the filler is made");
    let full = (0..).find_map(|_| file.write_all(&[0; 4096]).err()).expect("a disk gets full");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let mut random = Random(5);
    for _ in 0..50 {
        offer(&store, (0..100).map(|_| Row::Flow(random.flow(DAY_MS))).collect());
        std::thread::sleep(Duration::from_millis(2));
    }
    wait_until("writing is tried again", || store.counters().write_errors > 4);
    let counters = store.counters();
    // The tmpfs counts its pages by processor: now and then a small file still finds one.
    assert!(counters.taken == 5_000 && counters.in_flight > 0 && counters.failed == 0, "{counters:?}");
    drop(file);
    fs::remove_file(&filler).expect("the filler goes");
    let counters = store.close().expect("the store closes");
    assert_eq!((counters.stored, counters.failed), (5_000, 0));
    assert_eq!(answer(&dir, "SELECT count(*) FROM flows"), "5000");
    println!("a full disk lost nothing");
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mount = "mount -t tmpfs -o size=4m tmpfs \"$NAGARE_TEST_FULL_DISK\" && exec \"$0\" \"$@\"";
    let run = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", mount]).args(arguments);
        command.env("NAGARE_TEST_FULL_DISK", dir.path()).output()
    };
    match run(&["true"]) {
        Ok(output) if output.status.success() => {}
        _ => return skipped("a_full_disk_loses_nothing needs root, unshare and tmpfs"),
    }
    let test = std::env::current_exe().expect("a test knows its program");
    let output = run(&[test.to_str().expect("a plain path"), "--exact", "child_on_a_full_disk", "--nocapture"]);
    let output = output.expect("unshare ran before");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("a full disk lost nothing"), "{text}{errors}");
}

#[test]
fn hostile_times_force_early_flushes_and_nothing_more() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = StoreOptions { flush_interval: Duration::from_secs(3600), partitions_max: 20, ..quick() };
    let store = open(dir.path(), options);
    let mut random = Random(6);
    let mut early = 0;
    for _ in 0..60 {
        let start_ms = (random.next() >> random.below(60)).min(u64::MAX / 1000 - 200_000);
        early += usize::from(start_ms < DAY_MS);
        offer(&store, vec![Row::Flow(random.flow(start_ms))]);
    }
    wait_until("partitions are written before their time", || store.counters().files >= 20);
    store.close().expect("the store closes");
    assert_eq!(flow_lines(dir.path(), None, ALWAYS).len(), 60);
    assert_eq!(flow_lines(dir.path(), None, (i64::MIN, DAY_MS as i64)).len(), early);
}

#[test]
fn queries_answer_and_refuse_in_words() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(flow_lines(dir.path(), None, ALWAYS), Vec::<String>::new());
    assert_eq!(answer(dir.path(), "SELECT count(*), sum(octets) FROM flows"), "0,");
    let store = open(dir.path(), quick());
    let mut flow = FlowRow { site: "tokyo".into(), ..Random(7).flow(DAY_MS + 300_001) };
    flow.flow.key.source = Ipv4Addr::new(10, 0, 0, 1).into();
    offer(&store, vec![Row::Flow(flow)]);
    store.close().expect("the store closes");

    let run = |query: &str, format| {
        let mut out = Vec::new();
        let result = query::sql(dir.path(), query, format, &mut out).map_err(|error| error.to_string());
        result.map(|()| String::from_utf8(out).expect("text"))
    };
    let bins = "SELECT date_bin(INTERVAL '5 minutes', start_time) AS bin, src FROM flows WHERE site = 'tokyo'";
    let none = "SELECT site FROM flows WHERE site = 'x'";
    let both = "SELECT src, start_ms FROM flows WHERE start_time > '2026-11-24T00:05:00Z'";
    let json = "{\"src\":\"10.0.0.1\",\"start_ms\":1795478700001}\n";
    for (query, format, expected) in [
        (bins, SqlFormat::Csv, "bin,src\n2026-11-24T00:05:00,10.0.0.1\n"),
        (none, SqlFormat::Csv, "site\n"),
        (none, SqlFormat::Json, ""),
        (none, SqlFormat::Table, "+------+\n| site |\n+------+\n+------+\n"),
        (both, SqlFormat::Json, json),
        ("SELECT site FROM flows", SqlFormat::Table, "+-------+\n| site  |\n+-------+\n| tokyo |\n+-------+\n"),
    ] {
        assert_eq!(run(query, format).as_deref(), Ok(expected), "{query}");
    }
    for (query, words) in [
        ("SELECT sourc FROM flows", "octets"),
        ("SELECT * FROM flow", "The tables are flows, books, sessions"),
        ("DROP TABLE flows", "not supported: DropTable"),
        ("COPY flows TO '/nowhere/x.csv'", "not supported: COPY"),
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", "not supported: CreateExternalTable"),
        ("SELEC 1", "SELEC"),
    ] {
        let error = run(query, SqlFormat::Csv).expect_err(query);
        assert!(error.contains(words), "{query}: {error}");
    }
    let missing = Engine::open(&dir.path().join("missing")).err().expect("no such directory").to_string();
    assert!(missing.contains("/missing: No such file"), "{missing}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert!(query::flows(dir.path(), None, i64::MIN, i64::MAX, RowFormat::Csv, &mut Closed).is_ok());
    for format in [SqlFormat::Table, SqlFormat::Csv, SqlFormat::Json] {
        assert!(query::sql(dir.path(), "SELECT 1", format, &mut Closed).is_ok(), "{format:?}");
    }
}

#[test]
fn a_query_sees_rows_within_ten_seconds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), StoreOptions::default());
    offer(&store, vec![Row::Flow(Random(8).flow(DAY_MS))]);
    wait_until("a query sees the row", || answer(dir.path(), "SELECT count(*) FROM flows") == "1");
    drop(store);
}

#[test]
fn an_independent_reader_sees_the_same() {
    let Some(python) = python_with_pyarrow() else {
        return skipped("an_independent_reader_sees_the_same needs python3 with pyarrow, or with venv and PyPI");
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path(), quick());
    let mut random = Random(9);
    offer(&store, (0..5_000).map(|_| random.row()).collect());
    store.close().expect("the store closes");
    let script = "import sys, glob, pyarrow.parquet as parquet\n\
        files = [parquet.read_table(f, partitioning=None) for f in glob.glob(sys.argv[1] + '/flows/*/*/0*.parquet')]\n\
        sites = {site for f in files for site in f['site'].to_pylist()}\n\
        print(sum(f.num_rows for f in files), sum(sum(f['octets'].to_pylist()) for f in files), len(sites), sep=',')";
    let output = Command::new(python).args(["-c", script]).arg(dir.path()).output().expect("python ran before");
    let seen = String::from_utf8_lossy(&output.stdout);
    let own = answer(dir.path(), "SELECT count(*), sum(octets), count(DISTINCT site) FROM flows");
    assert_eq!(seen.trim(), own, "{}", String::from_utf8_lossy(&output.stderr));
}

/// The system's Python if it has pyarrow, else one in a virtual environment that stays for the next run.
fn python_with_pyarrow() -> Option<PathBuf> {
    let has_it = |python: &Path| {
        let output = Command::new(python).args(["-c", "import pyarrow.parquet"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let system = PathBuf::from("python3");
    if has_it(&system) {
        return Some(system);
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pyarrow");
    let own = place.join("bin/python");
    if !has_it(&own) {
        Command::new(&system).args(["-m", "venv"]).arg(&place).output().ok()?;
        Command::new(&own).args(["-m", "pip", "install", "--quiet", "pyarrow"]).output().ok()?;
    }
    has_it(&own).then_some(own)
}

#[test]
fn counters_always_add_up() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut random = Random(10);
    let store = open(dir.path(), quick());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while store.counters().taken < 2_000 {
                assert_adds_up(&store.counters());
            }
        });
        for _ in 0..200 {
            offer(&store, (0..10).map(|_| random.row()).collect());
        }
    });
    drop(store);
    let stored = "SELECT (SELECT count(*) FROM flows) + (SELECT count(*) FROM books) + (SELECT count(*) FROM sessions)";
    assert_eq!(answer(dir.path(), stored), "2000");
    open(dir.path(), quick()).close().expect("the lock went with the store");
}
