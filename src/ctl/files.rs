//! `list`, `usage` and `read`: the files of a node.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use orlop_proto::machine::list_request::Type;
use orlop_proto::machine::{DiskUsageInfo, DiskUsageRequest, FileInfo, ListRequest, ReadRequest};
use time::OffsetDateTime;

use crate::client::{Client, machine};
use crate::error::{Error, Failure};
use crate::table::{Cell, Column, Format, Output, Table, escape, print};
use crate::units::si;

#[derive(Debug, clap::Args)]
pub(crate) struct ListOptions {
    /// A folder or a file of the node
    #[arg(default_value = "/")]
    path: String,
    /// Show mode, size and time
    #[arg(short, long)]
    long: bool,
    /// Also what is below the folders in it
    #[arg(short, long)]
    recurse: bool,
    /// Sizes with units
    #[arg(short = 'H', long)]
    humanize: bool,
    /// How many levels down; 0: all with -r, else one
    #[arg(short, long, default_value_t = 0, value_name = "N")]
    depth: i32,
    /// Only files of these kinds
    #[arg(short = 't', long = "type", value_enum, value_delimiter = ',', value_name = "KIND")]
    kinds: Vec<Kind>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Regular files
    #[value(alias = "regular")]
    F,
    /// Folders
    #[value(alias = "directory")]
    D,
    /// Symbolic links
    #[value(name = "l", aliases = ["L", "symlink"])]
    L,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UsageOptions {
    /// Folders or files of the node
    #[arg(default_value = "/", value_name = "PATH")]
    paths: Vec<String>,
    /// Files too, not only folders
    #[arg(short, long)]
    all: bool,
    /// Sizes with units
    #[arg(short = 'H', long)]
    humanize: bool,
    /// How many levels to show; 0: all
    #[arg(short, long, default_value_t = 0, value_name = "N")]
    depth: i32,
    /// Hide what is smaller; below 0: what is larger
    #[arg(short, long, default_value_t = 0, allow_negative_numbers = true, value_name = "BYTES")]
    threshold: i64,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReadOptions {
    /// A file of the node
    path: String,
}

pub(crate) async fn list(client: &Client, options: &ListOptions) -> Result<(), Error> {
    let kind = |kind: &Kind| match kind {
        Kind::F => Type::Regular,
        Kind::D => Type::Directory,
        Kind::L => Type::Symlink,
    };
    let request = ListRequest {
        root: options.path.clone(),
        recurse: options.recurse || options.depth > 0,
        recursion_depth: options.depth,
        types: options.kinds.iter().map(|one| kind(one).into()).collect(),
        report_xattrs: false,
    };
    let call = async |node| machine(node).list(request.clone()).await;
    let now = SystemTime::now();
    let mut listed = Vec::new();
    let what = format!("list {}", options.path);
    let followed = client
        .follow(&what, call, |node, info: FileInfo| {
            if !info.error.is_empty() {
                say!(warning: "{what}: {node}: {}", escape(&info.error));
                return Ok(());
            }
            // Names alone are printed as they come: a tree can be long.
            if !options.long && !is_routed(&info) && matches!(options.output.format, Format::Table)
            {
                return print((escape(&info.relative_name) + "\n").as_bytes());
            }
            listed.push((node.to_owned(), info));
            Ok(())
        })
        .await;
    if !listed.is_empty() {
        let table =
            if options.long { long(&listed, options.humanize, now) } else { names(&listed) };
        table.print(options.output)?;
    }
    followed
}

/// Whether an apid put a node's name into it.
fn is_routed(info: &FileInfo) -> bool {
    info.metadata.as_ref().is_some_and(|metadata| !metadata.hostname.is_empty())
}

fn names(listed: &[(String, FileInfo)]) -> Table {
    let mut table = Table::new(&[("NODE", "node"), ("NAME", "name")]);
    for (node, info) in listed {
        table.push([Cell::text(node), Cell::text(&info.relative_name)]);
    }
    table
}

const LONG: &[Column] = &[
    ("NODE", "node"),
    ("MODE", "mode"),
    ("SIZE(B)", "size_bytes"),
    ("LASTMOD", "modified"),
    ("NAME", "name"),
];

fn long(listed: &[(String, FileInfo)], humanize: bool, now: SystemTime) -> Table {
    let mut table = Table::new(LONG);
    for (node, info) in listed {
        let name = match &*info.link {
            "" => info.relative_name.clone(),
            target => format!("{} -> {target}", info.relative_name),
        };
        table.push([
            Cell::text(node),
            Cell::text(&mode(info.mode)),
            size(info.size, humanize),
            Cell::shown(modified(info.modified, now), info.modified),
            Cell::shown(escape(&name), &*info.relative_name),
        ]);
    }
    table
}

fn size(bytes: i64, humanize: bool) -> Cell {
    match u64::try_from(bytes) {
        Ok(positive) if humanize => Cell::shown(si(positive), bytes),
        _ => Cell::number(bytes),
    }
}

/// A mode as Go prints its `os.FileMode`: a letter for each kind and special bit, then nine for the
/// permissions.
fn mode(bits: u32) -> String {
    let kind: String = "dalTLDpSugct?"
        .chars()
        .zip((19..32).rev())
        .filter_map(|(letter, bit)| (bits & 1 << bit != 0).then_some(letter))
        .collect();
    let permissions = "rwxrwxrwx"
        .chars()
        .zip((0..9).rev())
        .map(|(letter, bit)| if bits & 1 << bit != 0 { letter } else { '-' });
    let kind = if kind.is_empty() { "-".to_owned() } else { kind };
    kind.chars().chain(permissions).collect()
}

/// Half a year, within which the hour says more than the year.
const RECENT: i64 = 365 * 24 * 3600 / 2;

/// A time in UTC as `ls` shows it: `Nov 21 09:05:00`, or `Nov 21 2019` when that is long ago.
fn modified(seconds: i64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let Ok(at) = OffsetDateTime::from_unix_timestamp(seconds) else { return seconds.to_string() };
    let month = at.month().to_string();
    let (month, day) = (&month[..3], at.day());
    if now.saturating_sub(seconds).unsigned_abs() < RECENT.unsigned_abs() {
        let (hour, minute, second) = at.to_hms();
        format!("{month} {day:>2} {hour:02}:{minute:02}:{second:02}")
    } else {
        format!("{month} {day:>2} {}", at.year())
    }
}

pub(crate) async fn usage(client: &Client, options: &UsageOptions) -> Result<(), Error> {
    let request = DiskUsageRequest {
        recursion_depth: options.depth,
        all: options.all,
        threshold: options.threshold,
        paths: options.paths.clone(),
    };
    let call = async |node| machine(node).disk_usage(request.clone()).await;
    let what = format!("sum up {}", options.paths.join(", "));
    let (mut sums, mut routed, mut failures) = (Vec::new(), false, Vec::new());
    let followed = client
        .follow(&what, call, |node, info: DiskUsageInfo| {
            if info.error.is_empty() {
                let metadata = info.metadata.as_ref();
                routed |= metadata.is_some_and(|metadata| !metadata.hostname.is_empty());
                sums.push((node.to_owned(), info));
            } else {
                failures.push(Failure { node: node.to_owned(), why: escape(&info.error) });
            }
            Ok(())
        })
        .await;
    if sums.is_empty() && !failures.is_empty() {
        return Err(Error::Failed { what, failures });
    }
    failures.iter().for_each(|failure| say!(warning: "{what}: {failure}"));
    if !sums.is_empty() {
        let whole = options.paths.len() > 1;
        sizes(&sums, routed, whole, options.humanize).print(options.output)?;
    }
    followed
}

/// With a column for the node if more than one can be meant; of several paths, names are whole.
fn sizes(sums: &[(String, DiskUsageInfo)], routed: bool, whole: bool, humanize: bool) -> Table {
    const PLAIN: &[Column] = &[("SIZE", "size_bytes"), ("NAME", "name")];
    const ROUTED: &[Column] = &[("NODE", "node"), ("SIZE", "size_bytes"), ("NAME", "name")];
    let mut table = Table::new(if routed { ROUTED } else { PLAIN });
    for (node, info) in sums {
        let name = Cell::text(if whole { &info.name } else { &info.relative_name });
        let size = size(info.size, humanize);
        if routed {
            table.push([Cell::text(node), size, name]);
        } else {
            table.push([size, name]);
        }
    }
    table
}

pub(crate) async fn read(client: &Client, options: &ReadOptions) -> Result<(), Error> {
    client.one_node("read")?;
    let request = ReadRequest { path: options.path.clone() };
    let call = async |node| machine(node).read(request.clone()).await;
    let what = format!("read {}", options.path);
    client.follow(&what, call, |_, data| print(&data.bytes)).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::golden;

    fn info(relative_name: &str, mode: u32, size: i64, link: &str) -> FileInfo {
        FileInfo {
            relative_name: relative_name.to_owned(),
            mode,
            size,
            modified: 1_763_715_900,
            link: link.to_owned(),
            ..FileInfo::default()
        }
    }

    #[test]
    fn a_long_list_has_modes_sizes_and_times() {
        let node = || "10.0.0.2".to_owned();
        let listed = [
            (node(), info(".", 1 << 31 | 0o755, 4096, "")),
            (node(), info("resolv.conf", 1 << 27 | 0o777, 20, "/system/etc/resolv.conf")),
            (node(), info("sh", 1 << 23 | 0o4755 & 0o777, 1_234_567, "")),
        ];
        let now = UNIX_EPOCH + Duration::from_secs(1_763_716_000);
        golden::check("list-long.txt", &long(&listed, false, now).render(Format::Table));
        let text = long(&listed, true, now).render(Format::Table);
        assert!(text.contains("1.2 MB"), "{text}");
    }

    #[test]
    fn modes_are_written_as_go_does() {
        for (bits, text) in [
            (0o644, "-rw-r--r--"),
            (1 << 31 | 1 << 20 | 0o777, "dtrwxrwxrwx"),
            (1 << 27 | 0o777, "Lrwxrwxrwx"),
            (1 << 26 | 1 << 21 | 0o620, "Dcrw--w----"),
            (1 << 24, "S---------"),
            (1 << 23 | 1 << 22 | 0o111, "ug--x--x--x"),
        ] {
            assert_eq!(mode(bits), text);
        }
    }

    #[test]
    fn times_long_ago_have_a_year() {
        let now = UNIX_EPOCH + Duration::from_secs(1_763_716_000);
        assert_eq!(modified(1_763_715_900, now), "Nov 21 09:05:00");
        assert_eq!(modified(1_000_000_000, now), "Sep  9 2001");
        assert_eq!(modified(i64::MAX, now), i64::MAX.to_string());
    }

    #[test]
    fn sums_name_the_node_when_one_is_known() {
        let sum = DiskUsageInfo {
            name: "/var/log".to_owned(),
            relative_name: "log".to_owned(),
            size: 2048,
            ..DiskUsageInfo::default()
        };
        let sums = [("n".to_owned(), sum)];
        let shown =
            |routed, whole, humanize| sizes(&sums, routed, whole, humanize).render(Format::Table);
        assert_eq!(shown(false, false, false), "SIZE   NAME\n2048   log\n");
        assert_eq!(shown(false, true, true), "SIZE     NAME\n2.0 kB   /var/log\n");
        assert_eq!(shown(true, false, false), "NODE   SIZE   NAME\nn      2048   log\n");
    }
}
