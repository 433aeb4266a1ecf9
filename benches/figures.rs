//! The figures of the README, each beside its reference and its aim, from one run: `make bench`.
//!
//! Times are counted from the first instruction of user space, on both systems: ours by what `init`
//! read from the clock first, Debian's by systemd's own record. Each system boots three times, in
//! turns; the median counts. A figure that misses its aim is said so and fails nothing.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::TcpStream;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use orlop_qemu::accel::Accel;
use orlop_qemu::serve::Server;
use orlop_qemu::{Boot, Cluster, Forward, Operator, READY, boot_again_after_int3, out};
use serde_json::json;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let accel = Accel::from_environment()?.fastest();
    // Before the machine is busy with guests.
    let host_figures = Host::measure()?;
    let peer = peer_image()?;
    let folder = tempfile::tempdir()?;
    let cluster = Cluster::in_folder(folder.path())?;
    let server = Server::of("machine.yaml", cluster.controlplane()?)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("bench: [{round}/{ROUNDS}] Orlop");
        ours.push(boot_again_after_int3(|| boot_orlop(accel, &cluster, &server))?);
        if let Some(image) = &peer {
            eprintln!("bench: [{round}/{ROUNDS}] Debian 12");
            theirs.push(boot_again_after_int3(|| boot_debian(accel, image))?);
        }
    }
    let figures = figures(&ours, &theirs, &host_figures)?;
    print!("{}", table(&figures, accel));
    let path = out().join("bench.json");
    let host = json!({ "accel": accel.to_string(), "rounds": ROUNDS });
    let figures: Vec<_> = figures.iter().map(Figure::json).collect();
    let document = json!({ "host": host, "figures": figures, "orlop": ours, "debian": theirs });
    fs::write(&path, serde_json::to_string_pretty(&document)?)
        .with_context(|| format!("write {}", path.display()))
}

/// One boot of ours.
#[derive(Debug, serde::Serialize)]
struct Ours {
    /// Seconds from the first instruction of init to apid's answer over mutual TLS.
    answered: f64,
    /// Seconds from the same instant to containerd's socket being served.
    containerd: f64,
    /// Seconds from the same instant to all services being healthy.
    ready: f64,
    /// Resident bytes at idle.
    pid1: u64,
    orlop: u64,
    containerd_resident: u64,
}

fn boot_orlop(accel: Accel, cluster: &Cluster, server: &Server) -> Result<Ours> {
    let forward = Forward::from_free(50000)?;
    let operator = Operator::new(cluster, forward.host);
    let node = Boot::node(accel)?
        .argument(format!("talos.config={}", server.url()))
        .network(&[forward])
        .start()?;
    let console = node.console();
    let started =
        console.wait(r"\[ *([0-9.]+)\] (?:init:|\[init\]) started at=([0-9.]+)s", LIMIT)?;
    let [said, first]: [f64; 2] = seconds(&started.groups)?;
    let zero =
        started.line.at.checked_sub(Duration::from_secs_f64(said - first)).context("zero")?;

    // From here the guest has its address, so that a closed port is refused at once.
    console.wait("apid has a new certificate", LIMIT)?;
    let deadline = Instant::now() + LIMIT;
    while !listens(forward.host) {
        ensure!(Instant::now() < deadline, "apid does not listen\n{}", console.tail());
        // Questions cost the guest time, too.
        thread::sleep(Duration::from_millis(25));
    }
    operator.run(&["memory"])?;
    let answered = zero.elapsed().as_secs_f64();

    let since = |pattern: &str| -> Result<f64> {
        let [at] = seconds(&console.wait(pattern, LIMIT)?.groups)?;
        Ok(at - first)
    };
    let containerd = since(
        r"\[ *([0-9.]+)\] (?:machined:|\[machined\]) service\[containerd\]\(Running\): Health check successful",
    )?;
    let ready = since(READY)?;
    console.stays_silent(console.mark(), "error", SETTLE)?;
    let processes = operator.rows(&["processes"])?;
    let resident = |wanted: &dyn Fn(u64, &str) -> bool| -> u64 {
        let of = processes.iter().filter(|row| {
            let command = row.text("command").split(' ').next().unwrap_or_default();
            wanted(row.number("pid"), command.rsplit('/').next().unwrap_or_default())
        });
        of.map(|row| row.number("resident_bytes")).sum()
    };
    Ok(Ours {
        answered,
        containerd,
        ready,
        pid1: resident(&|pid, _| pid == 1),
        orlop: resident(&|pid, name| pid == 1 || ROLES.contains(&name)),
        containerd_resident: resident(&|_, name| name == "containerd"),
    })
}

/// Whether somebody answers behind the forwarded port: QEMU takes every connection, and drops it when
/// the guest refuses.
fn listens(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    // Who listens waits for our first word; who does not has hung up.
    stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Seconds from the first instruction of systemd to containerd being active.
fn boot_debian(accel: Accel, image: &str) -> Result<f64> {
    let mut peer = Boot::kernel(accel)?
        .node_arguments()?
        .argument("root=/dev/vda rw quiet")
        .scratch_disk(image.as_ref())
        .network(&[])
        .no_reboot()
        .start()?;
    let told = peer.console().wait(r"^bench: userspace=([0-9]+) containerd=([0-9]+)", LIMIT)?;
    let [userspace, containerd]: [f64; 2] = seconds(&told.groups)?;
    peer.wait_off(LIMIT)?;
    Ok((containerd - userspace) / 1e6)
}

/// What a bench of a room prints.
fn printed(room: &str, bench: &str) -> Result<String> {
    eprintln!("bench: {bench}");
    let output = Command::new("cargo")
        .args(["bench", "--quiet", "--package", room, "--bench", bench])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo bench")?;
    ensure!(output.status.success(), "benches/{bench}.rs failed: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The largest value of `KEY=` on the lines of `text` that begin with `line`.
fn largest(text: &str, line: &str, key: &str) -> Result<f64> {
    let lines = text.lines().filter(|printed| printed.starts_with(line));
    let values = lines.flat_map(str::split_whitespace).filter_map(|word| word.strip_prefix(key));
    let values: Vec<f64> = values.map(str::parse).collect::<Result<_, _>>()?;
    let most = values.into_iter().max_by(f64::total_cmp);
    most.with_context(|| format!("no {key} on a line {line:?} in:\n{text}"))
}

/// What is measured without a guest, in milliseconds.
struct Host {
    /// Until 99 % of a thousand readers have an event, the slower of two ways to connect them.
    events: f64,
    configuration: f64,
    processes: f64,
    /// A gigabyte over the API, and by `tar` through a socket.
    copy: f64,
    tar: f64,
    /// What networkd's bench printed; not all of it everywhere.
    network: String,
    door: Door,
    /// The same of timed's.
    clock: String,
    /// The same of the API server's; what needs an etcd is missing where there is none.
    kube: String,
    /// The same of the curator's.
    cluster: String,
}

impl Host {
    fn measure() -> Result<Self> {
        let (events, host) =
            (printed("orlop-machined", "events")?, printed("orlop-machined", "host")?);
        Ok(Self {
            events: largest(&events, "events", "p99_ms=")?,
            configuration: largest(&host, "host configuration", "p50_ms=")?,
            processes: largest(&host, "host processes", "p50_ms=")?,
            copy: largest(&host, "host copy", "p50_ms=")?,
            tar: largest(&host, "host tar", "p50_ms=")?,
            // The other figures do not hang on the host's network.
            network: printed("orlop-networkd", "network").unwrap_or_else(|error| {
                eprintln!("bench: networkd is left out: {error:#}");
                String::new()
            }),
            door: Door::measure()?,
            clock: printed("orlop-timed", "clock")?,
            kube: printed("orlop-apiserver", "kube")?,
            cluster: printed("orlop-curator", "cluster")?,
        })
    }

    /// The rows about timed; memory only where there is a chronyd to compare with.
    fn clock_figures(&self) -> Result<Vec<Figure>> {
        let of = |name: &str, key| largest(&self.clock, &format!("clock {name} "), key);
        let mut figures = vec![Figure {
            name: "a simulated clock's offset, root mean square",
            value: of("simulation orlop", "rms_us=")?,
            unit: "us",
            reference: Some((
                "a model of chrony that asks more often",
                of("simulation chrony_as_often", "rms_us=")?,
            )),
            aim: Aim::Times(1.2),
        }];
        if let Ok(kib) = of("resident orlop", "kib=") {
            figures.push(Figure {
                name: "resident memory of timed",
                value: kib / 1024.0,
                unit: "MiB",
                reference: Some(("chronyd", of("resident chrony", "kib=")? / 1024.0)),
                aim: Aim::Most(6.0),
            });
        }
        Ok(figures)
    }

    /// The rows about the API server: what the specification ships at the least, and better; and a bare etcd on the same
    /// disk.
    fn kube_figures(&self) -> Result<Vec<Figure>> {
        let of = |name: &str, key| largest(&self.kube, &format!("kube {name} "), key);
        let ms = |name: &str, key| of(name, key).map(|micros| micros / 1000.0);
        let figure = |name, value, unit, floor, target| Figure {
            name,
            value,
            unit,
            reference: None,
            aim: Aim::Within { floor, target },
        };
        let sync = ms("fdatasync", "p50_us=")?;
        let decision = of("decide_own", "p50_ns=")?.max(of("decide_refused", "p50_ns=")?);
        let grown = |name, what: &str| -> Result<Figure> {
            Ok(Figure {
                name,
                value: ms(&format!("{what}_of_100000"), "p50_us=")?,
                unit: "ms",
                reference: Some(("with 1,000", ms(&format!("{what}_of_1000"), "p50_us=")?)),
                aim: Aim::Times(1.5),
            })
        };
        let p50 = "p50_us=";
        let mut figures = vec![
            figure("a decision of RBAC, 1,000 bindings", decision, "ns", 2_000.0, 2_000.0),
            figure("an API server, start to ready", ms("ready_first", p50)?, "ms", 250.0, 60.0),
            figure("the same again", ms("ready_again", p50)?, "ms", 250.0, 60.0),
            figure("the same with 10,000 pods", ms("ready_10000", p50)?, "ms", 1_000.0, 250.0),
            figure("its memory, idle", of("resident", "mib=")?, "MiB", 40.0, 15.0),
            figure(
                "the same, 10,000 pods, 100 watches",
                of("resident_10000", "mib=")?,
                "MiB",
                250.0,
                120.0,
            ),
            figure("its processor, idle", of("idle", "percent=")?, "%", 0.5, 0.1),
            figure("GET, half of them", of("get", p50)?, "us", 500.0, 80.0),
            figure("GET, 99 % of them", of("get", "p99_us=")?, "us", 2_000.0, 400.0),
            figure("10,000 pods listed", ms("list_10000", p50)?, "ms", 300.0, 60.0),
            figure("memory for that", of("list_10000_more", "mib=")?, "MiB", 8.0, 8.0),
            figure(
                "a write seen by 1,000 watches, 99 %",
                ms("fan_out_1000", "p99_us=")?,
                "ms",
                50.0,
                10.0,
            ),
            Figure {
                name: "a durable create, 32 clients",
                value: ms("create_32", p50)?,
                unit: "ms",
                reference: Some(("fdatasync of 4 KiB", sync)),
                aim: Aim::Within { floor: 2.0 * (sync + 0.3), target: sync + 0.3 },
            },
            figure("the same, 99 %", ms("create_32", "p99_us=")?, "ms", 10.0, 5.0),
            grown("GET among 100,000 objects", "get")?,
            grown("a create among them, 64 clients", "create_64")?,
            grown("a page of 500 of them", "page")?,
        ];
        let own = of("create_64", "per_second=")?;
        figures.push(figure("64 clients' creates, each", 1e6 / own, "us", 250.0, 67.0));
        let beside = |name, value, etcd, least| Figure {
            name,
            value,
            unit: "/s",
            reference: Some(("put to a bare etcd", etcd)),
            aim: Aim::Least(least),
        };
        if let Ok(etcd) = of("etcd_put_64", "per_second=") {
            figures.push(beside("durable creates, 64 clients", own, etcd, 1.0));
            let over = of("create_64_over_etcd", "per_second=")?;
            figures.push(beside("the same over etcd", over, etcd, 0.7));
        }
        Ok(figures)
    }

    /// The rows about the curator.
    fn cluster_figures(&self) -> Result<Vec<Figure>> {
        let of = |name: &str, key| largest(&self.cluster, &format!("cluster {name} "), key);
        let ms = |name, key| of(name, key).map(|micros| micros / 1000.0);
        let figure = |name, value, unit, aim| Figure { name, value, unit, reference: None, aim };
        Ok(vec![
            figure("a curator ready", ms("ready_first", "p50_us=")?, "ms", Aim::Most(300.0)),
            figure("its memory, idle", of("resident", "mib=")?, "MiB", Aim::Most(20.0)),
            figure(
                "5,000 nodes heard every 5 s",
                of("heartbeats", "percent=")?,
                "% of a core",
                Aim::Most(25.0),
            ),
            figure("memory with them", of("heartbeats", "mib=")?, "MiB", Aim::Most(120.0)),
            figure(
                "the first of 10,000 nodes listed through a filter",
                ms("list_first", "p50_us=")?,
                "ms",
                Aim::Most(10.0),
            ),
            figure("all of them", ms("list_whole", "p50_us=")?, "ms", Aim::Most(150.0)),
            figure(
                "a node's change seen by 1,000 who watch, 99 %",
                ms("watches", "p99_us=")?,
                "ms",
                Aim::Most(20.0),
            ),
        ])
    }

    /// The rows about networkd; those that nothing was measured for are left out.
    fn network_figures(&self) -> Vec<Figure> {
        let of = |name: &str, key| largest(&self.network, &format!("network {name} "), key).ok();
        let ms = |name| of(name, "p50_ms=");
        let mib = |name| of(name, "mib=");
        let faster = ["lease_udhcpc", "lease_dhclient"].into_iter().filter_map(ms);
        let faster = faster.min_by(f64::total_cmp).map(|it| ("udhcpc or dhclient", it));
        let probed = ms("lease_udhcpc_probed").map(|it| ("udhcpc -a180", it));
        let figure = |name, value: Option<f64>, unit, reference, aim| {
            value.map(|value| Figure { name, value, unit, reference, aim })
        };
        let applied = ms("apply_ip").map(|it| ("ip -batch", it));
        let theirs = mib("resident_systemd_networkd").map(|it| ("systemd-networkd", it));
        [
            figure(
                "link up to an address, no ARP probes",
                ms("lease_networkd_unprobed"),
                "ms",
                faster,
                Aim::Times(0.8),
            ),
            figure(
                "the same with three ARP probes",
                ms("lease_networkd"),
                "ms",
                probed,
                Aim::Times(0.8),
            ),
            figure(
                "1,000 links with 4 addresses and 4 routes",
                ms("apply_networkd"),
                "ms",
                applied,
                Aim::Times(1.0),
            ),
            figure("the same, nothing to do", ms("nothing_to_do"), "ms", None, Aim::Most(60.0)),
            figure(
                "resident memory of networkd",
                mib("resident_networkd"),
                "MiB",
                theirs,
                Aim::Most(6.0),
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What the front door costs, beside machined's socket without it.
struct Door {
    /// Calls a second of 64 callers; straight, and through the door.
    rate: [f64; 2],
    /// Microseconds of a call, half and 99 % of them, of 64 callers at once,
    p50: [f64; 2],
    p99: [f64; 2],
    /// of 64 callers who together call half as often as the door can take,
    paced: [f64; 2],
    /// and of one who is alone.
    alone: [f64; 2],
    /// Milliseconds of a gigabyte.
    copy: [f64; 2],
    /// Milliseconds of one call to 1, 100 and 1,000 nodes when all are dialled for it, and to 1,000 again.
    first: [f64; 3],
    again: f64,
    /// MiB that apid has more after the call to 1,000.
    growth: f64,
    /// KiB of an idle client.
    idle: f64,
    /// Microseconds of a good client's call, 99 % of them: quiet, and under the worst attack,
    good: [f64; 2],
    /// and of a new connection and its first call.
    good_connects: [f64; 2],
}

impl Door {
    fn measure() -> Result<Self> {
        let door = printed("orlop-machined", "door")?;
        let figure = |line: &str, key: &str| largest(&door, &format!("door {line} "), key);
        let ways = |name: &str, key: &str| -> Result<[f64; 2]> {
            Ok([figure(&format!("{name}_straight"), key)?, figure(&format!("{name}_door"), key)?])
        };
        let attacked = |key: &str| -> Result<[f64; 2]> {
            Ok([figure("good_quiet", key)?, largest(&door, "door good_under_", key)?])
        };
        let first = |nodes: &str| figure(&format!("nodes_{nodes}"), "first_ms=");
        Ok(Self {
            rate: ways("unary", "rate=")?,
            p50: ways("unary", "p50_us=")?,
            p99: ways("unary", "p99_us=")?,
            paced: ways("unary", "paced_p50_us=")?,
            alone: ways("unary", "alone_p50_us=")?,
            copy: ways("copy", "p50_ms=")?,
            first: [first("1")?, first("100")?, first("1000")?],
            again: figure("nodes_1000", "again_ms=")?,
            growth: figure("nodes_1000", "growth_kib=")? / 1024.0,
            idle: figure("idle", "each_kib=")?,
            good: attacked("call_p99_us=")?,
            good_connects: attacked("connect_p99_us=")?,
        })
    }

    fn figures(&self) -> Vec<Figure> {
        let beside = |name, value| Some((name, value));
        vec![
            Figure {
                name: "calls through the front door, 64 callers",
                value: self.rate[1],
                unit: "/s",
                reference: beside("straight to machined", self.rate[0]),
                aim: Aim::Least(0.45),
            },
            Figure {
                name: "what the door adds to a call, p50, one caller",
                value: self.alone[1] - self.alone[0],
                unit: "us",
                reference: beside("straight", self.alone[0]),
                aim: Aim::Most(400.0),
            },
            Figure {
                name: "the same, 64 callers at half the door's rate",
                value: self.paced[1] - self.paced[0],
                unit: "us",
                reference: beside("straight", self.paced[0]),
                aim: Aim::Most(400.0),
            },
            Figure {
                // As fast as they can: 64 callers divided by the rate is what a call takes, of which
                // all but the way is waiting for the others.
                name: "the same, 64 callers as fast as they can",
                value: self.p50[1] - self.p50[0],
                unit: "us",
                reference: beside("straight", self.p50[0]),
                aim: Aim::Most(400.0),
            },
            Figure {
                name: "a call through the door, p99, 64 callers",
                value: self.p99[1],
                unit: "us",
                reference: beside("straight", self.p99[0]),
                // What is left of the rate.
                aim: Aim::Times(1.0 / 0.45),
            },
            Figure {
                name: "Copy of 1 GB through the front door",
                value: self.copy[1],
                unit: "ms",
                reference: beside("straight", self.copy[0]),
                // 60 % of its speed.
                aim: Aim::Times(1.0 / 0.6),
            },
            Figure {
                name: "one call to 1,000 nodes, all dialled for it",
                value: self.first[2],
                unit: "ms",
                reference: beside("one node", self.first[0]),
                aim: Aim::Most(1500.0),
            },
            Figure {
                name: "the same",
                value: self.first[2],
                unit: "ms",
                reference: beside("ten times 100 nodes", 10.0 * self.first[1]),
                aim: Aim::Times(1.2),
            },
            Figure {
                name: "one call to 1,000 nodes, again",
                value: self.again,
                unit: "ms",
                reference: None,
                aim: Aim::Most(1500.0),
            },
            Figure {
                name: "what apid grows by for 1,000 nodes",
                value: self.growth,
                unit: "MiB",
                reference: None,
                aim: Aim::Most(64.0),
            },
            Figure {
                name: "each of 10,000 idle clients, in apid",
                value: self.idle,
                unit: "KiB",
                reference: None,
                aim: Aim::Most(40.0),
            },
            Figure {
                name: "a good client's call under the worst attack, p99",
                value: self.good[1],
                unit: "us",
                reference: beside("quiet", self.good[0]),
                aim: Aim::Times(5.0),
            },
            Figure {
                name: "its new connections and their first calls, p99",
                value: self.good_connects[1],
                unit: "us",
                reference: beside("quiet", self.good_connects[0]),
                aim: Aim::Times(5.0),
            },
        ]
    }
}

/// The peer's disk; `None`, and why on stderr, where it cannot be made.
fn peer_image() -> Result<Option<String>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/peer");
    let output =
        Command::new(script).stderr(Stdio::inherit()).output().context("start benches/peer")?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success() && !path.is_empty()).then_some(path))
}

/// One line of the table.
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    reference: Option<(&'static str, f64)>,
    aim: Aim,
}

/// What a figure shall be.
enum Aim {
    /// So many times its reference at most.
    Times(f64),
    /// So many times its reference at least.
    Least(f64),
    /// So much at most.
    Most(f64),
    /// So much at most, better this.
    Within { floor: f64, target: f64 },
}

impl Figure {
    /// `None` when there is nothing to compare with.
    fn met(&self) -> Option<bool> {
        match (&self.aim, self.reference) {
            (Aim::Most(most) | Aim::Within { floor: most, .. }, _) => Some(self.value <= *most),
            (Aim::Times(times), Some((_, reference))) => Some(self.value <= times * reference),
            (Aim::Least(times), Some((_, reference))) => Some(self.value >= times * reference),
            (Aim::Times(_) | Aim::Least(_), None) => None,
        }
    }

    fn json(&self) -> serde_json::Value {
        let aim = match self.aim {
            Aim::Times(times) => json!({ "times_reference": times }),
            Aim::Least(times) => json!({ "at_least_times_reference": times }),
            Aim::Most(most) => json!({ "at_most": most }),
            Aim::Within { floor, target } => json!({ "at_most": floor, "better": target }),
        };
        let reference = self.reference.map(|(name, value)| json!({ "name": name, "value": value }));
        json!({ "name": self.name, "value": self.value, "unit": self.unit, "reference": reference, "aim": aim, "met": self.met() })
    }
}

fn figures(ours: &[Ours], theirs: &[f64], host: &Host) -> Result<Vec<Figure>> {
    let of = |value: fn(&Ours) -> f64| median(ours.iter().map(value).collect());
    let size = |name: &str| -> Result<f64> {
        let path = out().join(name);
        let bytes = fs::metadata(&path).with_context(|| format!("read {}", path.display()))?.len();
        Ok(mib(bytes))
    };
    let answered = of(|boot| boot.answered);
    let start = "init's first instruction to Memory over mTLS";
    let resident = ("containerd", of(|boot| mib(boot.containerd_resident)));
    let debian =
        (!theirs.is_empty()).then(|| ("Debian 12: containerd active", median(theirs.to_vec())));
    let mut figures = vec![
        Figure {
            name: start,
            value: answered,
            unit: "s",
            reference: Some(("containerd ready, same boot", of(|boot| boot.containerd))),
            aim: Aim::Times(2.0),
        },
        Figure { name: start, value: answered, unit: "s", reference: debian, aim: Aim::Times(0.6) },
        Figure {
            name: "resident memory of PID 1",
            value: of(|boot| mib(boot.pid1)),
            unit: "MiB",
            reference: Some(resident),
            aim: Aim::Most(12.0),
        },
        Figure {
            name: "resident memory of all Orlop processes",
            value: of(|boot| mib(boot.orlop)),
            unit: "MiB",
            reference: Some(resident),
            aim: Aim::Most(60.0),
        },
        Figure {
            name: "an event to 1,000 readers on the host, p99",
            value: host.events,
            unit: "ms",
            reference: None,
            aim: Aim::Most(50.0),
        },
        Figure {
            name: "a configuration of 2,000 lines, parsed and checked",
            value: host.configuration,
            unit: "ms",
            reference: None,
            aim: Aim::Most(20.0),
        },
        Figure {
            name: "the processes of a host with 5,000",
            value: host.processes,
            unit: "ms",
            reference: None,
            aim: Aim::Most(60.0),
        },
        Figure {
            name: "Copy of 1 GB over the API",
            value: host.copy,
            unit: "ms",
            reference: Some(("tar through a socket", host.tar)),
            // 70 % of its speed.
            aim: Aim::Times(1.0 / 0.7),
        },
        Figure {
            name: "out/orlop, stripped",
            value: size("orlop")?,
            unit: "MiB",
            reference: None,
            aim: Aim::Most(16.0),
        },
        Figure {
            name: "out/initramfs.img, root included",
            value: size("initramfs.img")?,
            unit: "MiB",
            reference: None,
            aim: Aim::Most(45.0),
        },
    ];
    figures.extend(host.door.figures());
    figures.extend(host.network_figures());
    figures.extend(host.kube_figures()?);
    figures.extend(host.cluster_figures()?);
    figures.extend(host.clock_figures()?);
    Ok(figures)
}

fn table(figures: &[Figure], accel: Accel) -> String {
    let mut text = format!(
        "\nMedians of {ROUNDS} boots, 2 processors, 2 GiB, {accel}\n\n{:<46} {:>10}  {:<52} {:<9} {}\n",
        "FIGURE", "VALUE", "REFERENCE", "AIM", "MET"
    );
    for figure in figures {
        let reference = match figure.reference {
            Some((name, value)) => {
                format!("{value:.2} {} {name} ({:.2} x)", figure.unit, figure.value / value)
            }
            None => "-".to_owned(),
        };
        let aim = match figure.aim {
            Aim::Times(times) => format!("<= {times:.1} x"),
            Aim::Least(times) => format!(">= {times:.2} x"),
            Aim::Most(most) => format!("<= {most:.0} {}", figure.unit),
            Aim::Within { floor, target } => format!("<= {floor} ({target}) {}", figure.unit),
        };
        let met = match figure.met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "no reference",
        };
        let value = format!("{:.2} {}", figure.value, figure.unit);
        let _ = writeln!(text, "{:<46} {value:>10}  {reference:<52} {aim:<9} {met}", figure.name);
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mib(bytes: u64) -> f64 {
    // Exact up to 2^53 bytes.
    bytes as f64 / f64::from(1 << 20)
}

fn seconds<const N: usize>(groups: &[String]) -> Result<[f64; N]> {
    let values: Vec<f64> = groups.iter().map(|group| group.parse()).collect::<Result<_, _>>()?;
    let Ok(values) = values.try_into() else { bail!("{} figures instead of {N}", groups.len()) };
    Ok(values)
}

const ROUNDS: usize = 3;
/// Our processes besides PID 1.
const ROLES: [&str; 3] = ["networkd", "routerd", "apid"];
const LIMIT: Duration = Duration::from_secs(240);
/// Between the last service's start and the look at what it all occupies.
const SETTLE: Duration = Duration::from_secs(3);
