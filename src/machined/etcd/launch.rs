//! What etcd is called with, and whether it may begin a cluster. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where clients find a member, and where its peers do.
pub const CLIENT_PORT: u16 = 2379;
/// See [`CLIENT_PORT`].
pub const PEER_PORT: u16 = 2380;

/// Who this node is as a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The host name.
    pub name: String,
    /// The first address others reach the node by.
    pub address: IpAddr,
}

impl Identity {
    /// Where its peers find it; what a member is known by before its first start.
    #[must_use]
    pub fn peer_url(&self) -> String {
        url(self.address, PEER_PORT)
    }

    /// Where clients find it.
    #[must_use]
    pub fn client_url(&self) -> String {
        url(self.address, CLIENT_PORT)
    }
}

fn url(address: IpAddr, port: u16) -> String {
    format!("https://{}", std::net::SocketAddr::new(address, port))
}

/// What the data directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: the member has never started here.
    Empty,
    /// A member's state.
    Present,
}

/// How a member starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// As the first of a new cluster.
    First,
    /// As what it was.
    Again,
    /// In a cluster that takes it in first (§11.3).
    Join,
}

/// How a member starts: what it was goes before all, and only who was told to is the first (by Bootstrap,
/// or because its machine type is `init`).
#[must_use]
pub fn begin(data: Data, told_to_be_first: bool) -> Begin {
    match (data, told_to_be_first) {
        (Data::Present, _) => Begin::Again,
        (Data::Empty, true) => Begin::First,
        (Data::Empty, false) => Begin::Join,
    }
}

/// Files as etcd sees them.
#[derive(Clone, Debug)]
pub struct Places {
    /// The member's state.
    pub data: PathBuf,
    /// `ca.crt`, `server.crt`, `server.key`, `peer.crt`, `peer.key`.
    pub secrets: PathBuf,
}

/// etcd's arguments; [`Launch::arguments`] writes them.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Who it is.
    pub identity: &'a Identity,
    /// Where it keeps and finds things.
    pub places: &'a Places,
    /// The address it listens on; `::` takes IPv4 as well.
    pub listen: IpAddr,
    /// How it starts.
    pub begin: Begin,
    /// Names and peer URLs of all members, itself included.
    pub cluster: &'a [(String, String)],
    /// `cluster.etcd.extraArgs`, checked when the configuration was read.
    pub extra: &'a BTreeMap<String, String>,
}

impl Launch<'_> {
    /// The arguments, the owner's last.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let Self { identity, places, listen, begin, cluster, extra } = self;
        let secret = |name: &str| shown(&places.secrets.join(name));
        let cluster: Vec<_> = cluster.iter().map(|(name, url)| format!("{name}={url}")).collect();
        let state = match begin {
            Begin::First => "new",
            Begin::Again | Begin::Join => "existing",
        };
        let own = [
            ("name", identity.name.clone()),
            ("data-dir", shown(&places.data)),
            ("listen-client-urls", url(*listen, CLIENT_PORT)),
            ("listen-peer-urls", url(*listen, PEER_PORT)),
            ("advertise-client-urls", identity.client_url()),
            ("initial-advertise-peer-urls", identity.peer_url()),
            ("initial-cluster", cluster.join(",")),
            ("initial-cluster-state", state.to_owned()),
            ("client-cert-auth", "true".to_owned()),
            ("trusted-ca-file", secret("ca.crt")),
            ("cert-file", secret("server.crt")),
            ("key-file", secret("server.key")),
            ("peer-client-cert-auth", "true".to_owned()),
            ("peer-trusted-ca-file", secret("ca.crt")),
            ("peer-cert-file", secret("peer.crt")),
            ("peer-key-file", secret("peer.key")),
        ];
        let own = own.iter().filter(|(name, _)| !extra.contains_key(*name));
        own.map(|(name, value)| format!("--{name}={value}"))
            .chain(extra.iter().map(|(name, value)| format!("--{name}={value}")))
            .collect()
    }

    /// What `etcdutl snapshot restore` is called with, to make the data of a first member of `snapshot`.
    #[must_use]
    pub fn restore_arguments(&self, snapshot: &Path, skip_hash_check: bool) -> Vec<String> {
        let peer_url = self.identity.peer_url();
        let name = &self.identity.name;
        let mut arguments = vec![
            "snapshot".to_owned(),
            "restore".to_owned(),
            shown(snapshot),
            format!("--data-dir={}", shown(&self.places.data)),
            format!("--name={name}"),
            format!("--initial-cluster={name}={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
        ];
        arguments.extend(skip_hash_check.then(|| "--skip-hash-check".to_owned()));
        arguments
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// What Bootstrap depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Not a worker.
    pub control_plane: bool,
    /// etcd's program is there.
    pub program: bool,
    /// The service is defined: the boot has come that far.
    pub booted: bool,
    /// What the data directory holds.
    pub data: Data,
    /// Whether there is a snapshot, and whether its hash holds.
    pub snapshot: Option<Hash>,
    /// The program that makes data of a snapshot is there.
    pub restorer: bool,
}

/// Whether a snapshot has a hash. One whose hash is wrong is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// It has, and it holds.
    Right,
    /// It has none: a copy of a database, not made by EtcdSnapshot.
    None,
}

/// What Bootstrap makes the first member of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing.
    Nothing,
    /// The snapshot that EtcdRecover took.
    Snapshot {
        /// Take one without a hash, too.
        skip_hash_check: bool,
    },
}

/// Why Bootstrap is refused. The words are the API's, where it has any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message says it")]
pub enum Refusal {
    #[error("bootstrap can only be performed on a control plane node")]
    Worker,
    #[error(
        "etcd does not run on this node: its program is not there (/usr/bin/etcd in the image, or /var/lib/orlop/bin/etcd)"
    )]
    NoProgram,
    #[error("bootstrap is not available yet")]
    NotBooted,
    #[error("time is not in sync yet")]
    TimeNotInSync,
    #[error("etcd data directory is not empty")]
    NotEmpty,
    #[error("bootstrap is running already")]
    Busy,
    #[error(
        "there is no snapshot to recover from: send one first (orlopctl bootstrap --recover-from FILE)"
    )]
    NoSnapshot,
    #[error(
        "the snapshot has no hash; if it is a copy of a member's database, say so (--recover-skip-hash-check)"
    )]
    NoHash,
    #[error("etcdutl, which makes a member of a snapshot, is not beside etcd's program")]
    NoRestorer,
}

/// Whether Bootstrap may go on. Time is not asked here: the answer may take a while.
///
/// # Errors
/// The first reason against it.
pub fn may_bootstrap(facts: &Facts, source: Source) -> Result<(), Refusal> {
    let refuse = |holds: bool, refusal| if holds { Ok(()) } else { Err(refusal) };
    refuse(facts.control_plane, Refusal::Worker)?;
    refuse(facts.program, Refusal::NoProgram)?;
    refuse(facts.booted, Refusal::NotBooted)?;
    refuse(facts.data == Data::Empty, Refusal::NotEmpty)?;
    if let Source::Snapshot { skip_hash_check } = source {
        let hash = facts.snapshot.ok_or(Refusal::NoSnapshot)?;
        refuse(skip_hash_check || hash == Hash::Right, Refusal::NoHash)?;
        refuse(facts.restorer, Refusal::NoRestorer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Facts = Facts {
        control_plane: true,
        program: true,
        booted: true,
        data: Data::Empty,
        snapshot: None,
        restorer: true,
    };

    #[test]
    fn bootstrap_is_refused_with_the_first_reason_against_it() {
        let plain = Source::Nothing;
        let (checked, unchecked) = (
            Source::Snapshot { skip_hash_check: false },
            Source::Snapshot { skip_hash_check: true },
        );
        let with = |snapshot| Facts { snapshot, ..READY };
        for (facts, source, expected) in [
            (READY, plain, Ok(())),
            (Facts { control_plane: false, program: false, ..READY }, plain, Err(Refusal::Worker)),
            (Facts { program: false, booted: false, ..READY }, plain, Err(Refusal::NoProgram)),
            (Facts { booted: false, ..READY }, plain, Err(Refusal::NotBooted)),
            (Facts { data: Data::Present, ..READY }, plain, Err(Refusal::NotEmpty)),
            (READY, checked, Err(Refusal::NoSnapshot)),
            (with(Some(Hash::Right)), checked, Ok(())),
            (with(Some(Hash::None)), checked, Err(Refusal::NoHash)),
            (with(Some(Hash::None)), unchecked, Ok(())),
            (
                Facts { restorer: false, ..with(Some(Hash::Right)) },
                checked,
                Err(Refusal::NoRestorer),
            ),
        ] {
            assert_eq!(may_bootstrap(&facts, source), expected, "{facts:?} {source:?}");
        }
        assert_eq!(Refusal::TimeNotInSync.to_string(), "time is not in sync yet");
        assert_eq!(Refusal::NotEmpty.to_string(), "etcd data directory is not empty");
        assert_eq!(Refusal::NotBooted.to_string(), "bootstrap is not available yet");
    }

    #[test]
    fn what_a_member_was_goes_before_what_it_is_told() {
        assert_eq!(begin(Data::Present, true), Begin::Again);
        assert_eq!(begin(Data::Present, false), Begin::Again);
        assert_eq!(begin(Data::Empty, true), Begin::First);
        assert_eq!(begin(Data::Empty, false), Begin::Join);
    }

    #[test]
    fn the_arguments_read_as_the_golden_ones() {
        let places = Places { data: "/var/lib/etcd".into(), secrets: "/pki".into() };
        let first = Identity { name: "one".to_owned(), address: [10, 0, 0, 1].into() };
        let third = Identity { name: "three".to_owned(), address: "fd00::3".parse().expect("one") };
        let alone = [(first.name.clone(), first.peer_url())];
        let all = [alone[0].clone(), (third.name.clone(), third.peer_url())];
        let none = BTreeMap::new();
        let extra = BTreeMap::from([("quota-backend-bytes".to_owned(), "8589934592".to_owned())]);
        let new = Launch {
            identity: &first,
            places: &places,
            listen: "::".parse().expect("one"),
            begin: Begin::First,
            cluster: &alone,
            extra: &none,
        };
        let joins = Launch {
            identity: &third,
            begin: Begin::Join,
            cluster: &all,
            extra: &extra,
            ..new.clone()
        };
        let restores = new.restore_arguments(Path::new("/snapshot"), true);
        let story: Vec<_> =
            [("first", new.arguments()), ("joins", joins.arguments()), ("restores", restores)]
                .into_iter()
                .map(|(name, arguments)| format!("{name}\n  {}\n", arguments.join("\n  ")))
                .collect();
        assert_eq!(story.concat(), include_str!("../testdata/etcd-arguments.txt"));
    }
}
