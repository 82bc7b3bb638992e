//! What a bench of several steps measured: a row for each, for people and programs.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::machine::{Effort, Machine};
use super::report::for_people;
use super::{chart, html};
use crate::args::{BenchReportArgs, Global, Output};
use crate::output;

/// How the values of a column are shown to people. In JSON and CSV they are numbers as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// As it is.
    Text,
    /// A whole number.
    Count,
    /// With one digit behind the point.
    Number,
    /// Microseconds.
    Microseconds,
    /// A part of one, in hundredths.
    Percent,
    /// Bytes.
    Bytes,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// For programs; says the unit.
    pub(super) name: &'static str,
    /// For people.
    pub(super) head: &'static str,
    pub(super) shown: Shown,
}

/// Makes a column.
pub(super) const fn column(name: &'static str, head: &'static str, shown: Shown) -> Column {
    Column { name, head, shown }
}

/// What a bench of several steps reports.
#[derive(Debug)]
pub(super) struct Tabular {
    pub(super) bench: &'static str,
    /// What was promised to whom, on a line; empty: nothing.
    pub(super) promises: String,
    /// The settings, and what else there is for programs. People are shown what has one value.
    pub(super) more: Map<String, Value>,
    pub(super) columns: &'static [Column],
    /// As many values each as there are columns; `null` where nothing was measured.
    pub(super) rows: Vec<Vec<Value>>,
    /// More lines for people.
    pub(super) lines: Vec<String>,
    pub(super) effort: Option<Effort>,
}

impl Tabular {
    fn document(&self, machine: &Machine) -> Map<String, Value> {
        let mut document = Map::new();
        document.insert("bench".to_owned(), json!(self.bench));
        document.extend(self.more.clone());
        let row = |row: &Vec<Value>| -> Map<String, Value> {
            self.columns
                .iter()
                .zip(row)
                .map(|(column, value)| (column.name.to_owned(), value.clone()))
                .collect()
        };
        document.insert("rows".to_owned(), json!(self.rows.iter().map(row).collect::<Vec<_>>()));
        if let Some(effort) = &self.effort {
            document.insert("generator".to_owned(), effort.json());
        }
        document.insert("machine".to_owned(), machine.json());
        document
    }

    fn settings(&self) -> String {
        let settings: Vec<String> =
            self.more.iter().filter_map(|(name, value)| for_people(name, value)).collect();
        settings.join(", ")
    }

    fn shown(&self) -> Vec<Vec<String>> {
        let row = |row: &Vec<Value>| {
            self.columns.iter().zip(row).map(|(column, value)| show(column.shown, value)).collect()
        };
        self.rows.iter().map(row).collect()
    }

    /// What stands below the table, for people.
    fn below(&self, machine: &Machine) -> Vec<String> {
        let mut lines = self.lines.clone();
        lines.extend([self.promises.clone(), self.settings()]);
        lines.extend(self.effort.as_ref().map(Effort::text));
        lines.push(machine.text());
        lines.retain(|line| !line.is_empty());
        lines
    }

    fn csv(&self) -> anyhow::Result<String> {
        let heads: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
        let mut text = heads.join(",");
        text.push('\n');
        for row in &self.rows {
            let fields: Vec<String> = row.iter().map(csv_field).collect();
            writeln!(text, "{}", fields.join(","))?;
        }
        Ok(text)
    }

    fn html(&self, machine: &Machine) -> String {
        let mut body = String::from("<table><tr>");
        for column in self.columns {
            body.push_str(&format!("<th>{}</th>", chart::escaped(column.head)));
        }
        body.push_str("</tr>\n");
        for row in self.shown() {
            let cells: String = row.iter().map(|cell| format!("<td>{}</td>", chart::escaped(cell))).collect();
            body.push_str(&format!("<tr>{cells}</tr>\n"));
        }
        body.push_str("</table>\n");
        body.push_str(&html::paragraphs(&self.below(machine)));
        html::document(self.bench, &body)
    }
}

/// Prints it to standard output, and writes the files that were asked for.
pub(super) fn publish(global: &Global, args: &BenchReportArgs, table: &Tabular) -> anyhow::Result<()> {
    let machine = Machine::here();
    if let Some(path) = &args.html {
        write(path, "HTML", &table.html(&machine))?;
    }
    if let Some(path) = &args.csv {
        write(path, "CSV", &table.csv()?)?;
    }
    if global.output == Output::Json {
        return output::json(&table.document(&machine));
    }
    let heads: Vec<&str> = table.columns.iter().map(|column| column.head).collect();
    let is_number = |column: &&Column| column.shown != Shown::Text;
    let numbers: Vec<&str> = table.columns.iter().filter(is_number).map(|column| column.head).collect();
    output::line(output::table(&heads, &numbers, table.shown()))?;
    for line in table.below(&machine) {
        output::line(line)?;
    }
    Ok(())
}

fn write(path: &Path, kind: &str, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write the {kind} report {}", path.display()))
}

fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn show(shown: Shown, value: &Value) -> String {
    let Some(number) = value.as_f64() else {
        return value.as_str().unwrap_or("-").to_owned();
    };
    match shown {
        Shown::Text => value.to_string(),
        Shown::Count => output::count(number.round() as u64),
        Shown::Number => format!("{number:.1}"),
        Shown::Microseconds => output::microseconds(number.round() as u64),
        Shown::Percent => format!("{:.0} %", number * 100.0),
        Shown::Bytes => output::bytes(number.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        column("step", "STEP", Shown::Text),
        column("share", "SHARE", Shown::Percent),
        column("p99_us", "P99", Shown::Microseconds),
    ];

    fn table() -> Tabular {
        let mut more = Map::new();
        more.insert("rate".to_owned(), json!(1000));
        Tabular {
            bench: "test",
            promises: "topic t".to_owned(),
            more,
            columns: COLUMNS,
            rows: vec![
                vec![json!("a, \"b\""), json!(0.954), json!(1500)],
                vec![json!("<c>"), Value::Null, json!(7)],
            ],
            lines: Vec::new(),
            effort: None,
        }
    }

    #[test]
    fn rows_are_for_people_and_for_programs() {
        let table = table();
        let machine = Machine::here();
        assert_eq!(table.shown(), [["a, \"b\"", "95 %", "1.5 ms"], ["<c>", "-", "7 µs"]]);
        assert_eq!(table.csv().unwrap(), "step,share,p99_us\n\"a, \"\"b\"\"\",0.954,1500\n<c>,,7\n");
        let document = table.document(&machine);
        assert_eq!(document["rows"][1], json!({ "step": "<c>", "share": null, "p99_us": 7 }));
        assert_eq!(document["rate"], json!(1000));
        let page = table.html(&machine);
        assert!(page.contains("<td>&lt;c&gt;</td>") && page.contains("<p>topic t</p>"), "{page}");
        assert!(page.contains("rate 1000") && page.contains("<h1>highwater bench test</h1>"), "{page}");
    }
}
