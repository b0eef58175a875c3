//! Queries over the store's files, with the collector running or not.
//!
//! An [`Engine`] reads a data directory. [`Engine::context`] gives the tables `flows`, `books` and `sessions` over the
//! files of a site and a time: directories of other sites and hours are not even listed. Each table has the columns of
//! [`Table::schema`], and its times once more as timestamps (`start_time`, `end_time`, `received_time`, `time`; UTC).
//!
//! Merging may remove a file between its listing and its reading. [`Engine::snapshot`] then lists again.

#![forbid(unsafe_code)]

use crate::store::{DataFile, Hour, Table, live_files, partitions};
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::arrow::{csv, error::ArrowError, json};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, DataFusionError, project_schema};
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::{FileFormat, parquet::ParquetFormat};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::object_store::path::Path as ObjectPath;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, empty::EmptyExec};
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext, cast, col, lit};
use futures::StreamExt;
use nagare_wire::flow::CSV_HEADER;
use std::error::Error;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Memory that the operators of one engine's queries may hold; what sorts and groups need beyond it goes to disk.
pub const QUERY_MEMORY_BYTES: usize = 1 << 30;

/// Rows that [`sql`] shows as a table; more are for CSV and JSON.
pub const TABLE_ROWS_MAX: usize = 10_000;

/// Times that a query starts again because files were merged under it.
const ATTEMPTS_MAX: usize = 20;

/// Where sorts and groups spill, below the data directory.
const SPILL_DIR: &str = ".spill";

/// What a query that was killed left in the spill directory is removed after this.
const SPILL_KEPT: Duration = Duration::from_secs(86_400);

/// Why a query has no answer.
#[derive(Debug)]
pub enum QueryError {
    /// A file or directory cannot be read.
    Read {
        /// It.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The engine refused the query or failed in it.
    Query(DataFusionError),
    /// The engine failed when a part of the result was written.
    Incomplete {
        /// Rows written.
        rows: u64,
        /// Its failure.
        source: DataFusionError,
    },
    /// The result cannot be written.
    Output(io::Error),
    /// Files went on being merged under the query.
    Merging,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueryError::Read { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            QueryError::Query(error) => f.write_str(&explained(error)),
            QueryError::Incomplete { rows, source } => {
                write!(f, "the result ends early, after {rows} rows: {}", explained(source))
            }
            QueryError::Output(error) => write!(f, "cannot write the result: {error}"),
            QueryError::Merging => f.write_str("files were merged while the query read them: run it again"),
        }
    }
}

impl Error for QueryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            QueryError::Read { source, .. } | QueryError::Output(source) => Some(source),
            QueryError::Query(source) | QueryError::Incomplete { source, .. } => Some(source),
            QueryError::Merging => None,
        }
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> QueryError {
        QueryError::Query(error)
    }
}

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> QueryError {
        QueryError::Query(error.into())
    }
}

/// The engine's words, with what to do where that is plain.
fn explained(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let text = ["Error during planning: ", "Schema error: ", "SQL error: ", "This feature is not implemented: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(&text);
    if text.contains("table '") && text.contains("not found") {
        return format!("{text}. The tables are {}", Table::ALL.map(Table::name).join(", "));
    }
    if matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)) {
        let limit = QUERY_MEMORY_BYTES >> 20;
        return format!("the query needs more than {limit} MiB of memory: ask for less time or fewer groups ({text})");
    }
    text.to_owned()
}

/// Answers queries over one data directory, on the thread that asks.
pub struct Engine {
    dir: PathBuf,
    runtime: tokio::runtime::Runtime,
    env: Arc<RuntimeEnv>,
}

impl Engine {
    /// An engine over the data directory `dir`. It may be empty: its tables then are.
    ///
    /// # Errors
    /// There is no such directory, or it cannot be read.
    pub fn open(dir: &Path) -> Result<Engine, QueryError> {
        let read = |source| QueryError::Read { path: dir.to_owned(), source };
        let dir = fs::canonicalize(dir).map_err(read)?;
        fs::read_dir(&dir).map_err(read)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(read)?;
        let env = runtime_env(&dir)?;
        Ok(Engine { dir, runtime, env })
    }

    /// The tables over the files of `site` (of all sites where it is `None`), with the flows that start and the books and
    /// sessions that were reported from `from_ms` until before `to_ms` (milliseconds since 1970 UTC; `i64::MIN` and
    /// `i64::MAX` for no limit).
    ///
    /// # Errors
    /// A directory cannot be listed.
    pub fn context(&self, site: Option<&str>, from_ms: i64, to_ms: i64) -> Result<SessionContext, QueryError> {
        self.context_over(&self.list(site, from_ms, to_ms)?)
    }

    /// All rows of a query's result. Nothing but queries is allowed: no statement that writes or reads other files.
    ///
    /// # Errors
    /// The query is wrong, needs too much memory, or a file cannot be read.
    pub fn collect(&self, context: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        let mut batches = Vec::new();
        self.stream(context, sql, |batch| {
            batches.push(batch);
            Ok(())
        })?;
        Ok(batches)
    }

    /// Hands each batch of a query's result on as it comes, at least one, which may be empty, so that `each` sees the
    /// columns.
    ///
    /// # Errors
    /// As [`Engine::collect`], and whatever `each` returns.
    pub fn stream(
        &self,
        context: &SessionContext,
        sql: &str,
        mut each: impl FnMut(RecordBatch) -> Result<(), QueryError>,
    ) -> Result<(), QueryError> {
        self.runtime.block_on(async {
            let mut stream = start(context, sql).await?;
            let mut seen = false;
            while let Some(batch) = stream.next().await {
                each(batch?)?;
                seen = true;
            }
            if seen { Ok(()) } else { each(RecordBatch::new_empty(stream.schema())) }
        })
    }

    /// Runs `read` over a context as [`Engine::context`] gives it, and again from the start over a new one when a file
    /// was merged away meanwhile.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn snapshot<T>(
        &self,
        site: Option<&str>,
        from_ms: i64,
        to_ms: i64,
        mut read: impl FnMut(&SessionContext) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        for _ in 0..ATTEMPTS_MAX {
            let listing = self.list(site, from_ms, to_ms)?;
            match read(&self.context_over(&listing)?) {
                // The engine's errors do not always tell what they are about. Whether a file is gone, the directory tells.
                Err(QueryError::Query(_)) if listing.has_changed() => {}
                result => return result,
            }
        }
        Err(QueryError::Merging)
    }

    fn list(&self, site: Option<&str>, from_ms: i64, to_ms: i64) -> Result<Listing, QueryError> {
        let hours = Hour::of_time(from_ms)..=Hour::of_time(to_ms.saturating_sub(1));
        let files = Table::ALL.map(|table| {
            let partitions = partitions(&self.dir, table, site, &hours)?.into_iter();
            let files = partitions.map(|partition| live_files(&partition.path(&self.dir)));
            Ok(files.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
        });
        let files = files.into_iter().collect::<io::Result<Vec<Vec<DataFile>>>>();
        let files = files.map_err(|source| QueryError::Read { path: self.dir.clone(), source })?;
        Ok(Listing { files, from_ms, to_ms })
    }

    fn context_over(&self, listing: &Listing) -> Result<SessionContext, QueryError> {
        let config = SessionConfig::new().with_target_partitions(1).with_information_schema(true);
        let context = SessionContext::new_with_config_rt(config, Arc::clone(&self.env));
        for (table, files) in Table::ALL.into_iter().zip(&listing.files) {
            let files = Arc::new(FilesTable { schema: table.schema(), files: files.clone() });
            let frame = between(table, context.read_table(files)?, listing.from_ms, listing.to_ms)?;
            context.register_table(table.name(), with_times(table, frame)?.into_view())?;
        }
        Ok(context)
    }

    /// Hours in which flows of `site` start.
    fn flow_hours(&self, site: Option<&str>, from_ms: i64, to_ms: i64) -> Result<Vec<Hour>, QueryError> {
        let hours = Hour::of_time(from_ms)..=Hour::of_time(to_ms.saturating_sub(1));
        let found = partitions(&self.dir, Table::Flows, site, &hours);
        let found = found.map_err(|source| QueryError::Read { path: self.dir.clone(), source })?;
        let mut hours: Vec<Hour> = found.into_iter().map(|partition| partition.hour).collect();
        hours.dedup();
        Ok(hours)
    }
}

async fn start(context: &SessionContext, sql: &str) -> Result<SendableRecordBatchStream, DataFusionError> {
    let only_queries = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    context.sql_with_options(sql, only_queries).await?.execute_stream().await
}

/// The files that the tables of a context stand on.
struct Listing {
    /// Of each table, in the order of [`Table::ALL`].
    files: Vec<Vec<DataFile>>,
    from_ms: i64,
    to_ms: i64,
}

impl Listing {
    /// A file was merged away: another listing finds the one that took its place.
    fn has_changed(&self) -> bool {
        self.files.iter().flatten().any(|file| !file.path.exists())
    }
}

/// Memory with a limit, and a place to spill to where the directory can be written.
fn runtime_env(dir: &Path) -> Result<Arc<RuntimeEnv>, QueryError> {
    let spill = dir.join(SPILL_DIR);
    let build = |mode| {
        let disk = DiskManagerBuilder::default().with_mode(mode);
        let env = RuntimeEnvBuilder::new().with_memory_limit(QUERY_MEMORY_BYTES, 1.0);
        env.with_disk_manager_builder(disk).build_arc()
    };
    if fs::create_dir_all(&spill).is_ok() {
        remove_old_spills(&spill);
        if let Ok(env) = build(DiskManagerMode::Directories(vec![spill])) {
            return Ok(env);
        }
    }
    Ok(build(DiskManagerMode::Disabled)?)
}

/// Best effort: another query may be doing the same, or the directory may not be ours.
fn remove_old_spills(spill: &Path) {
    for entry in fs::read_dir(spill).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > SPILL_KEPT) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn between(table: Table, frame: DataFrame, from_ms: i64, to_ms: i64) -> Result<DataFrame, DataFusionError> {
    let time = || col(table.time_column());
    let frame = if from_ms == i64::MIN { frame } else { frame.filter(time().gt_eq(lit(from_ms)))? };
    if to_ms == i64::MAX { Ok(frame) } else { frame.filter(time().lt(lit(to_ms))) }
}

/// Adds to each column of milliseconds one of timestamps: they cost nothing where they are not asked for.
fn with_times(table: Table, mut frame: DataFrame) -> Result<DataFrame, DataFusionError> {
    for field in table.schema().fields() {
        if let Some(name) = field.name().strip_suffix("_ms") {
            let name = if name == "time" { name.to_owned() } else { format!("{name}_time") };
            let time = cast(col(field.name()), DataType::Timestamp(TimeUnit::Millisecond, None));
            frame = frame.with_column(&name, time)?;
        }
    }
    Ok(frame)
}

/// A table over files that were listed.
#[derive(Debug)]
struct FilesTable {
    schema: SchemaRef,
    files: Vec<DataFile>,
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        // Row groups are skipped by their statistics; what is read must still be filtered.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        if self.files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let mut source = ParquetSource::new(Arc::clone(&self.schema));
        if let Some(filter) = conjunction(filters.to_vec()) {
            let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let files = self.files.iter().map(partitioned_file).collect::<Result<Vec<_>, _>>()?;
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(vec![FileGroup::new(files)])
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        ParquetFormat::default().create_physical_plan(state, scan).await
    }
}

fn partitioned_file(file: &DataFile) -> Result<PartitionedFile, DataFusionError> {
    let mut scanned = PartitionedFile::new("", file.octets);
    scanned.object_meta.location = ObjectPath::from_absolute_path(&file.path)?;
    Ok(scanned)
}

/// How [`flows`] writes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RowFormat {
    /// A header and comma separated values.
    Csv,
    /// One JSON object a line.
    Json,
}

/// How [`sql`] writes its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SqlFormat {
    /// Columns for people.
    Table,
    /// A header and comma separated values.
    Csv,
    /// One JSON object a line.
    Json,
}

/// Writes the flows that start from `from_ms` until before `to_ms`, sorted by their start and then their key: the columns
/// of [`CSV_HEADER`], then site, exporter and domain. Returns how many. A reader that has seen enough (`head`) is no error.
///
/// Flows are read an hour at a time, so memory does not grow with the time asked for.
///
/// # Errors
/// The data directory cannot be read, or the output not written.
pub fn flows(
    dir: &Path,
    site: Option<&str>,
    from_ms: i64,
    to_ms: i64,
    format: RowFormat,
    out: &mut dyn Write,
) -> Result<u64, QueryError> {
    let engine = Engine::open(dir)?;
    let columns = format!("{CSV_HEADER},site,exporter,domain");
    let query = format!("SELECT {columns} FROM flows ORDER BY start_ms, src, dst, sport, dport, proto, vlan, end_ms");
    let schema = Table::Flows.schema();
    let indices = columns.split(',').map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
    let mut rows = RowWriter { format, out, rows: 0, header: true };
    let mut write = || {
        rows.write(&RecordBatch::new_empty(Arc::new(schema.project(&indices)?)))?;
        for hour in engine.flow_hours(site, from_ms, to_ms)? {
            let (start, end) = hour.bounds_ms();
            rows.copy(&engine, site, from_ms.max(start), to_ms.min(end), &query)?;
        }
        rows.out.flush().map_err(QueryError::Output)
    };
    quiet_if_closed(write())?;
    Ok(rows.rows)
}

/// Writes the result of a query over all sites and times. A reader that has seen enough is no error.
///
/// # Errors
/// The query is wrong (the message names what exists), needs too much memory, or its result cannot be written.
pub fn sql(dir: &Path, query: &str, format: SqlFormat, out: &mut dyn Write) -> Result<(), QueryError> {
    let engine = Engine::open(dir)?;
    let format = match format {
        SqlFormat::Table => return quiet_if_closed(write_table(&engine, query, out)),
        SqlFormat::Csv => RowFormat::Csv,
        SqlFormat::Json => RowFormat::Json,
    };
    let mut rows = RowWriter { format, out, rows: 0, header: true };
    let mut write = || {
        rows.copy(&engine, None, i64::MIN, i64::MAX, query)?;
        rows.out.flush().map_err(QueryError::Output)
    };
    quiet_if_closed(write())
}

fn write_table(engine: &Engine, query: &str, out: &mut dyn Write) -> Result<(), QueryError> {
    let (batches, total) = engine.snapshot(None, i64::MIN, i64::MAX, |context| {
        let (mut shown, mut total) = (Vec::new(), 0);
        engine.stream(context, query, |batch| {
            let room = TABLE_ROWS_MAX.saturating_sub(total).min(batch.num_rows());
            total += batch.num_rows();
            if room > 0 || shown.is_empty() {
                shown.push(batch.slice(0, room));
            }
            Ok(())
        })?;
        Ok((shown, total))
    })?;
    writeln!(out, "{}", pretty_format_batches(&batches)?).map_err(QueryError::Output)?;
    if total > TABLE_ROWS_MAX {
        writeln!(out, "{TABLE_ROWS_MAX} of {total} rows: ask for csv or json to have them all")
            .map_err(QueryError::Output)?;
    }
    out.flush().map_err(QueryError::Output)
}

fn quiet_if_closed(result: Result<(), QueryError>) -> Result<(), QueryError> {
    match result {
        Err(QueryError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes batches as rows of text.
struct RowWriter<'a> {
    format: RowFormat,
    out: &'a mut dyn Write,
    rows: u64,
    header: bool,
}

impl RowWriter<'_> {
    /// Writes a query's result. It starts again when files were merged under it, as long as nothing was written: a query
    /// that sorts has read every file by its first row.
    fn copy(
        &mut self,
        engine: &Engine,
        site: Option<&str>,
        from_ms: i64,
        to_ms: i64,
        query: &str,
    ) -> Result<(), QueryError> {
        let before = self.rows;
        engine.snapshot(site, from_ms, to_ms, |context| {
            match engine.stream(context, query, |batch| self.write(&batch)) {
                Err(QueryError::Query(source)) if self.rows > before => {
                    Err(QueryError::Incomplete { rows: self.rows, source })
                }
                result => result,
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        let mut text = Vec::new();
        match self.format {
            RowFormat::Csv => {
                csv::WriterBuilder::new().with_header(self.header).build(&mut text).write(batch)?;
                self.header = false;
            }
            RowFormat::Json => {
                let mut lines = json::LineDelimitedWriter::new(&mut text);
                lines.write(batch)?;
                lines.finish()?;
            }
        }
        self.rows += batch.num_rows() as u64;
        self.out.write_all(&text).map_err(QueryError::Output)
    }
}
