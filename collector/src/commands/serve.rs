//! The service: options to listeners and store, until a signal; then the books.

#![forbid(unsafe_code)]

use crate::collect::Shared;
use crate::listener::{ListenOptions, Listener};
use crate::options::{DRAIN_TIMEOUT, ServiceOptions};
use crate::sites::Sites;
use crate::store::{Store, StoreOptions};
use crate::strangers::SESSIONS_PER_ADDRESS;
use nagare_service::books::{Books, Publisher};
use nagare_service::endpoint::Scheme;
use nagare_service::run::{self, Hangup};
use nagare_service::tls::{self, Server, Side};
use std::error::Error;
use std::sync::Arc;

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// What hinders it from starting, or the store from closing.
pub fn serve(options: ServiceOptions) -> Result<(), Box<dyn Error>> {
    if options.tls_ciphers.iter().any(|name| name == "help") {
        print!("{}", tls::ciphers());
        return Ok(());
    }
    run::init_log();
    let stop = run::stop_on_signals()?;
    let hangup = run::hangup_on_signal()?;
    let listen = listen_options(&options, hangup)?;
    let certificates = listen.tls.clone();
    let shared = Shared::new(Store::open(options.data()?, StoreOptions::default())?);
    let listener = Listener::bind(listen, shared.clone())?;
    let snapshot = shared.clone();
    let told = certificates.clone();
    let publisher = Publisher::start(
        move || with_figures(snapshot.books(), told.as_deref()),
        options.stats_json.clone(),
        options.metrics,
    )?;
    announce(&listener, &publisher);

    let served = listener.run(&stop);
    run::stopping();
    log::info!("stopping: writing what is left");
    let closed = shared.close();
    let books = publisher.finish();
    let table = with_figures(shared.books(), certificates.as_deref());
    print!("{}", table.table());
    if !table.balanced() {
        log::error!("the books do not balance: this is an error of the collector's; please report it");
    }
    served?;
    closed?;
    books?;
    Ok(())
}

/// The books with what the certificates have to say.
fn with_figures(mut books: Books, certificates: Option<&Server>) -> Books {
    books.figures.extend(certificates.map(Server::figures).unwrap_or_default());
    books
}

fn listen_options(options: &ServiceOptions, hangup: Hangup) -> Result<ListenOptions, Box<dyn Error>> {
    if options.collector_port.is_empty() {
        return Err("--collector-port URL is missing: where to listen, such as tls://4740 or udp://2055".into());
    }
    let pair = options.server_tls()?;
    match &pair {
        Some(tls) if tls.client_ca.is_none() => {
            log::warn!("tls:// without --tls-client-ca: anyone may connect, and a session's site is its address");
        }
        _ => {}
    }
    Ok(ListenOptions {
        endpoints: options.collector_port.clone(),
        tls: pair.clone().map(Server::new).transpose()?.map(Arc::new),
        hangup,
        side: pair.map_or(Side::Server { client_ca: None }, |tls| tls.side()),
        sites: Sites::new(&options.site)?.listed_only(options.listed_sites_only),
        sessions_per_address: options.sessions_per_address.unwrap_or(SESSIONS_PER_ADDRESS),
        drain_timeout: options.drain_timeout.unwrap_or(DRAIN_TIMEOUT).0,
    })
}

/// Says where the collector can be reached, to the log and to systemd.
fn announce(listener: &Listener, publisher: &Publisher) {
    let addresses = listener.addresses().iter().map(|(scheme, address)| format!("{} {address}", scheme.name()));
    let addresses: Vec<String> = addresses.collect();
    addresses.iter().for_each(|address| log::info!("listening {address}"));
    if let Some(address) = publisher.metrics() {
        log::info!("metrics http://{address}/metrics");
    }
    if listener.addresses().iter().any(|(scheme, _)| *scheme != Scheme::Tls) {
        log::warn!("tcp:// and udp:// are neither encrypted nor authenticated: anyone who reaches them may send flows");
    }
    run::ready(&format!("listening {}", addresses.join(", ")));
}
