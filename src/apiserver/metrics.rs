//! What the server counts, by the reference's names and labels, so that its dashboards work (spec of the server, §4.2).
//!
//! Labels are only ever words of this program: what a client makes up is not counted under its own name. Each family
//! holds a bounded number of label sets all the same; what comes after goes under `other`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use orlop_telemetry::openmetrics::{CONTENT_TYPE, Exposition, Kind, PLAIN_CONTENT_TYPE, Value};

use crate::request::Info;
use crate::resources::find;

/// A word of this program.
pub type Word = &'static str;

/// What the server counts. Cheap to count in from anywhere.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<9, AtomicU64>,
    durations: Family<8, Histogram>,
    sli_durations: Family<7, Histogram>,
    response_sizes: Family<7, Histogram>,
    long_running: Family<7, AtomicI64>,
    terminations: Family<8, AtomicU64>,
    /// Of watches; by group, version, resource.
    pub watch_events: Family<3, AtomicU64>,
    /// In bytes; by group, version, resource.
    pub watch_event_sizes: Family<3, Histogram>,
    /// Changes that the cache took in, for watches to read; by group and resource.
    pub dispatched: Family<2, AtomicU64>,
    /// Watches that were too slow; by group and resource.
    pub terminated_watches: Family<2, AtomicU64>,
    /// Lists from the cache; by group and resource.
    pub cache_lists: Family<2, AtomicU64>,
    /// Lists from the store; by group and resource.
    pub storage_lists: Family<2, AtomicU64>,
    /// By operation (`get`, `list`, `create`, `update`, `delete`) and resource.
    pub store_durations: Family<2, Histogram>,
    /// By operation and resource.
    pub store_requests: Family<2, AtomicU64>,
    /// By name, operation, whether it refused, `admit` or `validate`.
    pub admission: Family<4, Histogram>,
    /// The same of webhooks.
    pub webhooks: Family<4, Histogram>,
    /// By name, operation, `admit` or `validate`, error type, refusal code.
    pub webhook_rejections: Family<5, AtomicU64>,
    /// By `success`, `failure` or `error`.
    pub authentications: Family<1, AtomicU64>,
    users: Family<1, AtomicU64>,
    /// By `allowed`, `denied`, `no-opinion` or `error`.
    pub authorizations: Family<1, AtomicU64>,
}

/// What a request was, in words of this program.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Request {
    verb: Word,
    group: Word,
    version: Word,
    resource: Word,
    subresource: Word,
    scope: Word,
    dry_run: Word,
}

/// What is not counted but is so when somebody asks.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// Requests under way, see [`crate::flow::Flow::inside`].
    pub in_flight: (usize, usize),
    /// By group and resource.
    pub objects: BTreeMap<(Word, Word), u64>,
    /// Of the store, in bytes.
    pub storage_bytes: u64,
    /// Audit events written, and those that were not.
    pub audit: (u64, u64),
    /// Handshakes that failed.
    pub tls_errors: u64,
    /// `major`, `minor`, `git_version` and so on.
    pub build: Vec<(Word, String)>,
}

impl Request {
    /// What a request was. `apply`: its body is an apply configuration. Resources that are not served are not named.
    #[must_use]
    pub fn of(info: &Info<'_>, apply: bool, dry_run: bool) -> Self {
        let dry_run = if dry_run { "All" } else { "" };
        let verb = match info.verb {
            "get" | "head" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" if apply => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let mut request = Self {
            verb,
            group: "",
            version: "",
            resource: "",
            subresource: "",
            scope: "",
            dry_run,
        };
        let Some(asked) = info.resource else { return request };
        let Some(known) = find(asked.group, asked.version, asked.plural) else { return request };
        (request.group, request.version, request.resource) =
            (known.group, known.version, known.plural);
        let sub = known.subresources.iter().find(|sub| sub.name == asked.subresource);
        request.subresource = sub.map_or("", |sub| sub.name);
        if matches!(request.subresource, "attach" | "exec" | "portforward" | "proxy") {
            request.verb = "CONNECT";
        }
        request.scope = if !asked.name.is_empty() && !matches!(info.verb, "list" | "watch") {
            "resource"
        } else if asked.namespace.is_empty() {
            "cluster"
        } else {
            "namespace"
        };
        request
    }

    fn labels(&self) -> [Word; 7] {
        let Self { verb, group, version, resource, subresource, scope, dry_run: _ } = *self;
        [verb, group, version, resource, subresource, scope, COMPONENT]
    }
}

impl Default for Metrics {
    fn default() -> Self {
        const ADMISSION: [Word; 4] = ["name", "operation", "rejected", "type"];
        const KIND: [Word; 3] = ["group", "version", "resource"];
        const RESOURCE: [Word; 2] = ["group", "resource"];
        const OPERATION: [Word; 2] = ["operation", "type"];
        Self {
            requests: Family::counting(
                "apiserver_request",
                "Requests by verb, what they are about and how they ended.",
                with(REQUEST, ["code", "dry_run"]),
            ),
            durations: Family::measuring(
                "apiserver_request_duration_seconds",
                "How long answers take.",
                with(REQUEST, ["dry_run"]),
                LATENCY,
            ),
            sli_durations: Family::measuring(
                "apiserver_request_sli_duration_seconds",
                "How long answers take, without what webhooks take.",
                REQUEST,
                LATENCY,
            ),
            response_sizes: Family::measuring(
                "apiserver_response_sizes",
                "Bytes of answers.",
                REQUEST,
                &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9],
            ),
            long_running: Family::gauging(
                "apiserver_longrunning_requests",
                "Requests under way that take as long as the client likes.",
                REQUEST,
            ),
            terminations: Family::counting(
                "apiserver_request_terminations",
                "Requests that were ended to protect the server.",
                with(REQUEST, ["code"]),
            ),
            watch_events: Family::counting(
                "apiserver_watch_events",
                "Events sent to watches.",
                KIND,
            ),
            watch_event_sizes: Family::measuring(
                "apiserver_watch_events_sizes",
                "Bytes of events sent to watches.",
                KIND,
                &[1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131_072.0],
            ),
            dispatched: Family::counting(
                "apiserver_watch_cache_events_dispatched",
                "Changes that the cache has handed to watches.",
                RESOURCE,
            ),
            terminated_watches: Family::counting(
                "apiserver_terminated_watchers",
                "Watches that were ended because they were too slow.",
                RESOURCE,
            ),
            cache_lists: Family::counting(
                "apiserver_cache_list",
                "Lists answered from the cache.",
                RESOURCE,
            ),
            storage_lists: Family::counting(
                "apiserver_storage_list",
                "Lists answered from the store.",
                RESOURCE,
            ),
            store_durations: Family::measuring(
                "etcd_request_duration_seconds",
                "How long the store takes.",
                OPERATION,
                LATENCY,
            ),
            store_requests: Family::counting(
                "etcd_requests",
                "What the store was asked.",
                OPERATION,
            ),
            admission: Family::measuring(
                "apiserver_admission_controller_admission_duration_seconds",
                "How long each step of admission takes.",
                ADMISSION,
                ADMISSION_LATENCY,
            ),
            webhooks: Family::measuring(
                "apiserver_admission_webhook_admission_duration_seconds",
                "How long each webhook takes.",
                ADMISSION,
                ADMISSION_LATENCY,
            ),
            webhook_rejections: Family::old_counting(
                "apiserver_admission_webhook_rejection_count",
                "What webhooks refused.",
                ["name", "operation", "type", "error_type", "rejection_code"],
            ),
            authentications: Family::old_counting(
                "authentication_attempts",
                "How many said who they are.",
                ["result"],
            ),
            users: Family::old_counting(
                "authenticated_user_requests",
                "Requests of those whose names are known.",
                ["username"],
            ),
            authorizations: Family::counting(
                "authorization_attempts",
                "How many asked whether they may.",
                ["result"],
            ),
        }
    }
}

impl Metrics {
    /// A request was answered. `webhooks`: how long it waited for them.
    pub fn answered(
        &self,
        request: &Request,
        code: u16,
        took: Duration,
        webhooks: Duration,
        bytes: u64,
    ) {
        let labels = request.labels();
        self.requests.add(with(labels, [code_word(code), request.dry_run]));
        if request.verb == "WATCH" {
            // How long a watch lasts is its client's choice.
            return;
        }
        self.durations.measure(with(labels, [request.dry_run]), took.as_secs_f64());
        self.sli_durations.measure(labels, took.saturating_sub(webhooks).as_secs_f64());
        if matches!(request.verb, "GET" | "LIST") {
            // A count of bytes is exact far beyond any answer.
            #[expect(clippy::cast_precision_loss, reason = "see above")]
            self.response_sizes.measure(labels, bytes as f64);
        }
    }

    /// A request was ended to protect the server: 429, or out of time.
    pub fn terminated(&self, request: &Request, code: u16) {
        self.terminations.add(with(request.labels(), [code_word(code)]));
    }

    /// One that takes as long as the client likes; it ends when what this returns is dropped.
    #[must_use]
    pub fn long_running(&self, request: &Request) -> LongRunning {
        let count = self.long_running.of(request.labels());
        count.fetch_add(1, Ordering::Relaxed);
        LongRunning(count)
    }

    /// Somebody is known now. Names are counted only where they are few.
    pub fn known(&self, name: &str) {
        let known = [
            "admin",
            "client",
            "kube_proxy",
            "kubelet",
            "system:serviceaccount:kube-system:default",
        ];
        let word = known.into_iter().find(|known| *known == name);
        let other = if name.contains('@') { "email_id" } else { "other" };
        self.users.add([word.unwrap_or(other)]);
    }

    /// All of it as text: the type of the text and the text. `plain` is what collectors read who do not ask for
    /// OpenMetrics.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn expose(&self, plain: bool, now: &Now) -> io::Result<(&'static str, String)> {
        let process = Process::read()?;
        let mut text = if plain { Exposition::plain() } else { Exposition::default() };
        let out = &mut text;
        self.requests.write(out);
        self.durations.write(out);
        self.sli_durations.write(out);
        self.response_sizes.write(out);
        self.long_running.write(out);
        self.terminations.write(out);
        self.watch_events.write(out);
        self.watch_event_sizes.write(out);
        self.dispatched.write(out);
        self.terminated_watches.write(out);
        self.cache_lists.write(out);
        self.storage_lists.write(out);
        self.store_durations.write(out);
        self.store_requests.write(out);
        self.admission.write(out);
        self.webhooks.write(out);
        self.webhook_rejections.write(out);
        self.authentications.write(out);
        self.users.write(out);
        self.authorizations.write(out);
        now.write(out);
        process.write(out);
        Ok((if plain { PLAIN_CONTENT_TYPE } else { CONTENT_TYPE }, text.finish()))
    }
}

impl Now {
    fn write(&self, text: &mut Exposition) {
        let (reading, mutating) = self.in_flight;
        text.family(Kind::Gauge, "apiserver_current_inflight_requests", "Requests under way.")
            .sample(&[("request_kind", "mutating")], mutating as u64)
            .sample(&[("request_kind", "readOnly")], reading as u64);
        let mut family = text.family(
            Kind::Gauge,
            "apiserver_storage_objects",
            "Objects that are stored, by what they were called before 1.34.",
        );
        for ((group, resource), count) in &self.objects {
            let dot = if group.is_empty() { "" } else { "." };
            family.sample(&[("resource", &format!("{resource}{dot}{group}"))], *count);
        }
        let mut family =
            text.family(Kind::Gauge, "apiserver_resource_objects", "Objects that are stored.");
        for ((group, resource), count) in &self.objects {
            family.sample(&[("group", group), ("resource", resource)], *count);
        }
        text.family(Kind::Gauge, "apiserver_storage_size_bytes", "What the store occupies.")
            .sample(&[("storage_cluster_id", "etcd-0")], self.storage_bytes);
        let (written, lost) = self.audit;
        text.family(Kind::Counter, "apiserver_audit_event", "Audit events written.")
            .sample(&[], written);
        text.family(Kind::Counter, "apiserver_audit_error", "Audit events that were not written.")
            .sample(&[("plugin", "log")], lost);
        let name = "apiserver_tls_handshake_errors";
        text.family(Kind::Counter, name, "Handshakes that failed.").sample(&[], self.tls_errors);
        let build: Vec<_> =
            self.build.iter().map(|(name, value)| (*name, value.as_str())).collect();
        text.family(Kind::Info, "kubernetes_build", "What this server says it is.")
            .sample(&build, 1);
    }
}

/// A request that takes as long as the client likes, see [`Metrics::long_running`].
#[derive(Debug)]
pub struct LongRunning(Arc<AtomicI64>);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Figures of one name, one for each set of labels.
#[derive(Debug)]
pub struct Family<const N: usize, T> {
    kind: Kind,
    name: Word,
    help: Word,
    labels: [Word; N],
    bounds: &'static [f64],
    sets: RwLock<HashMap<[Word; N], Arc<T>>>,
}

/// How many were how large.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    /// The bits of a number with a fraction.
    sum: AtomicU64,
}

/// What a family holds for a set of labels.
trait Figure: Sized {
    fn new(bounds: &'static [f64]) -> Self;
}

impl Figure for AtomicU64 {
    fn new(_: &'static [f64]) -> Self {
        Self::default()
    }
}

impl Figure for AtomicI64 {
    fn new(_: &'static [f64]) -> Self {
        Self::default()
    }
}

impl Figure for Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::default()).collect(),
            sum: AtomicU64::new(0_f64.to_bits()),
        }
    }
}

impl Histogram {
    /// One more, of this size.
    pub fn measure(&self, size: f64) {
        let place = self.bounds.partition_point(|bound| *bound < size);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + size).to_bits());
        let added = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        debug_assert!(added.is_ok(), "adding is never refused");
    }
}

impl<const N: usize> Family<N, AtomicU64> {
    fn counting(name: Word, help: Word, labels: [Word; N]) -> Self {
        Self::new(Kind::Counter, name, help, labels, &[])
    }

    fn old_counting(name: Word, help: Word, labels: [Word; N]) -> Self {
        Self::new(Kind::OldCounter, name, help, labels, &[])
    }

    /// One more.
    pub fn add(&self, labels: [Word; N]) {
        self.of(labels).fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, text: &mut Exposition) {
        let mut family = text.family(self.kind, self.name, self.help);
        for (labels, count) in self.sorted() {
            family.sample(&self.named(&labels), count.load(Ordering::Relaxed));
        }
    }
}

impl<const N: usize> Family<N, AtomicI64> {
    fn gauging(name: Word, help: Word, labels: [Word; N]) -> Self {
        Self::new(Kind::Gauge, name, help, labels, &[])
    }

    fn write(&self, text: &mut Exposition) {
        let mut family = text.family(self.kind, self.name, self.help);
        for (labels, count) in self.sorted() {
            family
                .sample(&self.named(&labels), count.load(Ordering::Relaxed).max(0).unsigned_abs());
        }
    }
}

impl<const N: usize> Family<N, Histogram> {
    fn measuring(name: Word, help: Word, labels: [Word; N], bounds: &'static [f64]) -> Self {
        Self::new(Kind::Histogram, name, help, labels, bounds)
    }

    /// One more, of this size.
    pub fn measure(&self, labels: [Word; N], size: f64) {
        self.of(labels).measure(size);
    }

    fn write(&self, text: &mut Exposition) {
        let mut family = text.family(self.kind, self.name, self.help);
        for (labels, histogram) in self.sorted() {
            let counts: Vec<_> =
                histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            let sum = f64::from_bits(histogram.sum.load(Ordering::Relaxed));
            family.buckets(&self.named(&labels), self.bounds, &counts, sum);
        }
    }
}

#[expect(private_bounds, reason = "only this module makes them")]
impl<const N: usize, T: Figure> Family<N, T> {
    fn new(kind: Kind, name: Word, help: Word, labels: [Word; N], bounds: &'static [f64]) -> Self {
        Self { kind, name, help, labels, bounds, sets: RwLock::default() }
    }

    /// That of a set of labels, made if there is none; that of `other` once there are too many. Whoever counts often
    /// keeps it.
    pub fn of(&self, labels: [Word; N]) -> Arc<T> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sets.get(&labels) {
            return Arc::clone(known);
        }
        let full = sets.len() >= MOST_SETS;
        drop(sets);
        let labels = if full { ["other"; N] } else { labels };
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sets.entry(labels).or_insert_with(|| Arc::new(T::new(self.bounds))))
    }

    fn sorted(&self) -> BTreeMap<[Word; N], Arc<T>> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        sets.iter().map(|(labels, figure)| (*labels, Arc::clone(figure))).collect()
    }

    fn named(&self, labels: &[Word; N]) -> Vec<(Word, Word)> {
        self.labels.into_iter().zip(*labels).collect()
    }
}

/// More sets of labels than all resources, verbs and codes that are met together make.
const MOST_SETS: usize = 10_000;
const COMPONENT: Word = "apiserver";
const REQUEST: [Word; 7] =
    ["verb", "group", "version", "resource", "subresource", "scope", "component"];
/// As the reference's, so that its dashboards work.
const LATENCY: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
const ADMISSION_LATENCY: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

/// Two sets of labels, one after the other.
fn with<const A: usize, const B: usize, const C: usize>(
    first: [Word; A],
    then: [Word; B],
) -> [Word; C] {
    const { assert!(A + B == C, "the sets fill the labels") };
    std::array::from_fn(|i| if i < A { first[i] } else { then[i - A] })
}

/// The codes that this server answers with.
fn code_word(code: u16) -> Word {
    const CODES: [(u16, Word); 27] = [
        (101, "101"),
        (200, "200"),
        (201, "201"),
        (202, "202"),
        (204, "204"),
        (301, "301"),
        (304, "304"),
        (307, "307"),
        (400, "400"),
        (401, "401"),
        (403, "403"),
        (404, "404"),
        (405, "405"),
        (406, "406"),
        (408, "408"),
        (409, "409"),
        (410, "410"),
        (413, "413"),
        (415, "415"),
        (422, "422"),
        (429, "429"),
        (500, "500"),
        (501, "501"),
        (502, "502"),
        (503, "503"),
        (504, "504"),
        (507, "507"),
    ];
    CODES.iter().find(|(known, _)| *known == code).map_or("other", |(_, word)| word)
}

/// What this process occupies (proc_pid_status(5), proc_pid_stat(5)).
#[derive(Clone, Copy, Debug)]
struct Process {
    resident_bytes: u64,
    open_files: u64,
    cpu: Duration,
    started: SystemTime,
}

impl Process {
    fn read() -> io::Result<Self> {
        let read = |path: &str| {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("read {path}: {error}"));
            fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(named)
        };
        let status = read("/proc/self/status")?;
        let stat = read("/proc/self/stat")?;
        let uptime = read("/proc/uptime")?;
        // The folder itself was open while it was read.
        let open_files = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64;
        let (cpu, started) = times(&stat);
        let up = uptime.split(' ').next().and_then(|text| text.parse::<f64>().ok());
        let age = Duration::from_secs_f64(up.unwrap_or_default().max(0.0)).saturating_sub(started);
        let now = SystemTime::now();
        let started = now.checked_sub(age).unwrap_or(now);
        Ok(Self { resident_bytes: resident(&status), open_files, cpu, started })
    }

    fn write(&self, text: &mut Exposition) {
        text.family(Kind::Counter, "process_cpu_seconds", "Processor time used.")
            .sample(&[], Value::from(self.cpu));
        text.family(Kind::Gauge, "process_resident_memory_bytes", "Memory occupied.")
            .sample(&[], self.resident_bytes);
        text.family(Kind::Gauge, "process_start_time_seconds", "Start, since 1970.")
            .sample(&[], Value::from(self.started));
        text.family(Kind::Gauge, "process_open_fds", "Open files.").sample(&[], self.open_files);
    }
}

/// `VmRSS`, in bytes.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

/// Processor time, and the start since the kernel's, of `/proc/PID/stat`.
fn times(stat: &str) -> (Duration, Duration) {
    // `USER_HZ`, the same on all architectures we run on.
    const TICKS_PER_SECOND: u64 = 100;
    // The name, in brackets, may hold anything. Behind it field 3 follows.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| {
        let ticks = fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
        Duration::from_millis(ticks.unwrap_or_default().saturating_mul(1000 / TICKS_PER_SECOND))
    };
    (field(14) + field(15), field(22))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::info;

    fn lines(metrics: &Metrics, start: &str) -> Vec<String> {
        let (kind, text) = metrics.expose(true, &Now::default()).expect("/proc is there");
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    #[test]
    fn requests_are_counted_under_the_references_names() {
        let metrics = Metrics::default();
        let list = info("GET", "/apis/apps/v1/namespaces/a/deployments", &[]);
        let list = Request::of(&list, false, false);
        metrics.answered(&list, 200, Duration::from_millis(30), Duration::from_millis(28), 4096);
        metrics.answered(&list, 200, Duration::from_millis(3), Duration::ZERO, 10);
        let common = "verb=\"LIST\",group=\"apps\",version=\"v1\",resource=\"deployments\",subresource=\"\",scope=\"namespace\",component=\"apiserver\"";
        assert_eq!(
            lines(&metrics, "apiserver_request_total"),
            [format!("apiserver_request_total{{{common},code=\"200\",dry_run=\"\"}} 2")]
        );
        let bucket = |le: &str, count: u32| {
            format!(
                "apiserver_request_duration_seconds_bucket{{{common},dry_run=\"\",le=\"{le}\"}} {count}"
            )
        };
        let buckets = lines(&metrics, "apiserver_request_duration_seconds_bucket");
        assert_eq!(buckets.len(), 24);
        assert_eq!(buckets[..3], [bucket("0.005", 1), bucket("0.025", 1), bucket("0.05", 2)]);
        assert_eq!(buckets[23], bucket("+Inf", 2));
        let sli = lines(&metrics, "apiserver_request_sli_duration_seconds_bucket");
        assert!(sli[0].ends_with("le=\"0.005\"} 2"), "{}", sli[0]);
        assert_eq!(
            lines(&metrics, "apiserver_response_sizes_sum"),
            [format!("apiserver_response_sizes_sum{{{common}}} 4106")]
        );
    }

    #[test]
    fn what_clients_make_up_has_no_name() {
        let of =
            |method: &str, path: &str, apply| Request::of(&info(method, path, &[]), apply, true);
        let made_up = of("GET", "/apis/evil/v1/namespaces/a/things/x", false);
        assert_eq!(made_up.labels(), ["GET", "", "", "", "", "", "apiserver"]);
        let odd = of("GET", "/api/v1/namespaces/a/pods/x/evil", false);
        assert_eq!(odd.labels(), ["GET", "", "v1", "pods", "", "resource", "apiserver"]);
        assert_eq!(of("BREW", "/coffee", false).labels()[0], "other");
        let patch = "/api/v1/namespaces/a/pods/x";
        assert_eq!(
            (of("PATCH", patch, true).verb, of("PATCH", patch, false).verb),
            ("APPLY", "PATCH")
        );
        let exec = of("POST", "/api/v1/namespaces/a/pods/x/exec", false);
        assert_eq!((exec.verb, exec.subresource, exec.dry_run), ("CONNECT", "exec", "All"));
        assert_eq!(of("GET", "/api/v1/nodes", false).scope, "cluster");
        assert_eq!(of("POST", "/api/v1/namespaces/a/pods", false).scope, "namespace");
        let metrics = Metrics::default();
        for name in ["ann", "bob@example.org", "admin"] {
            metrics.known(name);
        }
        metrics.answered(&made_up, 299, Duration::ZERO, Duration::ZERO, 0);
        assert_eq!(
            lines(&metrics, "authenticated_user_requests"),
            [
                "authenticated_user_requests{username=\"admin\"} 1",
                "authenticated_user_requests{username=\"email_id\"} 1",
                "authenticated_user_requests{username=\"other\"} 1",
            ]
        );
        assert!(lines(&metrics, "apiserver_request_total")[0].contains("code=\"other\""));
    }

    #[test]
    fn a_family_holds_only_so_many_sets_of_labels() {
        let family = Family::<1, AtomicU64>::counting("many", "Many.", ["name"]);
        for i in 0..MOST_SETS + 5 {
            family.add([Box::leak(format!("n{i}").into_boxed_str())]);
        }
        assert_eq!(family.sorted().len(), MOST_SETS + 1);
        assert_eq!(family.of(["other"]).load(Ordering::Relaxed), 5);
    }

    #[test]
    fn what_runs_long_is_counted_while_it_runs() {
        let metrics = Metrics::default();
        let watch = Request::of(&info("GET", "/api/v1/pods", &[("watch", "1")]), false, false);
        let running = [metrics.long_running(&watch), metrics.long_running(&watch)];
        assert!(lines(&metrics, "apiserver_longrunning_requests")[0].ends_with("} 2"));
        drop(running);
        assert!(lines(&metrics, "apiserver_longrunning_requests")[0].ends_with("} 0"));
        metrics.answered(&watch, 200, Duration::from_secs(600), Duration::ZERO, 0);
        assert_eq!(lines(&metrics, "apiserver_request_duration_seconds_count").len(), 0);
    }

    #[test]
    fn what_is_so_now_and_the_process_are_told() {
        let now = Now {
            in_flight: (3, 1),
            objects: [(("", "pods"), 7), (("apps", "deployments"), 2)].into(),
            storage_bytes: 4096,
            audit: (5, 1),
            tls_errors: 9,
            build: vec![("major", "1".to_owned()), ("git_version", "v1.36.0".to_owned())],
        };
        let (kind, text) = Metrics::default().expose(false, &now).expect("/proc is there");
        assert!(kind.starts_with("application/openmetrics-text") && text.ends_with("# EOF\n"));
        for line in [
            "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 3",
            "apiserver_storage_objects{resource=\"deployments.apps\"} 2",
            "apiserver_resource_objects{group=\"\",resource=\"pods\"} 7",
            "apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} 4096",
            "apiserver_audit_event_total 5",
            "apiserver_tls_handshake_errors_total 9",
            "apiserver_audit_error_total{plugin=\"log\"} 1",
            "kubernetes_build_info{major=\"1\",git_version=\"v1.36.0\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        let process = Process::read().expect("/proc is there");
        assert!(process.resident_bytes > 0 && process.open_files > 0);
        assert!(process.started <= SystemTime::now());
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 5 0 0 0 150 50 0 0 20 0 1 0 1234 0 0";
        assert_eq!(times(stat), (Duration::from_secs(2), Duration::from_millis(12_340)));
    }
}
