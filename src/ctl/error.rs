//! What can go wrong, said with what was being done, to which node, why, and what to type next.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use orlop_config::machine::Mode;
use orlop_config::{Problems, client, generate};
use orlop_proto::google::rpc;
use orlop_rt::Exit;
use tonic::{Code, ConnectError, Status};

use crate::endpoint::{self, Endpoint};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Cluster(#[from] crate::cluster::Error),
    #[error(transparent)]
    ClientConfiguration(#[from] client::Error),
    #[error("cannot tell where the client configuration is: HOME is not set")]
    NoHome,
    #[error("{} has no context {name:?}", path.display())]
    UnknownContext { path: PathBuf, name: String, known: Vec<String> },
    #[error("{} chooses no context", path.display())]
    NoContext { path: PathBuf, known: Vec<String> },
    #[error("context {context:?} of {} names no endpoint", path.display())]
    NoEndpoint { path: PathBuf, context: String },
    #[error("context {context:?} of {}", path.display())]
    Identity {
        path: PathBuf,
        context: String,
        #[source]
        source: orlop_pki::Error,
    },
    #[error(transparent)]
    Endpoint(#[from] endpoint::Error),
    #[error("{node:?} is no node: a node is an address or a name, without port")]
    Node { node: String, meant: Option<String> },
    #[error("{what}: {}", join(attempts))]
    Unreachable { what: String, identity: String, attempts: Vec<Attempt> },
    #[error("{what}: {endpoint}: {why}")]
    Refused {
        what: String,
        endpoint: String,
        why: String,
        hint: Option<String>,
        /// That there is no such service or method.
        unserved: bool,
    },
    #[error("{what}: {endpoint}: the stream broke off: {why}")]
    Ended { what: String, endpoint: String, why: String },
    #[error("{what}: {endpoint}: no answer after {} s", after.as_secs())]
    Deadline { what: String, endpoint: String, after: Duration },
    #[error("{what}: {}", join(failures))]
    Failed { what: String, failures: Vec<Failure> },
    #[error("service {id:?} is not registered on any nodes")]
    NotRegistered { id: String },
    #[error("service {id:?} is not up again after {} s: {why}", after.as_secs())]
    NotUp { id: String, after: Duration, why: String },
    #[error("waited {} s: {why}", after.as_secs())]
    NotBack { after: Duration, why: String },
    #[error("waited {} s for {what}: {why}", after.as_secs())]
    Unhealthy { what: &'static str, after: Duration, why: String },
    #[error("the cluster is not healthy: {why}")]
    Unwell { why: String },
    #[error("{flag}: {why}")]
    Impossible { flag: &'static str, why: &'static str },
    #[error("{what} cannot be applied: {why}")]
    Patch { what: String, why: String },
    #[error("make keys and certificates")]
    Keys(#[source] orlop_pki::Error),
    #[error("{} has a context {name:?} already", path.display())]
    ContextExists { path: PathBuf, name: String },
    #[error("the files do not make an identity")]
    Files(#[source] orlop_pki::Error),
    #[error("the kubeconfig of {whose} cannot be read: {why}")]
    Kubeconfig { whose: String, why: String },
    #[error("cannot tell where the kubeconfig is: HOME is not set")]
    NoKubeconfigHome,
    #[error("{} is there already", path.display())]
    Exists { path: PathBuf },
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("which node is meant?")]
    NoStranger,
    #[error("prepare the connection")]
    Tls(#[source] orlop_pki::Error),
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Generate(#[from] generate::Error),
    #[error("make configurations that a node accepts of these options")]
    Unacceptable(#[from] Problems),
    #[error("{file} is not valid for {mode} mode")]
    Invalid { file: String, mode: Mode },
    #[error("{command} is of one node, and {count} are meant")]
    OneNode { command: &'static str, count: usize },
    #[error("a pcap file is nothing to look at on a terminal")]
    Terminal,
    #[error("a dashboard is for a terminal")]
    NoTerminal,
    #[error("draw on the terminal")]
    Screen(#[source] io::Error),
    #[error("write to stdout")]
    Output(#[source] io::Error),
    #[error("wait for Ctrl-C")]
    Signal(#[source] io::Error),
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

impl Error {
    /// A call that the endpoint or the node behind it answered with an error.
    pub(crate) fn refused(what: &str, endpoint: &Endpoint, status: &Status) -> Self {
        let why = format!("{} ({:?})", status.message(), status.code());
        let hint = answered(status).map(str::to_owned);
        // Older nodes' routers say so of services they do not know.
        let unserved = status.code() == Code::Unimplemented
            || (status.code() == Code::Unknown && status.message().ends_with("is not defined"));
        let (what, endpoint) = (what.to_owned(), endpoint.to_string());
        Self::Refused { what, endpoint, why, hint, unserved }
    }

    /// A connection that broke before there was an answer.
    pub(crate) fn broken(
        what: &str,
        endpoint: &Endpoint,
        identity: &str,
        source: &(dyn StdError + 'static),
    ) -> Self {
        let why = chain(source);
        let hint = Trouble::of(source, &why).hint(identity);
        let (what, endpoint) = (what.to_owned(), endpoint.to_string());
        Self::Refused { what, endpoint, why, hint, unserved: false }
    }

    /// A stream that had begun and came to a bad end.
    pub(crate) fn ended(what: &str, endpoint: &Endpoint, status: &Status) -> Self {
        let why = match status.source() {
            Some(source) => chain(source),
            None => format!("{} ({:?})", status.message(), status.code()),
        };
        Self::Ended { what: what.to_owned(), endpoint: endpoint.to_string(), why }
    }

    /// What to type next.
    pub(crate) fn hint(&self) -> Option<String> {
        let known = |known: &[String]| match known {
            [] => "it has none; orlopctl gen config NAME https://HOST:6443 makes one".to_owned(),
            known => format!("it has: {}; choose one with --context", known.join(", ")),
        };
        match self {
            Self::Cluster(error) => error.hint(),
            Self::ClientConfiguration(client::Error::Missing { .. }) | Self::NoHome => Some(
                "name it with --talosconfig FILE or TALOSCONFIG=FILE; orlopctl gen config NAME \
                 https://HOST:6443 makes one beside the machine configurations"
                    .to_owned(),
            ),
            Self::UnknownContext { known: names, .. } | Self::NoContext { known: names, .. } => {
                Some(known(names))
            }
            Self::NoEndpoint { .. } => {
                Some("add -e HOST, or keep it: orlopctl config endpoint HOST".to_owned())
            }
            Self::Unreachable { identity, attempts, .. } => {
                attempts.iter().find_map(|attempt| attempt.trouble.hint(identity))
            }
            Self::Refused { hint, .. } => hint.clone(),
            Self::Node { meant, .. } => meant.as_ref().map(|host| format!("try: -n {host}")),
            Self::Deadline { .. } => Some(
                "the node is reachable but busy, or its services hang: orlopctl services"
                    .to_owned(),
            ),
            Self::NoStranger => {
                Some("add -n ADDRESS; the node's console shows its addresses".to_owned())
            }
            Self::NotUp { id, .. } => Some(format!("orlopctl logs {id} says why")),
            Self::Unhealthy { .. } | Self::Unwell { .. } => Some(
                "orlopctl services, orlopctl timeline and orlopctl logs ID say more".to_owned(),
            ),
            Self::NotBack { .. } => {
                Some("the node's console shows what it does; --timeout waits longer".to_owned())
            }
            Self::NotRegistered { .. } => Some("orlopctl services lists them".to_owned()),
            Self::OneNode { .. } => Some("name it: -n NODE".to_owned()),
            Self::Terminal => {
                Some("write a file: -o FILE; or look at it: | tcpdump -nr -".to_owned())
            }
            Self::NoTerminal => {
                Some("for programs: orlopctl memory -o json, orlopctl metrics".to_owned())
            }
            Self::ContextExists { .. } => Some("--force replaces it".to_owned()),
            Self::NoKubeconfigHome => Some("name it: orlopctl kubeconfig FILE".to_owned()),
            Self::Exists { .. } => {
                Some("--force writes over it, and over the secrets in it".to_owned())
            }
            Self::Failed { failures, .. } => failures
                .iter()
                .any(|failure| failure.why.contains("not defined"))
                .then(|| "orlopctl services lists them".to_owned()),
            Self::ClientConfiguration(_)
            | Self::Identity { .. }
            | Self::Endpoint(_)
            | Self::Ended { .. }
            | Self::Impossible { .. }
            | Self::Files(_)
            | Self::Keys(_)
            | Self::Patch { .. }
            | Self::Kubeconfig { .. }
            | Self::Read { .. }
            | Self::Tls(_)
            | Self::Write { .. }
            | Self::Generate(_)
            | Self::Unacceptable(_)
            | Self::Invalid { .. }
            | Self::Output(_)
            | Self::Screen(_)
            | Self::Signal(_)
            | Self::Runtime(_) => None,
        }
    }

    /// Whether the node knows no such call: it is of another generation.
    pub(crate) fn is_unserved(&self) -> bool {
        matches!(self, Self::Refused { unserved: true, .. })
    }

    /// Whether it is no use to try again: somebody must change something first.
    pub(crate) fn lasts(&self) -> bool {
        match self {
            Self::Unreachable { attempts, .. } => {
                attempts.iter().all(|attempt| attempt.trouble.lasts())
            }
            Self::Refused { .. } | Self::Ended { .. } | Self::Deadline { .. } => false,
            Self::Failed { .. } => false,
            _ => true,
        }
    }

    /// How the process ends. A reader that has gone away is no failure of ours.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Cluster(error) => error.exit(),
            Self::Generate(generate::Error::Secrets(_)) => Exit::Software,
            Self::Generate(generate::Error::Bundle(..)) => Exit::Config,
            Self::Generate(_)
            | Self::Unacceptable(_)
            | Self::Patch { .. }
            | Self::Node { .. }
            | Self::NoStranger
            | Self::Impossible { .. }
            | Self::OneNode { .. }
            | Self::NoTerminal
            | Self::Terminal => Exit::Usage,
            Self::ClientConfiguration(client::Error::File { operation: "write", .. }) => {
                Exit::Failed
            }
            Self::ClientConfiguration(_)
            | Self::Invalid { .. }
            | Self::NoHome
            | Self::UnknownContext { .. }
            | Self::NoContext { .. }
            | Self::NoEndpoint { .. }
            | Self::Files(_)
            | Self::Identity { .. }
            | Self::NoKubeconfigHome
            | Self::Endpoint(_) => Exit::Config,
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::Ended { .. }
            | Self::Deadline { .. }
            | Self::Failed { .. }
            | Self::NotRegistered { .. }
            | Self::NotBack { .. }
            | Self::NotUp { .. }
            | Self::Unhealthy { .. }
            | Self::Unwell { .. }
            | Self::ContextExists { .. }
            | Self::Keys(_)
            | Self::Exists { .. }
            | Self::Kubeconfig { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Screen(_)
            | Self::Output(_) => Exit::Failed,
            Self::Tls(_) | Self::Signal(_) | Self::Runtime(_) => Exit::Software,
        }
    }
}

/// An endpoint that could not be reached: no request was sent there.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// Names the address that was dialled.
    why: String,
    trouble: Trouble,
}

impl Attempt {
    /// `None` when the request may have been sent.
    pub(crate) fn unreached(status: &Status) -> Option<Self> {
        let connect =
            causes(status.source()?).find_map(<dyn StdError>::downcast_ref::<ConnectError>)?;
        let why = chain(&*connect.0);
        let trouble = Trouble::of(&*connect.0, &why);
        Some(Self { why, trouble })
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// A node that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) node: String,
    pub(crate) why: String,
}

impl Failure {
    pub(crate) fn from_status(node: String, status: &rpc::Status) -> Self {
        let code = Code::from_i32(status.code);
        Self { node, why: format!("{} ({code:?})", status.message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.why)
    }
}

/// The kinds of broken connection that a person does something different about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    ConnectionRefused,
    TimedOut,
    NoRoute,
    Name,
    /// The node's certificate is of another authority.
    UnknownIssuer,
    /// The node's certificate does not name the endpoint.
    OtherName,
    /// The node's key is not the one whose fingerprint was given.
    OtherKey,
    /// The node's certificate is wrong in another way, such as its time.
    Certificate,
    /// The node does not accept our certificate.
    ClientCertificate,
    /// The node, or its apid, went away.
    Closed,
    NotTls,
    Other,
}

impl Trouble {
    /// By kind where the error still has one. TLS errors lose theirs on the way through HTTP/2, and
    /// are told by their text.
    fn of(error: &(dyn StdError + 'static), text: &str) -> Self {
        let io = causes(error).filter_map(<dyn StdError>::downcast_ref::<io::Error>);
        let kinds: Vec<_> = io.map(io::Error::kind).collect();
        let has = |kind| kinds.contains(&kind);
        match text {
            // Two authorities of the same name differ in their signatures only.
            _ if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
                Self::UnknownIssuer
            }
            _ if text.contains("has the fingerprint") => Self::OtherKey,
            _ if text.contains("not valid for name") => Self::OtherName,
            _ if text.contains("invalid peer certificate") => Self::Certificate,
            _ if text.contains("InvalidContentType") => Self::NotTls,
            _ if text.contains("received fatal alert") => Self::ClientCertificate,
            _ if text.contains("peer closed connection") => Self::Closed,
            _ if text.contains("failed to lookup address") || text.contains("resolve") => {
                Self::Name
            }
            _ if has(io::ErrorKind::ConnectionRefused) => Self::ConnectionRefused,
            _ if has(io::ErrorKind::TimedOut) || text.contains("timed out") => Self::TimedOut,
            _ if has(io::ErrorKind::HostUnreachable) || has(io::ErrorKind::NetworkUnreachable) => {
                Self::NoRoute
            }
            _ => Self::Other,
        }
    }

    /// A certificate or a name does not become right by waiting.
    fn lasts(self) -> bool {
        match self {
            Self::UnknownIssuer | Self::OtherName | Self::OtherKey | Self::NotTls | Self::Name => {
                true
            }
            Self::ConnectionRefused
            | Self::TimedOut
            | Self::NoRoute
            | Self::Certificate
            | Self::ClientCertificate
            | Self::Closed
            | Self::Other => false,
        }
    }

    fn hint(self, identity: &str) -> Option<String> {
        Some(match self {
            Self::ConnectionRefused => {
                "is the node up, and is this the port of its API (50000 unless given)?".to_owned()
            }
            Self::TimedOut | Self::NoRoute => {
                "is this the node's address, and does the way there let its TCP port through?"
                    .to_owned()
            }
            Self::Name => {
                "is the name spelled right? an address does as well: -e 10.0.0.2".to_owned()
            }
            Self::UnknownIssuer => format!(
                "the node was not made with the CA of {identity}; choose another with --context or \
                 --talosconfig"
            ),
            Self::OtherName => {
                "use a name or address that the node's certificate has, or add this one \
                 to machine.certSANs of its configuration"
                    .to_owned()
            }
            Self::OtherKey => "compare the address and the fingerprint with the node's console; \
                 a node in maintenance has a new one after each boot"
                .to_owned(),
            Self::Certificate => "do the clocks of the node and of this machine agree?".to_owned(),
            Self::ClientCertificate => format!(
                "the node does not accept the certificate of {identity}; choose another with --context \
                 or --talosconfig"
            ),
            Self::Closed => {
                "the node or its apid went away during the call; it may or may not have been carried out"
                    .to_owned()
            }
            Self::NotTls => {
                "something other than the node's API answers there; is the port right?".to_owned()
            }
            Self::Other => return None,
        })
    }
}

/// What to do about a status that a server sent.
fn answered(status: &Status) -> Option<&'static str> {
    match status.code() {
        Code::Unimplemented => {
            Some("the node does not serve this call; orlopctl version shows what it runs")
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            Some("the certificate lacks the role; choose another context with --context")
        }
        Code::Unknown if status.message().contains("not defined") => {
            Some("orlopctl services lists them")
        }
        _ => None,
    }
}

/// An error and everything that caused it. Unlike `source()`, this also looks into an `io::Error`
/// that wraps another error.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
        None => error.source(),
    })
}

/// The causes after one another, each once; the wrappers of the transport say nothing and are left out.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let said = cause.to_string();
        // rustls explains this one to programmers, with a link.
        let said = match said.split_once(" without sending TLS close_notify") {
            Some((closed, _)) => closed,
            None => said.as_str(),
        };
        if said == "transport error" || text.ends_with(said) {
            continue;
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{}{said}", if text.is_empty() { "" } else { ": " });
    }
    text
}

fn join(all: &[impl fmt::Display]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(error: io::Error) -> Trouble {
        let text = chain(&error);
        Trouble::of(&error, &text)
    }

    #[test]
    fn a_broken_connection_is_told_by_its_cause() {
        assert_eq!(trouble(io::ErrorKind::ConnectionRefused.into()), Trouble::ConnectionRefused);
        assert_eq!(trouble(io::ErrorKind::TimedOut.into()), Trouble::TimedOut);
        let cases = [
            ("invalid peer certificate: UnknownIssuer", Trouble::UnknownIssuer),
            ("invalid peer certificate: certificate not valid for name \"a\"", Trouble::OtherName),
            ("invalid peer certificate: certificate expired", Trouble::Certificate),
            ("received fatal alert: UnknownCA", Trouble::ClientCertificate),
            ("received corrupt message of type InvalidContentType", Trouble::NotTls),
            ("invalid peer certificate: BadSignature", Trouble::UnknownIssuer),
            ("no space left", Trouble::Other),
        ];
        for (text, expected) in cases {
            assert_eq!(trouble(io::Error::other(text)), expected, "{text}");
        }
    }

    #[test]
    fn an_error_inside_an_io_error_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("connect to a")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("received fatal alert: UnknownCA"));
        assert_eq!(chain(&error), "connect to a: received fatal alert: UnknownCA");
        let error = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "peer closed connection without sending TLS close_notify: https://example.org/",
        );
        assert_eq!(chain(&error), "peer closed connection");
        assert_eq!(trouble(error), Trouble::Closed);
    }

    #[test]
    fn a_status_of_a_server_keeps_its_code() {
        let endpoint = "10.0.0.2".parse().expect("an address is an endpoint");
        let status = Status::unimplemented("unknown method X");
        let error = Error::refused("read memory", &endpoint, &status);
        assert_eq!(error.to_string(), "read memory: 10.0.0.2: unknown method X (Unimplemented)");
        assert!(error.hint().is_some_and(|hint| hint.contains("orlopctl version")));
        assert_eq!(error.exit(), Exit::Failed);
    }

    #[test]
    fn an_unknown_context_lists_the_known_ones() {
        let known = vec!["a".to_owned(), "b".to_owned()];
        let error = Error::UnknownContext { path: "/t".into(), name: "c".to_owned(), known };
        assert_eq!(error.to_string(), "/t has no context \"c\"");
        assert_eq!(error.hint().as_deref(), Some("it has: a, b; choose one with --context"));
        assert_eq!(error.exit(), Exit::Config);
    }

    #[test]
    fn a_closed_pipe_is_success() {
        assert_eq!(Error::Output(io::ErrorKind::BrokenPipe.into()).exit(), Exit::Ok);
    }
}
