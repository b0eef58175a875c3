//! The service: options to listeners and store, until a signal; then the books.

#![forbid(unsafe_code)]

use crate::collect::Shared;
use crate::listener::{ListenOptions, Listener};
use crate::options::{DRAIN_TIMEOUT, ServiceOptions};
use crate::sites::Sites;
use crate::store::{Store, StoreOptions};
use nagare_service::books::Publisher;
use nagare_service::endpoint::Scheme;
use nagare_service::run;
use nagare_service::tls::{self, ServerTls, Side, TlsError};
use nagare_wire::delivery::ALPN;
use rustls::ServerConfig;
use std::error::Error;
use std::sync::Arc;

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// What hinders it from starting, or the store from closing.
pub fn serve(options: ServiceOptions) -> Result<(), Box<dyn Error>> {
    run::init_log();
    let stop = run::stop_on_signals()?;
    let listen = listen_options(&options)?;
    let shared = Shared::new(Store::open(options.data()?, StoreOptions::default())?);
    let listener = Listener::bind(listen, shared.clone())?;
    let snapshot = shared.clone();
    let publisher = Publisher::start(move || snapshot.books(), options.stats_json.clone(), options.metrics)?;
    announce(&listener, &publisher);

    let served = listener.run(&stop);
    run::stopping();
    log::info!("stopping: writing what is left");
    let closed = shared.close();
    let books = publisher.finish();
    let table = shared.books();
    print!("{}", table.table());
    if !table.balanced() {
        log::error!("the books do not balance: this is an error of the collector's; please report it");
    }
    served?;
    closed?;
    books?;
    Ok(())
}

fn listen_options(options: &ServiceOptions) -> Result<ListenOptions, Box<dyn Error>> {
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
        tls: pair.as_ref().map(with_delivery).transpose()?,
        side: pair.map_or(Side::Server { client_ca: None }, |tls| tls.side()),
        sites: Sites::new(&options.site)?,
        drain_timeout: options.drain_timeout.unwrap_or(DRAIN_TIMEOUT).0,
    })
}

/// Offers the delivery layer: a probe that speaks it asks for it.
fn with_delivery(tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::clone(&*tls::server_config(tls)?);
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
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
