//! `flows`, `sql` and `report`: they read the store's files, whether a collector runs or not.

#![forbid(unsafe_code)]

use crate::options::{FlowsOptions, ReportOptions, SqlOptions};
use crate::query::{self, Engine};
use crate::report::{self, default_local};
use crate::time::{TimeError, parse_time, parse_zone};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nagare_service::units::Span;
use std::error::Error;
use std::io::{BufWriter, stdout};

/// The period of a report that names none.
const LAST: Span = Span::seconds(24 * 3600);

fn zone(name: Option<&str>) -> Result<TimeZone, TimeError> {
    name.map_or_else(|| Ok(TimeZone::system()), parse_zone)
}

pub(super) fn flows(options: &FlowsOptions) -> Result<(), Box<dyn Error>> {
    let configured = options.data.resolve()?;
    let (zone, now_ms) = (zone(options.tz.as_deref())?, Timestamp::now().as_millisecond());
    let time =
        |text: &Option<String>, default| text.as_deref().map_or(Ok(default), |text| parse_time(text, &zone, now_ms));
    let (from_ms, to_ms) = (time(&options.from, i64::MIN)?, time(&options.to, i64::MAX)?);
    let mut out = BufWriter::new(stdout().lock());
    query::flows(configured.data()?, options.site.as_deref(), from_ms, to_ms, options.format, &mut out)?;
    Ok(())
}

pub(super) fn sql(options: &SqlOptions) -> Result<(), Box<dyn Error>> {
    let configured = options.data.resolve()?;
    let mut out = BufWriter::new(stdout().lock());
    query::sql(configured.data()?, &options.query, options.format, &mut out)?;
    Ok(())
}

pub(super) fn report(options: ReportOptions) -> Result<(), Box<dyn Error>> {
    let configured = options.data.resolve()?;
    let tz = zone(options.tz.as_deref())?;
    let now_ms = Timestamp::now().as_millisecond();
    let to_ms = options.to.as_deref().map_or(Ok(now_ms), |text| parse_time(text, &tz, now_ms))?;
    let last_ms = i64::try_from(options.last.unwrap_or(LAST).as_ms()).unwrap_or(i64::MAX);
    let from_ms = match options.from.as_deref() {
        Some(text) => parse_time(text, &tz, now_ms)?,
        None => to_ms.saturating_sub(last_ms),
    };
    let site = configured.site.iter().find(|site| site.name == options.site);
    let local = match (options.local.is_empty(), site) {
        (false, _) => options.local,
        (true, Some(site)) if !site.local.is_empty() => site.local.clone(),
        (true, _) => default_local(),
    };
    let customer = options.customer.or_else(|| site.and_then(|site| site.customer.clone()));
    let engine = Engine::open(configured.data()?)?;
    let (site, lang, top, out, csv) = (options.site, options.lang, options.top, options.out, options.csv);
    let report = report::ReportOptions { site, customer, from_ms, to_ms, tz, lang, top, local, out, csv };
    let summary = report::write_report(&engine, &report)?;
    println!("{}", summary.out.display());
    summary.csv.iter().for_each(|path| println!("{}", path.display()));
    Ok(())
}
