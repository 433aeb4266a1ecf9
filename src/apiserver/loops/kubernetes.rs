//! The Service `default/kubernetes`, by which pods find the server, and its endpoints: the servers there are.
//!
//! On a store of its own a server is the only one. Servers that share a store each keep a Lease in `kube-system`, whose
//! label says what it is and whose annotation says where; the endpoints are those whose lease was renewed in time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::{Action, Look, Loop, Now, Seen, Step, served};
use crate::object::{Object, Objects, at, text};
use crate::resources::Resource;

/// How long a server is believed to be there without saying so,
const HELD: Duration = Duration::from_secs(15);
/// and how often it says so.
const RENEWED: Duration = Duration::from_secs(5);
/// What marks the leases of servers.
const LABEL: &str = "apiserver.kubernetes.io/identity";
/// Where a server is.
const ADDRESS: &str = "orlop/address";
/// The name of all three objects.
const NAME: &str = "kubernetes";
/// Where they are.
const NAMESPACE: &str = "default";
/// Of the lease's times.
const MICROSECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// What a server says of itself.
#[derive(Clone, Debug)]
pub struct Server {
    /// Unique among those that share a store, and a part of a name: a host name.
    pub name: String,
    /// Where others reach it.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// Of the Service: the first address of its range.
    pub service: IpAddr,
    /// Are there other servers on the same store?
    pub shared: bool,
}

/// The loop.
#[derive(Debug)]
pub struct Kubernetes {
    server: Server,
    /// Servers that were heard of: where they are, what renewed them last, and when that was seen.
    heard: BTreeMap<String, (String, String, Instant)>,
}

/// The keys.
const OBJECTS: &str = "objects";
const LEASE: &str = "lease";

impl Kubernetes {
    /// Of this server.
    #[must_use]
    pub fn new(server: Server) -> Self {
        Self { server, heard: BTreeMap::new() }
    }
}

impl Loop for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        matches!(
            (resource.group, resource.plural),
            ("", "namespaces" | "services" | "endpoints") | ("discovery.k8s.io", "endpointslices")
        ) || (self.server.shared && resource.plural == "leases")
    }

    fn observe(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Look> {
        match seen.resource.plural {
            "namespaces" if seen.name == NAMESPACE => vec![Look::now(OBJECTS)],
            "namespaces" if seen.name == "kube-system" && self.server.shared => {
                vec![Look::now(LEASE)]
            }
            "services" | "endpoints" | "endpointslices"
                if (seen.namespace, seen.name) == (NAMESPACE, NAME) =>
            {
                vec![Look::now(OBJECTS)]
            }
            "leases" if seen.namespace == "kube-system" => self.hear(seen, now),
            _ => Vec::new(),
        }
    }

    fn step(&mut self, key: &str, objects: &dyn Objects, now: Now) -> Step {
        if key == LEASE { self.renew(objects, now) } else { self.write(objects, now) }
    }
}

impl Kubernetes {
    fn hear(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Look> {
        let lease = seen.object();
        let is_server = lease["metadata"].get("labels").is_some_and(|all| all.get(LABEL).is_some());
        let address =
            lease["metadata"].get("annotations").and_then(|all| all.get(ADDRESS)?.as_str());
        let Some(address) = address.filter(|_| is_server) else { return Vec::new() };
        if seen.gone {
            self.heard.remove(seen.name);
            return vec![Look::now(OBJECTS)];
        }
        let renewed = text(&lease, "/spec/renewTime");
        let known = self.heard.get(seen.name);
        let same = known.is_some_and(|(known, _, _)| known == address);
        if known.is_none_or(|(_, known, _)| known != renewed) {
            let heard = (address.to_owned(), renewed.to_owned(), now.at);
            self.heard.insert(seen.name.to_owned(), heard);
        }
        if same { Vec::new() } else { vec![Look::now(OBJECTS)] }
    }

    /// The addresses of all servers, each once, in their order, and when the first of them may be gone.
    fn addresses(&mut self, now: Now) -> (Vec<String>, Option<Instant>) {
        self.heard.retain(|_, (_, _, seen)| now.at < *seen + HELD);
        let mut all = vec![self.server.address.to_string()];
        let others = self.heard.iter().filter(|(name, _)| **name != self.lease_name());
        let mut ends = Vec::new();
        for (_, (address, _, seen)) in others {
            all.push(address.clone());
            ends.push(*seen + HELD);
        }
        all.sort_unstable();
        all.dedup();
        (all, ends.into_iter().min())
    }

    fn lease_name(&self) -> String {
        format!("apiserver-{}", self.server.name)
    }

    fn renew(&self, objects: &dyn Objects, now: Now) -> Step {
        let leases = served("coordination.k8s.io", "v1", "leases");
        let renewed = now.wall.format(MICROSECONDS).unwrap_or_default();
        let name = self.lease_name();
        let mut lease = object(json!({
            "metadata": {
                "namespace": "kube-system",
                "name": name,
                "labels": {LABEL: "apiserver"},
                "annotations": {ADDRESS: self.server.address.to_string()},
            },
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": HELD.as_secs(),
                "renewTime": renewed,
            },
        }));
        let action = match objects.get(leases, "kube-system", &name) {
            None => Action::Create(leases, lease),
            Some(known) => {
                let revision = text(&known, "/metadata/resourceVersion").into();
                crate::object::metadata(&mut lease).insert("resourceVersion".to_owned(), revision);
                Action::Replace(leases, "", lease)
            }
        };
        Step { actions: vec![action], again: Some(now.at + RENEWED), ..Step::default() }
    }

    fn write(&mut self, objects: &dyn Objects, now: Now) -> Step {
        if objects.get(served("", "v1", "namespaces"), "", NAMESPACE).is_none() {
            return Step::idle();
        }
        let (addresses, again) = self.addresses(now);
        let mut actions = Vec::new();
        let services = served("", "v1", "services");
        if objects.get(services, NAMESPACE, NAME).is_none() {
            actions.push(Action::Create(services, self.service()));
        }
        let port = json!([{"name": "https", "port": self.server.port, "protocol": "TCP"}]);
        let listed: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let subsets = json!([{"addresses": listed, "ports": port}]);
        // Nobody else makes slices of these.
        let mut endpoints = named(&[("endpointslice.kubernetes.io/skip-mirror", "true")]);
        endpoints.insert("subsets".to_owned(), subsets);
        actions.extend(kept(objects, served("", "v1", "endpoints"), endpoints, &["/subsets"]));

        let family = if self.server.address.is_ipv4() { "IPv4" } else { "IPv6" };
        // One that only this machine can reach is no endpoint of a slice.
        let of_family = |address: &&String| {
            address
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_ipv4() == self.server.address.is_ipv4() && !ip.is_loopback())
        };
        let endpoints = addresses.iter().filter(of_family);
        let endpoints: Vec<_> =
            endpoints.map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        let mut slice = named(&[("kubernetes.io/service-name", NAME)]);
        slice.insert("addressType".to_owned(), family.into());
        slice.insert("endpoints".to_owned(), endpoints.into());
        slice.insert("ports".to_owned(), port);
        let slices = served("discovery.k8s.io", "v1", "endpointslices");
        actions.extend(kept(objects, slices, slice, &["/endpoints", "/ports"]));
        Step { actions, again, ..Step::default() }
    }

    fn service(&self) -> Object {
        let mut service = named(&[("component", "apiserver"), ("provider", "kubernetes")]);
        let spec = json!({
            "type": "ClusterIP",
            "clusterIP": self.server.service.to_string(),
            "clusterIPs": [self.server.service.to_string()],
            "ipFamilies": [if self.server.service.is_ipv4() { "IPv4" } else { "IPv6" }],
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": self.server.port}],
        });
        service.insert("spec".to_owned(), spec);
        service
    }
}

/// Makes an object, or brings back what of it must be.
fn kept(
    objects: &dyn Objects,
    resource: &'static Resource,
    wanted: Object,
    fields: &[&str],
) -> Option<Action> {
    let Some(mut known) = objects.get(resource, NAMESPACE, NAME) else {
        return Some(Action::Create(resource, wanted));
    };
    if fields.iter().all(|field| at(&known, field) == at(&wanted, field)) {
        return None;
    }
    for (field, value) in wanted.into_iter().filter(|(field, _)| field != "metadata") {
        known.insert(field, value);
    }
    Some(Action::Replace(resource, "", known))
}

fn named(labels: &[(&str, &str)]) -> Object {
    let labels: Object =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    object(json!({"metadata": {"namespace": NAMESPACE, "name": NAME, "labels": labels}}))
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}
