//! `pki init`, `issue`, `renew` and `revoke`, and the command lines that use what they make.

#![forbid(unsafe_code)]

use crate::options::PkiCommand;
use crate::pki::{self, CLIENT_DAYS, SERVER_DAYS};
use std::error::Error;
use std::path::Path;

pub(super) fn run(command: PkiCommand) -> Result<(), Box<dyn Error>> {
    match command {
        PkiCommand::Init { dir, name, san } => init(&dir, &name, &san),
        PkiCommand::Issue { dir, site } => issue(&dir, &site),
        PkiCommand::Renew { dir, site } => renew(&dir, site.as_deref()),
        PkiCommand::Revoke { dir, site } => revoke(&dir, &site),
    }
}

fn init(dir: &Path, name: &str, san: &[String]) -> Result<(), Box<dyn Error>> {
    let (ca, collector) = pki::init(dir, name, san)?;
    let (ca_cert, ca_key, dir) = (ca.cert.display(), ca.key.display(), dir.display());
    let (cert, key) = (collector.cert.display(), collector.key.display());
    let crl = format!("{dir}/crl.pem");
    println!(
        "Made the CA {ca_cert} (keep {ca_key} safe) and the pair of {name}, valid for {SERVER_DAYS} days.\n\n\
        Run the collector with\n  \
        nagare-collector --collector-port tls://4740 --tls-cert {cert} --tls-priv-key {key} --tls-client-ca {ca_cert} --tls-crl {crl} --data DIR\n\
        and enrol each site with\n  \
        nagare-collector pki issue --dir {dir} --site NAME"
    );
    Ok(())
}

fn issue(dir: &Path, site: &str) -> Result<(), Box<dyn Error>> {
    let pair = pki::issue(dir, site)?;
    let host = pki::collector_name(dir).unwrap_or_else(|| "COLLECTOR".into());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let (cert, key, ca) = (pair.cert.display(), pair.key.display(), dir.join("ca.pem"));
    let ca = ca.display();
    println!(
        "Made the pair of {site}, valid for {CLIENT_DAYS} days. Copy {ca}, {cert} and {key} to its appliance, and there run\n  \
        nagare-probe -i eth0 --collector tls://{host}:4740 --tls-ca ca.pem --tls-cert {site}.pem --tls-priv-key {site}-key.pem\n\
        Its flows will be those of the site\n  \
        nagare-collector report --data DIR --site {site} --last 24h --out {site}.html"
    );
    Ok(())
}

fn renew(dir: &Path, site: Option<&str>) -> Result<(), Box<dyn Error>> {
    let pair = pki::renew(dir, site)?;
    let (cert, key) = (pair.cert.display(), pair.key.display());
    let (whose, days) = match site {
        Some(site) => (format!("of {site}, to be copied to its appliance"), CLIENT_DAYS),
        None => ("of the collector".into(), SERVER_DAYS),
    };
    println!(
        "Made a new pair {whose}: {cert} and {key}, valid for {days} days; the old files stay beside them as .old.\n\
        A program that runs with these files takes the new pair within seconds, or at once on SIGHUP; its sessions go on."
    );
    Ok(())
}

fn revoke(dir: &Path, site: &str) -> Result<(), Box<dyn Error>> {
    let (crl, revoked) = pki::revoke(dir, site)?;
    let (crl, dir) = (crl.display(), dir.display());
    println!(
        "Took back every certificate of {site}; {crl} names {revoked} now. A collector that runs with --tls-crl {crl} ends the site's\n\
        sessions within seconds (copy the list there if it is elsewhere). To admit the site again:\n  \
        nagare-collector pki renew --dir {dir} --site {site}"
    );
    Ok(())
}
