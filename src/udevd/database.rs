//! What is known of a device, as libudev reads it below `/run/udev/data`: `lsblk`, LVM, storage
//! drivers in containers. A line for each thing: `N:NODE`, `S:LINK`, `L:PRIORITY`, `I:MICROSECONDS`,
//! `E:KEY=VALUE`, `V:1` (systemd, `device-private.c`; its newer versions pass over `N:`). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// One device's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Below `/dev`; empty when the device has none.
    pub node: String,
    /// Below `/dev`.
    pub links: BTreeSet<String>,
    /// Of the links.
    pub priority: i32,
    /// When it was first seen, in microseconds since the kernel started.
    pub initialized: u64,
    /// What was found out, besides what the kernel says itself.
    pub properties: BTreeMap<String, String>,
}

impl Record {
    /// The text of the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if !self.node.is_empty() {
            let _ = writeln!(text, "N:{}", self.node);
        }
        for link in &self.links {
            let _ = writeln!(text, "S:{link}");
        }
        if self.priority != 0 {
            let _ = writeln!(text, "L:{}", self.priority);
        }
        let _ = writeln!(text, "I:{}", self.initialized);
        for (key, value) in &self.properties {
            let _ = writeln!(text, "E:{key}={value}");
        }
        text + "V:1\n"
    }

    /// Reads such a text; lines of other kinds are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut record = Self::default();
        for line in text.lines() {
            match line.split_once(':') {
                Some(("N", node)) => record.node = node.to_owned(),
                Some(("S", link)) => drop(record.links.insert(link.to_owned())),
                Some(("L", priority)) => record.priority = priority.parse().unwrap_or_default(),
                Some(("I", at)) => record.initialized = at.parse().unwrap_or_default(),
                Some(("E", property)) => {
                    if let Some((key, value)) = property.split_once('=') {
                        record.properties.insert(key.to_owned(), value.to_owned());
                    }
                }
                _ => {}
            }
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_reads_as_libudev_wants_it() {
        let record = Record {
            node: "dm-0".to_owned(),
            links: ["disk/by-label/STATE".to_owned()].into(),
            priority: 50,
            initialized: 1_234_567,
            properties: [("ID_FS_TYPE".to_owned(), "xfs".to_owned())].into(),
        };
        assert_eq!(
            record.to_text(),
            "N:dm-0\nS:disk/by-label/STATE\nL:50\nI:1234567\nE:ID_FS_TYPE=xfs\nV:1\n"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = Record::parse(&text);
        }

        #[test]
        fn parse_gives_back_what_was_written(
            node in "[a-z0-9/]{0,9}",
            links in proptest::collection::btree_set("[a-z/]{1,9}", 0..4),
            priority: i32,
            initialized: u64,
            properties in proptest::collection::btree_map("[A-Z_]{1,9}", "[^\r\n]{0,9}", 0..4),
        ) {
            let record = Record { node, links, priority, initialized, properties };
            prop_assert_eq!(Record::parse(&record.to_text()), record);
        }
    }
}
