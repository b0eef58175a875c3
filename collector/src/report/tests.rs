//! A day of flows, made from a seed, goes through the real store into the report; what went in is counted beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use nagare_wire::flow::{Counters, FlowKey, FlowRecord};
use tempfile::TempDir;

use super::buckets::DIRECTIONS;
use super::network::Side;
use super::*;
use crate::store::{Batch, BookRow, FlowRow, Row, SessionRow, Store, StoreOptions};
use nagare_service::units::grouped;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// 2026-11-23T00:00:00+09:00.
const FROM_MS: i64 = 1_795_359_600_000;
const EXPORTER: &str = "198.51.100.7";
const FLOWS: usize = 20_000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn tokyo() -> TimeZone {
    TimeZone::get("Asia/Tokyo").expect("the time zone database (tzdata) is installed")
}

fn options(dir: &Path) -> ReportOptions {
    ReportOptions {
        site: "tokyo".into(),
        customer: Some("<script>alert('x')</script> & \"Söhne\"".into()),
        from_ms: FROM_MS,
        to_ms: FROM_MS + DAY_MS,
        tz: tokyo(),
        lang: Lang::En,
        top: 20,
        local: default_local(),
        out: dir.join("report.html"),
        csv: Some(dir.join("csv")),
    }
}

fn store(dir: &Path, rows: Vec<Row>) -> Engine {
    let store = Store::open(dir, StoreOptions::default()).unwrap();
    for batch in rows.chunks(1_000) {
        let mut batch = Batch::of(batch.to_vec());
        while let Err(back) = store.offer(batch) {
            batch = back;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    let counters = store.close().unwrap();
    assert_eq!(counters.stored, rows.len() as u64);
    Engine::open(dir).unwrap()
}

fn flow_row(site: &str, received_ms: i64, flow: FlowRecord) -> FlowRow {
    FlowRow { site: site.into(), exporter: EXPORTER.into(), domain: 1, received_ms: received_ms as u64, flow }
}

/// Flows of all kinds: both families, in, out, internal, passing by, multicast; a few last over midnight.
fn flow(random: &mut Random, start_ms: i64) -> FlowRecord {
    let v6 = random.below(4) == 0;
    let mut address = |kind| {
        let host = 1 + random.below(9).pow(2);
        let text = match (kind, v6) {
            (0, false) => format!("10.1.0.{host}"),
            (0, true) => format!("fd00::{host:x}"),
            (1, false) => format!("203.0.113.{host}"),
            (1, true) => format!("2001:db8::{host:x}"),
            (_, false) => "224.0.0.251".to_owned(),
            (_, true) => "ff02::fb".to_owned(),
        };
        text.parse::<IpAddr>().unwrap()
    };
    let (local, peer, remote, group) = (address(0), address(0), address(1), address(2));
    let (source, destination) = match random.below(16) {
        0 => (local, peer),
        1 => (remote, address_like(remote)),
        2 => (local, group),
        3 | 4 => (remote, local),
        _ => (local, remote),
    };
    let protocol = [6, 6, 6, 17, 1][random.below(5) as usize];
    let port = if protocol == 1 { 0 } else { [443, 53, 22, 8080][random.below(4) as usize] };
    let octets = 40 + random.below(5_000);
    let rev_octets = random.below(100_000);
    let end_ms =
        start_ms + [0, random.below(60_000) as i64, random.below(HOUR_MS as u64) as i64][random.below(3) as usize];
    FlowRecord {
        key: FlowKey {
            source,
            destination,
            source_port: if port == 0 { 0 } else { 40_000 + random.below(20_000) as u16 },
            destination_port: port,
            protocol,
            vlan: [0, 0, 10][random.below(3) as usize],
            ..FlowKey::default()
        },
        start_us: start_ms as u64 * 1000,
        end_us: end_ms as u64 * 1000,
        forward: Counters { packets: octets / 500 + 1, octets, tcp_flags: 0x1b },
        reverse: Counters { packets: rev_octets / 1_200 + 1, octets: rev_octets, tcp_flags: 0x1b },
        tos: 0,
        end_reason: 1 + random.below(5) as u8,
        ..FlowRecord::default()
    }
}

fn address_like(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { "192.0.2.1".parse().unwrap() } else { "2001:db8:ffff::1".parse().unwrap() }
}

fn day_of_flows(random: &mut Random, from_ms: i64, count: usize) -> Vec<FlowRecord> {
    // Silence from 10:00 to 11:00; long flows before it end with it, so that it is one.
    let silence = from_ms + 10 * HOUR_MS..from_ms + 11 * HOUR_MS;
    let mut flows = Vec::with_capacity(count);
    while flows.len() < count {
        let start_ms = from_ms + random.below(DAY_MS as u64) as i64;
        let mut flow = flow(random, start_ms);
        if silence.contains(&(flow.start_ms() as i64)) {
            continue;
        }
        if (flow.start_ms() as i64) < silence.start {
            flow.end_us = flow.end_us.min(silence.start as u64 * 1000);
        }
        flows.push(flow);
    }
    flows
}

fn book(process: &'static str, id: u32, time_ms: i64, terms: &[(&str, u64)]) -> Vec<Row> {
    let row = |(name, value): &(&str, u64)| {
        Row::Book(BookRow {
            site: "tokyo".into(),
            exporter: EXPORTER.into(),
            domain: 1,
            time_ms: time_ms as u64,
            process,
            process_id: id,
            name: (*name).to_owned(),
            value: *value,
        })
    };
    // The order of rows with one time is not the store's to keep.
    terms.iter().rev().map(row).collect()
}

/// What the probe tells at noon: it was killed 90 seconds before that.
const KILLED: (&str, u64) = ("gap.killed_ms", 90_000);

/// Books every minute but in the silence, from the evening before; the probe begins anew at noon.
fn day_of_books() -> Vec<Row> {
    let mut rows = Vec::new();
    for minute in (-120..24 * 60).filter(|minute| !(600..660).contains(minute)) {
        let time_ms = FROM_MS + minute * 60_000;
        let run = if minute < 720 { minute + 121 } else { minute - 720 } as u64;
        for id in 1..=2 {
            let (metered, arp, ring) = (run * 1_000 * u64::from(id), run * 3, run / 100);
            let wire = metered + arp + ring + 7;
            let terms = [
                ("wire", wire),
                ("metered", metered),
                ("ignore.arp", arp),
                ("drop.rx_ring_full", ring),
                ("in_flight", 7),
            ];
            rows.extend(book("metering", id, time_ms, &terms));
        }
        let terms = [("ended", run * 10 + 4), ("delivered", run * 10), ("spooled", 3), ("in_flight", 1)];
        rows.extend(book("exporting", 1, time_ms, &terms));
        if minute == 720 {
            rows.extend(book("exporting", 1, time_ms, &[("drop.spool_full", 0), KILLED, KILLED]));
        }
        let begun = if minute < 720 { 1_000 } else { FROM_MS as u64 + 43_200_000 };
        rows.extend(book(
            "statistics",
            1,
            time_ms,
            &[("init_time_ms", begun), ("messages", run), ("records", run * 12)],
        ));
    }
    rows
}

/// The first books of a run that began at `begun_ms`, after an interruption.
fn books_of_start(begun_ms: i64, interruption: (&'static str, u64)) -> Vec<Row> {
    let mut rows = book("statistics", 1, begun_ms + 9_000, &[("init_time_ms", begun_ms as u64)]);
    rows.extend(book("exporting", 1, begun_ms + 9_000, &[("ended", 3), ("delivered", 3), interruption]));
    rows
}

fn session(time_ms: i64, event: &'static str, records: u64, lost: u64) -> Row {
    Row::Session(SessionRow {
        site: "tokyo".into(),
        exporter: EXPORTER.into(),
        transport: "tls",
        time_ms: time_ms as u64,
        start_ms: (FROM_MS - HOUR_MS) as u64,
        event,
        records,
        lost,
        messages: records / 20,
        octets: records * 80,
        note: if event == "end" { "=closed <b>by</b> the exporter".into() } else { String::new() },
    })
}

#[derive(Default)]
struct Expected {
    totals: Totals,
    local_hosts: BTreeMap<String, u64>,
    conversations: BTreeMap<[String; 2], u64>,
    protocols: BTreeMap<u8, u64>,
    vlans: BTreeMap<u16, u64>,
    ports: u64,
}

/// What is in a day of octets that a flow spread evenly over its time.
fn in_the_day(octets: u64, flow: &FlowRecord, from_ms: i64) -> u64 {
    let (start, end) = (flow.start_ms() as i128, flow.end_ms() as i128);
    let sent = |time: i128| match time - start {
        elapsed if elapsed <= 0 => 0,
        _ if time >= end => i128::from(octets),
        elapsed => i128::from(octets) * elapsed / (end - start),
    };
    (sent((from_ms + DAY_MS).into()) - sent(from_ms.into())) as u64
}

fn expect(flows: &[FlowRecord], from_ms: i64) -> Expected {
    let (mut expected, local) = (Expected::default(), default_local());
    for flow in flows {
        let sides = [flow.key.source, flow.key.destination].map(|address| Side::of(address, &local));
        let (forward, reverse) = Direction::of_flow(sides[0] != Side::Remote, sides[1] != Side::Remote);
        let [sent, received] =
            [flow.forward.octets, flow.reverse.octets].map(|octets| in_the_day(octets, flow, from_ms));
        expected.totals.octets[forward as usize] += sent;
        expected.totals.octets[reverse as usize] += received;
        expected.totals.packets += in_the_day(flow.forward.packets + flow.reverse.packets, flow, from_ms);
        expected.totals.flows += u64::from((from_ms..from_ms + DAY_MS).contains(&(flow.start_ms() as i64)));
        let octets = sent + received;
        let mut ends = [flow.key.source, flow.key.destination].map(|address| address.to_string());
        for (end, side) in ends.iter().zip(sides).take(if ends[0] == ends[1] { 1 } else { 2 }) {
            if side == Side::Local {
                *expected.local_hosts.entry(end.clone()).or_default() += octets;
            }
        }
        ends.sort();
        *expected.conversations.entry(ends).or_default() += octets;
        *expected.protocols.entry(flow.key.protocol).or_default() += octets;
        *expected.vlans.entry(flow.key.vlan).or_default() += octets;
        expected.ports += if flow.key.protocol == 1 { 0 } else { octets };
    }
    expected
}

fn largest<Key: Clone>(sums: &BTreeMap<Key, u64>, top: usize) -> Vec<u64> {
    let mut sums: Vec<u64> = sums.values().copied().collect();
    sums.sort_unstable_by(|a, b| b.cmp(a));
    sums.truncate(top);
    sums
}

fn octets<Key>(rows: &[Ranked<Key>]) -> Vec<u64> {
    rows.iter().map(|row| row.octets).collect()
}

#[test]
fn a_day_adds_up() {
    let (dir, mut random) = (TempDir::new().unwrap(), Random(2026));
    let today = day_of_flows(&mut random, FROM_MS, FLOWS);
    let yesterday = day_of_flows(&mut random, FROM_MS - DAY_MS, 500);
    let mut rows: Vec<Row> = Vec::new();
    for flow in today.iter().chain(&yesterday) {
        rows.push(Row::Flow(flow_row("tokyo", flow.end_ms() as i64 + 20_000, *flow)));
    }
    rows.push(Row::Flow(flow_row("osaka", FROM_MS, today[0])));
    rows.push(Row::Flow(flow_row(
        "tokyo",
        FROM_MS,
        FlowRecord { start_us: (FROM_MS + DAY_MS) as u64 * 1000, ..today[0] },
    )));
    rows.extend(day_of_books());
    // Stopped from a quarter of an hour before midnight until two o'clock: told after the period alone.
    rows.extend(books_of_start(FROM_MS + DAY_MS + 2 * HOUR_MS, ("gap.stopped_ms", 2 * HOUR_MS as u64 + 900_000)));
    rows.extend([
        session(FROM_MS - 60_000, "running", 1_000, 5),
        session(FROM_MS + HOUR_MS, "gap", 5_000, 12),
        session(FROM_MS + 20 * HOUR_MS, "end", 21_000, 12),
    ]);
    let engine = store(dir.path(), rows);
    let options = options(dir.path());

    let data = gather(&engine, &options, FROM_MS + 2 * DAY_MS).unwrap();
    let all: Vec<FlowRecord> = yesterday.into_iter().chain(today).collect();
    the_traffic_adds_up(&data, &all);
    the_quality_is_told(&data);
    for lang in [Lang::En, Lang::Ja] {
        let summary = write_report(&engine, &ReportOptions { lang, ..options.clone() }).unwrap();
        assert_eq!((summary.totals, summary.balanced), (data.totals, Some(true)));
        let page = fs::read_to_string(&summary.out).unwrap();
        the_page_is_whole_and_inert(&page, &data, lang);
    }
    the_files_are_exact(&dir.path().join("csv"), &data);
}

fn the_traffic_adds_up(data: &ReportData, flows: &[FlowRecord]) {
    let expected = expect(flows, FROM_MS);
    assert_eq!(data.totals, expected.totals);
    assert_eq!(data.before, expect(flows, FROM_MS - DAY_MS).totals);
    assert!(data.totals.octets.iter().all(|octets| *octets > 0), "every direction is tried");
    let chart = data.samples.chart(&data.tz);
    for direction in DIRECTIONS {
        let total = expected.totals.octets[direction as usize];
        assert_eq!(data.samples.octets(direction).iter().sum::<u64>(), total);
        assert_eq!(chart.octets[direction as usize].iter().sum::<u64>(), total);
    }
    assert_eq!(octets(&data.local_hosts), largest(&expected.local_hosts, 20));
    for row in &data.local_hosts {
        assert_eq!(expected.local_hosts[&row.key], row.octets);
        assert_eq!(row.octets_in + row.octets_out, row.octets);
    }
    assert_eq!(octets(&data.conversations), largest(&expected.conversations, 20));
    assert_eq!(octets(&data.protocols), largest(&expected.protocols, 20));
    assert_eq!(octets(&data.vlans), largest(&expected.vlans, 20));
    assert_eq!(octets(&data.protocols).iter().sum::<u64>(), expected.totals.all());
    assert_eq!(octets(&data.ports).iter().sum::<u64>(), expected.ports);
    assert_eq!(data.end_reasons.iter().map(|row| row.flows).sum::<u64>(), FLOWS as u64);
    assert!(data.remote_hosts.iter().all(|row| row.octets_in + row.octets_out == row.octets));
    let sum = |of: fn(&Ranked<u8>) -> u64| data.protocols.iter().map(of).sum::<u64>();
    assert_eq!(sum(|row| row.octets_in), expected.totals.octets[0]);
    assert_eq!(sum(|row| row.octets_out), expected.totals.octets[1]);
}

fn the_quality_is_told(data: &ReportData) {
    let quality = &data.quality;
    assert!(!quality.replayed);
    assert_eq!([Kind::Metering, Kind::Exporting].map(|kind| quality.balanced(kind)), [Some(true); 2]);
    // The first run from midnight to noon, less what was before midnight; the second from noon.
    let run = (719 + 121 - 120) + 719;
    let process = quality.of(Kind::Metering).next().unwrap();
    assert_eq!((process.term("metered"), process.sum("ignore."), process.restarts), (run * 1_000, run * 3, 1));
    let exporting = quality.of(Kind::Exporting).next().unwrap();
    assert_eq!((exporting.term("delivered"), exporting.opening, exporting.term("in_flight")), (run * 10, 4, 2));
    assert_eq!((exporting.term("spooled"), exporting.term("left_in_spool"), exporting.sum("gap.")), (3, 3, 0));
    let interruptions = quality.interruptions.iter();
    let interruptions: Vec<_> = interruptions.map(|one| (one.from_ms, one.to_ms, one.killed)).collect();
    let (noon, midnight) = (FROM_MS + 12 * HOUR_MS, FROM_MS + DAY_MS);
    let expected = [(noon - 90_000, noon, true), (midnight - 900_000, midnight + 2 * HOUR_MS, false)];
    assert_eq!(interruptions, expected);
    assert_eq!(quality.statistics[0].started_ms, Some(FROM_MS + 12 * HOUR_MS));
    assert_eq!(quality.statistics[0].counter("records"), run * 12);
    assert_eq!(quality.session_sums, SessionSums { sessions: 1, records: 20_000, gaps: 1, lost: 7 });
    assert!(quality.sessions[0].ended && quality.sessions[0].records == 20_000);
    let exporter = &quality.exporters[0];
    assert_eq!((exporter.flows, exporter.exported, exporter.lost), (FLOWS as u64, Some(run * 10), 7));
    assert_eq!(exporter.gaps.len(), 1, "{:?}", exporter.gaps);
    let gap = exporter.gaps[0];
    assert!(
        (gap.from_ms - (FROM_MS + 10 * HOUR_MS)).abs() <= 60_000
            && (gap.to_ms - (FROM_MS + 11 * HOUR_MS)).abs() <= 60_000
    );
}

fn the_page_is_whole_and_inert(page: &str, data: &ReportData, lang: Lang) {
    let texts = lang.texts();
    for text in [texts.title, texts.quality, texts.balanced, &grouped(data.totals.flows), "Asia/Tokyo", "</html>"] {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page.matches("<script").count() + page.matches("<b>by</b>").count(), 0);
    for active in ["http:", "https:", "src=", "url(", "@import", "onload", "javascript:"] {
        assert!(!page.contains(active), "{active}");
    }
    assert_eq!(page.matches("<table").count(), page.matches("<caption").count());
    assert!(!page.contains(texts.not_balanced));
    let sentences = match lang {
        Lang::En => [
            "not metering from 23 Nov 2026, 11:58 to 12:00 (1\u{a0}min 30\u{a0}s): it was killed",
            "not metering from 23 Nov 2026, 23:45 to 24 Nov 2026, 02:00 (2\u{a0}h 15\u{a0}min): it was stopped",
        ],
        Lang::Ja => [
            "2026年11月23日 11:58から12:00まで(1分 30秒)計測していません。強制終了",
            "2026年11月23日 23:45から2026年11月24日 02:00まで(2時間 15分)計測していません。停止",
        ],
    };
    for text in sentences.into_iter().chain([texts.spooled, texts.left_in_spool, r#"<rect class="killed""#]) {
        assert!(page.contains(text), "{text}");
    }
}

fn the_files_are_exact(dir: &Path, data: &ReportData) {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let column = |file: &str, name: &str| -> u64 {
        let text = read(file);
        let mut lines = text.lines();
        let index = lines.next().unwrap().split(',').position(|column| column == name).unwrap();
        lines.map(|line| line.split(',').nth(index).unwrap().parse::<u64>().unwrap()).sum()
    };
    for (direction, name) in
        DIRECTIONS.into_iter().zip(["octets_in", "octets_out", "octets_internal", "octets_transit"])
    {
        assert_eq!(column("traffic.csv", name), data.totals.octets[direction as usize]);
    }
    assert_eq!(column("protocols.csv", "octets"), data.totals.all());
    assert_eq!(column("local_hosts.csv", "octets"), octets(&data.local_hosts).iter().sum::<u64>());
    assert!(read("totals.csv").contains(&format!("flows,{},{},flows\n", data.totals.flows, data.before.flows)));
    assert!(read("books.csv").contains("drop.rx_ring_full"));
    assert!(read("sessions.csv").contains("'=closed"), "no cell is a formula");
    assert!(!read("books.csv").contains("gap."), "an interruption is no term");
    assert_eq!(
        read("not_metered.csv"),
        "exporter,domain,from,to,seconds,cause\n\
        198.51.100.7,1,2026-11-23T11:58:30+09:00,2026-11-23T12:00:00+09:00,90,killed\n\
        198.51.100.7,1,2026-11-23T23:45:00+09:00,2026-11-24T02:00:00+09:00,8100,stopped\n"
    );
    assert_eq!(fs::read_dir(dir).unwrap().count(), 15);
}

#[test]
fn nothing_is_a_report_too() {
    let dir = TempDir::new().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let summary = write_report(&engine, &ReportOptions { csv: None, ..options(dir.path()) }).unwrap();
    assert_eq!((summary.totals, summary.balanced), (Totals::default(), None));
    let page = fs::read_to_string(summary.out).unwrap();
    let texts = Lang::En.texts();
    assert!([texts.no_flows, texts.verdict_unknown, texts.packets_unknown].iter().all(|text| page.contains(text)));
}

#[test]
fn a_replayed_capture_has_its_books() {
    let (dir, later) = (TempDir::new().unwrap(), FROM_MS + 400 * DAY_MS);
    let flow = flow(&mut Random(7), FROM_MS + 5);
    let mut rows = vec![Row::Flow(flow_row("tokyo", later, flow))];
    let at = |row: Row| match row {
        Row::Book(book) => Row::Book(BookRow { time_ms: later as u64 + 1_000, ..book }),
        other => other,
    };
    rows.extend(book("metering", 1, 0, &[("wire", 9), ("metered", 8), ("drop.x", 2)]).into_iter().map(at));
    let engine = store(dir.path(), rows);
    let options = ReportOptions { csv: None, ..options(dir.path()) };
    let summary = write_report(&engine, &options).unwrap();
    assert_eq!((summary.totals.flows, summary.balanced), (1, Some(false)));
    let page = fs::read_to_string(summary.out).unwrap();
    assert!(page.contains(Lang::En.texts().not_balanced) && page.contains("Dec 2027"));
}

#[test]
fn a_liar_cannot_make_a_report_of_interruptions() {
    let dir = TempDir::new().unwrap();
    let mut rows = Vec::new();
    for index in 0..2_000 {
        let begun_ms = FROM_MS + index;
        let gap = [("gap.killed_ms", u64::MAX), ("gap.stopped_ms", index as u64), ("gap.killed_ms", 0)];
        rows.extend(books_of_start(begun_ms, gap[index as usize % 3]));
    }
    for (time_ms, begun) in [(5, 0), (6, u64::MAX), (7, i64::MAX as u64), (8, 1)] {
        let time_ms = FROM_MS + HOUR_MS + time_ms;
        rows.extend(book("statistics", 1, time_ms, &[("init_time_ms", begun)]));
        rows.extend(book("exporting", 1, time_ms, &[("gap.killed_ms", u64::MAX)]));
    }
    let engine = store(dir.path(), rows);
    let options = options(dir.path());
    let data = gather(&engine, &options, FROM_MS + 2 * DAY_MS).unwrap();
    assert_eq!(data.quality.interruptions.len(), super::interruption::INTERRUPTIONS_MAX);
    assert_eq!(data.quality.balanced(Kind::Exporting), Some(true));
    for lang in [Lang::En, Lang::Ja] {
        let summary = write_report(&engine, &ReportOptions { lang, ..options.clone() }).unwrap();
        let page = fs::read_to_string(summary.out).unwrap();
        assert!(page.contains("246") && page.len() < 100_000, "ten are told, the others counted");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = TempDir::new().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let good = ReportOptions { csv: None, ..options(dir.path()) };
    let missing = dir.path().join("missing").join("report.html");
    let refused = [
        (ReportOptions { to_ms: FROM_MS, ..good.clone() }, "longer than nothing"),
        (ReportOptions { from_ms: i64::MIN, to_ms: i64::MAX, ..good.clone() }, "no longer than ten years"),
        (ReportOptions { from_ms: i64::MIN, to_ms: i64::MIN + 1, ..good.clone() }, "between the years"),
        (ReportOptions { top: 0, ..good.clone() }, "--top 0"),
        (ReportOptions { out: missing, ..good.clone() }, "create it first"),
        (ReportOptions { csv: Some(PathBuf::from("/dev/null/csv")), ..good.clone() }, "/dev/null/csv"),
    ];
    for (options, words) in refused {
        let error = write_report(&engine, &options).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(!good.out.exists());
    write_report(&engine, &good).unwrap();
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with(".tmp-")), "nothing half done is left");
}
