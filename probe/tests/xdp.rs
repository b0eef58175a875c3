//! AF_XDP on a real veth pair in a network namespace: every frame arrives or is in the books, and the interface is put back.

use nagare_ebpf::Generator;
use nagare_probe::capture::clock::now_ns;
use nagare_probe::capture::guard::{interface_index, refuse_unless_dedicated};
use nagare_probe::capture::interfaces::Interfaces;
use nagare_probe::capture::xdp::XdpCapture;
use nagare_probe::capture::{CaptureOptions, CaptureSource, Frame, InterfaceCapture, Share};
use nagare_wire::flow::FlowKey;
use nagare_wire::packet::{Tunnels, decode};
use nagare_wire::steer;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

mod wire;
use wire::{SEED, SENDER, Sender, TAP, Wire, frame};

fn key(frame: Frame<'_>) -> FlowKey {
    decode(frame.link, frame.bytes, frame.wire_length, Tunnels::Outer).unwrap().key
}

/// Hands all frames of a source to `each` until the source ends; gives their number.
fn drain(share: Share, each: impl FnMut(Frame<'_>)) -> u64 {
    drain_source(Interfaces::new(vec![share]), each)
}

fn drain_source(mut source: Interfaces, mut each: impl FnMut(Frame<'_>)) -> u64 {
    let mut frames = 0;
    loop {
        let received = source.receive(64, Duration::from_millis(50), &mut each).unwrap();
        frames += received.frames as u64;
        if received.end {
            return frames;
        }
    }
}

/// The equations of a capture that was detached and drained; `received` by worker.
fn assert_balanced(capture: &XdpCapture, received: &[u64]) {
    let meter = capture.meter();
    let (counters, losses) = (meter.counters().unwrap(), meter.losses().unwrap());
    assert_eq!(counters.seen, counters.steered.iter().sum::<u64>() + counters.lost, "{counters:?}");
    for (worker, loss) in losses.iter().enumerate() {
        let accounted = received[worker] + loss.rx_dropped + loss.rx_ring_full;
        assert_eq!(counters.steered[worker], accounted, "worker {worker}: {counters:?} {received:?} {losses:?}");
    }
}

fn options() -> CaptureOptions {
    CaptureOptions { seed: SEED, ..CaptureOptions::default() }
}

#[test]
fn every_frame_arrives_at_the_worker_of_its_conversation() {
    const FLOWS: u16 = 500;
    for (queues, workers, force_generic) in
        [(1, 1, false), (1, 2, false), (2, 1, false), (2, 2, false), (1, 2, true), (2, 3, true)]
    {
        let Some(wire) = Wire::new(queues) else { return };
        wire.enter(|| {
            let mut capture =
                XdpCapture::open(TAP, &CaptureOptions { workers: workers as u32, force_generic, ..options() }).unwrap();
            println!("{}", capture.startup_line());
            assert_eq!(capture.queues(), queues);
            let sources = capture.take_shares();
            assert_eq!(sources.len(), workers);
            let results: Vec<(u64, BTreeMap<FlowKey, u64>)> = thread::scope(|scope| {
                let threads: Vec<_> = sources
                    .into_iter()
                    .map(|source| {
                        scope.spawn(move || {
                            let mut flows = BTreeMap::new();
                            let frames = drain(source, |f| *flows.entry(key(f).canonical().0).or_insert(0) += 1);
                            (frames, flows)
                        })
                    })
                    .collect();
                send_all(&capture, FLOWS);
                capture.detach();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let received: Vec<u64> = results.iter().map(|(frames, _)| *frames).collect();
            assert_balanced(&capture, &received);
            assert_eq!(received.iter().sum::<u64>(), 4 * u64::from(FLOWS), "{received:?}");
            if !force_generic {
                assert!((0..queues).all(|queue| xdp_packets(queue) > 0), "the traffic did not use every queue");
            }
            for (worker, (_, flows)) in results.iter().enumerate() {
                for (key, frames) in flows {
                    assert_eq!(*frames, 4, "the directions of {key:?} parted");
                    assert_eq!(steer::worker(steer::hash(key, SEED), workers as u32) as usize, worker);
                }
            }
        });
    }
}

/// Packets that the veth's driver gave to XDP from one queue of the captured end.
fn xdp_packets(queue: u32) -> u64 {
    let statistics = Command::new("ethtool").args(["-S", TAP]).output().unwrap();
    let statistics = String::from_utf8_lossy(&statistics.stdout).into_owned();
    let name = format!("rx_queue_{queue}_xdp_packets:");
    let value = statistics.lines().find_map(|line| line.trim().strip_prefix(&name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {statistics}"))
}

/// Two frames a flow in each direction; waits where the veth's own ring could overflow.
fn send_all(capture: &XdpCapture, flows: u16) {
    let (sender, meter) = (Sender::new(), capture.meter());
    let mut sent = 0;
    for round in 0..4 {
        for flow in 0..flows {
            sender.send(&frame(flow, round % 2 == 1));
            sent += 1;
            let deadline = Instant::now() + Duration::from_secs(5);
            while sent % 64 == 0 && meter.counters().unwrap().seen < sent {
                assert!(Instant::now() < deadline, "{:?} of {sent}", meter.counters());
                thread::yield_now();
            }
        }
    }
}

#[test]
fn an_overload_is_in_the_books() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| {
        let mut capture = XdpCapture::open(TAP, &CaptureOptions { workers: 2, ring_frames: 256, ..options() }).unwrap();
        let sources = capture.take_shares();
        let mut generator = Generator::load(&frame(0, false), 1000, interface_index(SENDER).unwrap()).unwrap();
        let received: Vec<u64> = thread::scope(|scope| {
            // One worker keeps up as it can, the other sleeps most of the time.
            let threads: Vec<_> = sources
                .into_iter()
                .enumerate()
                .map(|(worker, source)| {
                    scope.spawn(move || {
                        let mut frames = 0;
                        drain(source, |_| {
                            frames += 1;
                            if worker == 1 && frames % 64 == 0 {
                                thread::sleep(Duration::from_millis(2));
                            }
                        })
                    })
                })
                .collect();
            let made = generator.run(300_000).unwrap();
            assert_eq!(made, 300_000);
            capture.detach();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_balanced(&capture, &received);
        let (counters, losses) = (capture.meter().counters().unwrap(), capture.meter().losses().unwrap());
        println!("{counters:?} {received:?} {losses:?}");
        assert_eq!(counters.seen, 300_000, "the veth itself lost frames");
        assert!(losses[1].rx_ring_full > 0, "that was no overload: {losses:?}");
        let books = capture.meter().books();
        let drops: u64 = books.workers.iter().flat_map(|(_, drops)| drops).map(|(_, value)| value).sum();
        assert_eq!(books.seen, received.iter().sum::<u64>() + drops);
    });
}

#[test]
fn a_load_of_ten_thousand_flows_is_received() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| {
        let mut capture = XdpCapture::open(TAP, &options()).unwrap();
        let source = capture.take_shares().remove(0);
        let mut generator = Generator::load(&frame(0, false), 10_000, interface_index(SENDER).unwrap()).unwrap();
        let (frames, flows, seconds) = thread::scope(|scope| {
            let consumer = scope.spawn(|| {
                let mut flows = BTreeMap::new();
                let frames = drain(source, |frame| {
                    // The source's address and port.
                    let octets: [u8; 10] = frame.bytes[26..36].try_into().unwrap();
                    *flows.entry(octets).or_insert(0u64) += 1;
                });
                (frames, flows)
            });
            let start = Instant::now();
            generator.run(500_000).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            capture.detach();
            let (frames, flows) = consumer.join().unwrap();
            (frames, flows, seconds)
        });
        assert_balanced(&capture, &[frames]);
        println!("{frames} of 500000 received, {:.2} Mpps sent", 0.5 / seconds);
        assert_eq!(flows.len(), 10_000);
    });
}

#[test]
fn packets_are_cut_and_keep_their_length_and_time() {
    let Some(wire) = Wire::new(1) else { return };
    wire.ip(&["link", "set", SENDER, "mtu", "9000"]);
    wire.ip(&["link", "set", TAP, "mtu", "9000"]);
    wire.enter(|| {
        let mut capture = XdpCapture::open(TAP, &CaptureOptions { workers: 2, ..options() }).unwrap();
        // A kernel that knows of packets in several buffers takes jumbo frames natively.
        println!("{}", capture.startup_line());
        let mut sources = capture.take_shares();
        let mut long = frame(7, false);
        long.resize(8014, 0);
        long[16..18].copy_from_slice(&8000u16.to_be_bytes());
        Sender::new().send(&long);
        thread::sleep(Duration::from_millis(100));
        capture.detach();
        let mut seen = Vec::new();
        let received: Vec<u64> = sources
            .drain(..)
            .map(|source| {
                drain(source, |frame| {
                    let observation = decode(frame.link, frame.bytes, frame.wire_length, Tunnels::Outer).unwrap();
                    seen.push((frame.bytes.len(), frame.wire_length, observation.octets, observation.key.source_port));
                    let age = now_ns().abs_diff(frame.time_ns);
                    assert!(
                        (50_000_000..5_000_000_000).contains(&age),
                        "stamped {age} ns ago, when it was taken from the ring?"
                    );
                })
            })
            .collect();
        assert_eq!(seen, [(256, 8014, 8000, 1031)]);
        assert_balanced(&capture, &received);
    });
}

#[test]
fn frames_of_a_panicking_worker_are_not_lost() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| {
        let mut capture = XdpCapture::open(TAP, &CaptureOptions { ring_frames: 64, ..options() }).unwrap();
        let mut source = Interfaces::new(capture.take_shares());
        let sender = Sender::new();
        let mut received = 0u64;
        // More frames than the UMEM has: each batch panics in its middle, and none may stay behind.
        for _ in 0..40 {
            (0..16).for_each(|flow| sender.send(&frame(flow, false)));
            received += 16;
            while capture.meter().counters().unwrap().seen < received {
                thread::yield_now();
            }
            // The program counts a frame shortly before it is in the ring.
            thread::sleep(Duration::from_millis(5));
            let mut batch = 0;
            let receive = || {
                source.receive(16, Duration::from_secs(1), |_| {
                    batch += 1;
                    assert!(batch < 8, "on purpose");
                })
            };
            assert!(catch_unwind(AssertUnwindSafe(receive)).is_err());
        }
        capture.detach();
        received += drain_source(source, |_| {});
        assert_eq!(received, 40 * 16);
        assert_balanced(&capture, &[received]);
        assert_eq!(capture.meter().losses().unwrap()[0].rx_dropped, 0);
    });
}

#[test]
fn a_source_that_is_dropped_gives_its_frames_to_the_others() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| {
        let mut capture = XdpCapture::open(TAP, &CaptureOptions { workers: 2, ring_frames: 64, ..options() }).unwrap();
        let mut sources = capture.take_shares();
        drop(sources.remove(0));
        let source = sources.remove(0);
        let mine = |flow: &u16| {
            let frame = frame(*flow, false);
            let key = decode(nagare_wire::packet::LinkType::Ethernet, &frame, 60, Tunnels::Outer).unwrap().key;
            steer::worker(steer::hash(&key, SEED), 2) == 1
        };
        let flows: Vec<u16> = (0..1000).filter(mine).collect();
        let ended = AtomicBool::new(false);
        let received = thread::scope(|scope| {
            let consumer = scope.spawn(|| drain(source, |_| {}));
            let sender = Sender::new();
            for flow in &flows {
                sender.send(&frame(*flow, false));
                thread::sleep(Duration::from_micros(50));
            }
            capture.detach();
            ended.store(true, Ordering::Relaxed);
            consumer.join().unwrap()
        });
        assert_eq!(received, flows.len() as u64, "{:?}", capture.meter().losses());
    });
}

#[test]
fn what_the_host_uses_is_refused() {
    let Some(wire) = Wire::new(1) else { return };
    let refused = |force| wire.enter(|| refuse_unless_dedicated(TAP, force).map_err(|error| error.to_string()));
    assert_eq!(refused(false), Ok(()));
    let with = |on: &[&str], off: &[&str], evidence: &str| {
        wire.ip(on);
        let message = refused(false).unwrap_err();
        assert!(message.contains(evidence), "{message}");
        for part in [TAP, "consumed", "--force"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(refused(true), Ok(()));
        wire.ip(off);
        assert_eq!(refused(false), Ok(()), "{on:?}");
    };
    with(&["addr", "add", "192.0.2.9/24", "dev", TAP], &["addr", "flush", "dev", TAP], "192.0.2.9");
    with(&["route", "add", "198.51.100.0/24", "dev", TAP], &["route", "flush", "dev", TAP], "198.51.100.0/24");
    wire.ip(&["link", "add", "br0", "type", "bridge"]);
    with(&["link", "set", TAP, "master", "br0"], &["link", "set", TAP, "nomaster"], "br0");
    wire.enter(|| std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "0")).unwrap();
    assert_eq!(refused(false), Ok(()), "a link-local address is no use of the host");
    with(
        &["addr", "add", "2001:db8::9/64", "dev", TAP],
        &["addr", "flush", "dev", TAP, "scope", "global"],
        "2001:db8::9",
    );
    with(
        &["-6", "route", "add", "2001:db8:1::/48", "dev", TAP],
        &["-6", "route", "del", "2001:db8:1::/48", "dev", TAP],
        "2001:db8:1::/48",
    );
    wire.ip(&["link", "set", TAP, "down"]);
    let message = refused(true).unwrap_err();
    assert!(message.contains("ip link set tap0 up"), "{message}");
}

#[test]
fn attaching_fails_in_words() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| {
        let first = XdpCapture::open(TAP, &options()).unwrap();
        let second = XdpCapture::open(TAP, &options()).map(|_| ()).unwrap_err().to_string();
        assert!(second.contains("another XDP program") && second.contains("xdp off"), "{second}");
        drop(first);
        let unknown = XdpCapture::open("nowhere0", &options()).map(|_| ()).unwrap_err().to_string();
        assert!(unknown.contains("nowhere0") && unknown.contains(TAP), "{unknown}");
        for bad in [CaptureOptions { ring_frames: 100, ..options() }, CaptureOptions { frame_size: 1000, ..options() }]
        {
            XdpCapture::open(TAP, &bad).map(|_| ()).unwrap_err();
        }
        // The queue is busy for some milliseconds after each close; that must not show.
        for _ in 0..5 {
            drop(XdpCapture::open(TAP, &CaptureOptions { workers: 2, ..options() }).unwrap());
        }
    });
    assert!(!wire.tap().contains("xdp"), "{}", wire.tap());
}

#[test]
fn an_interface_that_disappears_ends_its_sources() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| {
        let mut capture = XdpCapture::open(TAP, &options()).unwrap();
        let mut source = Interfaces::new(capture.take_shares());
        wire.ip(&["link", "del", TAP]);
        let deadline = Instant::now() + Duration::from_secs(5);
        let error = loop {
            match source.receive(64, Duration::from_millis(20), |_| {}) {
                Ok(_) => assert!(Instant::now() < deadline, "nobody noticed"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("gone"), "{error}");
    });
}

fn gro(wire: &Wire) -> bool {
    wire.enter(|| {
        let features = Command::new("ethtool").args(["-k", TAP]).output().unwrap();
        String::from_utf8_lossy(&features.stdout).contains("generic-receive-offload: on")
    })
}

#[test]
fn the_interface_is_put_back() {
    let Some(wire) = Wire::new(1) else { return };
    wire.enter(|| Command::new("ethtool").args(["-K", TAP, "gro", "on"]).status()).unwrap();
    assert!(gro(&wire));
    assert!(wire.tap().contains("promiscuity 0"));
    wire.enter(|| {
        let held = XdpCapture::open(TAP, &options()).unwrap();
        let tap = wire.tap();
        assert!(tap.contains("xdp") && tap.contains("promiscuity 1"), "{tap}");
        drop(held);
    });
    let tap = wire.tap();
    assert!(!tap.contains("xdp") && tap.contains("promiscuity 0"), "{tap}");
    assert!(gro(&wire));
}

/// The test runs itself once more as the process that is killed.
#[test]
fn the_kernel_puts_the_interface_back_after_a_kill() {
    const NAME: &str = "the_kernel_puts_the_interface_back_after_a_kill";
    const VICTIM: &str = "NAGARE_TEST_XDP_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let _held = XdpCapture::open(TAP, &options()).unwrap();
        println!("\nholding");
        loop {
            thread::park();
        }
    }
    let Some(wire) = Wire::new(1) else { return };
    let mut victim = Command::new("ip")
        .args(["netns", "exec", &wire.namespace])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(victim.stdout.take().unwrap());
    assert!(output.lines().map_while(Result::ok).any(|line| line == "holding"), "the victim did not start");
    let tap = wire.tap();
    assert!(tap.contains("xdp") && tap.contains("promiscuity 1"), "{tap}");
    victim.kill().unwrap();
    victim.wait().unwrap();
    let tap = wire.tap();
    assert!(!tap.contains("xdp") && tap.contains("promiscuity 0"), "{tap}");
}
