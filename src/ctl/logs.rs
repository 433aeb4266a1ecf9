//! `logs` and `dmesg`: byte streams of nodes, printed line by line as `<node>: <line>`.

use std::collections::BTreeMap;

use orlop_proto::machine::{DmesgRequest, LogsRequest};

use crate::client::{Client, machine};
use crate::containers::Namespace;
use crate::error::Error;
use crate::table::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A service, or with -k a container as <pod-namespace>/<pod>:<container>
    id: String,
    /// Go on until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with; all when below zero
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "N")]
    tail: i32,
    #[command(flatten)]
    namespace: Namespace,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DmesgOptions {
    /// Go on until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only what is new (useful with --follow)
    #[arg(long)]
    tail: bool,
}

pub(crate) async fn logs(client: &Client, options: &Options) -> Result<(), Error> {
    let request = LogsRequest {
        namespace: options.namespace.name(),
        id: options.id.clone(),
        driver: options.namespace.driver(),
        follow: options.follow,
        tail_lines: options.tail,
    };
    let call = async |node| machine(node).logs(request.clone()).await;
    let mut lines = Lines::default();
    let what = format!("read the log of {:?}", options.id);
    let followed =
        client.follow(&what, call, |node, data| print(&lines.push(node, &data.bytes))).await;
    print(&lines.rest())?;
    followed
}

pub(crate) async fn dmesg(client: &Client, options: &DmesgOptions) -> Result<(), Error> {
    let request = DmesgRequest { follow: options.follow, tail: options.tail };
    let call = async |node| machine(node).dmesg(request).await;
    let mut lines = Lines::default();
    let what = "read the kernel's log";
    let followed =
        client.follow(what, call, |node, data| print(&lines.push(node, &data.bytes))).await;
    print(&lines.rest())?;
    followed
}

/// Longest line held back until its end comes; a longer one is printed in pieces.
const LONGEST: usize = 64 * 1024;

/// Cuts the interleaved pieces of several nodes into whole lines. Bytes stay as they are: a log
/// need not be UTF-8.
#[derive(Debug, Default)]
struct Lines {
    /// The line each node has begun.
    begun: BTreeMap<String, Vec<u8>>,
}

impl Lines {
    /// The lines that `piece` completes, each with its node before it.
    fn push(&mut self, node: &str, piece: &[u8]) -> Vec<u8> {
        let begun = self.begun.entry(node.to_owned()).or_default();
        let mut out = Vec::new();
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            begun.extend_from_slice(part);
            if begun.ends_with(b"\n") || begun.len() >= LONGEST {
                write(&mut out, node, begun);
                begun.clear();
            }
        }
        out
    }

    /// What was begun and never ended.
    fn rest(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for (node, line) in std::mem::take(&mut self.begun) {
            if !line.is_empty() {
                write(&mut out, &node, &line);
            }
        }
        out
    }
}

fn write(out: &mut Vec<u8>, node: &str, line: &[u8]) {
    out.extend_from_slice(node.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_of_two_nodes_become_whole_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.push("a", b"one\ntw"), b"a: one\n");
        assert_eq!(lines.push("b", b"other"), b"");
        assert_eq!(lines.push("a", b"o\n\nthree"), b"a: two\na: \n");
        assert_eq!(lines.push("b", b"\xff\n"), b"b: other\xff\n");
        assert_eq!(lines.rest(), b"a: three\n");
        assert_eq!(lines.rest(), b"");
    }

    #[test]
    fn a_line_without_end_is_printed_in_pieces() {
        let mut lines = Lines::default();
        let mut printed = 0;
        for _ in 0..256 {
            printed += lines.push("n", &[b'x'; 1024]).len();
        }
        assert_eq!(printed, 4 * (LONGEST + "n: \n".len()));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_the_stream_is_cut(
            pieces in proptest::collection::vec("[a\n]{0,9}", 0..9),
        ) {
            let mut lines = Lines::default();
            let mut printed: Vec<u8> = pieces.iter().flat_map(|piece| lines.push("n", piece.as_bytes())).collect();
            printed.extend(lines.rest());
            let expected: String = pieces.concat().lines().map(|line| format!("n: {line}\n")).collect();
            prop_assert_eq!(printed, expected.into_bytes());
        }
    }
}
