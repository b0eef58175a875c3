//! The tables, and how rows become their columns.

use super::{BookRow, FlowRow, SessionRow};
use datafusion::arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringArray, StringBuilder, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use std::fmt::{Display, Write};
use std::sync::{Arc, LazyLock};

/// The tables of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Flows, by their start.
    Flows,
    /// The exporters' own books.
    Books,
    /// Transport Sessions.
    Sessions,
}

impl Table {
    /// All of them, each at the index that it is as a number.
    pub const ALL: [Table; 3] = [Table::Flows, Table::Books, Table::Sessions];

    /// Its name, in queries and as a directory.
    pub fn name(self) -> &'static str {
        match self {
            Table::Flows => "flows",
            Table::Books => "books",
            Table::Sessions => "sessions",
        }
    }

    /// The column that files are partitioned and sorted by: milliseconds since 1970 UTC.
    pub fn time_column(self) -> &'static str {
        match self {
            Table::Flows => "start_ms",
            Table::Books | Table::Sessions => "time_ms",
        }
    }

    /// Columns of its files. None is ever null.
    pub fn schema(self) -> SchemaRef {
        static SCHEMAS: LazyLock<[SchemaRef; 3]> = LazyLock::new(|| Table::ALL.map(|table| fields(table.columns())));
        Arc::clone(&SCHEMAS[self as usize])
    }

    fn columns(self) -> &'static [(&'static str, DataType)] {
        use DataType::{Int64, UInt8, UInt16, UInt32, UInt64, Utf8};
        match self {
            Table::Flows => &[
                ("site", Utf8),
                ("exporter", Utf8),
                ("domain", UInt32),
                ("received_ms", Int64),
                ("start_ms", Int64),
                ("end_ms", Int64),
                ("src", Utf8),
                ("dst", Utf8),
                ("sport", UInt16),
                ("dport", UInt16),
                ("proto", UInt8),
                ("packets", UInt64),
                ("octets", UInt64),
                ("rev_packets", UInt64),
                ("rev_octets", UInt64),
                ("tcp_flags", UInt16),
                ("rev_tcp_flags", UInt16),
                ("vlan", UInt16),
                ("tos", UInt8),
                ("end_reason", UInt8),
            ],
            Table::Books => &[
                ("site", Utf8),
                ("exporter", Utf8),
                ("domain", UInt32),
                ("time_ms", Int64),
                ("process", Utf8),
                ("process_id", UInt32),
                ("name", Utf8),
                ("value", UInt64),
            ],
            Table::Sessions => &[
                ("site", Utf8),
                ("exporter", Utf8),
                ("transport", Utf8),
                ("time_ms", Int64),
                ("start_ms", Int64),
                ("event", Utf8),
                ("records", UInt64),
                ("lost", UInt64),
                ("messages", UInt64),
                ("octets", UInt64),
                ("note", Utf8),
            ],
        }
    }
}

fn fields(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields: Vec<Field> = columns.iter().map(|(name, kind)| Field::new(*name, kind.clone(), false)).collect();
    Arc::new(Schema::new(fields))
}

/// A row that the writer can place and turn into columns.
pub(super) trait TableRow: Sized {
    /// Its table.
    const TABLE: Table;
    fn site(&self) -> &Arc<str>;
    /// What it is partitioned and sorted by, milliseconds since 1970 UTC.
    fn time_ms(&self) -> u64;
    /// Columns in the order of the table's schema.
    fn columns(rows: &[Self]) -> Vec<ArrayRef>;

    fn batch(rows: &[Self]) -> RecordBatch {
        RecordBatch::try_new(Self::TABLE.schema(), Self::columns(rows)).expect("columns follow their schema")
    }
}

impl TableRow for FlowRow {
    const TABLE: Table = Table::Flows;

    fn site(&self) -> &Arc<str> {
        &self.site
    }

    fn time_ms(&self) -> u64 {
        self.flow.start_ms()
    }

    fn columns(rows: &[FlowRow]) -> Vec<ArrayRef> {
        vec![
            text(rows, |row| &*row.site),
            text(rows, |row| &*row.exporter),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.domain))),
            times(rows, |row| row.received_ms),
            times(rows, |row| row.flow.start_ms()),
            times(rows, |row| row.flow.end_ms()),
            displayed(rows, |row| row.flow.key.source),
            displayed(rows, |row| row.flow.key.destination),
            Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.flow.key.source_port))),
            Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.flow.key.destination_port))),
            Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.flow.key.protocol))),
            counts(rows, |row| row.flow.forward.packets),
            counts(rows, |row| row.flow.forward.octets),
            counts(rows, |row| row.flow.reverse.packets),
            counts(rows, |row| row.flow.reverse.octets),
            Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.flow.forward.tcp_flags))),
            Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.flow.reverse.tcp_flags))),
            Arc::new(UInt16Array::from_iter_values(rows.iter().map(|row| row.flow.key.vlan))),
            Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.flow.tos))),
            Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.flow.end_reason))),
        ]
    }
}

impl TableRow for BookRow {
    const TABLE: Table = Table::Books;

    fn site(&self) -> &Arc<str> {
        &self.site
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn columns(rows: &[BookRow]) -> Vec<ArrayRef> {
        vec![
            text(rows, |row| &*row.site),
            text(rows, |row| &*row.exporter),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.domain))),
            times(rows, |row| row.time_ms),
            text(rows, |row| row.process),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.process_id))),
            text(rows, |row| &row.name),
            counts(rows, |row| row.value),
        ]
    }
}

impl TableRow for SessionRow {
    const TABLE: Table = Table::Sessions;

    fn site(&self) -> &Arc<str> {
        &self.site
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn columns(rows: &[SessionRow]) -> Vec<ArrayRef> {
        vec![
            text(rows, |row| &*row.site),
            text(rows, |row| &*row.exporter),
            text(rows, |row| row.transport),
            times(rows, |row| row.time_ms),
            times(rows, |row| row.start_ms),
            text(rows, |row| row.event),
            counts(rows, |row| row.records),
            counts(rows, |row| row.lost),
            counts(rows, |row| row.messages),
            counts(rows, |row| row.octets),
            text(rows, |row| &row.note),
        ]
    }
}

fn text<R>(rows: &[R], value: impl Fn(&R) -> &str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
}

fn displayed<R, T: Display>(rows: &[R], value: impl Fn(&R) -> T) -> ArrayRef {
    let mut column = StringBuilder::with_capacity(rows.len(), rows.len() * 12);
    for row in rows {
        write!(column, "{}", value(row)).expect("writing to memory cannot fail");
        column.append_value("");
    }
    Arc::new(column.finish())
}

fn counts<R>(rows: &[R], value: impl Fn(&R) -> u64) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(rows.iter().map(value)))
}

/// Times that no clock can show (past 2^63 ms) become the last one that can.
fn times<R>(rows: &[R], value: impl Fn(&R) -> u64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| i64::try_from(value(row)).unwrap_or(i64::MAX))))
}
