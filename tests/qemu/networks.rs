//! What must hold of a node's network and clock, as its configuration wants them: a bond of two cards
//! with a lease, a card with a static address, VLANs on it, and time from a server in that network.
//!
//! Beside the node runs a guest of ours ([`Boot::tester`]) at the other end of the third card's cable: it
//! has the tags, a DHCP server on one of them, and a chronyd. The node's real-time clock is years late
//! at first. The checks share one node, in the order below, the last of them reboots it. As in
//! `smoke.rs`, the first check that fails is put to other machines, which is told by a line that begins
//! with `retried:`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use orlop_qemu::accel::Accel;
use orlop_qemu::{
    Boot, Cable, Cluster, Forward, Machine, Operator, READY, Tester, boot_again_after_int3, out,
    said, volume,
};
use tempfile::TempDir;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Machines die with the thread that started them: the main one.
    arguments.test_threads = Some(1);
    let world = Arc::new(Mutex::new(World::default()));
    let checks = CHECKS.iter().enumerate().map(|(index, (name, _))| {
        let world = Arc::clone(&world);
        Trial::test(*name, move || {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            world.check(index).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    libtest_mimic::run(&arguments, checks.collect()).exit_code()
}

type Check = fn(&mut Node) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("networks_bond_has_the_lease_and_its_ports_none", bonds),
    ("networks_bond_goes_on_without_either_of_its_cards", fails_over),
    ("networks_static_address_of_the_configuration_is_reached", is_reached_at_its_address),
    ("networks_vlans_have_their_address_and_their_lease", is_reached_by_its_tag),
    ("networks_services_wait_for_the_time_server", waits_for_time),
    ("networks_clock_that_was_years_late_is_set_and_kept", sets_its_clock),
    ("networks_boot_goes_on_without_the_time_server", boots_without_time),
];

/// The machines that run now.
#[derive(Default)]
struct World {
    node: Option<Node>,
    retried: bool,
    failed: bool,
}

impl World {
    /// Runs a check; if it is the first to fail, again on other machines, after the checks before it.
    fn check(&mut self, index: usize) -> Result<()> {
        let mut first = index;
        loop {
            ensure!(!self.failed, "the machines did not do: see the checks before");
            let Err(error) = (first..=index).try_for_each(|check| self.once(CHECKS[check].1))
            else {
                return Ok(());
            };
            self.node = None;
            self.failed = self.retried;
            if self.failed {
                return Err(error);
            }
            self.retried = true;
            eprintln!("\nretried: {}: {error:#}", CHECKS[index].0);
            first = 0;
        }
    }

    fn once(&mut self, check: Check) -> Result<()> {
        let node = match &mut self.node {
            Some(node) => node,
            none => none.insert(boot_again_after_int3(Node::boot)?),
        };
        check(node).with_context(|| node.machine.console().tail())
    }
}

struct Node {
    machine: Machine,
    operator: Operator,
    cluster: Cluster,
    /// Whether apid had started before there was a time server.
    hasty: bool,
    neighbour: Neighbour,
    folder: TempDir,
}

impl Node {
    fn boot() -> Result<Self> {
        let accel = Accel::from_environment()?;
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::in_folder(folder.path())?;
        let forward = Forward::from_free(50000)?;
        let (here, there) = Cable::new()?;
        let config = configuration(&cluster.controlplane()?, "1h")?;
        // As an earlier boot left it.
        let before = folder.path().join("before");
        let drift = before.join(DRIFT.trim_start_matches("/var/"));
        std::fs::create_dir_all(drift.parent().context("a file in a folder")?)?;
        std::fs::write(drift, "17.2500\n")?;
        let machine = Boot::node(accel)?
            .argument("talos.config=metal-iso")
            .network_twice(&[forward])
            .cable(here)
            .disc(&volume::iso(folder.path(), &config)?)
            .scratch_disk(&volume::empty(folder.path(), "STATE")?)
            .scratch_disk(&volume::filled(folder.path(), "EPHEMERAL", 32 << 20, &before)?)
            .clock("2020-01-01T00:00:00")
            .start()?;
        let mut neighbour = Neighbour::boot(accel, there)?;
        let timed = said("machined", r"service\[timed\]\(Running\): .*tarted ");
        let apid = said("machined", r"service\[apid\]\(Running\): ");
        machine.console().wait(&timed, BOOT_LIMIT)?;
        let hasty = machine.console().wait(&apid, Duration::ZERO).is_ok();
        neighbour.serve_time()?;
        machine.console().wait(READY, BOOT_LIMIT)?;
        let operator = Operator::new(&cluster, forward.host);
        Ok(Self { machine, operator, cluster, hasty, neighbour, folder })
    }

    /// The IPv4 addresses of a link.
    fn addresses(&self, link: &str) -> Result<Vec<String>> {
        let rows = self.operator.rows(&["interfaces"])?;
        let of = rows.iter().filter(|row| row.text("name") == link);
        let addresses = of.map(|row| row.text("address").to_owned());
        Ok(addresses.filter(|address| address.contains('.')).collect())
    }

    /// Whether there is a route through `link` to `destination`.
    fn has_route(&self, destination: &str, link: &str) -> Result<()> {
        let rows = self.operator.rows(&["routes"])?;
        let mut rows = rows.iter();
        let found =
            rows.any(|row| row.text("destination") == destination && row.text("interface") == link);
        ensure!(found, "no route to {destination} through {link}: {rows:?}");
        Ok(())
    }

    /// Asks the node from the neighbour, at one of its addresses.
    fn asked_at(&mut self, address: &str) -> Result<()> {
        let (orlop, client) = (out().join("orlop"), self.cluster.talosconfig());
        let command = format!(
            "{} orlopctl --talosconfig {} -e {address} version",
            orlop.display(),
            client.display()
        );
        until(|| self.neighbour.shell.output(&command, RECOVERY).map(drop))
    }

    /// The real-time clock, in seconds since 1970, and the host's.
    fn clocks(&self) -> Result<(u64, u64)> {
        let text = self.operator.run(&["read", "/sys/class/rtc/rtc0/since_epoch"])?;
        Ok((text.trim().parse()?, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()))
    }
}

/// What `machine.network` and `machine.time` say in these checks.
fn configuration(text: &str, boot_timeout: &str) -> Result<String> {
    let mut document: serde_yaml::Value = serde_yaml::from_str(text)?;
    let machine = &mut document["machine"];
    machine["network"] = serde_yaml::from_str(NETWORK)?;
    machine["time"] =
        serde_yaml::from_str(&format!("{{servers: [10.10.0.1], bootTimeout: {boot_timeout}}}"))?;
    let names = machine["certSANs"].as_sequence_mut().context("no certSANs")?;
    names.extend(["10.10.0.5", "10.20.0.5"].map(serde_yaml::Value::from));
    Ok(serde_yaml::to_string(&document)?)
}

const NETWORK: &str = "\
hostname: networks
interfaces:
- interface: bond0
  dhcp: true
  bond: {interfaces: [eth0, eth1], mode: active-backup, miimon: 100}
- interface: eth2
  cidr: 10.10.0.5/24
  vlans:
  - {vlanId: 20, cidr: 10.20.0.5/24, routes: [{network: 10.21.0.0/16, gateway: 10.20.0.1}]}
  - {vlanId: 30, dhcp: true}
";

/// The guest at the other end of the cable.
struct Neighbour {
    shell: Tester,
    chronyd: PathBuf,
    _machine: Machine,
}

impl Neighbour {
    fn boot(accel: Accel, cable: Cable) -> Result<Self> {
        let chronyd = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.ci/unpacked"))
            .arg("tests/chrony.lock")
            .output()
            .context("unpack chrony")?;
        ensure!(chronyd.status.success(), "unpack chrony: {chronyd:?}");
        let chronyd = PathBuf::from(String::from_utf8(chronyd.stdout)?.trim());
        let machine = Boot::tester(accel, env!("CARGO_BIN_EXE_tester").as_ref())?
            .memory_mib(1024)
            .cable(cable)
            .start()?;
        let mut shell = machine.tester()?;
        let set_up = [
            "ip link set lo up",
            "ip link set eth0 up",
            "ip address add 10.10.0.1/24 dev eth0",
            "for tag in 20 30; do ip link add link eth0 name eth0.$tag type vlan id $tag",
            "ip address add 10.$tag.0.1/24 dev eth0.$tag",
            "ip link set eth0.$tag up; done",
            // Neither a router nor a resolver.
            "dnsmasq --conf-file=/dev/null --port=0 --interface=eth0.30 --bind-interfaces --no-ping \
             --leasefile-ro --user=root --pid-file= --dhcp-option=3 --dhcp-option=6 \
             --dhcp-range=10.30.0.100,10.30.0.109,255.255.255.0,1h",
        ];
        shell.output(&set_up.join(" && "), BOOT_LIMIT).with_context(|| machine.console().tail())?;
        Ok(Self { shell, chronyd: chronyd.join("usr/sbin/chronyd"), _machine: machine })
    }

    fn serve_time(&mut self) -> Result<()> {
        let config =
            "local stratum 5\\nallow\\ncmdport 0\\nbindcmdaddress /\\npidfile /run/chronyd.pid\\n";
        let command = format!(
            "printf '{config}' >/run/chrony.conf && {} -x -u root -f /run/chrony.conf >/dev/null",
            self.chronyd.display()
        );
        self.shell.output(&command, RECOVERY).map(drop)
    }

    fn stop_time(&mut self) -> Result<()> {
        self.shell.output("kill $(cat /run/chronyd.pid)", RECOVERY).map(drop)
    }
}

fn bonds(node: &mut Node) -> Result<()> {
    let addresses = node.addresses("bond0")?;
    ensure!(addresses == ["10.0.2.15/24"], "bond0 has {addresses:?}");
    for port in ["eth0", "eth1"] {
        let addresses = node.addresses(port)?;
        ensure!(addresses.is_empty(), "{port} has {addresses:?}");
    }
    node.has_route("0.0.0.0/0", "bond0")?;
    let bond = node.operator.run(&["read", BOND])?;
    ensure!(bond.contains("(active-backup)"), "{bond}");
    ensure!(bond.matches("Slave Interface: ").count() == 2, "{bond}");
    Ok(())
}

/// Each is pulled once, so the one that carries the packets is.
fn fails_over(node: &mut Node) -> Result<()> {
    for (card, other) in [(0, "eth1"), (1, "eth0")] {
        node.machine.set_card(card, false)?;
        // The node is asked through the bond.
        until(|| {
            let bond = node.operator.run(&["read", BOND])?;
            ensure!(bond.contains(&format!("Currently Active Slave: {other}\n")), "{bond}");
            Ok(())
        })?;
        node.machine.set_card(card, true)?;
        until(|| {
            let bond = node.operator.run(&["read", BOND])?;
            ensure!(!bond.contains("MII Status: down"), "{bond}");
            Ok(())
        })?;
    }
    let addresses = node.addresses("bond0")?;
    ensure!(addresses == ["10.0.2.15/24"], "bond0 has {addresses:?}");
    Ok(())
}

fn is_reached_at_its_address(node: &mut Node) -> Result<()> {
    let addresses = node.addresses("eth2")?;
    ensure!(addresses == ["10.10.0.5/24"], "eth2 has {addresses:?}");
    node.asked_at("10.10.0.5")
}

fn is_reached_by_its_tag(node: &mut Node) -> Result<()> {
    let addresses = node.addresses("eth2.20")?;
    ensure!(addresses == ["10.20.0.5/24"], "eth2.20 has {addresses:?}");
    node.has_route("10.21.0.0/16", "eth2.20")?;
    // The neighbour has this network on its tag alone.
    node.asked_at("10.20.0.5")?;
    until(|| {
        let addresses = node.addresses("eth2.30")?;
        let leased = matches!(&addresses[..], [only] if only.starts_with("10.30.0.10"));
        ensure!(leased, "eth2.30 has {addresses:?}");
        Ok(())
    })
}

fn waits_for_time(node: &mut Node) -> Result<()> {
    ensure!(!node.hasty, "apid had started when there was no time server yet");
    node.machine.console().wait(TOO_EARLY, Duration::ZERO).map(drop)
}

fn sets_its_clock(node: &mut Node) -> Result<()> {
    let log = node.operator.run(&["logs", "timed"])?;
    ensure!(log.contains("the clock is set") && log.contains("the clock is right"), "{log}");
    let rows = node.operator.rows(&["time"])?;
    let [row] = &rows[..] else { bail!("{rows:?}") };
    ensure!(row.text("server") == "10.10.0.1", "{row:?}");
    let month = |key: &str| row.text(key).chars().take(MONTH).collect::<String>();
    ensure!(month("node_time") == month("server_time"), "{row:?}");
    ensure!(!month("node_time").starts_with("2020"), "{row:?}");
    let (rtc, host) = node.clocks()?;
    ensure!(rtc.abs_diff(host) < CLOSE_SECS, "the real-time clock shows {rtc}, the host's {host}");
    let devices = node.operator.run(&["list", "/dev"])?;
    if devices.contains("ptp0") {
        node.operator.run(&["time", "--check", "/dev/ptp0"])?;
    } else {
        println!("\nskipped: the clock of the hypervisor: this one shows none (KVM does)");
    }
    Ok(())
}

fn boots_without_time(node: &mut Node) -> Result<()> {
    node.neighbour.stop_time()?;
    let path = node.folder.path().join("patient.yaml");
    std::fs::write(&path, configuration(&node.cluster.controlplane()?, "20s")?)?;
    let path = path.to_str().context("a path in UTF-8")?;
    let mark = node.machine.console().mark();
    node.operator.run(&["apply-config", "-f", path, "--mode", "reboot"])?;
    node.machine.console().wait_after(mark, "init: started", BOOT_LIMIT)?;
    node.machine.console().wait_after(mark, READY, BOOT_LIMIT)?;
    // The real-time clock was set, so nobody has to guess the time now.
    let guessed = node.machine.console().wait_after(mark, TOO_EARLY, Duration::ZERO);
    ensure!(guessed.is_err(), "the real-time clock was not kept");
    let (rtc, host) = node.clocks()?;
    ensure!(rtc.abs_diff(host) < CLOSE_SECS, "the real-time clock shows {rtc}, the host's {host}");
    // So was what the oscillator needs, which nobody has told since.
    until(|| {
        let kept: f64 = node.operator.run(&["read", DRIFT])?.trim().parse()?;
        let rows = node.operator.rows(&["time", "--sources"])?;
        let used = rows.first().context("no clock")?.real("frequency_ppm");
        ensure!((kept - used).abs() < 0.01, "{kept} ppm were kept, {used} are used");
        Ok(())
    })?;
    let complaint = node.operator.refused(&["time"])?;
    ensure!(complaint.contains("10.10.0.1"), "{complaint}");
    // The server comes back, and its time is taken up.
    node.neighbour.serve_time()?;
    until(|| node.operator.run(&["time"]).map(drop))
}

/// Tries again until it passes; after [`RECOVERY`], its last failure. Each try is a question to a guest,
/// which takes its time.
fn until<T>(mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        match check() {
            Err(_) if Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// What timed keeps of the oscillator.
const DRIFT: &str = "/var/lib/orlop/timed/drift";
const BOND: &str = "/proc/net/bonding/bond0";
/// What machined says of a clock that stands in 2020.
const TOO_EARLY: &str = "the clock stands before this build was made";
/// `2026-11`
const MONTH: usize = 7;
/// How far the clocks of the host, of the neighbour that took it at its boot, and of the node may be
/// apart on a busy machine.
const CLOSE_SECS: u64 = 120;
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const RECOVERY: Duration = Duration::from_secs(120);
