//! Tables, rendered once for all commands: as text for people, as JSON or YAML for programs.
//!
//! A cell holds both what a person reads (`61`) and the exact figure for a program (`63963136`), so
//! a command describes its rows once. Text that came from a node is escaped: one row stays one line.

use std::io::Write as _;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tabwriter::TabWriter;

use crate::error::Error;

/// How a table is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, 3 spaces apart.
    #[default]
    Table,
    /// An array with an object a row.
    Json,
    /// The same as a YAML list.
    Yaml,
}

/// The flag of every command that prints a table.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Output {
    /// How to print the table
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// A column: its heading, and the key of its values in JSON and YAML (which names the unit).
pub(crate) type Column = (&'static str, &'static str);

/// Rows under headings; each row has a cell a column.
#[derive(Debug)]
pub(crate) struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
}

/// One value: what a person sees, and what a program gets.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    value: Value,
}

impl Table {
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row. The number of cells must be the number of columns.
    pub(crate) fn push<const N: usize>(&mut self, row: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(row.into());
    }

    pub(crate) fn render(&self, format: Format) -> String {
        match format {
            Format::Table => {
                let headings = self.columns.iter().map(|(heading, _)| *heading);
                let rows = self.rows.iter().map(|row| row.iter().map(|cell| cell.text.as_str()));
                let mut lines = vec![headings.collect::<Vec<_>>()];
                lines.extend(rows.map(Iterator::collect));
                align(&lines)
            }
            Format::Json => {
                let json = serde_json::to_string_pretty(self);
                json.expect("strings and numbers are always JSON") + "\n"
            }
            Format::Yaml => {
                serde_yaml::to_string(self).expect("strings and numbers are always YAML")
            }
        }
    }

    /// Prints the table on stdout.
    pub(crate) fn print(&self, output: Output) -> Result<(), Error> {
        print(self.render(output.format).as_bytes())
    }
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows.iter().map(|row| Row { columns: self.columns, row }))
    }
}

/// A row as an object whose keys keep the order of the columns.
struct Row<'a> {
    columns: &'static [Column],
    row: &'a [Cell],
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.row.len()))?;
        for ((_, key), cell) in self.columns.iter().zip(self.row) {
            map.serialize_entry(key, &cell.value)?;
        }
        map.end()
    }
}

impl Cell {
    /// A cell whose text is not the plain form of its value.
    pub(crate) fn shown(text: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { text: text.into(), value: value.into() }
    }

    /// Text that means nothing but itself, escaped for a table.
    pub(crate) fn text(text: &str) -> Self {
        Self::shown(escape(text), text)
    }

    /// A number that is shown as it is.
    pub(crate) fn number<T: ToString + Copy + Into<Value>>(number: T) -> Self {
        Self::shown(number.to_string(), number)
    }
}

/// Lines of cells in columns 3 spaces apart, left aligned; the last cell of a line is not padded.
pub(crate) fn align<'a>(lines: &[impl AsRef<[&'a str]>]) -> String {
    let mut writer = TabWriter::new(Vec::new()).minwidth(0).padding(3);
    for line in lines {
        let written = writeln!(writer, "{}", line.as_ref().join("\t"));
        written.expect("writing to memory does not fail");
    }
    let bytes = writer.into_inner().expect("writing to memory does not fail");
    String::from_utf8(bytes).expect("strings and spaces are UTF-8")
}

/// Control characters written out (`\n`, `\u{1b}`), so that what a node says stays in its cell.
pub(crate) fn escape(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escaped).collect()
}

/// Writes to stdout at once.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Error::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new(&[("NODE", "node"), ("SIZE(MB)", "size_bytes"), ("ID", "id")]);
        table.push([Cell::text("10.0.0.2"), Cell::shown("1.05", 1_050_000), Cell::text("a\tb")]);
        table.push([Cell::text("n"), Cell::number(7), Cell::text("└─ c")]);
        table
    }

    #[test]
    fn columns_are_three_spaces_apart_and_the_last_is_not_padded() {
        let text =
            "NODE       SIZE(MB)   ID\n10.0.0.2   1.05       a\\tb\nn          7          └─ c\n";
        assert_eq!(example().render(Format::Table), text);
    }

    #[test]
    fn programs_get_exact_values_in_the_order_of_the_columns() {
        let yaml = "- node: 10.0.0.2\n  size_bytes: 1050000\n  id: \"a\\tb\"\n- node: n\n  size_bytes: 7\n  id: └─ c\n";
        assert_eq!(example().render(Format::Yaml), yaml);
        let json = example().render(Format::Json);
        assert!(
            json.starts_with("[\n  {\n    \"node\": \"10.0.0.2\",\n    \"size_bytes\": 1050000,")
        );
        assert!(json.ends_with("]\n"));
    }

    #[test]
    fn an_empty_table_is_its_headings() {
        let table = Table::new(&[("NODE", "node"), ("ID", "id")]);
        assert_eq!(table.render(Format::Table), "NODE   ID\n");
        assert_eq!(table.render(Format::Json), "[]\n");
    }

    #[test]
    fn escape_sequences_of_a_node_do_not_reach_the_terminal() {
        assert_eq!(escape("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
