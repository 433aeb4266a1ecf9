//! What is wrong with a file people write: where exactly, and what was expected.

use std::fmt;

/// One thing that is wrong, printed as `machine.yaml:14:9: machine.network.interfaces[0].mtu: …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line and column, both from 1; `None` when it concerns the file as a whole.
    pub position: Option<(usize, usize)>,
    /// Which value, `machine.network.interfaces[0].mtu`; empty when it is no one value.
    pub path: String,
    /// What was expected, or what to do.
    pub message: String,
}

/// All that is wrong with one file, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file's name as its author knows it.
    pub file: String,
    /// At least one.
    pub list: Vec<Problem>,
}

impl Problems {
    pub(crate) fn new(file: &str, mut list: Vec<Problem>) -> Self {
        orlop_rt::sort_by_key(&mut list, |problem| problem.position);
        Self { file: file.to_owned(), list }
    }

    /// The form in which an API returns them (spec/node-api §6.5): a count, then a line for each.
    #[must_use]
    pub fn counted(&self) -> String {
        let mut text = match self.list.len() {
            1 => "1 error occurred:\n".to_owned(),
            count => format!("{count} errors occurred:\n"),
        };
        for problem in &self.list {
            text += &format!("\t* {problem}\n");
        }
        text + "\n"
    }
}

impl std::error::Error for Problems {}

/// A line for each problem, without a newline at the end.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let separator = if problem.position.is_some() { ":" } else { ": " };
            write!(f, "{}{separator}{problem}", self.file)?;
        }
        Ok(())
    }
}

/// Without the file: `14:9: machine.network.interfaces[0].mtu: …`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}
