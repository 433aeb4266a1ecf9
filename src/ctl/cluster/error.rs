//! What can go wrong with a cluster, and what to type next.

use std::path::PathBuf;

use orlop_config::parameters::Wrong;
use orlop_rt::Exit;
use tonic::{Code, Status};

/// Why a command of `cluster` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot tell where the owner's key is: neither XDG_CONFIG_HOME nor HOME is set")]
    NoHome,
    #[error("{} holds no {what}: {why}", path.display())]
    File { path: PathBuf, what: &'static str, why: String },
    #[error("there is no owner's key at {}", .0.display())]
    NoKey(PathBuf),
    #[error("there is no owner's certificate at {}", .0.display())]
    NoCertificate(PathBuf),
    #[error("{} is not the certificate of the key beside it", .0.display())]
    OtherKey(PathBuf),
    #[error("which curator is to be asked?")]
    NoEndpoint,
    #[error("ask for the cluster's authority: {0}")]
    NoAuthority(String),
    #[error("the authority SHA256:{digest} is not the one that signed {}", path.display())]
    OtherAuthority { digest: String, path: PathBuf },
    #[error("the authority SHA256:{0} was not confirmed")]
    Unconfirmed(String),
    #[error("find the cluster's leader: {0}")]
    NoLeader(String),
    #[error("{what}: {} ({code:?})", if why.is_empty() { "no reason is given" } else { why })]
    Refused { what: String, why: String, code: Code, unsure: bool },
    #[error("{what}: no answer after {seconds} s")]
    Deadline { what: String, seconds: u64 },
    #[error("the cluster has no node {0:?}")]
    NoNode(String),
    #[error("{failed} of {all} nodes: {what}")]
    Some { what: &'static str, failed: usize, all: usize },
    #[error("{0:?} is no role")]
    Role(String),
    #[error("{0:?} is no column")]
    Column(String),
    #[error("{given:?} is no {what}")]
    Value { what: &'static str, given: String },
    #[error("node {0} has told no address yet")]
    NoAddress(String),
    #[error(transparent)]
    Parameters(#[from] Wrong),
    #[error("what the cluster sent is not what it should be: {0}")]
    Strange(String),
    #[error("make keys and certificates")]
    Keys(#[source] orlop_pki::Error),
    #[error("{0} serves no Kubernetes: {1}")]
    NoKubernetes(String, String),
    #[error("{0:?} is no field that can be configured")]
    Field(String),
    #[error("nothing is to be changed")]
    NoChange,
}

impl Error {
    pub(crate) fn refused(what: &str, status: &Status) -> Self {
        let why = status.message().to_owned();
        Self::Refused { what: what.to_owned(), why, code: status.code(), unsure: false }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoHome => "name the folder: --config DIR",
            Self::NoKey(_) => {
                "orlopctl cluster install-params --bootstrap makes one for a new cluster; the key of \
                 an old one belongs there"
            }
            Self::NoCertificate(_) => "orlopctl cluster takeownership -e HOST fetches it",
            Self::OtherKey(path) => {
                return Some(format!(
                    "move {} away, and fetch it again: orlopctl cluster takeownership -e HOST",
                    path.display()
                ));
            }
            Self::NoEndpoint => "add -e HOST, an address of any curator; its console shows it",
            Self::NoAuthority(_) => {
                "is a curator there? ports other than 7835 are given as -e HOST:PORT"
            }
            Self::OtherAuthority { .. } => {
                "this is another cluster, or somebody in between; use a folder of its own for \
                 another cluster: --config DIR"
            }
            Self::Unconfirmed(_) => {
                "compare it with `openssl x509 -fingerprint -sha256` of the cluster's ca.pem, and \
                 answer yes; scripts: --insecure-accept-and-persist-first-encountered-ca"
            }
            Self::NoLeader(why) if why.contains("UnknownIssuer") => {
                "another cluster answers there; use a folder of its own for it: --config DIR"
            }
            Self::NoLeader(_) => {
                "name another curator with -e; without a majority of them there is no leader"
            }
            Self::Refused { unsure: true, .. } | Self::Deadline { .. } => {
                "it may or may not have been done: orlopctl cluster nodes shows it"
            }
            Self::Refused { code, what, .. } => match code {
                Code::Unauthenticated => {
                    "the cluster does not know the owner's certificate: orlopctl cluster \
                     takeownership -e HOST"
                }
                Code::PermissionDenied if what == "take ownership" => {
                    "the cluster was founded with another key; --config DIR names another folder"
                }
                Code::NotFound => "orlopctl cluster nodes lists them",
                Code::Unavailable => "orlopctl cluster status says who leads; try again",
                Code::Unimplemented => "the cluster runs another release, which does not do this",
                _ => return None,
            },
            Self::NoNode(_) => "orlopctl cluster nodes lists them",
            Self::Role(_) => {
                "roles are ConsensusMember (cm), KubernetesController (kc), KubernetesWorker (kw)"
            }
            Self::Column(_) => {
                return Some(format!("columns are {}", super::view::COLUMNS.join(", ")));
            }
            Self::NoAddress(_) => "is it up? orlopctl cluster node describe ID",
            Self::NoKubernetes(..) => "is this a node with the role KubernetesController?",
            Self::Field(_) => "it is: kubernetes.node_labels_to_synchronize",
            Self::NoChange => {
                "orlopctl cluster node set-role --add ROLE ID; label ID KEY=VALUE KEY-"
            }
            Self::File { .. }
            | Self::Some { .. }
            | Self::Value { .. }
            | Self::Parameters(_)
            | Self::Strange(_)
            | Self::Keys(_) => return None,
        };
        Some(text.to_owned())
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoHome
            | Self::File { .. }
            | Self::NoKey(_)
            | Self::NoCertificate(_)
            | Self::OtherKey(_)
            | Self::OtherAuthority { .. } => Exit::Config,
            Self::NoEndpoint
            | Self::Role(_)
            | Self::Column(_)
            | Self::Value { .. }
            | Self::Field(_)
            | Self::NoChange
            | Self::Parameters(_) => Exit::Usage,
            Self::NoAuthority(_)
            | Self::Unconfirmed(_)
            | Self::NoLeader(_)
            | Self::Refused { .. }
            | Self::Deadline { .. }
            | Self::NoNode(_)
            | Self::Some { .. }
            | Self::NoAddress(_)
            | Self::Strange(_)
            | Self::NoKubernetes(..) => Exit::Failed,
            Self::Keys(_) => Exit::Software,
        }
    }
}
