//! Reports as they come, to rows and columns.

use std::collections::{HashMap, HashSet};

/// Values by iteration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The columns' names. Where several outputs have one name (those of a vector, or of two test nets), the second is
    /// `NAME[1]`, the third `NAME[2]`.
    pub names: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One report.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which run of those in the log, from 0: each begins with a line "Solving NAME".
    pub run: usize,
    /// Iteration.
    pub iteration: u64,
    /// Seconds since the first run began. Where the log's beginning is missing, since the first line that is there.
    pub seconds: f64,
    /// The learning rate logged last before; NaN if none was.
    pub rate: f64,
    /// A value for each of the table's names; `None` for an output that this report lacks.
    pub values: Vec<Option<f64>>,
}

impl Table {
    /// The rows' values in the column of a name; `None` if there is no such column.
    pub fn column(&self, name: &str) -> Option<impl Iterator<Item = (&Row, f64)>> {
        let column = self.names.iter().position(|known| known == name)?;
        Some(self.rows.iter().filter_map(move |row| Some((row, row.values.get(column).copied().flatten()?))))
    }
}

/// A table in the making.
#[derive(Default)]
pub struct Builder {
    table: Table,
    /// Columns by test net, name, and how many outputs of this name the net has before.
    columns: HashMap<(usize, String, usize), usize>,
    /// How many columns have a name.
    namesakes: HashMap<String, usize>,
    /// What the last row has: outputs by net and number, and how many of each name.
    outputs: HashSet<(usize, usize)>,
    named: HashMap<(usize, String), usize>,
}

impl Builder {
    /// Adds an output's value, to the last row if that is of the same iteration and lacks this output.
    pub fn add(&mut self, row: Row, net: usize, index: usize, name: &str, value: f64) {
        let same = self.table.rows.last().is_some_and(|last| (last.run, last.iteration) == (row.run, row.iteration));
        if !same || self.outputs.contains(&(net, index)) {
            self.table.rows.push(row);
            self.outputs.clear();
            self.named.clear();
        }
        self.outputs.insert((net, index));
        let named = self.named.entry((net, name.to_owned())).or_default();
        let column = *self.columns.entry((net, name.to_owned(), *named)).or_insert_with(|| {
            let namesakes = self.namesakes.entry(name.to_owned()).or_default();
            self.table.names.push(if *namesakes == 0 { name.to_owned() } else { format!("{name}[{namesakes}]") });
            *namesakes += 1;
            self.table.names.len() - 1
        });
        *named += 1;
        if let Some(last) = self.table.rows.last_mut() {
            last.values.resize(last.values.len().max(column + 1), None);
            last.values[column] = Some(value);
        }
    }

    pub fn finish(self) -> Table {
        let Table { names, mut rows } = self.table;
        // A log that was cut, or is still being written, ends within a row.
        let filled = |row: &Row| row.values.iter().flatten().count();
        if rows.len() > 1 && rows.last().map(filled) < rows.get(rows.len() - 2).map(filled) {
            rows.pop();
        }
        // The first reports come before the first rate is logged.
        if let [first, second, ..] = &mut rows[..]
            && first.rate.is_nan()
        {
            first.rate = second.rate;
        }
        rows.iter_mut().for_each(|row| row.values.resize(names.len(), None));
        Table { names, rows }
    }
}
