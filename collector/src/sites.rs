//! Whose traffic a session brings: the site of a certificate's name or of a peer's address.

#![forbid(unsafe_code)]

use crate::options::SiteOptions;
use crate::report::Network;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Octets of a site's name. It becomes a directory's name, which may have 255 with what stands before it.
pub const SITE_NAME_MAX: usize = 200;

/// Sites that unknown addresses may make of themselves while the collector runs. Anyone can send a datagram, from any address,
/// and each site is a directory.
pub const ADDRESS_SITES_MAX: usize = 4096;

/// A name that no site can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteError(String);

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SiteError {}

/// Whether `name` may name a site: it becomes a directory's name, so no certificate may choose freely.
///
/// # Errors
/// It has other characters than letters, digits, `.`, `_` and `-`, begins with a dot, is empty or too long.
pub fn check_site_name(name: &str) -> Result<(), SiteError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=SITE_NAME_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed) {
        return Ok(());
    }
    let shown: String = name.chars().take(SITE_NAME_MAX).flat_map(char::escape_debug).collect();
    Err(SiteError(format!(
        "\"{shown}\" cannot name a site: use letters, digits, '.', '_' and '-' (at most {SITE_NAME_MAX}, no dot first)"
    )))
}

/// The sites of the configuration, ready to be asked.
#[derive(Debug, Default)]
pub struct Sites {
    tables: Vec<Site>,
    addresses: HashSet<Arc<str>>,
    listed_only: bool,
}

#[derive(Debug)]
struct Site {
    name: Arc<str>,
    networks: Vec<Network>,
    names: Vec<String>,
}

impl Sites {
    /// Checks and prepares `[[site]]` tables. An exporter is an address, a network, or else a certificate's name.
    ///
    /// # Errors
    /// A name is not a site's, or two tables have the same.
    pub fn new(options: &[SiteOptions]) -> Result<Sites, SiteError> {
        let mut sites: Vec<Site> = Vec::with_capacity(options.len());
        for table in options {
            check_site_name(&table.name)?;
            if sites.iter().any(|site| *site.name == *table.name) {
                return Err(SiteError(format!("two [[site]] tables are named \"{}\"", table.name)));
            }
            let mut site = Site { name: table.name.as_str().into(), networks: Vec::new(), names: Vec::new() };
            for exporter in &table.exporters {
                match exporter.parse::<Network>() {
                    Ok(network) => site.networks.push(network),
                    Err(error) if exporter.contains(['/', ':']) => {
                        return Err(SiteError(format!("[[site]] \"{}\": {error}", table.name)));
                    }
                    Err(_) => site.names.push(exporter.clone()),
                }
            }
            sites.push(site);
        }
        Ok(Sites { tables: sites, addresses: HashSet::new(), listed_only: false })
    }

    /// Admits only whom a table lists, by the certificate's name or the address (RFC 7011, 11.3).
    pub fn listed_only(self, listed_only: bool) -> Sites {
        Sites { listed_only, ..self }
    }

    fn unlisted(&self, who: &str) -> Result<(), SiteError> {
        match self.listed_only {
            true => Err(SiteError(format!("{who} is listed in no [[site]] table, and --listed-sites-only is set"))),
            false => Ok(()),
        }
    }

    /// The site of a client certificate's name: the table that lists it or bears it, else the name itself.
    ///
    /// # Errors
    /// No table lists it, and it cannot name a site, or only listed ones are admitted.
    pub fn of_name(&self, name: &str) -> Result<Arc<str>, SiteError> {
        let lists = |site: &&Site| site.names.iter().any(|listed| listed.eq_ignore_ascii_case(name));
        let bears = |site: &&Site| *site.name == *name;
        match self.tables.iter().find(lists).or_else(|| self.tables.iter().find(bears)) {
            Some(site) => Ok(site.name.clone()),
            None => check_site_name(name).and_then(|()| self.unlisted(name)).map(|()| name.into()),
        }
    }

    /// The site of a peer without a certificate: the first table whose networks hold its address, else the address itself.
    ///
    /// # Errors
    /// No table holds it, and [`ADDRESS_SITES_MAX`] addresses are sites already, or only listed ones are admitted.
    pub fn of_address(&mut self, address: IpAddr) -> Result<Arc<str>, SiteError> {
        let address = address.to_canonical();
        let holds = |site: &&Site| site.networks.iter().any(|network| network.contains(address));
        if let Some(site) = self.tables.iter().find(holds) {
            return Ok(site.name.clone());
        }
        self.unlisted(&address.to_string())?;
        let name = address.to_string().replace(':', "-");
        if let Some(known) = self.addresses.get(name.as_str()) {
            return Ok(known.clone());
        }
        if self.addresses.len() >= ADDRESS_SITES_MAX {
            let why =
                format!("{ADDRESS_SITES_MAX} addresses are sites already; {address} needs a [[site]] table to be one");
            return Err(SiteError(why));
        }
        let site: Arc<str> = name.into();
        self.addresses.insert(site.clone());
        Ok(site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, exporters: &[&str]) -> SiteOptions {
        let exporters = exporters.iter().map(|text| (*text).to_owned()).collect();
        SiteOptions { name: name.into(), exporters, ..SiteOptions::default() }
    }

    #[test]
    fn sessions_find_their_site() {
        let tables =
            [table("tokyo", &["192.0.2.0/24", "tokyo.example"]), table("lab", &["2001:db8::/32", "192.0.2.9"])];
        let mut sites = Sites::new(&tables).expect("valid");
        let by_address = [
            ("192.0.2.9", "tokyo"), // The first table wins.
            ("::ffff:192.0.2.1", "tokyo"),
            ("2001:db8::1", "lab"),
            ("198.51.100.1", "198.51.100.1"),
            ("::1", "--1"),
        ];
        for (address, site) in by_address {
            assert_eq!(sites.of_address(address.parse().expect("an address")).as_deref(), Ok(site), "{address}");
        }
        for number in 0..ADDRESS_SITES_MAX as u32 {
            sites.of_address(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()).ok();
        }
        assert!(sites.of_address("203.0.113.1".parse().expect("an address")).is_err(), "sites are bounded");
        assert!(sites.of_address("198.51.100.1".parse().expect("an address")).is_ok(), "those that are known stay");
        assert!(sites.of_address("192.0.2.77".parse().expect("an address")).is_ok(), "and so do those of a table");
        for (name, site) in [("Tokyo.Example", "tokyo"), ("osaka", "osaka"), ("Osaka_2.example", "Osaka_2.example")] {
            assert_eq!(sites.of_name(name).as_deref(), Ok(site), "{name}");
        }
        let mut listed = Sites::new(&tables).expect("valid").listed_only(true);
        assert!(listed.of_name("tokyo.example").is_ok() && listed.of_name("lab").is_ok());
        assert!(listed.of_name("osaka").is_err_and(|error| error.to_string().contains("--listed-sites-only")));
        assert!(listed.of_address("192.0.2.9".parse().expect("an address")).is_ok());
        assert!(listed.of_address("198.51.100.1".parse().expect("an address")).is_err());
        for name in ["", ".", "..", ".hidden", "a/b", "../x", "*.example", "a b", "名古屋", "a\0", &"x".repeat(201)]
        {
            assert!(sites.of_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn wrong_tables_are_refused() {
        assert!(Sites::new(&[table("a/b", &[])]).is_err());
        assert!(Sites::new(&[table("a", &[]), table("a", &[])]).is_err());
        let wrong = Sites::new(&[table("a", &["192.0.2.0/33"])]).expect_err("no prefix").to_string();
        assert!(wrong.contains("\"a\"") && wrong.contains("192.0.2.0/33"), "{wrong}");
    }
}
