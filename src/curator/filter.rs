//! Which nodes an operator wants to see: expressions of the Common Expression Language over `node`, as `has(node.status)
//! && node.health == HEALTH_HEALTHY` (spec §4.3).
//!
//! ```text
//! text ─ lexer ─ parser ─► tree ─ check ─► expression ─ eval, for each node ─► keep it?
//! ```
//!
//! An evaluator of our own, because whoever may read the cluster's status may hand in any text: its length, how deep it
//! goes, what it costs for each node and what its patterns occupy are bounded here, and what can never have a value is
//! refused before the first node is sent. The crates there are have none of that, and would double what the curator
//! weighs.
//!
//! - `functions`: the operators and functions, and which types they take.
//! - `schema`: the messages a node is made of, from their descriptors; values are read from the wire as they are asked
//!   for.
//!
//! Not here: zones of time by name (there is no table of them), classes of Unicode in patterns, messages made in
//! expressions.

mod check;
mod eval;
mod functions;
mod lexer;
mod parser;
mod schema;
#[cfg(test)]
mod tests;
mod time;
mod value;

use orlop_proto::metropolis::proto::api::Node;
use prost::Message as _;

use check::Expr;
use eval::Eval;
use schema::{Message, SCHEMA};
use value::Fault;

/// Of the text, in bytes.
pub const LENGTH: usize = 4096;
/// Of expressions within each other.
pub const DEPTH: usize = 64;
/// What the evaluation for one node may take: a step for each part of the expression, for each element of a list that
/// is gone through, and for sixteen bytes of a text that is looked at.
pub const STEPS: usize = 100_000;
const BYTES_OF_STEP: usize = 16;

/// Why there is no filter, or none for a node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text cannot be a filter.
    #[error("the filter, column {column}: {why}")]
    Text {
        /// Of its characters, from 1.
        column: usize,
        /// What is wrong there.
        why: String,
    },
    /// It is too long.
    #[error("the filter has {0} bytes, more than {LENGTH}")]
    Long(usize),
    /// It has no value for a node.
    #[error("the filter has no value for node {node}: {why}")]
    Run {
        /// Of which.
        node: String,
        /// What is wrong.
        why: String,
    },
    /// It takes too much.
    #[error(
        "the filter takes more than {STEPS} steps for one node; ask for less, or filter what you get"
    )]
    Steps,
}

impl Error {
    fn at(text: &str, at: usize, why: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        Self::Text { column: before.chars().count() + 1, why: why.into() }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Text { .. } | Error::Long(_) | Error::Run { .. } => Self::invalid_argument(text),
            Error::Steps => Self::resource_exhausted(text),
        }
    }
}

/// An expression that was checked.
#[derive(Debug)]
pub struct Filter {
    /// None: every node.
    expr: Option<Expr>,
}

impl Filter {
    /// Reads and checks `text`; empty: every node.
    ///
    /// # Errors
    /// Any but [`Error::Run`].
    pub fn new(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self { expr: None });
        }
        if text.len() > LENGTH {
            return Err(Error::Long(text.len()));
        }
        let expr = check::check(text, &parser::parse(text)?)?;
        Ok(Self { expr: Some(expr) })
    }

    /// Is it true of `node`?
    ///
    /// # Errors
    /// [`Error::Run`], [`Error::Steps`].
    pub fn keeps(&self, node: &Node) -> Result<bool, Error> {
        let Some(expr) = &self.expr else { return Ok(true) };
        let message = Message::new(SCHEMA.node(), node.encode_to_vec().into());
        let mut steps = Steps::new();
        Eval::of_node(message, &mut steps).truth(expr).map_err(|fault| match fault {
            Fault::Steps => Error::Steps,
            Fault::Run(why) => Error::Run { node: node.id.clone(), why },
        })
    }
}

/// What is left of [`STEPS`].
#[derive(Debug)]
struct Steps(usize);

impl Steps {
    fn new() -> Self {
        Self(STEPS)
    }

    fn take(&mut self, steps: usize) -> Result<(), Fault> {
        self.0 = self.0.checked_sub(steps).ok_or(Fault::Steps)?;
        Ok(())
    }

    /// Before so many bytes are looked at or copied.
    fn bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.take(bytes / BYTES_OF_STEP)
    }
}
