//! What the node says of itself in figures: [`Facts`] are gathered when somebody asks, and become
//! OpenMetrics text. Nothing is counted for the figures' sake that is not kept anyway.
//!
//! They are had from [`socket`] (HTTP) and from the API (`orlop.v1alpha1.NodeService/Metrics`).

pub(crate) mod socket;

use std::time::{Duration, SystemTime};
use std::{fs, io};

use nix::sys::resource::{UsageWho, getrusage};
use orlop_proto::orlop::v1alpha1 as orlop;
use orlop_proto::orlop::v1alpha1::clock_service_client::ClockServiceClient;
use orlop_proto::orlop::v1alpha1::door_service_client::DoorServiceClient;
use orlop_rt::version;
use orlop_supervise::forward::Counts as Destination;
use orlop_supervise::{Service, State};
use orlop_telemetry::openmetrics::{Exposition, Kind, Value};
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::events::Counts;
use crate::node::Node;
use crate::services::{APID_SOCKET, TIMED_SOCKET};
use crate::timeline::{Place, Span, Story};

/// Everything the figures are made from.
#[derive(Debug)]
struct Facts {
    /// Since the kernel started.
    now: Duration,
    platform: String,
    services: Vec<Service>,
    /// Ids, and bytes ever written.
    logs: Vec<(String, u64)>,
    lost_log_bytes: u64,
    destinations: Vec<Destination>,
    story: Story,
    events: Counts,
    /// What timed says, if it runs.
    clock: Option<orlop::Clock>,
    /// What apid says, if it runs.
    door: Option<orlop::Door>,
    process: Process,
}

/// What PID 1 itself occupies.
#[derive(Clone, Copy, Debug)]
struct Process {
    resident_bytes: u64,
    open_files: u64,
    cpu: Duration,
    started: SystemTime,
}

/// The figures of the node as they are now.
///
/// # Errors
/// When the supervisor has ended, or `/proc` cannot be read.
pub(crate) async fn text(node: &Node) -> io::Result<String> {
    let services = node.supervisor().list().await.map_err(io::Error::other)?;
    let (clock, door) = tokio::join!(clock(), door());
    let logs = node.supervisor().logs();
    let written = |id: String| logs.get(&id).map(|log| (id, log.written()));
    let facts = Facts {
        now: orlop_sys::monotonic(),
        platform: node.platform().to_owned(),
        services,
        logs: logs.ids().into_iter().filter_map(written).collect(),
        lost_log_bytes: logs.dropped_bytes(),
        destinations: logs.sent_to(),
        story: node.timeline().story().clone(),
        events: node.events().counts(),
        clock,
        door,
        process: Process::read()?,
    };
    Ok(facts.expose())
}

/// What timed says: nothing where it does not run, or is busier than figures are worth.
async fn clock() -> Option<orlop::Clock> {
    let mut timed = ClockServiceClient::new(orlop_rpc::unix::channel(TIMED_SOCKET));
    let answer = tokio::time::timeout(PATIENCE, timed.clock(())).await.ok()?.ok()?;
    answer.into_inner().messages.into_iter().next()
}

/// What apid says.
async fn door() -> Option<orlop::Door> {
    let mut apid = DoorServiceClient::new(orlop_rpc::unix::channel(APID_SOCKET));
    let mut request = Request::new(());
    // Whoever is root has the roles it states.
    request.metadata_mut().insert("talos-role", MetadataValue::from_static("os:reader"));
    let answer = tokio::time::timeout(PATIENCE, apid.door(request)).await.ok()?.ok()?;
    answer.into_inner().messages.into_iter().next()
}

impl Process {
    fn read() -> io::Result<Self> {
        let at = |path: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("read {path}: {error}"))
        };
        let status =
            fs::read("/proc/self/status").map_err(|error| at("/proc/self/status", error))?;
        let files = fs::read_dir("/proc/self/fd").map_err(|error| at("/proc/self/fd", error))?;
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let spent = |time: nix::sys::time::TimeVal| {
            let micros = time.tv_sec().unsigned_abs() * 1_000_000 + time.tv_usec().unsigned_abs();
            Duration::from_micros(micros)
        };
        Ok(Self {
            resident_bytes: resident(&String::from_utf8_lossy(&status)),
            // The folder itself was open while it was read.
            open_files: files.count().saturating_sub(1) as u64,
            cpu: spent(usage.user_time()) + spent(usage.system_time()),
            started: SystemTime::now() - orlop_sys::monotonic(),
        })
    }
}

/// `VmRSS` of `/proc/PID/status`, in bytes (proc_pid_status(5)).
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

impl Facts {
    fn expose(&self) -> String {
        let mut text = Exposition::default();
        self.node(&mut text);
        self.boot(&mut text);
        self.sequences(&mut text);
        self.services(&mut text);
        self.logs(&mut text);
        self.events(&mut text);
        if let Some(clock) = &self.clock {
            time(clock, &mut text);
        }
        if let Some(door) = &self.door {
            whom_apid_turned_away(door, &mut text);
        }
        self.process(&mut text);
        text.finish()
    }

    fn node(&self, text: &mut Exposition) {
        let platform = self.platform.as_str();
        let labels =
            [("version", version::TAG), ("revision", version::SHA), ("platform", platform)];
        text.family(Kind::Info, "orlop_build", "What runs on this node.").sample(&labels, 1);
        if let Some(config) = self.story.config() {
            let labels = [("sha256", config.sha256.as_str())];
            text.family(Kind::Info, "orlop_config", "The machine configuration's document.")
                .sample(&labels, 1);
            let help = "When the machine configuration was loaded, since 1970.";
            text.family(Kind::Gauge, "orlop_config_loaded_timestamp_seconds", help)
                .sample(&[], config.loaded);
        }
    }

    fn boot(&self, text: &mut Exposition) {
        if let Some(ready) = self.story.ready_at() {
            let help = "From the kernel's start until all services were healthy.";
            text.family(Kind::Gauge, "orlop_boot_ready_seconds", help).sample(&[], ready);
        }
        let spans = self.story.spans(self.now, |id| is_up(&self.services, id));
        // A service that needed several ways up has one figure, of the last.
        let last = |i: usize| {
            let same = |j: usize| {
                let of = |k: usize| (spans[k].kind, &spans[k].parent, &spans[k].name);
                of(i) == of(j)
            };
            !(i + 1..spans.len()).any(same)
        };
        let spans: Vec<_> = (0..spans.len()).filter(|i| last(*i)).map(|i| &spans[i]).collect();
        let mut figure = |name, help, value: fn(&Span) -> Duration| {
            let mut family = text.family(Kind::Gauge, name, help);
            for span in &spans {
                let (parent, name) = (span.parent.as_str(), span.name.as_str());
                let labels = [("kind", span.kind.name()), ("parent", parent), ("name", name)];
                family.sample(&labels, value(span));
            }
        };
        let help = "When a part of the boot began, since the kernel's start.";
        figure("orlop_boot_span_start_seconds", help, |span| span.start);
        let help = "What a part of the boot took, so far if it goes on.";
        figure("orlop_boot_span_duration_seconds", help, |span| span.duration);
    }

    /// A family for each level, so that sums make sense.
    fn sequences(&self, text: &mut Exposition) {
        let runs = self.story.steps().iter().filter(|step| step.place.phase.is_none());
        let mut family =
            text.family(Kind::Counter, "orlop_sequence_runs", "How often a sequence began.");
        for step in runs.clone() {
            family.sample(&[("sequence", step.place.sequence)], step.runs);
        }
        let mut family =
            text.family(Kind::Counter, "orlop_sequence_failures", "How often a sequence failed.");
        for step in runs {
            family.sample(&[("sequence", step.place.sequence)], step.failures);
        }
        let levels = [
            ("orlop_sequence_last_duration_seconds", "What the last run of a sequence took."),
            ("orlop_phase_last_duration_seconds", "What the last run of a phase took."),
            ("orlop_task_last_duration_seconds", "What the last run of a task took."),
        ];
        for (level, (name, help)) in levels.into_iter().enumerate() {
            let mut family = text.family(Kind::Gauge, name, help);
            for step in self.story.steps() {
                let Place { sequence, phase, task } = step.place;
                let labels = [
                    Some(("sequence", sequence)),
                    phase.map(|phase| ("phase", phase)),
                    task.map(|task| ("task", task)),
                ];
                let labels: Vec<_> = labels.into_iter().flatten().collect();
                if let (true, Some(took)) = (labels.len() == level + 1, step.took()) {
                    family.sample(&labels, took);
                }
            }
        }
    }

    fn services(&self, text: &mut Exposition) {
        let help = "1 for the state a service is in, 0 for the others.";
        let mut family = text.family(Kind::Gauge, "orlop_service_state", help);
        for Service { status, .. } in &self.services {
            for state in STATES {
                let labels = [("service", &*status.id), ("state", &*state.to_string())];
                family.sample(&labels, status.state == state);
            }
        }
        let help = "Whether those who depend on a service may start.";
        let mut family = text.family(Kind::Gauge, "orlop_service_up", help);
        for Service { status, .. } in &self.services {
            family.sample(&[("service", &*status.id)], status.up);
        }
        let help = "The answer to the last health check; none while nothing is known.";
        let mut family = text.family(Kind::Gauge, "orlop_service_healthy", help);
        for Service { status, .. } in &self.services {
            if let Some(healthy) = status.health.healthy {
                family.sample(&[("service", &*status.id)], healthy);
            }
        }
        let help = "How often a service was started again, by itself or on request.";
        let mut family = text.family(Kind::Counter, "orlop_service_restarts", help);
        for Service { status, .. } in &self.services {
            family.sample(&[("service", &*status.id)], status.restarts);
        }
        let help = "When something last happened to a service, since 1970.";
        let name = "orlop_service_last_change_timestamp_seconds";
        let mut family = text.family(Kind::Gauge, name, help);
        for Service { status, .. } in &self.services {
            if let Some(entry) = status.history.last() {
                family.sample(&[("service", &*status.id)], entry.at);
            }
        }
    }

    fn logs(&self, text: &mut Exposition) {
        let help = "Bytes that services wrote into their logs.";
        let mut family = text.family(Kind::Counter, "orlop_service_log_bytes", help);
        for (id, bytes) in &self.logs {
            family.sample(&[("service", id)], *bytes);
        }
        let help = "Bytes of logs that could not be kept on disk.";
        text.family(Kind::Counter, "orlop_log_lost_bytes", help).sample(&[], self.lost_log_bytes);
        let help = "Whether a destination of the logs was reached when last tried.";
        let mut family = text.family(Kind::Gauge, "orlop_log_destination_up", help);
        for one in &self.destinations {
            family.sample(&[("endpoint", &*one.name)], one.up);
        }
        let help = "Bytes of messages that were sent to a destination of the logs.";
        let mut family = text.family(Kind::Counter, "orlop_log_destination_sent_bytes", help);
        for one in &self.destinations {
            family.sample(&[("endpoint", &*one.name)], one.sent_bytes);
        }
        let help = "Bytes that a destination of the logs did not get: it was too slow, or away.";
        let mut family = text.family(Kind::Counter, "orlop_log_destination_dropped_bytes", help);
        for one in &self.destinations {
            family.sample(&[("endpoint", &*one.name)], one.dropped_bytes);
        }
    }

    fn events(&self, text: &mut Exposition) {
        let Counts { published, readers, lagged } = self.events;
        text.family(Kind::Counter, "orlop_events_published", "Events of the machine API.")
            .sample(&[], published);
        text.family(Kind::Gauge, "orlop_events_subscribers", "Who follows the events.")
            .sample(&[], readers as u64);
        let help = "Streams of events that were ended because their reader fell too far behind.";
        text.family(Kind::Counter, "orlop_events_lagged", help).sample(&[], lagged);
    }

    /// Under the names every client library has for them.
    fn process(&self, text: &mut Exposition) {
        let Process { resident_bytes, open_files, cpu, started } = self.process;
        text.family(Kind::Gauge, "process_resident_memory_bytes", "Resident memory of PID 1.")
            .sample(&[], resident_bytes);
        text.family(Kind::Gauge, "process_open_fds", "Open files of PID 1.")
            .sample(&[], open_files);
        text.family(Kind::Counter, "process_cpu_seconds", "Processor time of PID 1.")
            .sample(&[], cpu);
        let help = "When PID 1 started, since 1970.";
        text.family(Kind::Gauge, "process_start_time_seconds", help).sample(&[], started);
    }
}

fn whom_apid_turned_away(door: &orlop::Door, text: &mut Exposition) {
    let help = "TLS handshakes with apid that failed.";
    text.family(Kind::Counter, "orlop_apid_failed_handshakes", help)
        .sample(&[], door.failed_handshakes);
    let help = "Connections to apid closed without a handshake, of sources that failed too often.";
    text.family(Kind::Counter, "orlop_apid_turned_away_connections", help)
        .sample(&[], door.turned_away);
}

fn time(clock: &orlop::Clock, text: &mut Exposition) {
    let mut gauge = |name, help, value: Value| {
        text.family(Kind::Gauge, name, help).sample(&[], value);
    };
    let help = "Whether the clock was set right.";
    gauge("orlop_clock_synchronized", help, clock.synchronized.into());
    let help = "What must be added to the clock.";
    gauge("orlop_clock_offset_seconds", help, Value::Real(clock.offset_seconds));
    let help = "How well that is known: a standard deviation.";
    gauge("orlop_clock_uncertainty_seconds", help, Value::Real(clock.sigma_seconds));
    let help = "How much faster the clock is made to run.";
    gauge("orlop_clock_frequency_ppm", help, Value::Real(clock.frequency_ppm));
    let help = "Distance from a reference clock; 16 while the clock is not synchronised.";
    gauge("orlop_clock_stratum", help, u64::from(clock.stratum).into());
    let leap = match clock.leap() {
        orlop::clock::Leap::None => 0.0,
        orlop::clock::Leap::Insert => 1.0,
        orlop::clock::Leap::Delete => -1.0,
    };
    let help = "What the servers announce for the end of the day.";
    gauge("orlop_clock_leap_seconds", help, Value::Real(leap));
    text.family(Kind::Counter, "orlop_clock_steps", "How often the clock was set at once.")
        .sample(&[], clock.steps);
    // Two names may have led to the same address.
    let mut seen = std::collections::BTreeSet::new();
    let sources: Vec<_> = clock
        .sources
        .iter()
        .filter(|source| seen.insert((&source.server, &source.address)))
        .collect();
    let labels = |source: &'_ orlop::TimeSource| {
        [("server", source.server.clone()), ("address", source.address.clone())]
    };
    let help = "1 for the state a time source is in, 0 for the others.";
    let mut family = text.family(Kind::Gauge, "orlop_time_source_state", help);
    for source in &sources {
        let [server, address] = labels(source);
        for (name, state) in SOURCE_STATES {
            let labels = [(server.0, &*server.1), (address.0, &*address.1), ("state", name)];
            family.sample(&labels, source.state() == state);
        }
    }
    let mut each = |name, help, value: &dyn Fn(&orlop::TimeSource) -> Option<Value>| {
        let mut family = text.family(Kind::Gauge, name, help);
        for source in &sources {
            let [server, address] = labels(source);
            if let Some(value) = value(source) {
                family.sample(&[(server.0, &*server.1), (address.0, &*address.1)], value);
            }
        }
    };
    let real = |value: f64| Some(Value::Real(value));
    let help = "How many of the last eight questions were answered.";
    each("orlop_time_source_reach", help, &|source| {
        Some(u64::from(source.reach.count_ones()).into())
    });
    let help = "Distance from a reference clock; 0 before the first answer.";
    each("orlop_time_source_stratum", help, &|source| Some(u64::from(source.stratum).into()));
    let help = "Until it is asked again.";
    each("orlop_time_source_poll_seconds", help, &|source| real(source.poll_seconds));
    let help = "What must be added to the clock by its last answer.";
    let offset = |source: &orlop::TimeSource| source.offset_seconds.map(Value::Real);
    each("orlop_time_source_offset_seconds", help, &offset);
    let help = "How much its offsets vary.";
    each("orlop_time_source_jitter_seconds", help, &|source| real(source.jitter_seconds));
    let help = "There and back.";
    each("orlop_time_source_delay_seconds", help, &|source| real(source.delay_seconds));
    let help = "How much faster the clock must run by it alone.";
    let frequency = |source: &orlop::TimeSource| source.frequency_ppm.map(Value::Real);
    each("orlop_time_source_frequency_ppm", help, &frequency);
}

const SOURCE_STATES: [(&str, orlop::time_source::State); 5] = [
    ("unreachable", orlop::time_source::State::Unreachable),
    ("unfit", orlop::time_source::State::Unfit),
    ("falseticker", orlop::time_source::State::Falseticker),
    ("spare", orlop::time_source::State::Spare),
    ("followed", orlop::time_source::State::Followed),
];
/// How long timed is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether those who depend on the service `id` may start.
pub(crate) fn is_up(services: &[Service], id: &str) -> bool {
    services.iter().any(|service| *service.status.id == *id && service.status.up)
}

const STATES: [State; 8] = [
    State::Initialized,
    State::Preparing,
    State::Waiting,
    State::Running,
    State::Stopping,
    State::Finished,
    State::Failed,
    State::Skipped,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use orlop_supervise::machine::Status;
    use orlop_supervise::{Cause, Change, Entry, Permissions, Verdict};

    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn facts() -> Facts {
        let millis = Duration::from_millis;
        let entry = Entry { state: State::Running, message: "said".to_owned(), at: at(1000) };
        let id: std::sync::Arc<str> = "apid".into();
        let mut story = Story::new(Some(millis(500)), millis(600));
        story.configured(b"version: v1alpha1\n", at(990));
        let place = Place { sequence: "boot", phase: None, task: None };
        let phase = Place { phase: Some("services"), ..place };
        for (place, failed) in [(place, true), (place, false), (phase, false)] {
            let step = story.began(millis(700), place);
            story.ended(millis(950), step, failed);
        }
        // Twice up: one figure.
        for state in [State::Preparing, State::Failed, State::Preparing] {
            let entry = Entry { state, ..entry.clone() };
            story.changed(millis(800), &Change { id: id.clone(), entry, cause: Cause::State });
        }
        story.ready(millis(1000));
        let health = Verdict { healthy: Some(true), message: String::new(), changed: at(1000) };
        let (state, pid, history) = (State::Running, Some(7), vec![entry]);
        let status = Status { id, state, up: true, health, pid, restarts: 2, history };
        Facts {
            now: millis(2000),
            platform: "metal".to_owned(),
            services: vec![Service { status, permissions: Permissions::default() }],
            logs: vec![("apid".to_owned(), 4321)],
            lost_log_bytes: 0,
            destinations: vec![Destination {
                name: "udp://10.0.0.9:514".to_owned(),
                up: true,
                sent_bytes: 1234,
                dropped_bytes: 5,
            }],
            story,
            events: Counts { published: 12, readers: 1, lagged: 0 },
            clock: Some(orlop::Clock {
                synchronized: true,
                offset_seconds: -0.000_25,
                sigma_seconds: 0.000_1,
                frequency_ppm: -12.5,
                stratum: 2,
                leap: orlop::clock::Leap::Insert.into(),
                steps: 1,
                sources: vec![
                    orlop::TimeSource {
                        server: "nts://ntp.example.org".to_owned(),
                        address: "192.0.2.1".to_owned(),
                        state: orlop::time_source::State::Followed.into(),
                        reach: 0b0111_1111,
                        stratum: 1,
                        poll_seconds: 64.0,
                        offset_seconds: Some(-0.000_5),
                        frequency_ppm: Some(-12.25),
                        jitter_seconds: 0.000_125,
                        delay_seconds: 0.02,
                    },
                    orlop::TimeSource {
                        server: "192.0.2.9".to_owned(),
                        address: "192.0.2.9".to_owned(),
                        poll_seconds: 64.0,
                        ..orlop::TimeSource::default()
                    },
                ],
                ..orlop::Clock::default()
            }),
            door: Some(orlop::Door { metadata: None, failed_handshakes: 40, turned_away: 8 }),
            process: Process {
                resident_bytes: 9 << 20,
                open_files: 31,
                cpu: millis(1500),
                started: at(900),
            },
        }
    }

    #[test]
    fn the_figures_of_a_node_read_as_the_golden_text() {
        let text = facts().expose();
        let build = format!("version=\"{}\",revision=\"{}\"", version::TAG, version::SHA);
        assert_eq!(text.replace(&build, "BUILD"), include_str!("testdata/metrics.txt"));
    }

    #[test]
    fn no_two_samples_have_the_same_name_and_labels() {
        let text = facts().expose();
        let mut seen = HashSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (sample, _) = line.rsplit_once(' ').unwrap_or_default();
            assert!(seen.insert(sample.to_owned()), "{sample} comes twice");
        }
        assert!(seen.len() > 30, "{}", seen.len());
    }

    #[test]
    fn what_this_process_occupies_can_be_read() -> io::Result<()> {
        let process = Process::read()?;
        assert!(process.resident_bytes > 100_000, "{process:?}");
        assert!(process.open_files >= 3, "{process:?}");
        assert_eq!(resident("Name:\tx\nVmRSS:\t    1234 kB\n"), 1234 * 1024);
        assert_eq!(resident("VmRSS: x\n"), 0);
        Ok(())
    }
}
