//! `bootstrap`, `recover` and `etcd`: a cluster's beginning, and its memory.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream;
use orlop_proto::common::Data;
use orlop_proto::machine::etcd_member_alarm::AlarmType;
use orlop_proto::machine::recover_request::Source as ProtoSource;
use orlop_proto::machine::{
    BootstrapRequest, EtcdClusterDowngrade, EtcdDowngradeEnableRequest,
    EtcdDowngradeValidateRequest, EtcdForfeitLeadershipRequest, EtcdLeaveClusterRequest,
    EtcdMemberAlarm, EtcdMemberListRequest, EtcdMemberStatus, EtcdMembers,
    EtcdRemoveMemberByIdRequest, EtcdRemoveMemberRequest, EtcdSnapshotRequest, EtcdStatus,
    RecoverRequest,
};
use orlop_rt::Beside;

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::progress::Progress;
use crate::table::{Cell, Column, Output, Table, print};
use crate::units::si;

/// Bytes of a snapshot that travel in one message.
const PIECE: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct BootstrapOptions {
    /// Begin with what this snapshot of etcd holds
    #[arg(long, value_name = "FILE")]
    recover_from: Option<PathBuf>,
    /// Take a snapshot without a hash: a copy of a member's database
    #[arg(long, requires = "recover_from")]
    recover_skip_hash_check: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RecoverOptions {
    /// Where the control plane's state is taken from
    #[arg(short, long, value_enum, default_value_t)]
    source: Source,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Source {
    /// etcd's data
    Etcd,
    /// A running API server
    #[default]
    Apiserver,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the members
    Members {
        /// As each member knows them, even without a quorum
        #[arg(long)]
        local: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Let nodes leave the cluster; their data are gone
    Leave,
    /// Let other members lead
    ForfeitLeadership,
    /// Show how the members fare
    Status(Output),
    /// Save a snapshot of the cluster's data
    Snapshot {
        /// Where to write; `-`: stdout
        file: PathBuf,
    },
    /// List and end alarms
    #[command(subcommand)]
    Alarm(Alarm),
    /// Give back what members' databases no longer need; they serve nobody meanwhile
    Defrag,
    /// Remove a member that does not come back
    RemoveMember {
        /// Its id, as `etcd members` shows it, or its host name
        member: String,
    },
    /// Take the cluster to an older version
    #[command(subcommand)]
    Downgrade(Downgrade),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Alarm {
    /// List the alarms
    List(Output),
    /// End all alarms
    Disarm(Output),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Downgrade {
    /// Ask whether the cluster can be taken to a version
    Validate {
        /// Such as 3.5.0
        version: String,
        #[command(flatten)]
        output: Output,
    },
    /// Begin
    Enable {
        /// Such as 3.5.0
        version: String,
        #[command(flatten)]
        output: Output,
    },
    /// Give it up
    Cancel(Output),
}

pub(crate) async fn bootstrap(client: &Client, options: &BootstrapOptions) -> Result<(), Error> {
    client.one_node("bootstrap")?;
    if let Some(path) = &options.recover_from {
        send(client, path).await?;
    }
    let request = BootstrapRequest {
        recover_etcd: options.recover_from.is_some(),
        recover_skip_hash_check: options.recover_skip_hash_check,
    };
    let call = async |node| machine(node).bootstrap(request).await;
    for Answer { node, .. } in client.ask("bootstrap", call).await? {
        say!("{node} bootstraps its cluster");
    }
    Ok(())
}

/// Sends a snapshot, which the node checks.
async fn send(client: &Client, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let broken = Arc::new(Mutex::new(None));
    let call = async |node| {
        let (mut file, broken) = (File::open(path), Arc::clone(&broken));
        let pieces = std::iter::from_fn(move || {
            let mut bytes = Vec::with_capacity(PIECE);
            let read =
                file.as_mut().map_err(|error| io::Error::new(error.kind(), error.to_string()));
            match read.and_then(|file| file.take(PIECE as u64).read_to_end(&mut bytes)) {
                Ok(0) => None,
                Ok(_) => Some(Data { metadata: None, bytes }),
                Err(error) => {
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    None
                }
            }
        });
        machine(node).etcd_recover(stream::iter(pieces)).await
    };
    let sent = client.send("send the snapshot", call).await;
    // What could not be read was not sent: the node's answer means nothing.
    match broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(failed(error)),
        None => sent,
    }
}

pub(crate) async fn recover(client: &Client, options: &RecoverOptions) -> Result<(), Error> {
    client.one_node("recover")?;
    let source = match options.source {
        Source::Etcd => ProtoSource::Etcd,
        Source::Apiserver => ProtoSource::Apiserver,
    };
    let request = RecoverRequest { source: source.into() };
    let call = async |node| machine(node).recover(request).await;
    for Answer { node, .. } in client.ask("recover", call).await? {
        say!("{node} recovers its control plane");
    }
    Ok(())
}

pub(crate) async fn run(client: &Client, command: &Command) -> Result<(), Error> {
    match command {
        Command::Members { local, output } => {
            let request = EtcdMemberListRequest { query_local: *local };
            let call = async |node| machine(node).etcd_member_list(request).await;
            members(&client.ask("list the members of etcd", call).await?).print(*output)
        }
        Command::Leave => {
            let request = EtcdLeaveClusterRequest {};
            let call = async |node| machine(node).etcd_leave_cluster(request).await;
            for Answer { node, .. } in client.ask_patiently("leave the cluster", call).await? {
                say!("{node} has left the cluster");
            }
            Ok(())
        }
        Command::ForfeitLeadership => {
            let request = EtcdForfeitLeadershipRequest {};
            let call = async |node| machine(node).etcd_forfeit_leadership(request).await;
            for Answer { node, message } in client.ask("forfeit the leadership", call).await? {
                match &*message.member {
                    "" => say!("{node} does not lead"),
                    leader => say!("{node} gives the leadership to {leader}"),
                }
            }
            Ok(())
        }
        Command::Status(output) => {
            let call = async |node| machine(node).etcd_status(()).await;
            status(&client.ask("ask for the status of etcd", call).await?).print(*output)
        }
        Command::Snapshot { file } => snapshot(client, file).await,
        Command::Alarm(Alarm::List(output)) => {
            let call = async |node| machine(node).etcd_alarm_list(()).await;
            let answers = client.ask("list the alarms of etcd", call).await?;
            let given =
                answers.iter().map(|Answer { node, message }| (node, &message.member_alarms));
            alarms(given).print(*output)
        }
        Command::Alarm(Alarm::Disarm(output)) => {
            let call = async |node| machine(node).etcd_alarm_disarm(()).await;
            let answers = client.ask("end the alarms of etcd", call).await?;
            let given =
                answers.iter().map(|Answer { node, message }| (node, &message.member_alarms));
            alarms(given).print(*output)
        }
        Command::Defrag => {
            let call = async |node| machine(node).etcd_defragment(()).await;
            for Answer { node, .. } in client.ask_patiently("defragment etcd", call).await? {
                say!("{node} is defragmented");
            }
            Ok(())
        }
        Command::RemoveMember { member } => remove(client, member).await,
        Command::Downgrade(change) => downgrade(client, change).await,
    }
}

/// Sixteen digits are an id; whoever calls a host so has to use the id.
async fn remove(client: &Client, member: &str) -> Result<(), Error> {
    client.one_node("etcd remove-member")?;
    let what = format!("remove member {member:?}");
    match id(member) {
        Some(member_id) => {
            let request = EtcdRemoveMemberByIdRequest { member_id };
            let call = async |node| machine(node).etcd_remove_member_by_id(request).await;
            client.ask(&what, call).await.map(drop)
        }
        None => {
            let request = EtcdRemoveMemberRequest { member: member.to_owned() };
            let call = async |node| machine(node).etcd_remove_member(request.clone()).await;
            client.ask(&what, call).await.map(drop)
        }
    }?;
    say!("{member} is no member any more");
    Ok(())
}

fn id(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

async fn downgrade(client: &Client, change: &Downgrade) -> Result<(), Error> {
    let (told, output): (Vec<_>, _) = match change {
        Downgrade::Validate { version, output } => {
            let request = EtcdDowngradeValidateRequest { version: version.clone() };
            let call = async |node| machine(node).etcd_downgrade_validate(request.clone()).await;
            let answers = client.ask("validate the downgrade", call).await?;
            let told = answers.into_iter().map(|one| (one.node, one.message.cluster_downgrade));
            (told.collect(), output)
        }
        Downgrade::Enable { version, output } => {
            let request = EtcdDowngradeEnableRequest { version: version.clone() };
            let call = async |node| machine(node).etcd_downgrade_enable(request.clone()).await;
            let answers = client.ask("begin the downgrade", call).await?;
            let told = answers.into_iter().map(|one| (one.node, one.message.cluster_downgrade));
            (told.collect(), output)
        }
        Downgrade::Cancel(output) => {
            let call = async |node| machine(node).etcd_downgrade_cancel(()).await;
            let answers = client.ask("give up the downgrade", call).await?;
            let told = answers.into_iter().map(|one| (one.node, one.message.cluster_downgrade));
            (told.collect(), output)
        }
    };
    let mut table = Table::new(&[("NODE", "node"), ("CLUSTER VERSION", "cluster_version")]);
    for (node, cluster) in told {
        let EtcdClusterDowngrade { cluster_version } = cluster.unwrap_or_default();
        table.push([Cell::text(&node), Cell::text(&cluster_version)]);
    }
    table.print(*output)
}

/// Writes the snapshot beside its place, which it takes when all of it is there.
async fn snapshot(client: &Client, path: &Path) -> Result<(), Error> {
    client.one_node("etcd snapshot")?;
    let what = "take a snapshot of etcd";
    let call = async |node| machine(node).etcd_snapshot(EtcdSnapshotRequest {}).await;
    if path == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Error::Terminal);
        }
        return client.follow(what, call, |_, data| print(&data.bytes)).await;
    }
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut file = Beside::new(path, 0o600).map_err(failed)?;
    let (mut size, mut progress) = (0, Progress::new(what));
    let followed = client.follow(what, call, |_, data| {
        size += data.bytes.len() as u64;
        progress.add(data.bytes.len());
        file.write_all(&data.bytes).map_err(failed)
    });
    followed.await?;
    drop(progress);
    match size {
        // Ctrl-C before anything came.
        0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
        _ => file.keep().map_err(failed)?,
    }
    say!("{} of etcd are in {}", si(size), path.display());
    Ok(())
}

const MEMBERS: &[Column] = &[
    ("NODE", "node"),
    ("ID", "id"),
    ("HOSTNAME", "hostname"),
    ("PEER URLS", "peer_urls"),
    ("CLIENT URLS", "client_urls"),
    ("LEARNER", "learner"),
];

fn members(answers: &[Answer<EtcdMembers>]) -> Table {
    let mut table = Table::new(MEMBERS);
    for Answer { node, message } in answers {
        for member in &message.members {
            table.push([
                Cell::text(node),
                member_id(member.id),
                Cell::text(&member.hostname),
                Cell::text(&member.peer_urls.join(",")),
                Cell::text(&member.client_urls.join(",")),
                Cell::shown(member.is_learner.to_string(), member.is_learner),
            ]);
        }
        // Those of generation v0.8 tell names only.
        let names = if message.members.is_empty() { &*message.legacy_members } else { &[] };
        for name in names {
            let [none, also, nor, no] = [(); 4].map(|()| Cell::text(""));
            table.push([Cell::text(node), none, Cell::text(name), also, nor, no]);
        }
    }
    table
}

const STATUS: &[Column] = &[
    ("NODE", "node"),
    ("MEMBER", "member"),
    ("DB SIZE", "db_size_bytes"),
    ("IN USE", "in_use_bytes"),
    ("LEADER", "leader"),
    ("RAFT INDEX", "raft_index"),
    ("RAFT TERM", "raft_term"),
    ("RAFT APPLIED INDEX", "raft_applied_index"),
    ("LEARNER", "learner"),
    ("PROTOCOL", "protocol"),
    ("STORAGE", "storage"),
    ("ERRORS", "errors"),
];

fn status(answers: &[Answer<EtcdStatus>]) -> Table {
    let mut table = Table::new(STATUS);
    for Answer { node, message } in answers {
        let EtcdMemberStatus {
            storage_version,
            member_id: member,
            protocol_version,
            db_size,
            db_size_in_use,
            leader,
            raft_index,
            raft_term,
            raft_applied_index,
            errors,
            is_learner,
        } = message.member_status.clone().unwrap_or_default();
        let bytes = |size: i64| u64::try_from(size).unwrap_or_default();
        let (size, used) = (bytes(db_size), bytes(db_size_in_use));
        // In hundredths of a per cent.
        let share = u128::from(used) * 10_000 / u128::from(size.max(1));
        let used_text = format!("{} ({}.{:02}%)", si(used), share / 100, share % 100);
        table.push([
            Cell::text(node),
            member_id(member),
            Cell::shown(si(size), size),
            Cell::shown(used_text, used),
            member_id(leader),
            Cell::number(raft_index),
            Cell::number(raft_term),
            Cell::number(raft_applied_index),
            Cell::shown(is_learner.to_string(), is_learner),
            Cell::text(&protocol_version),
            Cell::text(&storage_version),
            Cell::text(&errors.join(", ")),
        ]);
    }
    table
}

fn alarms<'a>(answers: impl Iterator<Item = (&'a String, &'a Vec<EtcdMemberAlarm>)>) -> Table {
    let mut table = Table::new(&[("NODE", "node"), ("MEMBER", "member"), ("ALARM", "alarm")]);
    for (node, alarms) in answers {
        for given in alarms {
            let alarm = AlarmType::try_from(given.alarm)
                .map_or_else(|_| given.alarm.to_string(), |alarm| alarm.as_str_name().to_owned());
            table.push([Cell::text(node), member_id(given.member_id), Cell::text(&alarm)]);
        }
    }
    table
}

/// Ids are numbers that programs cannot count with: they are written as `remove-member` takes them.
fn member_id(id: u64) -> Cell {
    Cell::text(&format!("{id:016x}"))
}

#[cfg(test)]
mod tests {
    use orlop_proto::machine::EtcdMember;

    use super::*;
    use crate::golden;
    use crate::table::Format;

    fn answer<M>(node: &str, message: M) -> Answer<M> {
        Answer { node: node.to_owned(), message }
    }

    #[test]
    fn members_of_both_generations_are_listed() {
        let member = EtcdMember {
            id: 0x8e9e_05c5_2164_694d,
            hostname: "cp-1".to_owned(),
            peer_urls: vec!["https://10.0.0.2:2380".to_owned()],
            client_urls: vec!["https://10.0.0.2:2379".to_owned()],
            is_learner: false,
        };
        let legacy_members = vec!["cp-1".to_owned()];
        let old = EtcdMembers { legacy_members: legacy_members.clone(), ..EtcdMembers::default() };
        let new = EtcdMembers { metadata: None, legacy_members, members: vec![member] };
        let table = members(&[answer("10.0.0.2", new), answer("10.0.0.3", old)]);
        golden::check("etcd-members.txt", &table.render(Format::Table));
    }

    #[test]
    fn the_status_has_its_sizes_and_alarms_their_names() {
        let member_status = EtcdMemberStatus {
            storage_version: "3.6.0".to_owned(),
            member_id: 1,
            protocol_version: "3.6.4".to_owned(),
            db_size: 20_480_000,
            db_size_in_use: 5_242_880,
            leader: 0x10,
            raft_index: 512,
            raft_term: 3,
            raft_applied_index: 511,
            errors: vec!["etcdserver: no leader".to_owned()],
            is_learner: true,
        };
        let full = EtcdStatus { metadata: None, member_status: Some(member_status) };
        let table = status(&[answer("10.0.0.2", full), answer("b", EtcdStatus::default())]);
        let node = "10.0.0.2".to_owned();
        let given = [(1, 1), (2, 2), (3, 9)];
        let given = given.map(|(member_id, alarm)| EtcdMemberAlarm { member_id, alarm }).to_vec();
        let alarms = alarms([(&node, &given)].into_iter());
        let text = [table.render(Format::Table), alarms.render(Format::Table)].concat();
        golden::check("etcd-status.txt", &text);
    }

    #[test]
    fn sixteen_digits_are_an_id() {
        assert_eq!(id("00000000000000ff"), Some(255));
        for name in ["ff", "control-plane-01", "00000000000000fg", ""] {
            assert_eq!(id(name), None, "{name}");
        }
    }
}
