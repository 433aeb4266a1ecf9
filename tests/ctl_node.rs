//! `orlopctl` against a node: the real binary calls a fake machine API over real mutual TLS.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use orlop_config::client::{Configuration, Context};
use orlop_pki::{Authority, KeyKind, Leaf, Usage};
use orlop_proto::cluster::cluster_service_server::{ClusterService, ClusterServiceServer};
use orlop_proto::cluster::{ClusterInfo, HealthCheckProgress, HealthCheckRequest};
use orlop_proto::common::{Data, Metadata};
use orlop_proto::google::rpc;
use orlop_proto::machine::image_service_server::{ImageService, ImageServiceServer};
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_proto::machine::{
    Bootstrap, BootstrapRequest, BootstrapResponse, ConnectRecord, CopyRequest, DiskUsageInfo,
    DiskUsageRequest, DmesgRequest, EtcdRecover, EtcdRecoverResponse, EtcdSnapshotRequest, Event,
    EventsRequest, FileInfo, GenerateClientConfiguration, GenerateClientConfigurationRequest,
    GenerateClientConfigurationResponse, ImageListRequest, ImageListResponse,
    ImageServiceRemoveRequest, ListRequest, LoadAvg, LoadAvgResponse, LogsContainer,
    LogsContainersResponse, LogsRequest, MemInfo, Memory, MemoryResponse, Netstat, NetstatRequest,
    NetstatResponse, PacketCaptureRequest, Process, ProcessInfo, ProcessesResponse, ReadRequest,
    Reboot, RebootResponse, Restart, RestartRequest, RestartResponse, RollbackRequest,
    RollbackResponse, SequenceEvent, ServiceEvents, ServiceHealth, ServiceInfo, ServiceList,
    ServiceListResponse, ServiceRestart, ServiceRestartRequest, ServiceRestartResponse, SystemStat,
    SystemStatResponse, Upgrade, UpgradeRequest, UpgradeResponse, Version, VersionInfo,
    VersionResponse,
};
use orlop_proto::orlop::v1alpha1::node_service_server::{NodeService, NodeServiceServer};
use orlop_proto::orlop::v1alpha1::{
    Metrics, MetricsResponse, Span, Timeline, TimelineResponse, span,
};
use orlop_proto::storage::storage_service_server::{StorageService, StorageServiceServer};
use orlop_proto::storage::{BlockDeviceWipe, BlockDeviceWipeRequest, BlockDeviceWipeResponse};
use prost::Message as _;
use support::{Home, Ran};
use tokio_stream::{Stream, StreamExt as _};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

/// A machine configuration with two secrets.
const CONFIG: &str = "machine:\n  type: worker\n  token: 0123ab.0123456789abcdef\n\
    cluster:\n  controlPlane:\n    endpoint: https://10.0.0.2:6443\n  token: 0123ab.0123456789abcdef\n";
/// The target that never answers.
const DEAD: &str = "10.0.0.66";

#[test]
fn without_targets_the_endpoint_answers_and_is_printed_as_typed() {
    let node = Node::start();
    let ran = node.run(&["memory"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let mut lines = ran.stdout.lines();
    let headings: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(headings.join(" "), "NODE TOTAL USED FREE SHARED BUFFERS CACHE AVAILABLE");
    let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row, [&node.endpoint, "1986", "374", "1611", "0", "0", "0", "0"]);
}

#[test]
fn several_targets_make_one_table_in_their_order() {
    let node = Node::start();
    let ran = node.run(&["-n", "10.0.0.3,10.0.0.2", "-n", "10.0.0.4", "free"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let nodes: Vec<_> =
        ran.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(nodes, ["NODE", "10.0.0.3", "10.0.0.2", "10.0.0.4"]);
}

#[test]
fn a_node_that_fails_is_a_warning_beside_the_others() {
    let node = Node::start();
    let ran = node.run(&["-n", DEAD, "-n", "10.0.0.2", "m", "-o", "json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stderr, "warning: read memory: 10.0.0.66: no route to host (Unavailable)\n");
    assert!(ran.stdout.contains("\"node\": \"10.0.0.2\"") && !ran.stdout.contains(DEAD), "{ran:?}");
}

#[test]
fn when_every_node_fails_so_does_the_command() {
    let node = Node::start();
    let ran = node.run(&["-n", DEAD, "memory"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert_eq!(ran.stderr, "error: read memory: 10.0.0.66: no route to host (Unavailable)\n");
}

#[test]
fn an_endpoint_that_is_down_hands_over_to_the_next() {
    let node = Node::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = node.run(&["-e", &format!("{closed},{}", node.endpoint), "memory"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains(&node.endpoint), "{ran:?}");
    let note = format!("; {} answers instead\n", node.endpoint);
    assert!(ran.stderr.starts_with("note: ") && ran.stderr.ends_with(&note), "{ran:?}");
    assert!(ran.stderr.contains(&closed.to_string()), "{ran:?}");
}

#[test]
fn a_kubeconfig_is_put_beside_those_that_are_there() {
    let node = Node::start();
    let text = |path: &str| std::fs::read_to_string(node.home.path(path)).unwrap();
    let ran = node.run(&["kubeconfig"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    let first = text(".kube/config");
    assert!(first.contains("current-context: admin@trial\n"), "{first}");
    let ran = node.run(&["kubeconfig", "--force-context-name", "mine"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let both = text(".kube/config");
    assert!(
        both.contains("current-context: mine\n") && both.contains("name: admin@trial"),
        "{both}"
    );
    let ran = node.run(&["kubeconfig", "-m=false"]);
    assert_eq!((ran.code, text("kubeconfig")), (Some(0), first.clone()), "{ran:?}");
    let ran = node.run(&["kubeconfig", "--merge=false"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.starts_with("error: kubeconfig is there already\nhint: --force"), "{ran:?}");
    let ran = node.run(&["kubeconfig", "-"]);
    assert_eq!((ran.code, ran.stdout), (Some(0), first));
    std::fs::write(node.home.path("broken"), "clusters: [").unwrap();
    let ran = node.run(&["kubeconfig", "broken"]);
    assert!(ran.stderr.starts_with("error: the kubeconfig of broken cannot be read: "), "{ran:?}");
    assert_eq!((ran.code, text("broken").as_str()), (Some(1), "clusters: ["));
}

#[test]
fn a_control_plane_makes_a_client_configuration_for_somebody_else() {
    let node = Node::start();
    let ran = node.run(&["config", "new", "theirs", "--roles", "os:reader", "--crt-ttl", "24h"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "created theirs\n"), "{ran:?}");
    let made = Configuration::read(&node.home.path("theirs")).unwrap();
    assert_eq!(made.contexts["trial"].endpoints, [&*node.endpoint]);
    let ran = node.run(&["config", "new", "theirs"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

/// `orlopctl dashboard` in a terminal of its own, that of script(1).
struct Screen {
    script: std::process::Child,
    keys: std::process::ChildStdin,
    pieces: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Screen {
    fn open(node: &Node, interval: &str) -> Option<Self> {
        use std::io::Read as _;
        use std::process::{Command, Stdio};

        let orlop = node.home.command(&[]);
        let orlop = orlop.get_program().to_str().unwrap();
        let fifo = node.home.path("resize");
        if !fifo.exists() {
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        // The terminal changes its size when somebody writes to the fifo.
        let run = format!(
            "stty rows 24 cols 80\n(read _ < resize; stty rows 10 cols 40 < /dev/tty) &\n\
             echo $$ > pid\nexec {orlop} orlopctl --talosconfig talosconfig dashboard -d {interval}\n"
        );
        std::fs::write(node.home.path("run"), run).unwrap();
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-f", "-c", "sh run", "/dev/null"]);
        script.current_dir(node.home.path("")).env("TERM", "xterm").env("SHELL", "/bin/sh");
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = match script.spawn() {
            Ok(script) => script,
            Err(error) => {
                println!("skipped: script(1) does not run: {error}");
                return None;
            }
        };
        let (sender, pieces) = std::sync::mpsc::channel();
        let mut out = script.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut piece = vec![0; 4096];
            while let Ok(count @ 1..) = out.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let keys = script.stdin.take().unwrap();
        Some(Self { script, keys, pieces, seen: String::new() })
    }

    /// Waits until what was seen is as it should be.
    fn wait(&mut self, what: &str, is: impl Fn(&str) -> bool) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(90);
        while !is(&self.seen) {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let piece = self.pieces.recv_timeout(left);
            let piece = piece.unwrap_or_else(|error| panic!("{what}: {error}: {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&piece);
        }
    }

    fn end(mut self) {
        // The other page is left, and the cursor is there again.
        self.wait("the terminal is given back", |seen| {
            seen.contains("\u{1b}[?1049l") && seen.ends_with("\u{1b}[?25h")
        });
        assert_eq!(self.script.wait().unwrap().code(), Some(0), "{:?}", self.seen);
    }
}

/// Whether all places that are written to after the screen was cleared are inside this size.
fn fits(seen: &str, rows: usize, columns: usize) -> bool {
    let Some((_, frame)) = seen.rsplit_once("\u{1b}[2J") else { return false };
    let places = frame.split("\u{1b}[").filter_map(|rest| {
        let (row, column) = rest.split_once('H')?.0.split_once(';')?;
        Some((row.parse::<usize>().ok()?, column.parse::<usize>().ok()?))
    });
    let places: Vec<_> = places.collect();
    frame.contains("SERVICE")
        && places.iter().all(|(row, column)| *row <= rows && *column <= columns)
}

#[test]
fn the_dashboard_draws_follows_the_size_and_gives_the_terminal_back() {
    use std::io::Write as _;

    let node = Node::start();
    let Some(mut screen) = Screen::open(&node, "100ms") else { return };
    screen
        .wait("a frame", |seen| ["apid", "v0.8.9", "hello"].iter().all(|word| seen.contains(word)));
    std::fs::write(node.home.path("resize"), "\n").unwrap();
    screen.wait("a smaller frame", |seen| fits(seen, 10, 40));
    screen.keys.write_all(b"q").unwrap();
    screen.end();
    // A signal ends it as well as a key.
    let Some(mut screen) = Screen::open(&node, "100ms") else { return };
    screen.wait("a frame", |seen| seen.contains("apid"));
    let pid = std::fs::read_to_string(node.home.path("pid")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    screen.end();
    let ran = node.run(&["dashboard"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.stderr.starts_with("error: a dashboard is for a terminal\nhint: "), "{ran:?}");
}

/// A long way to a node: what goes in at one end comes out at the other after [`Link::DELAY`].
struct Link {
    endpoint: String,
    /// How many deliveries had to follow one upon another so far: a round trip is two.
    depth: Arc<AtomicU64>,
}

impl Link {
    const DELAY: Duration = Duration::from_millis(200);

    fn to(node: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (node, depth) = (node.to_owned(), Arc::new(AtomicU64::new(0)));
        let told = Arc::clone(&depth);
        // Ends with the process; its connections end with their peers.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), std::net::TcpStream::connect(&node).unwrap());
                // How deep what each end has received was.
                let [at_near, at_far] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
                for (from, to, own, others) in
                    [(&near, &far, &at_near, &at_far), (&far, &near, &at_far, &at_near)]
                {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let told = Arc::clone(&told);
                    Self::carry(from, to, Arc::clone(own), Arc::clone(others), told);
                }
            }
        });
        Self { endpoint, depth }
    }

    fn carry(
        mut from: std::net::TcpStream,
        mut to: std::net::TcpStream,
        own: Arc<AtomicU64>,
        others: Arc<AtomicU64>,
        told: Arc<AtomicU64>,
    ) {
        use std::io::{Read as _, Write as _};

        let (sender, line) = std::sync::mpsc::channel::<(Instant, u64, Vec<u8>)>();
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                let depth = own.load(Ordering::SeqCst) + 1;
                let due = Instant::now() + Self::DELAY;
                if sender.send((due, depth, piece[..count].to_vec())).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            for (due, depth, piece) in line {
                // This is the length of the way.
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                others.fetch_max(depth, Ordering::SeqCst);
                told.fetch_max(depth, Ordering::SeqCst);
                if to.write_all(&piece).is_err() {
                    return;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    }
}

#[test]
fn the_dashboard_needs_few_round_trips_and_asks_nothing_twice_at_once() {
    use std::io::Write as _;

    let node = Node::start();
    let link = Link::to(&node.endpoint);
    node.write_contact(&link.endpoint, &node.ca, issue(&node.ca, Usage::Client));
    // Asked once, so that nothing but the first screen takes a way.
    let Some(mut screen) = Screen::open(&node, "1h") else { return };
    screen
        .wait("a frame", |seen| ["apid", "v0.8.9", "hello"].iter().all(|word| seen.contains(word)));
    // TLS, then all questions at once; and what HTTP/2 has to settle.
    let depth = link.depth.load(Ordering::SeqCst);
    assert!((4..=8).contains(&depth), "{depth} deliveries one upon another");
    screen.keys.write_all(b"q").unwrap();
    screen.end();
    assert_eq!(node.loads.load(Ordering::Relaxed), 1);

    // Asked again sooner than an answer can be there: each answer is waited for.
    let begun = Instant::now();
    let Some(mut screen) = Screen::open(&node, "100ms") else { return };
    while node.loads.load(Ordering::Relaxed) < 5 {
        let before = screen.seen.len();
        screen.wait("a further frame", |seen| seen.len() > before);
    }
    let most = begun.elapsed().as_secs_f64() / (2.0 * Link::DELAY.as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let asked = (node.loads.load(Ordering::Relaxed) - 1) as f64;
    assert!(asked <= most + 1.0, "{asked} questions, while {most} could be answered");
    screen.keys.write_all(b"q").unwrap();
    screen.end();
}

#[test]
fn the_version_of_client_and_node_is_printed() {
    let node = Node::start();
    let ran = node.run(&["version"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.starts_with("Client:\n\tTag:         v"), "{ran:?}");
    let server = format!("Server:\n\tNODE:        {}\n\tTag:         v0.8.9\n", node.endpoint);
    assert!(ran.stdout.contains(&server), "{ran:?}");
}

#[test]
fn services_are_listed_told_and_restarted() {
    let node = Node::start();
    let ran = node.run(&["services"]);
    assert!(ran.stdout.starts_with("NODE "), "{ran:?}");
    assert!(ran.stdout.contains("apid") && ran.stdout.contains("<none>"), "{ran:?}");
    let ran = node.run(&["service", "apid"]);
    let story =
        format!("NODE     {}\nID       apid\nSTATE    Running\nHEALTH   OK\n", node.endpoint);
    assert_eq!((ran.code, ran.stdout), (Some(0), story));
    let ran = node.run(&["service", "apid", "restart"]);
    assert!(ran.stdout.ends_with("Service \"apid\" restarted\n"), "{ran:?}");
    let ran = node.run(&["service", "nothing"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("service \"nothing\" is not registered on any nodes"), "{ran:?}");
    let ran = node.run(&["service", "nothing", "restart"]);
    let error = format!(
        "error: restart service \"nothing\": {}: service \"nothing\" not defined (Unknown)\n\
         hint: orlopctl services lists them\n",
        node.endpoint
    );
    assert_eq!((ran.code, ran.stderr), (Some(1), error));
}

#[test]
fn the_boot_is_a_chart_and_figures_are_text() {
    let node = Node::start();
    let ran = node.run(&["-n", &format!("a,{DEAD}"), "timeline"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().collect();
    let words = |line: &str| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    assert_eq!(words(lines[0]), "NODE WHEN TOOK WHAT");
    assert_eq!(words(lines[1]), "a 0.000s 0.500s kernel");
    assert_eq!(lines.last(), Some(&"a was ready after 1.500s"));
    assert!(ran.stderr.starts_with("warning: read the timeline: 10.0.0.66: "), "{ran:?}");
    let ran = node.run(&["metrics", "orlop_build"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "orlop_build_info 1\n"), "{ran:?}");
}

#[test]
fn logs_are_lines_with_their_node() {
    let node = Node::start();
    let ran = node.run(&["-n", "a,b", "logs", "apid", "--tail", "3"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let mut lines: Vec<_> = ran.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a: last 3 of apid", "a: unfinished", "b: last 3 of apid", "b: unfinished"]);
}

#[test]
fn a_stream_goes_on_without_the_node_that_failed() {
    let node = Node::start();
    let ran = node.run(&["-n", &format!("{DEAD},b"), "logs", "apid"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("b: unfinished\n"), "{ran:?}");
    let warning = "warning: read the log of \"apid\": 10.0.0.66: no route to host (Unavailable)\n";
    assert_eq!(ran.stderr, warning);
    let ran = node.run(&["-n", DEAD, "logs", "apid"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
}

#[test]
fn following_prints_at_once_and_ends_well_at_an_interrupt() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    let node = Node::start();
    for (command, second) in [
        (&["dmesg", "-f"][..], "kern: "),
        (&["events", "--tail", "1"], "boot"),
        (&["processes", "--watch"], "machined"),
    ] {
        let mut command = node.home.command(&[&["--talosconfig", "talosconfig"], command].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The stream stays open: a line is seen only if it was printed as it came.
        let seen = lines.find(|line| line.as_ref().unwrap().contains(second));
        assert!(seen.is_some(), "{command:?}");
        let pid = pid_of(child.id());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{command:?}");
    }
}

fn pid_of(id: u32) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(id).unwrap())
}

#[test]
fn files_are_listed_by_name_or_in_a_table_and_what_fails_is_a_warning() {
    let node = Node::start();
    let ran = node.run(&["ls", "/etc", "-r", "-d", "2"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ".\nhosts\n"), "{ran:?}");
    assert!(ran.stderr.contains("open /etc/secret: permission denied"), "{ran:?}");
    let ran = node.run(&["-n", "a,b", "list", "/etc", "-r", "-d", "2"]);
    assert_eq!(ran.stdout, "NODE   NAME\na      .\nb      .\na      hosts\nb      hosts\n");
    let ran = node.run(&["list", "/etc", "-l", "-H", "-r", "-d", "2"]);
    let headings: Vec<_> = ran.stdout.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(headings, ["NODE", "MODE", "SIZE(B)", "LASTMOD", "NAME"], "{ran:?}");
    assert!(ran.stdout.contains("drwxr-xr-x   4.1 kB    Jan  1 1970   ."), "{ran:?}");
}

#[test]
fn usage_is_summed_by_node_and_fails_when_no_path_can_be_walked() {
    let node = Node::start();
    let ran = node.run(&["du", "/var", "-t", "-100"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "SIZE   NAME\n99     .\n"), "{ran:?}");
    let ran = node.run(&["-n", "a", "usage", "/var", "/no", "-t", "-100"]);
    assert_eq!(ran.stdout, "NODE   SIZE   NAME\na      99     /var\n");
    assert_eq!(ran.stderr, "warning: sum up /var, /no: a: lstat /no: gone\n");
    let ran = node.run(&["usage", "/no", "-t", "-100"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
}

#[test]
fn a_snapshot_of_etcd_is_saved_whole_or_not_at_all_and_begins_another_cluster() {
    let node = Node::start();
    let saved = node.home.path("saved");
    let ran = node.run(&["-n", "a", "etcd", "snapshot", "saved"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(ran.stderr, "200 kB of etcd are in saved\n");
    assert_eq!(std::fs::read(&saved).unwrap(), snapshot());
    let ran = node.run(&["-n", DEAD, "etcd", "snapshot", "saved"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(std::fs::read(&saved).unwrap(), snapshot());
    assert!(!node.home.path(".saved.new").exists());

    let ran = node.run(&["-n", "a", "bootstrap", "--recover-from", "saved"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), "a bootstraps its cluster\n"), "{ran:?}");
    let ran = node.run(&["-n", "a", "bootstrap", "--recover-from", "none"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.starts_with("error: read none: "), "{ran:?}");
    let ran = node.run(&["-n", "a,b", "bootstrap"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
}

/// What the fake's etcd holds.
fn snapshot() -> Vec<u8> {
    (0..200_000_u32).map(|at| at.to_le_bytes()[0]).collect()
}

#[test]
fn a_file_is_read_and_a_folder_copied_of_one_node() {
    let node = Node::start();
    let ran = node.run(&["read", "/etc/hosts"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "/etc/hosts in pieces"), "{ran:?}");
    let ran = node.run(&["-n", "a,b", "read", "/etc/hosts"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
    assert!(ran.stderr.ends_with("hint: name it: -n NODE\n"), "{ran:?}");
    let ran = node.run(&["cp", "/var/log", "here/there"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let copied = std::fs::read_to_string(node.home.path("here/there/log")).unwrap();
    assert_eq!(copied, "x".repeat(100_000));
    // What is left out is told at the end, and the rest is there.
    let ran = node.run(&["copy", "/incomplete", "half"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("left out: a socket"), "{ran:?}");
    assert!(node.home.path("half/log").exists());
    let mut piped = node.home.command(&["--talosconfig", "talosconfig", "cp", "/var/log", "-"]);
    let piped = piped.output().unwrap();
    assert!(piped.status.success() && piped.stdout == archive());
    std::fs::write(node.home.path("file"), "").unwrap();
    let ran = node.run(&["cp", "/var/log", "file"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.starts_with("error: write file: "), "{ran:?}");
}

#[test]
fn sockets_images_captures_and_restarts_reach_the_node() {
    let node = Node::start();
    let ran = node.run(&["netstat", "-l", "-t", "-4"]);
    assert!(ran.stdout.starts_with("NODE "), "{ran:?}");
    assert!(ran.stdout.contains("127.0.0.1:50000   0.0.0.0:*         LISTEN"), "{ran:?}");
    let ran = node.run(&["images", "--namespace", "system"]);
    assert_eq!(ran.stdout, "registry.k8s.io/pause:3.10\n", "{ran:?}");
    let ran = node.run(&["image", "list", "--namespace", "system"]);
    assert!(ran.stdout.starts_with("NODE ") && ran.stdout.contains("sha256:1   5 B"), "{ran:?}");
    let ran =
        node.run(&["pcap", "-i", "lo", "-o", "lo.pcap", "--bpf-filter", "{ 0x6, 0, 0, 0x40000 },"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(std::fs::read(node.home.path("lo.pcap")).unwrap(), b"pcap");
    let ran = node.run(&["restart", "-k", "etcd"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(ran.stderr, format!("{} restarts etcd\n", node.endpoint));
}

/// A tar.gz with one file, `log`.
fn archive() -> Vec<u8> {
    packed("log", &"x".repeat(100_000))
}

fn packed(name: &str, text: &str) -> Vec<u8> {
    use std::io::Write as _;

    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(text.len() as u64);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    zipped.write_all(&tar.into_inner().unwrap()).unwrap();
    zipped.finish().unwrap()
}

#[test]
fn a_reboot_is_accepted_without_output_for_scripts() {
    let node = Node::start();
    let ran = node.run(&["reboot"]);
    let said = format!("{} reboots\n", node.endpoint);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr), (Some(0), "", said));
}

#[test]
fn a_reboot_that_is_waited_for_ends_when_the_nodes_are_back() {
    let node = Node::start();
    let ran = node.run(&["-n", "a,b", "reboot", "--wait"]);
    let said =
        "a reboots\nb reboots\na is back: all services are up\nb is back: all services are up\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", said));
    let ran = node.run(&["-n", &format!("a,{DEAD}"), "reboot", "--wait"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("to know the next one: 10.0.0.66: "), "{ran:?}");
}

#[test]
fn health_says_what_it_waits_for() {
    let node = Node::start();
    let ran = node.run(&["health", "--control-plane-nodes", "a,b", "--worker-nodes", "c"]);
    let said = "waiting for apid to be ready: ...\nwaiting for apid to be ready: OK\n\
        waiting for all services to be healthy: ...\nwaiting for all services to be healthy: OK\n\
        waiting for all nodes to finish boot sequence: ...\n\
        waiting for all nodes to finish boot sequence: OK\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", said));
    let ran = node.run(&["-n", &format!("a,{DEAD}"), "health", "--wait-timeout", "10ms"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("for apid to be ready: 10.0.0.66: no route to host"), "{ran:?}");
    // What time does not mend is not waited for.
    let other = Node::start();
    let ran = node.run(&["-e", &other.endpoint, "health"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("invalid peer certificate"), "{ran:?}");
}

#[test]
fn a_node_checks_the_cluster_and_its_verdict_is_ours() {
    let node = Node::start();
    let server = |more: &[&str]| node.run(&[&["health", "--server"], more].concat());
    let ran = server(&["--control-plane-nodes", "a,b", "--worker-nodes", "c", "--init-node", "i"]);
    let said = "waiting for i a b, c at : ...\nwaiting for i a b, c at : OK\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", said));
    let ran = server(&["--k8s-endpoint", "https://10.0.0.9:6443", "--worker-nodes", DEAD]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let why = "\nerror: the cluster is not healthy: nobody answers (FailedPrecondition)\nhint: ";
    assert!(ran.stderr.contains(why) && ran.stderr.contains("at https://10.0.0.9:6443"), "{ran:?}");
    for (refused, why) in [
        (&["-n", "a,b", "health", "--server"][..], "of one node, and 2 are meant"),
        (&["health", "--k8s-endpoint", "https://10.0.0.9"], "--k8s-endpoint: "),
        (&["health", "--run-e2e"], "--run-e2e: "),
    ] {
        let ran = node.run(refused);
        assert_eq!(ran.code, Some(64), "{ran:?}");
        assert!(ran.stderr.contains(why), "{ran:?}");
    }
}

#[test]
fn an_upgrade_that_a_node_refuses_is_told_with_its_reason() {
    let node = Node::start();
    let ran = node.run(&["-n", "a,b", "upgrade", "-i", "ghcr.io/a/installer:v1", "--stage"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let rows: Vec<_> = ran.stdout.lines().map(|line| line.split_whitespace().next()).collect();
    assert_eq!(rows, [Some("NODE"), Some("a"), Some("b")], "{ran:?}");
    assert!(ran.stdout.contains("Upgrade request received"), "{ran:?}");
    let ran = node.run(&["upgrade", "-i", "ghcr.io/a/installer:v1"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.stderr.contains("no disk to install to (FailedPrecondition)"), "{ran:?}");
    let ran = node.run(&["rollback"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("no disk to install to (FailedPrecondition)"), "{ran:?}");
}

#[test]
fn images_are_removed_and_disks_wiped_node_by_node() {
    let node = Node::start();
    let ran = node.run(&["-n", "a,b", "image", "remove", "nginx"]);
    let said = "a has no nginx any more\nb has no nginx any more\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", said));
    let ran = node.run(&["-n", "a,b", "image", "rm", "gone"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("there is no image \"gone\" (NotFound)"), "{ran:?}");
    // This node lists as it did before it had this service: it is asked so.
    let ran = node.run(&["-n", "a", "image", "list", "--namespace", "system"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("LABELS") && ran.stdout.contains("\na "), "{ran:?}");
    let ran = node.run(&["wipe", "disk", "/dev/sda", "sdb1", "--method", "ZEROES"]);
    let said = format!("{} has wiped /dev/sda sdb1\n", node.endpoint);
    assert_eq!((ran.code, ran.stderr), (Some(0), said));
    let ran = node.run(&["-n", "a,b", "wipe", "disk", "sda"]);
    assert_eq!(ran.code, Some(64), "{ran:?}");
}

#[test]
fn what_is_known_of_nodes_is_one_archive_without_secrets() {
    use std::io::Read as _;

    let node = Node::start();
    let ran = node.run(&["-n", &format!("a,{DEAD}"), "support"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.stderr.contains("warning: 10.0.0.66: version.txt: no route to host"), "{ran:?}");
    let file = std::fs::File::open(node.home.path("support.tar.gz")).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut found = std::collections::BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        found.insert(entry.path().unwrap().display().to_string(), text);
    }
    assert!(found["support/a/services.yaml"].contains("service: apid"), "{found:?}");
    assert!(found["support/a/logs/apid.log"].starts_with("last -1 of apid\n"), "{found:?}");
    assert!(found["support/a/dmesg.log"].contains("hello"), "{found:?}");
    let config = &found["support/a/config.yaml"];
    assert!(config.contains("token: '[redacted]'") && !config.contains("0123ab"), "{config}");
    assert!(found["support/a/failures.txt"].contains("mounts.txt: "), "{found:?}");
    assert!(found["support/10.0.0.66/failures.txt"].starts_with("version.txt: "), "{found:?}");
    let ran = node.run(&["support"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran = node.run(&["-n", DEAD, "support", "-O", "other.tar.gz"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(!node.home.path("other.tar.gz").exists());
}

#[test]
fn a_call_the_node_does_not_serve_says_so() {
    let node = Node::start();
    let ran = node.run(&["mounts"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("(Unimplemented)\nhint: "), "{ran:?}");
}

#[test]
fn a_node_of_another_cluster_is_not_trusted_and_the_context_is_named() {
    let (node, other) = (Node::start(), Node::start());
    let ran = node.run(&["-e", &other.endpoint, "memory"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("invalid peer certificate"), "{ran:?}");
    assert!(
        ran.stderr.contains("hint: the node was not made with the CA of context \"trial\""),
        "{ran:?}"
    );
}

#[test]
fn a_client_certificate_of_another_authority_is_refused_and_the_context_is_named() {
    let node = Node::start();
    let stranger = authority();
    node.write_context(&node.ca, &stranger);
    for _ in 0..20 {
        // The alert races the end of the connection; it is told all the same.
        let ran = node.run(&["memory"]);
        assert_eq!(ran.code, Some(1));
        let mut lines = ran.stderr.lines();
        let error = format!("error: read memory: {}: received fatal alert: ", node.endpoint);
        assert!(lines.next().is_some_and(|line| line.starts_with(&error)), "{ran:?}");
        let hint =
            "hint: the node does not accept the certificate of context \"trial\" of talosconfig";
        assert!(lines.next().is_some_and(|line| line.starts_with(hint)), "{ran:?}");
    }
}

/// Every command that asks a node, with what it cannot do without. Those that write a file write it into
/// the home.
const ASKING: &[&[&str]] = &[
    &["bootstrap"],
    &["config", "new", "new"],
    &["containers"],
    &["copy", "/var", "here"],
    &["disks"],
    &["dmesg"],
    &["etcd", "members"],
    &["etcd", "status"],
    &["etcd", "snapshot", "db"],
    &["etcd", "leave"],
    &["etcd", "forfeit-leadership"],
    &["events"],
    &["image", "list"],
    &["images"],
    &["interfaces"],
    &["kubeconfig"],
    &["list"],
    &["logs", "apid"],
    &["memory"],
    &["meta", "write", "10", "x"],
    &["metrics"],
    &["mounts"],
    &["netstat"],
    &["pcap", "-i", "lo", "-o", "pcap"],
    &["processes"],
    &["processes", "--watch"],
    &["read", "/etc/hosts"],
    &["reboot"],
    &["recover"],
    &["reset"],
    &["restart", "apid"],
    &["routes"],
    &["service"],
    &["service", "apid", "restart"],
    &["shutdown"],
    &["stats"],
    &["time"],
    &["timeline"],
    &["usage"],
    &["version"],
];

#[test]
fn every_command_fails_with_its_exit_code_and_says_what_to_do() {
    let node = Node::start();
    let expired = {
        let leaf = Leaf {
            common_name: "test".to_owned(),
            organizations: vec!["os:admin".to_owned()],
            usage: Usage::Client,
            dns: vec![],
            ips: vec![],
            lifetime: Duration::from_secs(3600),
        };
        node.ca.issue(&leaf, SystemTime::now() - Duration::from_secs(48 * 3600)).unwrap()
    };
    node.write_contact(&node.endpoint, &node.ca, expired);
    std::fs::rename(node.home.path("talosconfig"), node.home.path("expired")).unwrap();
    // Bound, and never listened on: connecting is refused for as long as it is there.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    node.write_contact(
        &closed.local_addr().unwrap().to_string(),
        &node.ca,
        issue(&node.ca, Usage::Client),
    );
    let hints = |ran: &Ran| ran.stderr.matches("hint: ").count();
    for command in ASKING {
        let ran = |more: &[&str]| node.home.run(&[more, *command].concat());
        let missing = ran(&["--talosconfig", "none"]);
        let path = missing.stderr.contains("there is no client configuration at none");
        assert!((missing.code, hints(&missing), path) == (Some(78), 1, true), "{missing:?}");
        let down = ran(&["--talosconfig", "talosconfig"]);
        let why = down.stderr.to_lowercase().contains("connection refused");
        let what = down.stderr.contains("hint: is the node up, and is this the port");
        assert!((down.code, why, what) == (Some(1), true, true), "{command:?}: {down:?}");
        assert!(down.stderr.contains("error: "), "{command:?}: {down:?}");
        let old = ran(&["--talosconfig", "expired"]);
        let what = old.stderr.contains("does not accept the certificate of context \"trial\"")
            && old.stderr.contains("of expired, which expired on ");
        assert!((old.code, what) == (Some(1), true), "{command:?}: {old:?}");
        for ran in [missing, down, old] {
            assert!(!ran.stderr.contains('\u{1b}'), "coloured, and no terminal: {ran:?}");
        }
    }
    // Those of the help that are not above are walked as well.
    let help = node.home.run(&["--help"]).stdout;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let names: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() > 40, "{names:?}");
    for command in names.iter().map(std::slice::from_ref).chain(ASKING.iter().copied()) {
        let ran = node.home.run(&[command, &["--no-such-flag"]].concat());
        let told = ran.stderr.contains("--no-such-flag");
        assert!((ran.code, told, &*ran.stdout) == (Some(64), true, ""), "{command:?}: {ran:?}");
    }
}

/// A fake node, the authority it trusts, and a home with a client configuration for it.
struct Node {
    home: Home,
    endpoint: String,
    ca: Authority,
    /// How often LoadAvg was called.
    loads: Arc<AtomicU64>,
    /// Runs the server until it is dropped.
    _runtime: tokio::runtime::Runtime,
}

impl Node {
    fn start() -> Self {
        let ca = authority();
        let serving = issue(&ca, Usage::Server);
        let tls = orlop_pki::tls::server_config(&ca.pair().crt, &serving.crt, serving.key.expose());
        let tls = tls.unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let listener =
            runtime.block_on(orlop_rpc::tls::listen("127.0.0.1:0".parse().unwrap())).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (_, tls) = tokio::sync::watch::channel(tls);
        let incoming = orlop_rpc::tls::incoming(listener, tls, Arc::default());
        let fake = Fake::default();
        let loads = Arc::clone(&fake.loads);
        let server = orlop_rpc::server()
            .add_service(MachineServiceServer::new(fake))
            .add_service(NodeServiceServer::new(Fake::default()))
            .add_service(ClusterServiceServer::new(Fake::default()))
            .add_service(StorageServiceServer::new(Fake::default()))
            .add_service(ImageServiceServer::new(Images));
        runtime.spawn(server.serve_with_incoming(incoming));
        let node = Self { home: Home::new(), endpoint, ca, loads, _runtime: runtime };
        node.write_context(&node.ca, &node.ca);
        node
    }

    /// Makes a context that trusts `trusted` and shows a certificate of `issuer`.
    fn write_context(&self, trusted: &Authority, issuer: &Authority) {
        self.write_contact(&self.endpoint, trusted, issue(issuer, Usage::Client));
    }

    /// Makes a context that leads to `endpoint` and shows `client`.
    fn write_contact(&self, endpoint: &str, trusted: &Authority, client: orlop_pki::Pair) {
        let context = Context {
            endpoints: vec![endpoint.to_owned()],
            nodes: vec![],
            ca: trusted.pair().crt.clone(),
            crt: client.crt,
            key: client.key,
        };
        let contexts = [("trial".to_owned(), context)].into();
        let configuration = Configuration { context: "trial".to_owned(), contexts };
        configuration.write(&self.home.path("talosconfig")).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.home.run(&[&["--talosconfig", "talosconfig"], args].concat())
    }
}

fn authority() -> Authority {
    let lifetime = std::time::Duration::from_secs(3600);
    Authority::generate("talos", KeyKind::Ed25519, lifetime, SystemTime::now()).unwrap()
}

fn issue(ca: &Authority, usage: Usage) -> orlop_pki::Pair {
    let leaf = Leaf {
        common_name: "test".to_owned(),
        organizations: vec!["os:admin".to_owned()],
        usage,
        dns: vec![],
        ips: vec!["127.0.0.1".parse().unwrap()],
        lifetime: std::time::Duration::from_secs(3600),
    };
    ca.issue(&leaf, SystemTime::now()).unwrap()
}

/// Answers as an apid does: a message for each of `nodes`, an error for the one that is dead.
#[derive(Default)]
struct Fake {
    reboots: AtomicU64,
    /// Calls of LoadAvg.
    loads: Arc<AtomicU64>,
}

fn each<T>(asked: &MetadataMap, make: impl Fn(Option<Metadata>) -> T) -> Vec<T> {
    let nodes: Vec<_> = asked.get_all("nodes").iter().map(|node| node.to_str().unwrap()).collect();
    if nodes.is_empty() {
        return vec![make(None)];
    }
    let metadata = |&node: &&str| {
        let hostname = node.to_owned();
        let message = "no route to host".to_owned();
        let status = rpc::Status { code: Code::Unavailable.into(), message, details: vec![] };
        let error = format!("rpc error: code = Unavailable desc = {}", status.message);
        match node {
            DEAD => Metadata { hostname, error, status: Some(status) },
            _ => Metadata { hostname, ..Metadata::default() },
        }
    };
    nodes.iter().map(|node| make(Some(metadata(node)))).collect()
}

fn alive(metadata: Option<&Metadata>) -> bool {
    metadata.is_none_or(|metadata| metadata.status.is_none())
}

#[tonic::async_trait]
impl ClusterService for Fake {
    async fn health_check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Answers<HealthCheckProgress>>, Status> {
        let HealthCheckRequest { wait_timeout, cluster_info } = request.into_inner();
        assert_eq!(wait_timeout.unwrap().seconds, 20 * 60);
        let ClusterInfo { control_plane_nodes, worker_nodes, force_endpoint } =
            cluster_info.unwrap();
        let workers = worker_nodes.join(" ");
        let what = format!("{}, {workers} at {force_endpoint}", control_plane_nodes.join(" "));
        let line = |said: &str| {
            let message = format!("waiting for {what}: {said}");
            Ok(HealthCheckProgress { metadata: None, message })
        };
        let last = match workers == DEAD {
            true => Err(Status::failed_precondition("nobody answers")),
            false => line("OK"),
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([line("..."), last]))))
    }
}

#[tonic::async_trait]
impl StorageService for Fake {
    async fn block_device_wipe(
        &self,
        request: Request<BlockDeviceWipeRequest>,
    ) -> Result<Response<BlockDeviceWipeResponse>, Status> {
        let devices = &request.get_ref().devices;
        let asked: Vec<_> = devices.iter().map(|one| (one.device.as_str(), one.method)).collect();
        assert_eq!(asked, [("sda", 1), ("sdb1", 1)]);
        let wiped = |metadata| BlockDeviceWipe { metadata };
        Ok(Response::new(BlockDeviceWipeResponse { messages: each(request.metadata(), wiped) }))
    }
}

/// Images that can be removed, and are not listed here.
struct Images;

#[tonic::async_trait]
impl ImageService for Images {
    async fn remove(
        &self,
        request: Request<ImageServiceRemoveRequest>,
    ) -> Result<Response<()>, Status> {
        // apid joins nothing of this service: each node is asked alone.
        assert_eq!(request.metadata().get_all("nodes").iter().count(), 0);
        assert_eq!(request.metadata().get_all("node").iter().count(), 1);
        let ImageServiceRemoveRequest { containerd, image_ref } = request.into_inner();
        assert_eq!(containerd.unwrap().namespace, 2);
        match image_ref.as_str() {
            "gone" => Err(Status::not_found("there is no image \"gone\"")),
            _ => Ok(Response::new(())),
        }
    }
}

#[tonic::async_trait]
impl NodeService for Fake {
    async fn metrics(&self, request: Request<()>) -> Result<Response<MetricsResponse>, Status> {
        let text = "orlop_build_info 1\norlop_other 2\n# EOF\n".to_owned();
        let metrics = |metadata| Metrics { metadata, text: text.clone() };
        Ok(Response::new(MetricsResponse { messages: each(request.metadata(), metrics) }))
    }

    async fn timeline(&self, request: Request<()>) -> Result<Response<TimelineResponse>, Status> {
        let kernel = Span {
            kind: span::Kind::Kernel.into(),
            name: "kernel".to_owned(),
            duration_ns: 500_000_000,
            ..Span::default()
        };
        let timeline =
            |metadata| Timeline { metadata, spans: vec![kernel.clone()], ready_ns: 1_500_000_000 };
        Ok(Response::new(TimelineResponse { messages: each(request.metadata(), timeline) }))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl MachineService for Fake {
    async fn memory(&self, request: Request<()>) -> Result<Response<MemoryResponse>, Status> {
        let info = MemInfo { memtotal: 2_033_764, memfree: 1_650_000, ..MemInfo::default() };
        let memory = |metadata: Option<Metadata>| Memory {
            meminfo: alive(metadata.as_ref()).then_some(info),
            metadata,
        };
        Ok(Response::new(MemoryResponse { messages: each(request.metadata(), memory) }))
    }

    async fn version(&self, request: Request<()>) -> Result<Response<VersionResponse>, Status> {
        let info = VersionInfo { tag: "v0.8.9".to_owned(), ..VersionInfo::default() };
        let version =
            |metadata| Version { metadata, version: Some(info.clone()), ..Version::default() };
        Ok(Response::new(VersionResponse { messages: each(request.metadata(), version) }))
    }

    async fn logs_containers(
        &self,
        request: Request<()>,
    ) -> Result<Response<LogsContainersResponse>, Status> {
        let logs = |metadata| LogsContainer { metadata, ids: vec!["apid".to_owned()] };
        Ok(Response::new(LogsContainersResponse { messages: each(request.metadata(), logs) }))
    }

    async fn processes(&self, request: Request<()>) -> Result<Response<ProcessesResponse>, Status> {
        let init = ProcessInfo { pid: 1, command: "machined".to_owned(), ..ProcessInfo::default() };
        let processes = |metadata| Process { metadata, processes: vec![init.clone()] };
        Ok(Response::new(ProcessesResponse { messages: each(request.metadata(), processes) }))
    }

    async fn load_avg(&self, request: Request<()>) -> Result<Response<LoadAvgResponse>, Status> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let load = |metadata| LoadAvg { metadata, load1: 0.25, ..LoadAvg::default() };
        Ok(Response::new(LoadAvgResponse { messages: each(request.metadata(), load) }))
    }

    async fn system_stat(
        &self,
        request: Request<()>,
    ) -> Result<Response<SystemStatResponse>, Status> {
        let boot_time = 1_700_000_000 + 60 * self.reboots.load(Ordering::Relaxed);
        let stat = |metadata| SystemStat { metadata, boot_time, ..SystemStat::default() };
        Ok(Response::new(SystemStatResponse { messages: each(request.metadata(), stat) }))
    }

    async fn kubeconfig(&self, _: Request<()>) -> Result<Response<Answers<Data>>, Status> {
        let text = "apiVersion: v1\nkind: Config\nclusters:\n- name: trial\n  cluster:\n    \
            server: https://10.0.0.2:6443\nusers:\n- name: admin@trial\n  user:\n    token: t\n\
            contexts:\n- name: admin@trial\n  context:\n    cluster: trial\n    user: admin@trial\n\
            current-context: admin@trial\n";
        Ok(Response::new(Box::pin(tokio_stream::once(piece(&packed("kubeconfig", text))))))
    }

    async fn generate_client_configuration(
        &self,
        request: Request<GenerateClientConfigurationRequest>,
    ) -> Result<Response<GenerateClientConfigurationResponse>, Status> {
        let GenerateClientConfigurationRequest { roles, crt_ttl } = request.get_ref();
        assert_eq!((roles.len(), &*roles[0], crt_ttl.unwrap().seconds), (1, "os:reader", 86_400));
        let talosconfig = b"context: trial\ncontexts:\n  trial:\n    endpoints: []\n".to_vec();
        let made = |metadata| GenerateClientConfiguration {
            metadata,
            talosconfig: talosconfig.clone(),
            ..GenerateClientConfiguration::default()
        };
        let messages = each(request.metadata(), made);
        Ok(Response::new(GenerateClientConfigurationResponse { messages }))
    }

    async fn service_list(
        &self,
        request: Request<()>,
    ) -> Result<Response<ServiceListResponse>, Status> {
        let service = ServiceInfo {
            id: "apid".to_owned(),
            state: "Running".to_owned(),
            events: Some(ServiceEvents::default()),
            health: Some(ServiceHealth { healthy: true, ..ServiceHealth::default() }),
        };
        let list = |metadata| ServiceList { metadata, services: vec![service.clone()] };
        Ok(Response::new(ServiceListResponse { messages: each(request.metadata(), list) }))
    }

    async fn service_restart(
        &self,
        request: Request<ServiceRestartRequest>,
    ) -> Result<Response<ServiceRestartResponse>, Status> {
        let id = &request.get_ref().id;
        if id != "apid" {
            return Err(Status::unknown(format!("service {id:?} not defined")));
        }
        let resp = format!("Service {id:?} restarted");
        let restart = |metadata| ServiceRestart { metadata, resp: resp.clone() };
        Ok(Response::new(ServiceRestartResponse { messages: each(request.metadata(), restart) }))
    }

    async fn reboot(&self, request: Request<()>) -> Result<Response<RebootResponse>, Status> {
        self.reboots.fetch_add(1, Ordering::Relaxed);
        let reboot = |metadata| Reboot { metadata };
        Ok(Response::new(RebootResponse { messages: each(request.metadata(), reboot) }))
    }

    async fn upgrade(
        &self,
        request: Request<UpgradeRequest>,
    ) -> Result<Response<UpgradeResponse>, Status> {
        let UpgradeRequest { image, stage, .. } = request.get_ref();
        assert_eq!(image, "ghcr.io/a/installer:v1");
        if !stage {
            return Err(Status::failed_precondition("no disk to install to"));
        }
        let ack = "Upgrade request received".to_owned();
        let upgrade = |metadata| Upgrade { metadata, ack: ack.clone() };
        Ok(Response::new(UpgradeResponse { messages: each(request.metadata(), upgrade) }))
    }

    async fn rollback(
        &self,
        _: Request<RollbackRequest>,
    ) -> Result<Response<RollbackResponse>, Status> {
        Err(Status::failed_precondition("no disk to install to"))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Answers<Data>>, Status> {
        let LogsRequest { namespace, id, tail_lines, .. } = request.get_ref();
        assert_eq!(namespace, "system");
        let text = format!("last {tail_lines} of {id}\nunfinished");
        // Pieces of all nodes, interleaved and cut where no line ends.
        let pieces = text.as_bytes().chunks(4).flat_map(|piece| {
            each(request.metadata(), |metadata| Data { metadata, bytes: piece.to_vec() })
        });
        let mut told = false;
        let pieces = pieces.filter(|data| {
            let dead = !alive(data.metadata.as_ref());
            !(dead && std::mem::replace(&mut told, true))
        });
        let pieces: Vec<_> = pieces.map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn dmesg(
        &self,
        request: Request<DmesgRequest>,
    ) -> Result<Response<Answers<Data>>, Status> {
        let follow = request.get_ref().follow;
        let bytes = b"kern:    info: [2025-11-21T05:34:00Z]: hello\n".to_vec();
        let record = tokio_stream::once(Ok(Data { metadata: None, bytes }));
        if !follow {
            return Ok(Response::new(Box::pin(record)));
        }
        Ok(Response::new(Box::pin(record.chain(tokio_stream::pending()))))
    }

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Answers<Event>>, Status> {
        assert_eq!(request.get_ref().tail_events, 1);
        let event = SequenceEvent { sequence: "boot".to_owned(), action: 2, error: None };
        let type_url = "talos/runtime/machine.SequenceEvent".to_owned();
        let data = prost_types::Any { type_url, value: event.encode_to_vec() };
        let id = "cqe7tq5n2o8g02u8d4l0".to_owned();
        let event = tokio_stream::once(Ok(Event { metadata: None, data: Some(data), id }));
        Ok(Response::new(Box::pin(event.chain(tokio_stream::pending()))))
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Answers<FileInfo>>, Status> {
        let ListRequest { root, recurse: true, recursion_depth: 2, .. } = request.get_ref() else {
            return Err(Status::invalid_argument(format!("{request:?}")));
        };
        let info = |name: &str, mode, error: &str| FileInfo {
            name: format!("{root}/{name}"),
            relative_name: name.to_owned(),
            size: 4096,
            mode,
            error: error.to_owned(),
            ..FileInfo::default()
        };
        let infos = [
            info(".", 1 << 31 | 0o755, ""),
            info("hosts", 0o644, ""),
            info("secret", 0, "open /etc/secret: permission denied"),
        ];
        let infos: Vec<_> = infos
            .iter()
            .flat_map(|info| {
                each(request.metadata(), |metadata| Ok(FileInfo { metadata, ..info.clone() }))
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(infos))))
    }

    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<Answers<DiskUsageInfo>>, Status> {
        assert_eq!(request.get_ref().threshold, -100);
        let sums = request.get_ref().paths.iter().flat_map(|path| {
            let (size, error) = match &**path {
                "/no" => (0, "lstat /no: gone".to_owned()),
                _ => (99, String::new()),
            };
            each(request.metadata(), |metadata| {
                let (name, relative_name) = (path.clone(), ".".to_owned());
                Ok(DiskUsageInfo { metadata, name, size, error: error.clone(), relative_name })
            })
        });
        let sums: Vec<_> = sums.collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(sums))))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Answers<Data>>, Status> {
        let path = &request.get_ref().path;
        let text = match &**path {
            "/system/state/config.yaml" => CONFIG.to_owned(),
            path => format!("{path} in pieces"),
        };
        let pieces: Vec<_> = text.as_bytes().chunks(4).map(piece).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn copy(&self, request: Request<CopyRequest>) -> Result<Response<Answers<Data>>, Status> {
        let mut pieces: Vec<_> = archive().chunks(1024).map(piece).collect();
        if request.get_ref().root_path == "/incomplete" {
            let error = "left out: a socket".to_owned();
            let metadata = Some(Metadata { error, ..Metadata::default() });
            pieces.push(Ok(Data { metadata, bytes: Vec::new() }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn netstat(
        &self,
        request: Request<NetstatRequest>,
    ) -> Result<Response<NetstatResponse>, Status> {
        let l4proto = request.get_ref().l4proto.unwrap();
        assert!(l4proto.tcp && !l4proto.tcp6 && !l4proto.udp);
        let socket = ConnectRecord {
            l4proto: "tcp".to_owned(),
            localip: "127.0.0.1".to_owned(),
            localport: 50000,
            remoteip: "0.0.0.0".to_owned(),
            state: 10,
            ..ConnectRecord::default()
        };
        let netstat = |metadata| Netstat { metadata, connectrecord: vec![socket.clone()] };
        Ok(Response::new(NetstatResponse { messages: each(request.metadata(), netstat) }))
    }

    async fn image_list(
        &self,
        request: Request<ImageListRequest>,
    ) -> Result<Response<Answers<ImageListResponse>>, Status> {
        assert_eq!(request.get_ref().namespace, 1);
        let image = ImageListResponse {
            name: "registry.k8s.io/pause:3.10".to_owned(),
            digest: "sha256:1".to_owned(),
            size: 5,
            ..ImageListResponse::default()
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(image)))))
    }

    async fn etcd_snapshot(
        &self,
        request: Request<EtcdSnapshotRequest>,
    ) -> Result<Response<Answers<Data>>, Status> {
        let nodes = request.metadata().get_all("nodes");
        if nodes.iter().any(|node| node == DEAD) {
            let lost = Err(Status::unavailable("etcd went away"));
            return Ok(Response::new(Box::pin(tokio_stream::iter([piece(b"head"), lost]))));
        }
        let pieces: Vec<_> = snapshot().chunks(4096).map(piece).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn etcd_recover(
        &self,
        request: Request<Streaming<Data>>,
    ) -> Result<Response<EtcdRecoverResponse>, Status> {
        let metadata = request.metadata();
        assert!(metadata.get("nodes").is_none() && metadata.get("node").is_some());
        let (mut pieces, mut bytes) = (request.into_inner(), Vec::new());
        while let Some(piece) = pieces.message().await? {
            bytes.extend(piece.bytes);
        }
        if bytes.is_empty() {
            return Err(Status::invalid_argument("no snapshot"));
        }
        assert_eq!(bytes, snapshot());
        let messages = vec![EtcdRecover { metadata: None }];
        Ok(Response::new(EtcdRecoverResponse { messages }))
    }

    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        assert!(request.get_ref().recover_etcd && !request.get_ref().recover_skip_hash_check);
        let bootstrap = |metadata| Bootstrap { metadata };
        Ok(Response::new(BootstrapResponse { messages: each(request.metadata(), bootstrap) }))
    }

    async fn packet_capture(
        &self,
        request: Request<PacketCaptureRequest>,
    ) -> Result<Response<Answers<Data>>, Status> {
        let request = request.get_ref();
        assert_eq!((&*request.interface, request.bpf_filter[0].k), ("lo", 0x40000));
        Ok(Response::new(Box::pin(tokio_stream::once(piece(b"pcap")))))
    }

    async fn restart(
        &self,
        request: Request<RestartRequest>,
    ) -> Result<Response<RestartResponse>, Status> {
        let RestartRequest { namespace, id, .. } = request.get_ref();
        assert_eq!((&**namespace, &**id), ("k8s.io", "etcd"));
        let restart = |metadata| Restart { metadata };
        Ok(Response::new(RestartResponse { messages: each(request.metadata(), restart) }))
    }
}

fn piece(bytes: &[u8]) -> Result<Data, Status> {
    Ok(Data { metadata: None, bytes: bytes.to_vec() })
}
