//! What the cells of each kind say, worded as the reference does.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::object::{self, Object};
use crate::quantity::Quantity;

/// An object, and when it is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells<'a> {
    pub(super) object: &'a Object,
    pub(super) now: OffsetDateTime,
}

impl<'a> Cells<'a> {
    pub(super) fn text(&self, pointer: &str) -> &'a str {
        object::text(self.object, pointer)
    }

    pub(super) fn items(&self, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        object::items(self.object, pointer)
    }

    fn at(&self, pointer: &str) -> Option<&'a Value> {
        object::at(self.object, pointer)
    }

    fn map(&self, pointer: &str) -> Option<&'a Map<String, Value>> {
        self.at(pointer).and_then(Value::as_object)
    }

    fn number(&self, pointer: &str) -> i64 {
        self.at(pointer).and_then(Value::as_i64).unwrap_or_default()
    }

    /// A number that may be missing, as a cell.
    fn count(&self, pointer: &str) -> Value {
        self.number(pointer).into()
    }

    fn flag(&self, pointer: &str, unless_told: bool) -> Value {
        self.at(pointer).and_then(Value::as_bool).unwrap_or(unless_told).into()
    }

    /// How many items a list has.
    fn len(&self, pointer: &str) -> Value {
        self.items(pointer).count().into()
    }

    /// How many entries a map has.
    fn entries(&self, pointer: &str) -> usize {
        self.map(pointer).map_or(0, Map::len)
    }

    pub(super) fn name(&self) -> Value {
        self.text("/metadata/name").into()
    }

    pub(super) fn age(&self) -> Value {
        self.since("/metadata/creationTimestamp")
    }

    pub(super) fn is_deleted(&self) -> bool {
        !self.text("/metadata/deletionTimestamp").is_empty()
    }

    /// How long ago this was.
    fn since(&self, pointer: &str) -> Value {
        at_time(self.at(pointer))
            .map_or_else(|| json!("<unknown>"), |at| since(at, self.now).into())
    }

    /// The status of a condition: `True`, `False`, `Unknown`; empty without it.
    pub(super) fn condition(&self, kind: &str) -> &'a str {
        self.items("/status/conditions")
            .find(|condition| of(condition, "type") == kind)
            .map_or("", |condition| of(condition, "status"))
    }

    /// Containers and Images of a template.
    fn containers(&self, template: &str) -> [Value; 2] {
        let all = format!("{template}/spec/containers");
        ["name", "image"].map(|key| joined(self.items(&all).map(|one| of(one, key))).into())
    }

    /// A `LabelSelector`.
    fn selector(&self, pointer: &str) -> Value {
        self.at(pointer).map_or_else(|| json!("<none>"), |value| selector(value).into())
    }

    /// Labels.
    fn labels(&self, pointer: &str) -> Value {
        let pairs = self.map(pointer).into_iter().flatten();
        let mut pairs: Vec<_> = pairs
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        orlop_rt::sort(&mut pairs);
        or(&pairs.join(","), "<none>")
    }

    /// An amount, written as the reference writes it.
    fn quantity(&self, pointer: &str) -> String {
        self.at(pointer).map_or_else(|| "0".to_owned(), quantity)
    }

    /// A text, or what stands for none.
    fn or(&self, pointer: &str, none: &str) -> Value {
        or(self.text(pointer), none)
    }

    /// A number or text that may be missing.
    fn either(&self, pointer: &str, none: &str) -> String {
        match self.at(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => none.to_owned(),
        }
    }
}

/// A text inside.
pub(super) fn of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A number inside; 0 if there is none.
pub(super) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// Is it there, and true?
pub(super) fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// A cell that says something.
pub(super) fn or(text: &str, none: &str) -> Value {
    if text.is_empty() { none } else { text }.into()
}

/// A time inside.
pub(super) fn at_time(value: Option<&Value>) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value?.as_str()?, &Rfc3339).ok()
}

/// How long ago that was.
pub(super) fn since(at: OffsetDateTime, now: OffsetDateTime) -> String {
    age((now - at).whole_seconds())
}

/// A span of seconds in two parts at most, exact where it is short. What lies ahead is not, but for clocks that differ
/// a little.
pub(super) fn age(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |first: i64, unit: &str, second: i64, rest: &str| match second {
        0 => format!("{first}{unit}"),
        _ => format!("{first}{unit}{second}{rest}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 2 * 60 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 3 * 60 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 8 * 24 => two(days, "d", hours % 24, "h"),
        () if hours < 2 * 365 * 24 => format!("{days}d"),
        () if hours < 8 * 365 * 24 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

fn quantity(value: &Value) -> String {
    Quantity::of(value)
        .map_or_else(|_| value.as_str().unwrap_or_default().to_owned(), |own| own.to_string())
}

/// Some of many: at most `most` of them, and how many more there are.
fn some(all: &[String], most: usize, between: &str, none: &str) -> Value {
    match all.len() {
        0 => none.into(),
        count if count > most => {
            format!("{} + {} more...", all[..most].join(between), count - most).into()
        }
        _ => all.join(between).into(),
    }
}

/// A `LabelSelector` in the form of a query.
fn selector(value: &Value) -> String {
    let labels = value.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut terms: Vec<(&str, String)> = labels
        .map(|(key, value)| (key.as_str(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for term in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = of(term, "key");
        let values = term.get("values").and_then(Value::as_array).into_iter().flatten();
        let mut values: Vec<_> = values.filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match of(term, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key, text));
    }
    orlop_rt::sort_by_key(&mut terms, |(key, _)| *key);
    let terms: Vec<_> = terms.into_iter().map(|(_, text)| text).collect();
    if terms.is_empty() { "<none>".to_owned() } else { terms.join(",") }
}

/// Of kinds without columns of their own.
pub(super) fn plain(own: &Cells<'_>) -> Vec<Value> {
    let made = at_time(own.at("/metadata/creationTimestamp"))
        .and_then(|at| at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).ok())
        .and_then(|at| at.format(&Rfc3339).ok());
    vec![own.name(), made.map_or(Value::Null, Value::from)]
}

pub(super) fn name_and_age(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.age()]
}

pub(super) fn namespace(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.text("/status/phase").into(), own.age()]
}

pub(super) fn node(own: &Cells<'_>) -> Vec<Value> {
    let mut status = match own.condition("Ready") {
        "" => "Unknown",
        "True" => "Ready",
        _ => "NotReady",
    }
    .to_owned();
    if own.at("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status += ",SchedulingDisabled";
    }
    let mut roles = Vec::new();
    for (key, value) in own.map("/metadata/labels").into_iter().flatten() {
        let role = match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or_default(),
            None => "",
        };
        if !role.is_empty() {
            roles.push(role);
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |kind| {
        let address = own.items("/status/addresses").find(|address| of(address, "type") == kind);
        or(address.map_or("", |address| of(address, "address")), "<none>")
    };
    let info = |name: &str| own.or(&format!("/status/nodeInfo/{name}"), "<unknown>");
    vec![
        own.name(),
        status.into(),
        or(&roles.join(","), "<none>"),
        own.age(),
        own.text("/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// The addresses of a load balancer, each once.
fn balanced(own: &Cells<'_>) -> Vec<String> {
    let all = own.items("/status/loadBalancer/ingress");
    let mut all: Vec<_> = all
        .map(|one| if of(one, "ip").is_empty() { of(one, "hostname") } else { of(one, "ip") })
        .filter(|address| !address.is_empty())
        .map(str::to_owned)
        .collect();
    orlop_rt::sort(&mut all);
    all.dedup();
    all
}

pub(super) fn service(own: &Cells<'_>) -> Vec<Value> {
    let kind = own.text("/spec/type");
    let given = own.items("/spec/externalIPs").filter_map(Value::as_str).map(str::to_owned);
    let external = match kind {
        "ClusterIP" | "NodePort" => some(&given.collect::<Vec<_>>(), usize::MAX, ",", "<none>"),
        "LoadBalancer" => {
            let all: Vec<_> = balanced(own).into_iter().chain(given).collect();
            some(&all, usize::MAX, ",", "<pending>")
        }
        "ExternalName" => own.text("/spec/externalName").into(),
        _ => json!("<unknown>"),
    };
    let ports = own.items("/spec/ports").map(|port| {
        let (inside, protocol) = (number(port, "/port"), of(port, "protocol"));
        match number(port, "/nodePort") {
            0 => format!("{inside}/{protocol}"),
            outside => format!("{inside}:{outside}/{protocol}"),
        }
    });
    let ports: Vec<_> = ports.collect();
    vec![
        own.name(),
        kind.into(),
        // An ExternalName has none; an old object may have only the first.
        or(
            own.items("/spec/clusterIPs")
                .find_map(Value::as_str)
                .unwrap_or_else(|| own.text("/spec/clusterIP")),
            "<none>",
        ),
        external,
        or(&ports.join(","), "<none>"),
        own.age(),
        own.labels("/spec/selector"),
    ]
}

pub(super) fn endpoints(own: &Cells<'_>) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in own.items("/subsets") {
        let list = |key: &str| subset.get(key).and_then(Value::as_array).into_iter().flatten();
        let addresses: Vec<_> = list("addresses").map(|address| of(address, "ip")).collect();
        let ports: Vec<_> = list("ports").map(|port| number(port, "/port")).collect();
        if ports.is_empty() {
            all.extend(addresses.iter().map(|&address| address.to_owned()));
        }
        for port in ports {
            all.extend(addresses.iter().map(|address| match address.contains(':') {
                true => format!("[{address}]:{port}"),
                false => format!("{address}:{port}"),
            }));
        }
    }
    vec![own.name(), some(&all, 3, ",", "<none>"), own.age()]
}

pub(super) fn config_map(own: &Cells<'_>) -> Vec<Value> {
    let entries = own.entries("/data") + own.entries("/binaryData");
    vec![own.name(), entries.into(), own.age()]
}

pub(super) fn secret(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.text("/type").into(), own.entries("/data").into(), own.age()]
}

pub(super) fn service_account(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.len("/secrets"), own.age()]
}

/// Of both groups, whose fields have other names.
pub(super) fn event(own: &Cells<'_>) -> Vec<Value> {
    let first_of = |pointers: &[&str]| {
        let texts = pointers.iter().map(|pointer| own.text(pointer));
        texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
    };
    let when = |pointers: &[&str]| {
        let known = pointers.iter().find_map(|pointer| at_time(own.at(pointer)));
        known.map_or_else(|| "<unknown>".to_owned(), |at| since(at, own.now))
    };
    let first = ["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"];
    let last = [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/deprecatedLastTimestamp",
        "/firstTimestamp",
        "/deprecatedFirstTimestamp",
        "/eventTime",
    ];
    let count = ["/series/count", "/count", "/deprecatedCount"]
        .into_iter()
        .map(|pointer| own.number(pointer))
        .find(|count| *count > 0);
    let about = |field: &str| {
        first_of(&[&format!("/involvedObject/{field}"), &format!("/regarding/{field}")])
    };
    let kind = about("kind").to_lowercase();
    let object = match about("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = first_of(&[
        "/source/component",
        "/deprecatedSource/component",
        "/reportingComponent",
        "/reportingController",
    ]);
    let source = match first_of(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        when(&last).into(),
        own.text("/type").into(),
        own.text("/reason").into(),
        object.into(),
        about("fieldPath").into(),
        source.into(),
        first_of(&["/message", "/note"]).trim().into(),
        when(&first).into(),
        count.unwrap_or(1).into(),
        own.name(),
    ]
}

/// `RWO,ROX,RWX,RWOP`, in this order.
fn access_modes(own: &Cells<'_>, pointer: &str) -> Value {
    let has = |mode: &str| own.items(pointer).any(|own| own == mode);
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    joined(known.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short)).into()
}

/// An annotation of old objects goes first.
fn storage_class(own: &Cells<'_>) -> Value {
    match own.text("/metadata/annotations/volume.beta.kubernetes.io~1storage-class") {
        "" => own.text("/spec/storageClassName").into(),
        class => class.into(),
    }
}

fn phase(own: &Cells<'_>) -> Value {
    if own.is_deleted() { json!("Terminating") } else { own.text("/status/phase").into() }
}

pub(super) fn persistent_volume(own: &Cells<'_>) -> Vec<Value> {
    let claim = own.map("/spec/claimRef").map_or(String::new(), |claim| {
        let part = |key: &str| claim.get(key).and_then(Value::as_str).unwrap_or_default();
        format!("{}/{}", part("namespace"), part("name"))
    });
    vec![
        own.name(),
        own.quantity("/spec/capacity/storage").into(),
        access_modes(own, "/spec/accessModes"),
        own.text("/spec/persistentVolumeReclaimPolicy").into(),
        phase(own),
        claim.into(),
        storage_class(own),
        own.or("/spec/volumeAttributesClassName", "<unset>"),
        own.text("/status/reason").into(),
        own.age(),
        own.or("/spec/volumeMode", "<unset>"),
    ]
}

pub(super) fn claim(own: &Cells<'_>) -> Vec<Value> {
    let volume = own.text("/spec/volumeName");
    let (capacity, modes) = match volume {
        "" => (json!(""), json!("")),
        _ => (
            own.quantity("/status/capacity/storage").into(),
            access_modes(own, "/status/accessModes"),
        ),
    };
    vec![
        own.name(),
        phase(own),
        volume.into(),
        capacity,
        modes,
        storage_class(own),
        own.or("/spec/volumeAttributesClassName", "<unset>"),
        own.age(),
        own.or("/spec/volumeMode", "<unset>"),
    ]
}

fn replicas(own: &Cells<'_>, selector: Value) -> Vec<Value> {
    let [containers, images] = own.containers("/spec/template");
    vec![
        own.name(),
        own.count("/spec/replicas"),
        own.count("/status/replicas"),
        own.count("/status/readyReplicas"),
        own.age(),
        containers,
        images,
        selector,
    ]
}

pub(super) fn replication_controller(own: &Cells<'_>) -> Vec<Value> {
    replicas(own, own.labels("/spec/selector"))
}

pub(super) fn replica_set(own: &Cells<'_>) -> Vec<Value> {
    replicas(own, own.selector("/spec/selector"))
}

pub(super) fn pod_template(own: &Cells<'_>) -> Vec<Value> {
    let [containers, images] = own.containers("/template");
    vec![own.name(), containers, images, own.labels("/template/metadata/labels")]
}

pub(super) fn resource_quota(own: &Cells<'_>) -> Vec<Value> {
    let mut parts = [Vec::new(), Vec::new()];
    let hard = own.map("/status/hard").into_iter().flatten();
    let mut hard: Vec<_> = hard.collect();
    orlop_rt::sort_by_key(&mut hard, |(name, _)| *name);
    for (name, most) in hard {
        let used = own.map("/status/used").and_then(|used| used.get(name));
        let used = used.map_or_else(|| "0".to_owned(), quantity);
        let limits = usize::from(name.starts_with("limits."));
        parts[limits].push(format!("{name}: {used}/{}", quantity(most)));
    }
    let [requests, limits] = parts.map(|part| part.join(", "));
    vec![own.name(), requests.into(), limits.into(), own.age()]
}

pub(super) fn component_status(own: &Cells<'_>) -> Vec<Value> {
    let healthy = own.items("/conditions").find(|condition| of(condition, "type") == "Healthy");
    let said = |key| healthy.map_or("", |condition| of(condition, key)).into();
    let status = match healthy.map(|condition| of(condition, "status")) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    vec![own.name(), status.into(), said("message"), said("error")]
}

/// `1/3`.
fn ready(own: &Cells<'_>) -> Value {
    format!("{}/{}", own.number("/status/readyReplicas"), own.number("/spec/replicas")).into()
}

pub(super) fn deployment(own: &Cells<'_>) -> Vec<Value> {
    let [containers, images] = own.containers("/spec/template");
    vec![
        own.name(),
        ready(own),
        own.count("/status/updatedReplicas"),
        own.count("/status/availableReplicas"),
        own.age(),
        containers,
        images,
        own.selector("/spec/selector"),
    ]
}

pub(super) fn stateful_set(own: &Cells<'_>) -> Vec<Value> {
    let [containers, images] = own.containers("/spec/template");
    vec![own.name(), ready(own), own.age(), containers, images]
}

pub(super) fn daemon_set(own: &Cells<'_>) -> Vec<Value> {
    let [containers, images] = own.containers("/spec/template");
    vec![
        own.name(),
        own.count("/status/desiredNumberScheduled"),
        own.count("/status/currentNumberScheduled"),
        own.count("/status/numberReady"),
        own.count("/status/updatedNumberScheduled"),
        own.count("/status/numberAvailable"),
        own.labels("/spec/template/spec/nodeSelector"),
        own.age(),
        containers,
        images,
        own.selector("/spec/selector"),
    ]
}

pub(super) fn controller_revision(own: &Cells<'_>) -> Vec<Value> {
    let owner = own.items("/metadata/ownerReferences").find(|owner| flag(owner, "/controller"));
    let owner = owner.map_or_else(
        || "<none>".to_owned(),
        |owner| {
            let kind = of(owner, "kind").to_lowercase();
            match of(owner, "apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", of(owner, "name")),
                None => format!("{kind}/{}", of(owner, "name")),
            }
        },
    );
    vec![own.name(), owner.into(), own.count("/revision"), own.age()]
}

pub(super) fn job(own: &Cells<'_>) -> Vec<Value> {
    let holds = |kind| own.condition(kind) == "True";
    let status = match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if own.is_deleted() => "Terminating",
        () if holds("Suspended") => "Suspended",
        () if holds("FailureTarget") => "FailureTarget",
        () if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let succeeded = own.number("/status/succeeded");
    let completions = match (own.at("/spec/completions"), own.number("/spec/parallelism")) {
        (Some(all), _) => format!("{succeeded}/{all}"),
        (None, at_once @ 2..) => format!("{succeeded}/1 of {at_once}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |pointer| at_time(own.at(pointer));
    let duration = time("/status/startTime").map_or(String::new(), |start| {
        since(start, time("/status/completionTime").unwrap_or(own.now))
    });
    let [containers, images] = own.containers("/spec/template");
    vec![
        own.name(),
        status.into(),
        completions.into(),
        duration.into(),
        own.age(),
        containers,
        images,
        own.selector("/spec/selector"),
    ]
}

pub(super) fn cron_job(own: &Cells<'_>) -> Vec<Value> {
    let template = "/spec/jobTemplate/spec";
    let [containers, images] = own.containers(&format!("{template}/template"));
    let suspended = match own.at("/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let last = match own.at("/status/lastScheduleTime") {
        Some(_) => own.since("/status/lastScheduleTime"),
        None => json!("<none>"),
    };
    vec![
        own.name(),
        own.text("/spec/schedule").into(),
        own.or("/spec/timeZone", "<none>"),
        suspended.into(),
        own.len("/status/active"),
        last,
        own.age(),
        containers,
        images,
        own.selector(&format!("{template}/selector")),
    ]
}

pub(super) fn lease(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.text("/spec/holderIdentity").into(), own.age()]
}

pub(super) fn role_binding(own: &Cells<'_>) -> Vec<Value> {
    let subjects = |kind: &str| {
        let all = own.items("/subjects").filter(|subject| of(subject, "kind") == kind);
        let all = all.map(|subject| match (of(subject, "namespace"), kind) {
            (namespace, "ServiceAccount") if !namespace.is_empty() => {
                format!("{namespace}/{}", of(subject, "name"))
            }
            _ => of(subject, "name").to_owned(),
        });
        Value::from(all.collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", own.text("/roleRef/kind"), own.text("/roleRef/name"));
    vec![
        own.name(),
        role.into(),
        own.age(),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub(super) fn endpoint_slice(own: &Cells<'_>) -> Vec<Value> {
    let ports = own.items("/ports").map(|port| match port.get("port").and_then(Value::as_i64) {
        Some(number) => number.to_string(),
        None if of(port, "name").is_empty() => "*".to_owned(),
        None => of(port, "name").to_owned(),
    });
    let addresses = own
        .items("/endpoints")
        .flat_map(|endpoint| {
            endpoint.get("addresses").and_then(Value::as_array).into_iter().flatten()
        })
        .filter_map(Value::as_str)
        .map(str::to_owned);
    vec![
        own.name(),
        own.text("/addressType").into(),
        some(&ports.collect::<Vec<_>>(), 3, ",", "<unset>"),
        some(&addresses.collect::<Vec<_>>(), 3, ",", "<unset>"),
        own.age(),
    ]
}

pub(super) fn ingress(own: &Cells<'_>) -> Vec<Value> {
    let rules = own.items("/spec/rules").count();
    let hosts = own.items("/spec/rules").take(3).map(|rule| of(rule, "host"));
    let hosts = joined(hosts.filter(|host| !host.is_empty()));
    let hosts = match (hosts.as_str(), rules) {
        ("", _) => "*".to_owned(),
        (hosts, 4..) => format!("{hosts} + {} more...", rules - 3),
        _ => hosts,
    };
    let secure = own.items("/spec/tls").next().is_some();
    vec![
        own.name(),
        own.or("/spec/ingressClassName", "<none>"),
        hosts.into(),
        balanced(own).join(",").into(),
        if secure { "80, 443" } else { "80" }.into(),
        own.age(),
    ]
}

pub(super) fn ingress_class(own: &Cells<'_>) -> Vec<Value> {
    let parameters = match own.map("/spec/parameters") {
        None => "<none>".to_owned(),
        Some(_) => {
            let part = |key: &str| own.text(&format!("/spec/parameters/{key}"));
            match part("apiGroup") {
                "" => format!("{}/{}", part("kind"), part("name")),
                group => format!("{}.{group}/{}", part("kind"), part("name")),
            }
        }
    };
    vec![own.name(), own.text("/spec/controller").into(), parameters.into(), own.age()]
}

pub(super) fn network_policy(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.selector("/spec/podSelector"), own.age()]
}

pub(super) fn ip_address(own: &Cells<'_>) -> Vec<Value> {
    let part = |key: &str| own.text(&format!("/spec/parentRef/{key}"));
    let resource = match part("group") {
        "" => part("resource").to_owned(),
        group => format!("{}.{group}", part("resource")),
    };
    let parts = [resource.as_str(), part("namespace"), part("name")];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    vec![own.name(), parts.join("/").into()]
}

pub(super) fn service_cidr(own: &Cells<'_>) -> Vec<Value> {
    let blocks = joined(own.items("/spec/cidrs").filter_map(Value::as_str));
    vec![own.name(), blocks.into(), own.age()]
}

pub(super) fn disruption_budget(own: &Cells<'_>) -> Vec<Value> {
    vec![
        own.name(),
        own.either("/spec/minAvailable", "N/A").into(),
        own.either("/spec/maxUnavailable", "N/A").into(),
        own.count("/status/disruptionsAllowed"),
        own.age(),
    ]
}

pub(super) fn class_of_storage(own: &Cells<'_>) -> Vec<Value> {
    let default = ["storageclass", "storageclass.beta"].iter().any(|prefix| {
        let path = format!("/metadata/annotations/{prefix}.kubernetes.io~1is-default-class");
        own.text(&path) == "true"
    });
    let name = own.text("/metadata/name");
    vec![
        if default { format!("{name} (default)").into() } else { name.into() },
        own.text("/provisioner").into(),
        own.or("/reclaimPolicy", "Delete"),
        own.or("/volumeBindingMode", "Immediate"),
        own.flag("/allowVolumeExpansion", false),
        own.age(),
    ]
}

pub(super) fn volume_attachment(own: &Cells<'_>) -> Vec<Value> {
    vec![
        own.name(),
        own.text("/spec/attacher").into(),
        own.text("/spec/source/persistentVolumeName").into(),
        own.text("/spec/nodeName").into(),
        own.flag("/status/attached", false),
        own.age(),
    ]
}

pub(super) fn csi_driver(own: &Cells<'_>) -> Vec<Value> {
    let audiences = match own.at("/spec/tokenRequests") {
        Some(_) => joined(own.items("/spec/tokenRequests").map(|one| of(one, "audience"))),
        None => "<unset>".to_owned(),
    };
    let modes = joined(own.items("/spec/volumeLifecycleModes").filter_map(Value::as_str));
    vec![
        own.name(),
        own.flag("/spec/attachRequired", true),
        own.flag("/spec/podInfoOnMount", false),
        own.flag("/spec/storageCapacity", false),
        audiences.into(),
        own.flag("/spec/requiresRepublish", false),
        or(&modes, "<none>"),
        own.age(),
    ]
}

pub(super) fn csi_node(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.len("/spec/drivers"), own.age()]
}

pub(super) fn csi_capacity(own: &Cells<'_>) -> Vec<Value> {
    let capacity = own.at("/capacity").map_or_else(|| "<unset>".to_owned(), quantity);
    vec![own.name(), own.text("/storageClassName").into(), capacity.into()]
}

pub(super) fn attributes_class(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.text("/driverName").into(), own.age()]
}

pub(super) fn priority_class(own: &Cells<'_>) -> Vec<Value> {
    vec![
        own.name(),
        own.count("/value"),
        own.flag("/globalDefault", false),
        own.age(),
        own.text("/preemptionPolicy").into(),
    ]
}

pub(super) fn runtime_class(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.text("/handler").into(), own.age()]
}

pub(super) fn signing_request(own: &Cells<'_>) -> Vec<Value> {
    let has = |kind: &str| own.items("/status/conditions").any(|one| of(one, "type") == kind);
    let mut condition = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        condition += ",Failed";
    }
    if !own.text("/status/certificate").is_empty() {
        condition += ",Issued";
    }
    let duration = own.at("/spec/expirationSeconds").and_then(Value::as_i64);
    vec![
        own.name(),
        own.age(),
        own.or("/spec/signerName", "<none>"),
        own.text("/spec/username").into(),
        duration.map_or_else(|| json!("<none>"), |seconds| age(seconds).into()),
        condition.into(),
    ]
}

pub(super) fn autoscaler(own: &Cells<'_>) -> Vec<Value> {
    let of_v2 =
        own.items("/spec/metrics").zip((0..).map(|index| {
            own.at(&format!("/status/currentMetrics/{index}")).unwrap_or(&Value::Null)
        }));
    let mut metrics: Vec<_> = of_v2.map(|(asked, current)| metric(asked, current)).collect();
    // In v1 there is only one.
    if let Some(target) = own.at("/spec/targetCPUUtilizationPercentage") {
        let current = percent(own.at("/status/currentCPUUtilizationPercentage"), "<unknown>");
        metrics.push(format!("cpu: {current}/{target}%"));
    }
    let reference = format!(
        "{}/{}",
        own.text("/spec/scaleTargetRef/kind"),
        own.text("/spec/scaleTargetRef/name")
    );
    vec![
        own.name(),
        reference.into(),
        some(&metrics, 2, ", ", "<none>"),
        own.either("/spec/minReplicas", "<unset>").into(),
        own.count("/spec/maxReplicas"),
        own.count("/status/currentReplicas"),
        own.age(),
    ]
}

fn percent(value: Option<&Value>, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), |value| format!("{value}%"))
}

/// What a metric is, and what it shall be.
fn metric(asked: &Value, current: &Value) -> String {
    let kind = of(asked, "type");
    let key = match kind {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let target = |name: &str| asked.pointer(&format!("/{key}/target/{name}"));
    let now = |name: &str| current.pointer(&format!("/{key}/current/{name}"));
    let shown = |value: Option<&Value>| value.map_or_else(|| "<unknown>".to_owned(), quantity);
    let average = target("averageValue");
    let name = asked.pointer(&format!("/{key}/name")).and_then(Value::as_str).unwrap_or_default();
    match (kind, average) {
        ("Pods", _) => format!(
            "{}/{}",
            shown(now("averageValue")),
            average.map_or_else(|| "0".to_owned(), quantity)
        ),
        ("Resource" | "ContainerResource", Some(average)) => {
            format!("{name}: {}/{}", shown(now("averageValue")), quantity(average))
        }
        ("Resource" | "ContainerResource", None) => format!(
            "{name}: {}/{}",
            percent(now("averageUtilization"), "<unknown>"),
            percent(target("averageUtilization"), "<auto>")
        ),
        (_, Some(average)) => {
            format!("{}/{} (avg)", shown(now("averageValue")), quantity(average))
        }
        (_, None) => format!(
            "{}/{}",
            shown(now("value")),
            target("value").map_or_else(|| "0".to_owned(), quantity)
        ),
    }
}

pub(super) fn webhooks(own: &Cells<'_>) -> Vec<Value> {
    vec![own.name(), own.len("/webhooks"), own.age()]
}

/// Of either kind of policy; `parts` are what it is made of.
pub(super) fn policy(own: &Cells<'_>, parts: &str) -> Vec<Value> {
    let kind = match own.map("/spec/paramKind") {
        Some(_) => {
            format!(
                "{}/{}",
                own.text("/spec/paramKind/apiVersion"),
                own.text("/spec/paramKind/kind")
            )
        }
        None => "<unset>".to_owned(),
    };
    vec![own.name(), own.len(parts), kind.into(), own.age()]
}

pub(super) fn policy_binding(own: &Cells<'_>) -> Vec<Value> {
    let part = |key: &str| own.text(&format!("/spec/paramRef/{key}"));
    let reference = match (part("namespace"), part("name"), own.at("/spec/paramRef/selector")) {
        ("", "", Some(chosen)) => selector(chosen),
        ("", "", None) => "<unset>".to_owned(),
        ("", name, _) => name.to_owned(),
        (_, "", Some(chosen)) => selector(chosen),
        (namespace, name, _) => format!("{namespace}/{name}"),
    };
    vec![own.name(), own.text("/spec/policyName").into(), reference.into(), own.age()]
}

pub(super) fn api_service(own: &Cells<'_>) -> Vec<Value> {
    let service = match own.map("/spec/service") {
        Some(_) => {
            format!("{}/{}", own.text("/spec/service/namespace"), own.text("/spec/service/name"))
        }
        None => "Local".to_owned(),
    };
    let available =
        own.items("/status/conditions").find(|condition| of(condition, "type") == "Available");
    let available = available.map_or_else(
        || "Unknown".to_owned(),
        |condition| match of(condition, "status") {
            "True" => "True".to_owned(),
            status => format!("{status} ({})", of(condition, "reason")),
        },
    );
    vec![own.name(), service.into(), available.into(), own.age()]
}

pub(super) fn flow_schema(own: &Cells<'_>) -> Vec<Value> {
    vec![
        own.name(),
        own.or("/spec/priorityLevelConfiguration/name", "<none>"),
        own.count("/spec/matchingPrecedence"),
        own.or("/spec/distinguisherMethod/type", "<none>"),
        own.age(),
        or(own.condition("Dangling"), "?"),
    ]
}

pub(super) fn priority_level(own: &Cells<'_>) -> Vec<Value> {
    let shares = ["limited", "exempt"]
        .iter()
        .find_map(|part| own.at(&format!("/spec/{part}/nominalConcurrencyShares")));
    let queuing = "/spec/limited/limitResponse/queuing";
    let of_queuing = |key: &str| own.either(&format!("{queuing}/{key}"), "<none>").into();
    vec![
        own.name(),
        own.text("/spec/type").into(),
        shares.map_or_else(|| "<none>".to_owned(), Value::to_string).into(),
        of_queuing("queues"),
        of_queuing("handSize"),
        of_queuing("queueLengthLimit"),
        own.age(),
    ]
}

pub(super) fn resource_claim(own: &Cells<'_>) -> Vec<Value> {
    let mut states = Vec::new();
    if own.is_deleted() {
        states.push("deleted");
    }
    if own.at("/status/allocation").is_some() {
        states.push("allocated");
        if own.items("/status/reservedFor").next().is_some() {
            states.push("reserved");
        }
    } else if !own.is_deleted() {
        states.push("pending");
    }
    vec![own.name(), states.join(",").into(), own.age()]
}

pub(super) fn resource_slice(own: &Cells<'_>) -> Vec<Value> {
    vec![
        own.name(),
        own.text("/spec/nodeName").into(),
        own.text("/spec/driver").into(),
        own.text("/spec/pool/name").into(),
        own.age(),
    ]
}
