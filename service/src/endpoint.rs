//! Where to connect or listen: `tls://host:2055`, `udp://2055`, `tcp://[::1]:4739`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

/// IPFIX over TCP or UDP without TLS (IANA service `ipfix`).
pub const PORT_IPFIX: u16 = 4739;
/// IPFIX over TLS (IANA service `ipfixs`).
pub const PORT_IPFIXS: u16 = 4740;

/// The transport of a session (RFC 7011, section 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TLS over TCP.
    Tls,
    /// TCP in the clear.
    Tcp,
    /// UDP in the clear.
    Udp,
}

impl Scheme {
    /// `tls`, `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Tls => "tls",
            Scheme::Tcp => "tcp",
            Scheme::Udp => "udp",
        }
    }

    /// IPFIX's own port for this transport.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Tls => PORT_IPFIXS,
            Scheme::Tcp | Scheme::Udp => PORT_IPFIX,
        }
    }
}

/// A transport, a host and a port. A listener may leave the host out and means every address then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The transport.
    pub scheme: Scheme,
    /// A host name or an IP address without brackets; `None` where a port stands alone.
    pub host: Option<String>,
    /// The port; 0 lets a listener take any free one.
    pub port: u16,
}

/// Why a text is no [`Endpoint`]; its message shows the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError(String);

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EndpointError {}

impl Endpoint {
    /// The host to connect to; an error where only a port was given.
    pub fn require_host(&self) -> Result<&str, EndpointError> {
        let form = format!("{}://HOST:{}", self.scheme.name(), self.port);
        self.host
            .as_deref()
            .ok_or_else(|| EndpointError(format!("\"{self}\" names no host to connect to: write {form}")))
    }

    /// The addresses to listen on. Without a host that is every address: `[::]`, which takes IPv4 too, or `0.0.0.0` on a
    /// machine without IPv6.
    pub fn listen_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        if self.host.is_some() {
            return self.resolve();
        }
        let ipv6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
        let any = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Ok(vec![SocketAddr::new(any, self.port)])
    }

    /// Every address of the host, in the resolver's order; never an empty list.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let host = self.require_host().map_err(io::Error::other)?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot resolve {host}: {error}"));
        let found: Vec<SocketAddr> = (host, self.port).to_socket_addrs().map_err(named)?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("cannot resolve {host}: it has no address")));
        }
        Ok(found)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let rest = if text.is_empty() { "HOST:PORT" } else { text };
            return Err(wrong(
                text,
                "the transport is missing",
                &format!("tls://{rest}, tcp://{rest} or udp://{rest}"),
            ));
        };
        let scheme = match scheme {
            "tls" => Scheme::Tls,
            "tcp" => Scheme::Tcp,
            "udp" => Scheme::Udp,
            _ => return Err(wrong(text, "no such transport", &format!("tls://{rest}, tcp://{rest} or udp://{rest}"))),
        };
        let form = format!("{0}://HOST:PORT, {0}://[IPv6]:PORT or {0}://PORT", scheme.name());
        let refuse = |why: &str| wrong(text, why, &form);
        let (host, port) = split_host(rest.strip_suffix('/').unwrap_or(rest)).map_err(refuse)?;
        let port = match port {
            Some(port) => port.parse().map_err(|_| refuse("the port is not a number from 0 to 65535"))?,
            None => scheme.default_port(),
        };
        Ok(Endpoint { scheme, host: host.map(str::to_owned), port })
    }
}

fn wrong(text: &str, why: &str, form: &str) -> EndpointError {
    EndpointError(format!("\"{}\": {why}; write {form}", text.escape_debug()))
}

/// Splits what stands behind `://` into host and port, both optional but never both absent.
fn split_host(rest: &str) -> Result<(Option<&str>, Option<&str>), &'static str> {
    if let Some(bracketed) = rest.strip_prefix('[') {
        let (host, behind) = bracketed.split_once(']').ok_or("a bracket is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| "what stands in brackets is no IPv6 address")?;
        return match behind.strip_prefix(':') {
            Some(port) => Ok((Some(host), Some(port))),
            None if behind.is_empty() => Ok((Some(host), None)),
            None => Err("something stands behind the bracket that is no port"),
        };
    }
    if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok((None, Some(rest)));
    }
    if rest.matches(':').count() > 1 {
        return Err("an IPv6 address needs brackets");
    }
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    if host.is_empty() {
        return if port.is_some() { Ok((None, port)) } else { Err("host and port are missing") };
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.len() > 253 || !host.bytes().all(allowed) {
        return Err("the host is neither a name nor an address");
    }
    Ok((Some(host), port))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port) = (self.scheme.name(), self.port);
        match self.host.as_deref() {
            None => write!(f, "{scheme}://{port}"),
            Some(host) if host.contains(':') => write!(f, "{scheme}://[{host}]:{port}"),
            Some(host) => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        let cases = [
            ("tls://collector.example:2055", "tls://collector.example:2055"),
            ("tls://collector.example", "tls://collector.example:4740"),
            ("tcp://host", "tcp://host:4739"),
            ("tcp://host/", "tcp://host:4739"),
            ("udp://2055", "udp://2055"),
            ("udp://:2055", "udp://2055"),
            ("udp://192.0.2.1", "udp://192.0.2.1:4739"),
            ("tls://[::1]:4740", "tls://[::1]:4740"),
            ("tls://[2001:db8::1]", "tls://[2001:db8::1]:4740"),
            ("tls://127.0.0.1:0", "tls://127.0.0.1:0"),
        ];
        for (text, shown) in cases {
            assert_eq!(text.parse::<Endpoint>().map(|endpoint| endpoint.to_string()), Ok(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn refusals_show_the_right_form() {
        let cases = [
            ("2055", "tls://2055"),
            ("host:2055", "tls://host:2055"),
            ("", "tls://HOST:PORT"),
            ("http://host", "no such transport"),
            ("tls://", "host and port are missing"),
            ("tls://host:", "not a number"),
            ("tls://host:65536", "not a number"),
            ("udp://70000", "not a number"),
            ("tls://::1", "needs brackets"),
            ("tls://[::1", "not closed"),
            ("tls://[host]:1", "no IPv6 address"),
            ("tls://[::1]4740", "behind the bracket"),
            ("tls://ho st:1", "neither a name nor an address"),
            ("tls://user@host", "neither a name nor an address"),
        ];
        for (text, part) in cases {
            let message = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!("udp://2055".parse::<Endpoint>().expect("valid").require_host().is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(text in "(tls|tcp|udp)://[a-z0-9.:\\[\\]/-]{0,20}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
        }
    }
}
