//! The results of a bench, printed as a table. The program `report` makes `docs/performance.md` of them.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The environment variable with the folder to which the benches also write their results.
pub const FOLDER: &str = "REDRIVE_BENCH_REPORT";

/// The results of a bench, or of a part of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Sentences about the run, such as the number of rounds.
    pub notes: Vec<String>,
    pub chart: Option<Chart>,
}

/// A bar chart.
#[derive(Debug, Serialize, Deserialize)]
pub struct Chart {
    /// The title, which names what the bars show and its unit.
    pub title: String,
    pub bars: Vec<(String, f64)>,
}

impl Results {
    /// Reads the results of this name from a folder.
    ///
    /// # Errors
    ///
    /// Fails if there are none.
    pub fn read(folder: &Path, name: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let file = file(folder, name);
        let text = fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Removes the results of this name from a folder, if there are any.
    ///
    /// # Errors
    ///
    /// Fails if they cannot be removed.
    pub fn remove(folder: &Path, name: &str) -> io::Result<()> {
        match fs::remove_file(file(folder, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension("json")
}

/// A table that is printed line by line.
pub struct Table {
    name: &'static str,
    widths: Vec<usize>,
    results: Results,
}

impl Table {
    /// Prints the headings. A column is as wide as its heading, with the spaces at its end.
    pub fn new(name: &'static str, columns: &[&str]) -> Self {
        println!("{}", columns.join("  "));
        Table {
            name,
            widths: columns.iter().map(|column| column.chars().count()).collect(),
            results: Results {
                columns: columns.iter().map(|column| column.trim().to_owned()).collect(),
                ..Results::default()
            },
        }
    }

    /// Prints a line. Cells that begin with a digit are aligned to the right.
    pub fn row<const CELLS: usize>(&mut self, cells: [String; CELLS]) {
        let line = cells.iter().zip(&self.widths).map(|(cell, &width)| {
            if cell.starts_with(|first: char| first.is_ascii_digit()) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        println!("{}", line.collect::<Vec<_>>().join("  ").trim_end());
        self.results.rows.push(cells.into());
    }

    /// Prints a sentence about the run.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        println!("{note}");
        self.results.notes.push(note);
    }

    /// Adds a bar to the chart. `title`: what the bars show, with the unit.
    pub fn bar(&mut self, title: &str, label: impl Into<String>, value: f64) {
        let chart = self.results.chart.get_or_insert_with(|| Chart {
            title: title.to_owned(),
            bars: Vec::new(),
        });
        chart.bars.push((label.into(), value));
    }

    /// Writes the results to the folder of the report, if this run belongs to one.
    ///
    /// # Panics
    ///
    /// Panics if the folder cannot be written.
    pub fn finish(self) {
        if let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) {
            let text = serde_json::to_vec_pretty(&self.results).expect("JSON");
            fs::create_dir_all(&folder).expect("the folder of the report");
            fs::write(file(&folder, self.name), text).expect("the results");
        }
    }
}
