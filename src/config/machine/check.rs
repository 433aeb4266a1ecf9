//! What must hold between the values of a machine configuration, beyond the type of each.
//!
//! Every function looks at a section and goes on after what is wrong; none stops at the first.

mod cluster;
mod network;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::{Authority, Secret, certificate};
use url::Url;

use super::{Document, MachineConfig, Mode, Network, Time, VERSION, names};
use crate::document::{Finding, Path, Step};
use crate::value::CertificateAndKey;

/// All that is wrong with a document; with a mode, also what a node that boots so would miss.
pub(super) fn document(document: &Document, mode: Option<Mode>) -> Vec<Finding> {
    let mut check = Check::default();
    if let Some(version) = document.version.as_ref().filter(|version| *version != VERSION) {
        let message = format!("{version:?} is not supported; it must be {VERSION}");
        check.wrong_at("version", message);
    }
    match &document.machine {
        Some(machine) => check.key("machine", |check| node::machine(check, machine, mode)),
        None => check.wrong_at("machine", "machine instructions are required"),
    }
    match &document.cluster {
        Some(cluster) => check.key("cluster", |check| cluster::cluster(check, cluster)),
        None => check.wrong_at("cluster", "cluster instructions are required"),
    }
    if let (Some(machine), Some(cluster), Some(_)) = (&document.machine, &document.cluster, mode) {
        node::secrets(&mut check, machine, cluster);
    }
    check.findings
}

/// Checks a `machine.network` that stands alone.
pub(super) fn network(network: &Network) -> Vec<Finding> {
    let mut check = Check::default();
    network::network(&mut check, network);
    check.findings
}

/// Checks a `machine.time` that stands alone.
pub(super) fn time(time: &Time) -> Vec<Finding> {
    let mut check = Check::default();
    node::time(&mut check, time);
    check.findings
}

/// What is allowed and probably not meant, each with its path in front.
pub(super) fn warnings(config: &MachineConfig, now: SystemTime) -> Vec<String> {
    let MachineConfig { machine, cluster, .. } = config;
    let mut warnings = Vec::new();
    let etcd = cluster.etcd.as_ref().and_then(|etcd| etcd.ca.as_ref());
    let authorities = [
        ("machine.ca", machine.ca.as_ref()),
        ("cluster.ca", cluster.ca.as_ref()),
        ("cluster.etcd.ca", etcd),
    ];
    for (path, ca) in authorities.iter().filter_map(|(path, ca)| Some((path, (*ca)?))) {
        let validity = certificate::validity(&ca.crt).ok();
        if validity.is_some_and(|(_, until)| until < now) {
            warnings.push(format!("{path}.crt: the certificate has expired"));
        } else if validity.is_some_and(|(from, _)| from > now) {
            warnings.push(format!("{path}.crt: the certificate is not valid yet"));
        }
        if ca.key.is_some() && !machine.kind.is_control_plane() {
            warnings.push(format!("{path}.key: a worker needs no authority's key; take it out"));
        }
    }
    warnings
}

/// Where we are in the document, and what was found so far.
#[derive(Default)]
struct Check {
    at: Path,
    because: Option<Path>,
    findings: Vec<Finding>,
}

impl Check {
    /// Something is wrong here.
    fn wrong(&mut self, message: impl ToString) {
        let (path, because) = (self.at.clone(), self.because.clone());
        self.findings.push(Finding { path, message: message.to_string(), because });
    }

    /// What is wrong in there is so only because of the value of another key of this mapping.
    fn because(&mut self, key: &str, look: impl FnOnce(&mut Self)) {
        let mut path = self.at.clone();
        path.push(Step::Key(key.to_owned()));
        self.because = Some(path);
        look(self);
        self.because = None;
    }

    /// Something is wrong with the value of a key of this mapping.
    fn wrong_at(&mut self, key: &str, message: impl ToString) {
        self.key(key, |check| check.wrong(message));
    }

    /// What is wrong with the value of a key, if anything.
    fn maybe(&mut self, key: &str, message: Option<impl ToString>) {
        if let Some(message) = message {
            self.wrong_at(key, message);
        }
    }

    fn key(&mut self, key: &str, look: impl FnOnce(&mut Self)) {
        self.inside(Step::Key(key.to_owned()), look);
    }

    fn inside(&mut self, step: Step, look: impl FnOnce(&mut Self)) {
        self.at.push(step);
        look(self);
        self.at.pop();
    }

    /// Looks at each element of a list.
    fn each<T>(&mut self, key: &str, list: &[T], mut look: impl FnMut(&mut Self, &T)) {
        self.key(key, |check| {
            for (i, element) in list.iter().enumerate() {
                check.inside(Step::Index(i), |check| look(check, element));
            }
        });
    }

    /// Looks at each entry of a map.
    fn entries<T>(
        &mut self,
        key: &str,
        map: &BTreeMap<String, T>,
        mut look: impl FnMut(&mut Self, &str, &T),
    ) {
        self.key(key, |check| {
            for (name, value) in map {
                check.key(name, |check| look(check, name, value));
            }
        });
    }

    /// Names that must be an address or a DNS name each.
    fn sans(&mut self, key: &str, names: &[String]) {
        self.each(key, names, |check, name| {
            if !names::is_san(name) {
                check.wrong(format!("{name:?} is neither an IP address nor a DNS name"));
            }
        });
    }

    fn image(&mut self, key: &str, image: Option<&String>) {
        let bad = |c: char| c.is_whitespace() || c.is_control();
        if let Some(image) = image.filter(|image| image.is_empty() || image.contains(bad)) {
            self.wrong_at(key, format!("{image:?} is no reference of an image"));
        }
    }

    /// Flags of a program; of those that the node sets itself, one that ends in `*` stands for all
    /// that begin so.
    fn flags(&mut self, flags: &BTreeMap<String, String>, owned: &[&str]) {
        self.entries("extraArgs", flags, |check, flag, _| {
            let matches = |owned: &&str| match owned.strip_suffix('*') {
                Some(beginning) => flag.starts_with(beginning),
                None => flag == *owned,
            };
            if owned.iter().any(matches) {
                check.wrong("the node sets this flag itself; it cannot be overridden");
            } else if flag.starts_with('-') {
                let bare = flag.trim_start_matches('-');
                check.wrong(format!("flags are written without dashes: {bare:?}"));
            } else if !names::is_header(flag) {
                check.wrong(format!("{flag:?} is no name of a flag"));
            }
        });
    }

    fn token(&mut self, token: Option<&Secret>) {
        if token.is_some_and(|token| !names::is_token(token.expose())) {
            let message = "must be [a-z0-9]{6}.[a-z0-9]{16} (what is there is a secret and not \
                           shown); orlopctl gen config makes one";
            self.wrong_at("token", message);
        }
    }

    /// A URL that is fetched.
    fn fetched(&mut self, url: &Url) {
        if !matches!(url.scheme(), "http" | "https") {
            self.wrong(format!("{}: must begin with http:// or https://", url.scheme()));
        }
    }

    /// Base64 of a key of 32 bytes.
    fn key_of_32(&mut self, key: &str, text: Option<&str>) {
        let length = |text: &str| STANDARD.decode(text).map(|bytes| bytes.len());
        if text.is_some_and(|text| length(text) != Ok(32)) {
            self.wrong_at(key, "must be base64 of 32 bytes; try: head -c 32 /dev/urandom | base64");
        }
    }

    /// A certificate, and its key if there is one. `Leaf` need be no authority's.
    fn pair(&mut self, pair: &CertificateAndKey, kind: PairOf) {
        let CertificateAndKey { crt, key } = pair;
        let sound = match key {
            None if crt.is_empty() => return,
            None => certificate::validity(crt).map(drop),
            Some(_) if crt.is_empty() => {
                return self.wrong_at("crt", "a key needs its certificate");
            }
            Some(key) => Authority::from_pem(crt, key.expose()).map(drop),
        };
        let Err(error) = sound else { return };
        let at = match error {
            orlop_pki::Error::NotAuthority if kind == PairOf::Leaf => return,
            orlop_pki::Error::Key(_)
            | orlop_pki::Error::Mismatch
            | orlop_pki::Error::Pem { what: "private key", .. }
            | orlop_pki::Error::Absent { what: "private key" } => "key",
            _ => "crt",
        };
        let message = match &error {
            // The decoder's words help nobody.
            orlop_pki::Error::Certificate(_) => "no certificate can be read in it".to_owned(),
            error => chain(error),
        };
        self.wrong_at(at, message);
    }

    fn accepted(&mut self, authorities: &[CertificateAndKey]) {
        self.each("acceptedCAs", authorities, |check, authority| {
            if authority.crt.is_empty() {
                check.wrong_at("crt", "a certificate is required");
            }
            check.pair(authority, PairOf::Authority);
        });
    }
}

/// What a certificate and its key are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PairOf {
    Authority,
    Leaf,
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Remembers what came before.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    /// Whether it was there already.
    fn again(&mut self, name: &str) -> bool {
        !self.0.insert(name.to_owned())
    }
}
