//! Which packets are metered: `--filter` and `--sampling` (the Selection Process of RFC 5475).
#![forbid(unsafe_code)]

use nagare_wire::flow::FlowKey;
use nagare_wire::ipfix::export::{Sampling, SamplingOf};
use nagare_wire::observation::Observation;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Parentheses and `not` within one another, at most.
const DEPTH_MAX: usize = 32;
/// Words of a filter, at most.
const WORDS_MAX: usize = 4096;

/// An end of a packet that a term is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Not(Box<Term>),
    All(Vec<Term>),
    Any(Vec<Term>),
    Net(Side, IpAddr, u8),
    Ports(Side, RangeInclusive<u16>),
    Protocol(u8),
    Vlan(Option<u16>),
    Version(u8),
}

/// Which packets are metered, in a part of pcap's filter syntax:
///
/// ```text
/// [src|dst] host ADDRESS | [src|dst] net ADDRESS/LENGTH | [src|dst] port N | [src|dst] portrange N-M
/// tcp | udp | sctp | icmp | icmp6 | esp | ah | gre | proto N | ip | ip6 | vlan [N]
/// not TERM | TERM and TERM | TERM or TERM | ( TERM )
/// ```
///
/// `and` binds closer than `or`; it may be left out after a protocol, as in `tcp port 443`.
#[derive(Clone, Debug)]
pub struct Filter {
    text: String,
    term: Term,
}

impl Filter {
    /// Whether a packet with this key is metered.
    pub fn passes(&self, key: &FlowKey) -> bool {
        self.term.holds(key)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Term {
    fn holds(&self, key: &FlowKey) -> bool {
        let ends = |side: Side, holds: &dyn Fn(IpAddr, u16) -> bool| {
            side != Side::Destination && holds(key.source, key.source_port)
                || side != Side::Source && holds(key.destination, key.destination_port)
        };
        match self {
            Term::Not(term) => !term.holds(key),
            Term::All(terms) => terms.iter().all(|term| term.holds(key)),
            Term::Any(terms) => terms.iter().any(|term| term.holds(key)),
            Term::Net(side, net, length) => ends(*side, &|address, _| within(address, *net, *length)),
            // Protocols without ports have 0 there.
            Term::Ports(side, ports) => {
                nagare_wire::packet::has_ports(key.protocol) && ends(*side, &|_, port| ports.contains(&port))
            }
            Term::Protocol(protocol) => key.protocol == *protocol,
            Term::Vlan(None) => key.vlan != 0,
            Term::Vlan(Some(vlan)) => key.vlan == *vlan || key.customer_vlan == *vlan,
            Term::Version(version) => key.source.is_ipv4() == (*version == 4),
        }
    }
}

fn within(address: IpAddr, net: IpAddr, length: u8) -> bool {
    match (address, net) {
        (IpAddr::V4(address), IpAddr::V4(net)) => {
            let difference = u32::from(address) ^ u32::from(net);
            length == 0 || difference >> (32 - u32::from(length)) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(net)) => {
            let difference = u128::from(address) ^ u128::from(net);
            length == 0 || difference >> (128 - u32::from(length)) == 0
        }
        _ => false,
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('!', " ! ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        if words.len() > WORDS_MAX {
            return Err(format!("a filter has {WORDS_MAX} words at most, this one {}", words.len()));
        }
        let mut parser = Parser { words: &words, depth: 0 };
        let term = parser.any()?;
        match parser.words.first() {
            None => Ok(Filter { text: text.to_string(), term }),
            Some(word) => Err(format!("{word:?} is not expected here: terms are joined by `and` or `or`")),
        }
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    depth: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self, expected: &str) -> Result<&'a str, String> {
        let (word, rest) =
            self.words.split_first().ok_or_else(|| format!("the filter ends where {expected} should be"))?;
        self.words = rest;
        Ok(word)
    }

    fn eat(&mut self, names: &[&str]) -> bool {
        let found = self.words.first().is_some_and(|word| names.contains(word));
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn any(&mut self) -> Result<Term, String> {
        let mut terms = vec![self.all()?];
        while self.eat(&["or", "||"]) {
            terms.push(self.all()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::Any(terms) })
    }

    fn all(&mut self) -> Result<Term, String> {
        let mut terms = vec![self.one()?];
        loop {
            let goes_on = match terms.last() {
                Some(Term::Protocol(_) | Term::Version(_)) => self
                    .words
                    .first()
                    .is_some_and(|word| ["src", "dst", "host", "net", "port", "portrange"].contains(word)),
                _ => false,
            };
            if !goes_on && !self.eat(&["and", "&&"]) {
                return Ok(if terms.len() == 1 { terms.remove(0) } else { Term::All(terms) });
            }
            terms.push(self.one()?);
        }
    }

    fn one(&mut self) -> Result<Term, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} parentheses and nots within one another"));
        }
        let term = self.primitive();
        self.depth -= 1;
        term
    }

    fn primitive(&mut self) -> Result<Term, String> {
        let word = self.next("a term")?;
        let protocol = |name: &str| {
            let known = [
                ("icmp", 1),
                ("tcp", 6),
                ("udp", 17),
                ("gre", 47),
                ("esp", 50),
                ("ah", 51),
                ("icmp6", 58),
                ("sctp", 132),
            ];
            known.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
        };
        match word {
            "not" | "!" => Ok(Term::Not(Box::new(self.one()?))),
            "(" => {
                let term = self.any()?;
                match self.next("a closing parenthesis")? {
                    ")" => Ok(term),
                    other => Err(format!("{other:?} stands where a closing parenthesis should be")),
                }
            }
            "src" => self.of_side(Side::Source),
            "dst" => self.of_side(Side::Destination),
            "host" | "net" | "port" | "portrange" => self.about(Side::Either, word),
            "ip" => Ok(Term::Version(4)),
            "ip6" => Ok(Term::Version(6)),
            "proto" => {
                let word = self.next("a protocol")?;
                let number = protocol(word).or_else(|| word.parse().ok());
                number.map(Term::Protocol).ok_or_else(|| format!("{word:?} is no protocol number from 0 to 255"))
            }
            "vlan" => match self.words.first().and_then(|word| word.parse::<u16>().ok()) {
                Some(vlan) if vlan < 4096 => {
                    self.words = &self.words[1..];
                    Ok(Term::Vlan(Some(vlan)))
                }
                Some(vlan) => Err(format!("vlan {vlan}: identifiers go from 0 to 4095")),
                None => Ok(Term::Vlan(None)),
            },
            name => match protocol(name) {
                Some(number) => Ok(Term::Protocol(number)),
                None => Err(format!(
                    "{name:?} begins no term: there are host, net, port, portrange (also with src or dst before), tcp, udp, sctp, icmp, \
                     icmp6, esp, ah, gre, proto, ip, ip6, vlan, not, and parentheses"
                )),
            },
        }
    }

    fn of_side(&mut self, side: Side) -> Result<Term, String> {
        let what = self.next("host, net, port or portrange")?;
        self.about(side, what)
    }

    fn about(&mut self, side: Side, what: &str) -> Result<Term, String> {
        let value = match what {
            "host" | "net" => self.next("an address")?,
            "port" | "portrange" => self.next("a port")?,
            other => return Err(format!("{other:?} stands where host, net, port or portrange should be")),
        };
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port from 0 to 65535"));
        match what {
            "host" => {
                let address: IpAddr = value.parse().map_err(|_| format!("{value:?} is no IP address"))?;
                Ok(Term::Net(side, address, if address.is_ipv4() { 32 } else { 128 }))
            }
            "net" => net(value).map(|(address, length)| Term::Net(side, address, length)),
            "port" => port(value).map(|port| Term::Ports(side, port..=port)),
            _ => match value.split_once('-') {
                Some((from, to)) if port(from)? <= port(to)? => Ok(Term::Ports(side, port(from)?..=port(to)?)),
                _ => Err(format!("{value:?} is no range of ports like 6000-6063")),
            },
        }
    }
}

fn net(text: &str) -> Result<(IpAddr, u8), String> {
    let refuse = || format!("{text:?} is no network like 10.0.0.0/8 or 2001:db8::/32");
    let (address, length) = text.split_once('/').ok_or_else(refuse)?;
    let address: IpAddr = address.parse().map_err(|_| refuse())?;
    let length: u8 = length.parse().map_err(|_| refuse())?;
    if length <= if address.is_ipv4() { 32 } else { 128 } { Ok((address, length)) } else { Err(refuse()) }
}

/// `--sampling 1:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(pub u32);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text.split_once(':').map(|(one, of)| (one.trim(), of.trim().parse::<u32>())) {
            Some(("1", Ok(of))) if of > 0 => Ok(Rate(of)),
            _ => Err(format!("{text:?} is no rate like 1:100")),
        }
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Rate, String> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        format!("1:{}", rate.0)
    }
}

/// Which packets are metered.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only packets that pass.
    pub filter: Option<Filter>,
    /// Of those, one in so many.
    pub sampling: Option<Sampling>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is metered.
    Metered,
    /// It did not pass the filter.
    Filtered,
    /// It was not among the sampled.
    NotSampled,
}

/// The Selection Process of one worker.
pub struct Selector {
    selection: Selection,
    hash: ahash::RandomState,
    /// Packets of the current population that have passed, and the one of them that is taken.
    passed: u32,
    chosen: u32,
    random: u64,
}

impl Selector {
    /// A selector; `seed` is the same for all workers, so that they choose the same flows.
    pub fn new(selection: Selection, seed: u64) -> Selector {
        let hash = ahash::RandomState::with_seeds(seed, 0x6e61_6761_7265, !seed, 0x7361_6d70_6c65);
        let mut selector = Selector { selection, hash, passed: 0, chosen: 0, random: seed | 1 };
        selector.choose();
        selector
    }

    /// Whether all packets are metered.
    pub fn takes_all(&self) -> bool {
        self.selection.filter.is_none() && self.selection.sampling.is_none()
    }

    /// What becomes of a packet.
    pub fn verdict(&mut self, packet: &Observation) -> Verdict {
        if let Some(filter) = &self.selection.filter
            && !filter.passes(&packet.key.expand(&packet.wide.key, packet.direction))
        {
            return Verdict::Filtered;
        }
        match self.selection.sampling {
            None => Verdict::Metered,
            Some(Sampling { of: SamplingOf::Flows, one_in }) => {
                let hash = match packet.key.is_wide() {
                    true => self.hash.hash_one((packet.key.words, packet.wide.key.as_words())),
                    false => self.hash.hash_one(packet.key.words),
                };
                if ((hash >> 32) * u64::from(one_in)) >> 32 == 0 { Verdict::Metered } else { Verdict::NotSampled }
            }
            Some(Sampling { of: SamplingOf::Packets, one_in }) => {
                let taken = self.passed == self.chosen;
                self.passed += 1;
                if self.passed >= one_in {
                    self.passed = 0;
                    self.choose();
                }
                if taken { Verdict::Metered } else { Verdict::NotSampled }
            }
        }
    }

    /// One of each population, at random (RFC 5475, 5.2.1.1: n-out-of-N).
    fn choose(&mut self) {
        let one_in = self.selection.sampling.map_or(1, |sampling| sampling.one_in);
        // Marsaglia's xorshift64*: nobody who sends packets sees its state.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let random = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        self.chosen = ((random * u64::from(one_in)) >> 32) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> FlowKey {
        let words: Vec<&str> = text.split_whitespace().collect();
        FlowKey {
            source: words[0].parse().unwrap(),
            source_port: words[1].parse().unwrap(),
            destination: words[2].parse().unwrap(),
            destination_port: words[3].parse().unwrap(),
            protocol: words[4].parse().unwrap(),
            vlan: words[5].parse().unwrap(),
            ..FlowKey::default()
        }
    }

    #[test]
    fn filters_select_as_pcap_does() {
        let web = key("10.1.2.3 40000 192.0.2.1 443 6 7");
        let dns = key("2001:db8::1 5353 2001:db8::2 53 17 0");
        let ping = key("10.9.9.9 0 10.1.2.3 0 1 0");
        for (filter, expected) in [
            ("tcp", [true, false, false]),
            ("tcp port 443", [true, false, false]),
            ("tcp and src port 443", [false, false, false]),
            ("dst port 443 or udp", [true, true, false]),
            ("host 10.1.2.3", [true, false, true]),
            ("src host 10.1.2.3", [true, false, false]),
            ("net 10.0.0.0/8 and not icmp", [true, false, false]),
            ("dst net 2001:db8::/32", [false, true, false]),
            ("net 0.0.0.0/0", [true, false, true]),
            ("ip6", [false, true, false]),
            ("portrange 50-60", [false, true, false]),
            ("port 0", [false, false, false]),
            ("vlan", [true, false, false]),
            ("vlan 7 and proto 6", [true, false, false]),
            ("!(tcp or udp)", [false, false, true]),
            ("not tcp and not udp", [false, false, true]),
            ("tcp or udp and port 443", [true, false, false]),
        ] {
            let filter: Filter = filter.parse().unwrap();
            assert_eq!([web, dns, ping].map(|key| filter.passes(&key)), expected, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_in_words() {
        for (filter, expected) in [
            ("", "ends where a term"),
            ("tcp udp", "joined by"),
            ("port 70000", "no port"),
            ("host nobody", "no IP address"),
            ("net 10.0.0.0/40", "no network"),
            ("( tcp", "closing parenthesis"),
            ("portrange 9-3", "no range"),
            ("vlan 5000", "4095"),
            ("tpc", "begins no term"),
            ("src tcp", "host, net, port"),
            ("proto 300", "no protocol number"),
        ] {
            let refusal = filter.parse::<Filter>().unwrap_err();
            assert!(refusal.contains(expected), "{filter}: {refusal}");
        }
        assert!("not ".repeat(1000).parse::<Filter>().unwrap_err().contains("within one another"));
        assert!("tcp or ".repeat(5000).parse::<Filter>().unwrap_err().contains("words at most"));
        assert!("2:3".parse::<Rate>().is_err() && "1:0".parse::<Rate>().is_err());
    }

    fn sampled(of: SamplingOf, one_in: u32, packets: impl Iterator<Item = Observation>) -> Vec<bool> {
        let sampling = Some(Sampling { of, one_in });
        let mut selector = Selector::new(Selection { filter: None, sampling }, 42);
        packets.map(|packet| selector.verdict(&packet) == Verdict::Metered).collect()
    }

    fn packet(flow: u64) -> Observation {
        let mut packet = Observation::default();
        packet.key.words = [1 << 56 | flow, flow << 16];
        packet
    }

    #[test]
    fn one_packet_of_each_population_is_taken() {
        let taken = sampled(SamplingOf::Packets, 10, (0..10_000).map(packet));
        let each = taken.chunks(10).map(|population| population.iter().filter(|taken| **taken).count());
        assert!(each.clone().all(|count| count == 1));
        let firsts = taken.chunks(10).filter(|population| population[0]).count();
        assert!((50..200).contains(&firsts), "{firsts} of 1000 at the first place");
        assert!(sampled(SamplingOf::Packets, 1, (0..100).map(packet)).iter().all(|taken| *taken));
    }

    #[test]
    fn flows_are_sampled_whole() {
        let taken = sampled(SamplingOf::Flows, 10, (0..30_000).map(|n| packet(n % 10_000)));
        assert_eq!(taken[..10_000], taken[10_000..20_000]);
        let count = taken[..10_000].iter().filter(|taken| **taken).count();
        assert!((850..1150).contains(&count), "{count} of 10000 flows");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9 ()!./:&|-]{0,80}") {
            let _ = text.parse::<Filter>();
        }
    }
}
