//! `Netstat`: the sockets of the node, and of the network namespaces of its containers.
//!
//! The table of another namespace is read in `/proc/PID/net` of a process in it, so nobody has to enter
//! one. A namespace goes by its name in `/run/netns`, else by the kernel's (`net:[4026531840]`).

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use orlop_proto::machine::connect_record::Process;
use orlop_proto::machine::netstat_request::{Filter, L4proto, NetNs};
use orlop_proto::machine::{ConnectRecord, NetstatRequest};

use super::walk::told;
use crate::sockets::{self, is_connected};

/// Sockets in one answer: it has to fit into a message, and into our memory.
const LIMIT: usize = 65_536;

/// Where names of network namespaces are, `ip-netns(8)`.
const NAMED: &str = "/run/netns";

/// The sockets that are asked for.
///
/// # Errors
/// When a table cannot be read, a namespace is not there, or there are too many sockets.
pub(super) fn sockets(request: &NetstatRequest) -> io::Result<Vec<ConnectRecord>> {
    let mut records = Vec::new();
    for (netns, tables) in namespaces(request.netns.as_ref())? {
        for protocol in protocols(request.l4proto.as_ref()) {
            read(&tables.join(protocol), protocol, &netns, request.filter(), &mut records)?;
        }
    }
    if request.feature.is_some_and(|feature| feature.pid) {
        name_processes(&mut records)?;
    }
    Ok(records)
}

/// The tables that are wanted; all of them when none is named.
fn protocols(wanted: Option<&L4proto>) -> Vec<&'static str> {
    let wanted = wanted.copied().unwrap_or_default();
    let table = [
        (wanted.tcp, "tcp"),
        (wanted.tcp6, "tcp6"),
        (wanted.udp, "udp"),
        (wanted.udp6, "udp6"),
        (wanted.udplite, "udplite"),
        (wanted.udplite6, "udplite6"),
        (wanted.raw, "raw"),
        (wanted.raw6, "raw6"),
    ];
    let none = table.iter().all(|(wanted, _)| !wanted);
    table.iter().filter(|(wanted, _)| none || *wanted).map(|(_, name)| *name).collect()
}

fn read(
    table: &Path,
    protocol: &str,
    netns: &str,
    filter: Filter,
    records: &mut Vec<ConnectRecord>,
) -> io::Result<()> {
    let failed = |error: io::Error| io::Error::new(error.kind(), told("read", table, &error));
    let file = match File::open(table) {
        // A protocol the kernel does not have, or a process that has just ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(failed)?,
    };
    for line in BufReader::new(file).lines() {
        let Some(mut record) = sockets::parse(protocol, &line.map_err(failed)?) else { continue };
        let wanted = match filter {
            Filter::All => true,
            Filter::Connected => is_connected(&record),
            Filter::Listening => !is_connected(&record),
        };
        if !wanted {
            continue;
        }
        if records.len() == LIMIT {
            return Err(io::Error::other(format!(
                "there are more than {LIMIT} sockets; ask for one protocol, or for listening ones"
            )));
        }
        netns.clone_into(&mut record.netns);
        records.push(record);
    }
    Ok(())
}

/// Names of the network namespaces asked for, and where their tables are. The node's own has no name.
fn namespaces(wanted: Option<&NetNs>) -> io::Result<Vec<(String, PathBuf)>> {
    let wanted = wanted.cloned().unwrap_or_default();
    let mut chosen = Vec::new();
    if wanted.hostnetwork || wanted.allnetns || wanted.netns.is_empty() {
        chosen.push((String::new(), PathBuf::from("/proc/self/net")));
    }
    if !wanted.allnetns && wanted.netns.is_empty() {
        return Ok(chosen);
    }
    let found = find_namespaces()?;
    if wanted.allnetns {
        chosen.extend(found);
        return Ok(chosen);
    }
    for name in wanted.netns {
        let Some(tables) = found.get(&name) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no process is in a network namespace {name:?}"),
            ));
        };
        chosen.push((name, tables.clone()));
    }
    Ok(chosen)
}

/// All network namespaces but our own that a process is in, by name.
fn find_namespaces() -> io::Result<BTreeMap<String, PathBuf>> {
    let own = fs::metadata("/proc/self/ns/net")?.ino();
    let mut names = HashMap::new();
    // Without the folder nothing is named.
    for entry in fs::read_dir(NAMED).into_iter().flatten().flatten() {
        if let Ok(metadata) = fs::metadata(entry.path()) {
            names.insert(metadata.ino(), entry.file_name().to_string_lossy().into_owned());
        }
    }
    let mut found = BTreeMap::new();
    for (_, folder) in process_folders()? {
        let Ok(metadata) = fs::metadata(folder.join("ns/net")) else { continue };
        let inode = metadata.ino();
        if inode != own {
            let name = names.get(&inode).cloned().unwrap_or_else(|| format!("net:[{inode}]"));
            found.entry(name).or_insert_with(|| folder.join("net"));
        }
    }
    Ok(found)
}

fn process_folders() -> io::Result<impl Iterator<Item = (u32, PathBuf)>> {
    let numbered =
        |entry: fs::DirEntry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()));
    Ok(fs::read_dir("/proc")?.flatten().filter_map(numbered))
}

/// Finds who holds each socket; the first process that has it open. One that ends meanwhile is passed
/// over.
fn name_processes(records: &mut [ConnectRecord]) -> io::Result<()> {
    let mut places: HashMap<u64, usize> =
        records.iter().enumerate().map(|(at, record)| (record.inode, at)).collect();
    // What has no inode (any more) is nobody's.
    places.remove(&0);
    for (pid, folder) in process_folders()? {
        let mut name = None;
        for descriptor in fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode = target.to_str().and_then(|target| target.strip_prefix("socket:["));
            let inode = inode.and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            let Some(at) = inode.and_then(|inode| places.remove(&inode)) else { continue };
            let name = name.get_or_insert_with(|| {
                let comm = fs::read(folder.join("comm")).unwrap_or_default();
                String::from_utf8_lossy(&comm).trim_end().to_owned()
            });
            records[at].process = Some(Process { pid, name: name.clone() });
        }
        if places.is_empty() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use orlop_proto::machine::netstat_request::Feature;

    use super::*;

    #[test]
    fn our_own_sockets_are_found_with_their_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = u32::from(listener.local_addr().unwrap().port());
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let other = u32::from(client.local_addr().unwrap().port());
        let ours = |filter: Filter, l4proto| {
            let request = NetstatRequest {
                filter: filter.into(),
                feature: Some(Feature { pid: true }),
                l4proto,
                netns: None,
            };
            let found = sockets(&request).unwrap().into_iter();
            let mine = |pid| pid == std::process::id();
            // Not those of an earlier connection at this port that still linger.
            let own = |one: &ConnectRecord| match (one.localport, one.remoteport) {
                (local, 0) => local == port,
                ends => ends == (port, other) || ends == (other, port),
            };
            found
                .filter(own)
                .filter(|one| one.process.as_ref().is_none_or(|process| mine(process.pid)))
                .map(|one| (one.l4proto.clone(), is_connected(&one), one.process.is_some()))
                .collect::<Vec<_>>()
        };
        let tcp = |connected, held| ("tcp".to_owned(), connected, held);
        assert_eq!(ours(Filter::Listening, None), [tcp(false, true)]);
        // The other end waits to be accepted: no process holds it yet.
        let mut connected = ours(Filter::Connected, None);
        connected.sort();
        assert_eq!(connected, [tcp(true, false), tcp(true, true)]);
        assert_eq!(ours(Filter::All, Some(L4proto { tcp: true, ..L4proto::default() })).len(), 3);
        assert_eq!(ours(Filter::All, Some(L4proto { udp: true, ..L4proto::default() })), []);
        drop(client);
    }

    #[test]
    fn the_tables_that_are_asked_for() {
        assert_eq!(protocols(None).len(), 8);
        assert_eq!(protocols(Some(&L4proto::default())).len(), 8);
        let wanted = L4proto { tcp6: true, raw: true, ..L4proto::default() };
        assert_eq!(protocols(Some(&wanted)), ["tcp6", "raw"]);
    }

    #[test]
    fn namespaces_are_our_own_unless_named() {
        let own = [(String::new(), PathBuf::from("/proc/self/net"))];
        assert_eq!(namespaces(None).unwrap(), own);
        assert_eq!(namespaces(Some(&NetNs::default())).unwrap(), own);
        let all = NetNs { allnetns: true, ..NetNs::default() };
        assert_eq!(namespaces(Some(&all)).unwrap()[0], own[0]);
        let named = NetNs { netns: vec!["no-such".to_owned()], ..NetNs::default() };
        assert!(namespaces(Some(&named)).unwrap_err().to_string().contains("\"no-such\""));
    }
}
