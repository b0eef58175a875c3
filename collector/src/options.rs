//! What the command line and the configuration file say.

#![forbid(unsafe_code)]

use crate::report::{Lang, Network};
use clap::{Args, Parser, Subcommand};
use nagare_service::endpoint::{Endpoint, Scheme};
use nagare_service::options::{OptionsError, layered};
use nagare_service::tls::{Policy, ServerTls, TlsError, Versions};
use nagare_service::units::Span;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// How long the collector goes on taking what is under way when it is asked to stop.
pub const DRAIN_TIMEOUT: Span = Span::seconds(5);

/// The collector's command line.
#[derive(Parser, Debug)]
#[command(name = "nagare-collector", version, args_conflicts_with_subcommands = true, max_term_width = 120)]
#[command(about = "Receives flows as IPFIX over TLS, TCP and UDP, stores them, answers queries and makes reports")]
#[command(after_help = "Without a subcommand the service runs until SIGINT or SIGTERM.\n\n\
Examples:\n  \
# A CA and the collector's pair, a client pair for one site, and the service that admits only such sites\n  \
nagare-collector pki init --dir pki --name collector.example\n  \
nagare-collector pki issue --dir pki --site tokyo\n  \
nagare-collector --collector-port tls://4740 --tls-cert pki/collector.pem --tls-priv-key pki/collector-key.pem \\\n      \
--tls-client-ca pki/ca.pem --data /var/lib/nagare\n\n  \
# Exporters that know no TLS\n  \
nagare-collector --collector-port udp://2055 --collector-port tcp://4739 --data /var/lib/nagare\n\n  \
# What came in, and a customer's report of the last week\n  \
nagare-collector flows --data /var/lib/nagare --from -1h\n  \
nagare-collector sql --data /var/lib/nagare 'SELECT site, sum(octets + rev_octets) FROM flows GROUP BY site'\n  \
nagare-collector report --data /var/lib/nagare --site tokyo --last 7d --out tokyo.html")]
pub struct Cli {
    /// What to do; the service where there is none.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The service's options.
    #[command(flatten)]
    pub service: ServiceOptions,
}

/// The service's options. A key of the configuration file is the long option without its dashes.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServiceOptions {
    /// TOML file with any of these options, and [[site]] tables; the command line wins
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where to listen: tls://HOST:PORT, tcp://…, udp://…, or a port alone (udp://2055); may be given many times
    #[arg(long, value_name = "URL")]
    pub collector_port: Vec<Endpoint>,
    /// The collector's certificate and its intermediates, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_priv_key: Option<PathBuf>,
    /// Admit only clients whose certificate one of these CAs signed (or that stands here); their name is their site
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Refuse what these revocation lists (PEM) name; may be given many times; files that change are read again, as the others are
    #[arg(long, value_name = "FILE")]
    pub tls_crl: Vec<PathBuf>,
    /// TLS versions to speak [default: 1.2,1.3]
    #[arg(long, value_name = "VERSIONS")]
    pub tls_versions: Option<Versions>,
    /// Cipher suites to offer, or help to list them [default: all that are listed]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub tls_ciphers: Vec<String>,
    /// Admit only whom a [[site]] table lists: by its certificate's name, or where it has none by its address
    #[arg(long)]
    pub listed_sites_only: bool,
    /// Connections of one address at once (of IPv6: of a /64) [default: 256]
    #[arg(long, value_name = "N")]
    pub sessions_per_address: Option<usize>,
    /// The directory of the store
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Write the books here every two seconds and at the end
    #[arg(long, value_name = "FILE")]
    pub stats_json: Option<PathBuf>,
    /// Serve the books to Prometheus at http://ADDRESS:PORT/metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// How long to go on taking what is under way after SIGTERM [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<Span>,
    /// Sites; only in the configuration file.
    #[arg(skip)]
    pub site: Vec<SiteOptions>,
}

/// A `[[site]]` table: which sessions belong to a site, and what its report says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SiteOptions {
    /// The site's name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// The customer's name as the report shows it.
    pub customer: Option<String>,
    /// Exporters that belong to it: addresses, networks, names of client certificates.
    pub exporters: Vec<String>,
    /// The site's own networks; the private ones where none is given.
    pub local: Vec<Network>,
}

/// What the collector does but serve.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print flows as CSV or JSON
    Flows(FlowsOptions),
    /// Answer a query over the tables flows, books and sessions
    Sql(SqlOptions),
    /// Make a customer's report: one HTML file
    Report(Box<ReportOptions>),
    /// Make certificates for mutual TLS
    #[command(subcommand)]
    Pki(PkiCommand),
}

/// Where the store is: `--data`, or `data` in the file of `--config`.
#[derive(Args, Clone, Debug, Default)]
pub struct DataOptions {
    /// The directory of the store
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The service's configuration file, for `data` and the [[site]] tables
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `flows`.
#[derive(Args, Debug)]
#[command(after_help = "Times: 2026-11-24, 2026-11-24T10:00, 2026-11-24T10:00:00+09:00, @MILLISECONDS, now, -24h. \
Columns after those of the probe's own CSV: site, exporter, domain.")]
pub struct FlowsOptions {
    /// Where the store is.
    #[command(flatten)]
    pub data: DataOptions,
    /// Only flows of this site
    #[arg(long)]
    pub site: Option<String>,
    /// Only flows that start then or later
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// Only flows that start before
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// The time zone of times that name none, such as Asia/Tokyo [default: this system's]
    #[arg(long, value_name = "ZONE")]
    pub tz: Option<String>,
    /// How to print them
    #[arg(long, value_enum, default_value = "csv")]
    pub format: crate::query::RowFormat,
}

/// Options of `sql`.
#[derive(Args, Debug)]
#[command(after_help = "Example: nagare-collector sql --data DIR \
\"SELECT src, sum(octets) AS octets FROM flows GROUP BY src ORDER BY octets DESC LIMIT 10\"")]
pub struct SqlOptions {
    /// Where the store is.
    #[command(flatten)]
    pub data: DataOptions,
    /// How to print the result
    #[arg(long, value_enum, default_value = "table")]
    pub format: crate::query::SqlFormat,
    /// The query, in SQL
    pub query: String,
}

/// Options of `report`.
#[derive(Args, Debug)]
#[command(after_help = "The period is --from to --to (2026-11-24, 2026-11-24T10:00, -24h, …), or --last up to now. \
Example: nagare-collector report --data DIR --site tokyo --from 2026-11-01 --to 2026-12-01 --tz Asia/Tokyo --lang ja --out tokyo.html")]
pub struct ReportOptions {
    /// Where the store is.
    #[command(flatten)]
    pub data: DataOptions,
    /// The site
    #[arg(long)]
    pub site: String,
    /// The HTML file to write
    #[arg(long, value_name = "FILE.html")]
    pub out: PathBuf,
    /// The beginning of the period
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "last")]
    pub from: Option<String>,
    /// The end of the period [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "last")]
    pub to: Option<String>,
    /// The period that ends now, like 24h or 7d [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub last: Option<Span>,
    /// The time zone of every time in the report, such as Asia/Tokyo [default: this system's]
    #[arg(long, value_name = "ZONE")]
    pub tz: Option<String>,
    /// The language: en or ja
    #[arg(long, default_value = "en")]
    pub lang: Lang,
    /// Rows of a table at most
    #[arg(long, default_value_t = 20)]
    pub top: usize,
    /// A directory for CSV files of every table
    #[arg(long, value_name = "DIR")]
    pub csv: Option<PathBuf>,
    /// The customer's name [default: as configured, else the site]
    #[arg(long)]
    pub customer: Option<String>,
    /// A network of the site, may be given many times [default: as configured, else the private networks]
    #[arg(long, value_name = "NETWORK")]
    pub local: Vec<Network>,
}

/// What `pki` can do.
#[derive(Subcommand, Debug)]
pub enum PkiCommand {
    /// Make a CA and the collector's own pair
    Init {
        /// The directory to make them in
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The collector's host name, by which probes connect (or its IP address)
        #[arg(long, value_name = "HOST")]
        name: String,
        /// Further names and addresses; may be given many times
        #[arg(long, value_name = "HOST")]
        san: Vec<String>,
    },
    /// Make a client pair for one site's probe
    Issue {
        /// The directory of `pki init`
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The site's name
        #[arg(long, value_name = "NAME")]
        site: String,
    },
    /// Make a new pair for the collector, or for one site; the old files stay beside as .old
    Renew {
        /// The directory of `pki init`
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The site's name [default: the collector's own pair]
        #[arg(long, value_name = "NAME")]
        site: Option<String>,
    },
    /// Take back every certificate that one site was given: writes DIR/crl.pem, for --tls-crl
    Revoke {
        /// The directory of `pki init`
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The site's name
        #[arg(long, value_name = "NAME")]
        site: String,
    },
}

/// Options that contradict each other, or lack something.
#[derive(Debug)]
pub struct Incomplete(String);

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Incomplete {}

impl ServiceOptions {
    /// The command line over the file of `--config`.
    ///
    /// # Errors
    /// The file cannot be read or holds what it must not.
    pub fn with_file(self) -> Result<ServiceOptions, OptionsError> {
        let file = self.config.clone();
        layered(self, file.as_deref())
    }

    /// The pair to present at `tls://` listeners; `None` where there is no such listener.
    ///
    /// # Errors
    /// There is one, and no pair; or options that go with it contradict each other.
    pub fn server_tls(&self) -> Result<Option<ServerTls>, Incomplete> {
        let Some(endpoint) = self.collector_port.iter().find(|endpoint| endpoint.scheme == Scheme::Tls) else {
            return Ok(None);
        };
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_priv_key) else {
            return Err(Incomplete(format!(
                "{endpoint} needs --tls-cert and --tls-priv-key (`nagare-collector pki init` makes a pair)"
            )));
        };
        if self.tls_client_ca.is_none() && !self.tls_crl.is_empty() {
            let told = "--tls-crl needs --tls-client-ca: without it no client certificate is asked for, and none can be refused";
            return Err(Incomplete(told.into()));
        }
        let policy = Policy::new(self.tls_versions.unwrap_or_default(), &self.tls_ciphers);
        let policy = policy.map_err(|error: TlsError| Incomplete(error.to_string()))?;
        let (client_ca, crl) = (self.tls_client_ca.clone(), self.tls_crl.clone());
        let protocols = vec![nagare_wire::delivery::ALPN.to_vec()];
        Ok(Some(ServerTls { cert: cert.clone(), key: key.clone(), client_ca, crl, policy, protocols }))
    }

    /// The directory of the store.
    ///
    /// # Errors
    /// None was given.
    pub fn data(&self) -> Result<&Path, Incomplete> {
        self.data.as_deref().ok_or_else(|| Incomplete("--data DIR is missing: where the store is, or is to be".into()))
    }
}

impl DataOptions {
    /// The options of the configuration file (none where there is no file), with this store's directory.
    ///
    /// # Errors
    /// The file cannot be read or holds what it must not.
    pub fn resolve(&self) -> Result<ServiceOptions, OptionsError> {
        let own = ServiceOptions { data: self.data.clone(), config: self.config.clone(), ..ServiceOptions::default() };
        own.with_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let line = "nagare-collector --tls-priv-key key.pem --tls-cert cert.pem --collector-port tls://collector.example:2055 --data DIR";
        let cli = Cli::try_parse_from(line.split(' ')).expect("the documented command line");
        assert!(cli.command.is_none() && cli.service.server_tls().is_ok_and(|tls| tls.is_some()));
        let bare = Cli::try_parse_from(["nagare-collector", "--collector-port", "2055"]).expect_err("no transport");
        assert!(bare.to_string().contains("tls://2055"), "{bare}");
        let line = "nagare-collector report --data D --site s --last 7d --out x.html --lang ja --from -1h";
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "--last and --from exclude each other");
        let line = "nagare-collector flows --data D --from -24h --to 2026-11-24";
        assert!(Cli::try_parse_from(line.split(' ')).is_ok());
    }

    #[test]
    fn a_file_holds_all_that_the_command_line_can_and_sites() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("collector.toml");
        let text = "collector-port = ['tls://2055', 'udp://2055']\ntls-cert = 'c'\ntls-priv-key = 'k'\ntls-client-ca = 'a'\n\
            data = 'd'\nstats-json = 's'\nmetrics = '127.0.0.1:9100'\ndrain-timeout = '1s'\n\
            [[site]]\nname = 'tokyo'\ncustomer = '例社'\nexporters = ['192.0.2.0/24', 'tokyo.example']\nlocal = ['10.0.0.0/8']\n";
        std::fs::write(&file, text).expect("written");
        let cli = ServiceOptions { config: Some(file), data: Some("over".into()), ..ServiceOptions::default() };
        let options = cli.with_file().expect("valid");
        assert_eq!(options.data().expect("given"), Path::new("over"));
        assert_eq!((options.collector_port.len(), options.drain_timeout), (2, Some(Span::seconds(1))));
        assert_eq!((options.site[0].customer.as_deref(), options.site[0].local.len()), (Some("例社"), 1));
        let lacking = ServiceOptions { tls_cert: None, ..options }.server_tls().expect_err("no pair").to_string();
        assert!(lacking.contains("tls://2055 needs --tls-cert and --tls-priv-key"), "{lacking}");
    }
}
