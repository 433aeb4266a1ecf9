//! What must hold on a machine that really boots: the promises of the node, one named check each.
//!
//! A boot takes long where the guest's instructions are translated, so checks of the same machine
//! share one: it is started by the first of them and ends when a check of another machine runs. The
//! checks run one after the other, in the order below; each can also be run alone (`make qemu
//! TEST=reboot`).
//!
//! A translated machine is at times so late that a promise cannot be kept. So a check that fails is
//! put to another machine, after the checks before it, twice at most for a kind of machine. That is
//! told, with why and with the console, in a line that begins with `retried:`; `make test` counts those.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_qemu::accel::Accel;
use orlop_qemu::serve::Server;
use orlop_qemu::{
    Boot, Cluster, Forward, Machine, Mark, Operator, READY, Row, boot_again_after_int3, said,
    volume,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Machines die with the thread that started them: the main one.
    arguments.test_threads = Some(1);
    let world = Arc::new(Mutex::new(World::default()));
    let checks = CHECKS.iter().enumerate().map(|(index, (name, ..))| {
        let world = Arc::clone(&world);
        Trial::test(*name, move || {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            world.check(index).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    libtest_mimic::run(&arguments, checks.collect()).exit_code()
}

/// A promise: its name, the machine it is checked on, the check.
type Check = (&'static str, Kind, fn(&mut Node) -> Result<()>);

const CHECKS: &[Check] = &[
    ("boots_to_ready_with_every_service_healthy", Kind::Plain, boots_to_ready),
    ("shows_its_memory_over_mutual_tls", Kind::Plain, shows_memory),
    ("refuses_a_client_without_a_certificate", Kind::Plain, refuses_no_certificate),
    ("refuses_a_certificate_of_another_ca", Kind::Plain, refuses_another_ca),
    ("says_on_the_console_which_hardening_holds", Kind::Plain, says_hardening),
    ("runs_containers_under_a_shim_for_each_namespace", Kind::Plain, runs_containers),
    ("answers_every_command_of_the_command_line", Kind::Plain, answers_commands),
    ("follows_a_log_until_the_client_goes", Kind::Plain, follows_log),
    ("reaps_an_orphan", Kind::Plain, reaps_orphan),
    ("brings_killed_services_back", Kind::Plain, brings_back_services),
    (
        "brings_a_killed_containerd_back_and_its_containers_live_on",
        Kind::Plain,
        brings_back_containerd,
    ),
    ("lives_through_kills_of_everything_while_a_client_asks", Kind::Plain, lives_through_kills),
    ("lives_through_bombs_hogs_and_deaf_services_in_their_cgroups", Kind::Plain, holds_limits),
    ("lives_with_a_full_var", Kind::Plain, lives_with_full_var),
    ("restarts_a_service_when_asked_and_stops_none", Kind::Plain, restarts_when_asked),
    ("reboots_and_comes_back_with_the_same_identity", Kind::Plain, reboots),
    ("shuts_down_and_powers_off", Kind::Plain, shuts_down),
    ("takes_its_configuration_from_a_labelled_disc", Kind::Static, configured_from_disc),
    ("leaves_an_ignored_interface_alone", Kind::Static, ignores_interface),
    ("keeps_the_address_of_the_ip_argument", Kind::Static, keeps_static_address),
    ("shuts_down_in_order_when_its_power_button_is_pressed", Kind::Static, obeys_power_button),
    ("tells_the_line_and_column_of_a_broken_configuration", Kind::Broken, tells_broken_line),
    ("does_not_reboot_over_a_broken_configuration", Kind::Broken, stays_up_when_broken),
    ("boots_from_its_disk_under_uefi", Kind::Disk, boots_from_disk),
    ("shows_who_it_is_while_it_has_no_configuration", Kind::Fresh, shows_fingerprint),
    ("tells_strangers_of_its_disks_while_it_has_no_configuration", Kind::Fresh, tells_disks),
    ("takes_no_broken_configuration", Kind::Fresh, takes_no_broken_configuration),
    ("goes_by_a_configuration_that_is_applied", Kind::Fresh, is_configured),
    ("applies_a_changed_configuration_without_a_reboot", Kind::Fresh, applies_a_change),
    ("shows_what_services_say_as_long_as_debug_is_true", Kind::Fresh, shows_logs_with_debug),
    ("takes_back_a_configuration_that_was_tried", Kind::Fresh, takes_back_what_was_tried),
    ("stages_a_configuration_for_the_next_boot", Kind::Fresh, stages_for_the_next_boot),
    ("keeps_its_configuration_over_a_reboot", Kind::Fresh, keeps_configuration),
    ("keeps_values_in_meta_the_old_or_the_new_when_it_is_cut_off", Kind::Fresh, keeps_meta),
    ("forgets_its_configuration_at_a_reset", Kind::Fresh, forgets_configuration),
];

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// One network card with DHCP; the configuration comes over HTTP; an agent is inside.
    Plain,
    /// Two cards: eth0 ignored, eth1 with the address of `ip=`; the configuration is on a disc, and a
    /// volume for what is under /var.
    Static,
    /// A configuration with a mistake, on a FAT disk.
    Broken,
    /// The disk image alone, under UEFI; it has no configuration.
    Disk,
    /// No configuration either, but volumes to keep one, and what is under /var, on, and a META partition.
    Fresh,
}

/// The machine that runs now, and why others do not.
#[derive(Default)]
struct World {
    current: Option<(Kind, Node)>,
    failed: HashMap<Kind, String>,
    retried: HashMap<Kind, usize>,
}

impl World {
    /// Runs a check; one that fails is put to another machine, up to [`RETRIES`] times for each kind.
    fn check(&mut self, index: usize) -> Result<()> {
        let (name, kind, _) = CHECKS[index];
        let mut first = index;
        loop {
            let mut of_kind = (first..=index).filter(|check| CHECKS[*check].1 == kind);
            let Err(error) = of_kind.try_for_each(|check| self.once(check)) else { return Ok(()) };
            let retried = self.retried.entry(kind).or_insert(0);
            if *retried == RETRIES {
                return Err(error);
            }
            *retried += 1;
            eprintln!("\nretried: {name}: {error:#}");
            (self.current, _) = (None, self.failed.remove(&kind));
            first = 0;
        }
    }

    fn once(&mut self, index: usize) -> Result<()> {
        let (_, kind, check) = CHECKS[index];
        let result = self.node(kind).and_then(check);
        match &self.current {
            Some((_, node)) if result.is_err() => {
                result.map_err(|error| anyhow!("{error:#}\n{}", node.machine.console().tail()))
            }
            _ => result,
        }
    }

    /// The machine of this kind, booted unless it runs already.
    fn node(&mut self, kind: Kind) -> Result<&mut Node> {
        if let Some(why) = self.failed.get(&kind) {
            bail!("the machine of this check did not boot: {why}");
        }
        if self.current.as_ref().is_none_or(|(is, node)| *is != kind || node.off) {
            self.current = None;
            match boot_again_after_int3(|| Node::boot(kind)) {
                Ok(node) => self.current = Some((kind, node)),
                Err(error) => {
                    self.failed.insert(kind, "see the first check of its kind".to_owned());
                    return Err(error);
                }
            }
        }
        self.current.as_mut().map(|(_, node)| node).context("booted above")
    }
}

/// A machine with what it was booted from.
struct Node {
    machine: Machine,
    operator: Operator,
    cluster: Cluster,
    port: u16,
    /// The configuration it was given, when it was changed.
    broken_at: Option<usize>,
    off: bool,
    folder: TempDir,
}

impl Node {
    fn boot(kind: Kind) -> Result<Self> {
        let accel = Accel::from_environment()?;
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::in_folder(folder.path())?;
        let mut forward = Forward::from_free(50000)?;
        let mut broken_at = None;
        let boot = match kind {
            Kind::Disk => Boot::uefi_disk(accel)?,
            Kind::Plain => {
                let server = Server::of("machine.yaml", cluster.controlplane()?)?;
                Boot::node(accel)?
                    .argument(format!("talos.config={}", server.url()))
                    .argument("talos.hostname=smoke")
                    .network(&[forward])
                    .agent(env!("CARGO_BIN_EXE_agent").as_ref())
            }
            Kind::Static => {
                let [a, b, c, d] = STATIC_ADDRESS;
                forward.guest.0 = STATIC_ADDRESS.into();
                Boot::node(accel)?
                    .argument("talos.config=metal-iso")
                    .argument("talos.network.interface.ignore=eth0")
                    .argument(format!("ip={a}.{b}.{c}.{d}::10.0.3.2:255.255.255.0:static:eth1:off"))
                    .network(&[])
                    .network(&[forward])
                    .disc(&volume::iso(folder.path(), &cluster.controlplane()?)?)
                    .kept_disk(&volume::empty(folder.path(), EPHEMERAL)?)
            }
            Kind::Fresh => Boot::node(accel)?
                .network(&[forward])
                .scratch_disk(&volume::empty(folder.path(), "STATE")?)
                .scratch_disk(&volume::empty(folder.path(), EPHEMERAL)?)
                .kept_disk(&volume::meta(folder.path())?),
            Kind::Broken => {
                let (text, line) = broken(&cluster.controlplane()?)?;
                broken_at = Some(line);
                Boot::node(accel)?
                    .argument("talos.config=metal-iso")
                    .network(&[forward])
                    .disk(&volume::fat(folder.path(), &text)?)
            }
        };
        let machine = boot.start()?;
        let booted = match kind {
            Kind::Plain | Kind::Static => READY,
            Kind::Broken => &said("machined", "the node does not boot"),
            Kind::Disk => &said("init", "started"),
            Kind::Fresh => INVITATION,
        };
        machine.console().wait(booted, BOOT_LIMIT)?;
        let operator = Operator::new(&cluster, forward.host);
        Ok(Self { machine, operator, cluster, port: forward.host, broken_at, off: false, folder })
    }

    /// Asks for the services until all are healthy; their rows.
    fn healthy(&self, limit: Duration) -> Result<Vec<Row>> {
        until(limit, || {
            let services = self.operator.rows(&["services"])?;
            let ill = services.iter().find(|row| !healthy(row));
            ensure!(services.len() >= SERVICES.len(), "only {} services", services.len());
            ensure!(ill.is_none(), "not healthy: {ill:?}");
            Ok(services)
        })
    }
}

fn boots_to_ready(node: &mut Node) -> Result<()> {
    let services = node.healthy(SOON)?;
    for wanted in SERVICES {
        ensure!(services.iter().any(|row| row.text("service") == wanted), "no service {wanted}");
    }
    Ok(())
}

fn shows_memory(node: &mut Node) -> Result<()> {
    let text = node.operator.run(&["memory"])?;
    let headings: Vec<_> = text.lines().next().unwrap_or_default().split_whitespace().collect();
    let wanted = ["NODE", "TOTAL", "USED", "FREE", "SHARED", "BUFFERS", "CACHE", "AVAILABLE"];
    ensure!(headings == wanted, "headings: {headings:?}");
    let rows = node.operator.rows(&["memory"])?;
    let [row] = rows.as_slice() else { bail!("one node, {} rows", rows.len()) };
    ensure!(row.text("node") == format!("127.0.0.1:{}", node.port), "{row:?}");
    let total = row.number("total_bytes");
    ensure!((1_600 << 20..=2_048 << 20).contains(&total), "a machine of 2 GiB has {total} bytes");
    ensure!((1..total).contains(&row.number("used_bytes")), "{row:?}");
    Ok(())
}

/// Spoken to directly: the command line would not even try.
fn refuses_no_certificate(node: &mut Node) -> Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&node.cluster.ca()?)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut session =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1")?)?;
    let mut socket = TcpStream::connect(("127.0.0.1", node.port))?;
    socket.set_read_timeout(Some(SOON))?;
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    // In TLS 1.3 the server's refusal is the answer to the first bytes.
    let answer = stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .and_then(|()| stream.read(&mut [0; 64]));
    match answer {
        Err(error) if error.to_string().contains("CertificateRequired") => Ok(()),
        other => bail!("instead of asking for a certificate: {other:?}"),
    }
}

fn refuses_another_ca(node: &mut Node) -> Result<()> {
    let (theirs, mixed) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let other = Cluster::in_folder(theirs.path())?;
    let mixed = node.cluster.with_certificate_of(&other, mixed.path())?;
    let stranger = Operator::new(&mixed, node.port);
    let said = stranger.refused(&["memory"])?;
    ensure!(!said.trim().is_empty(), "refused without a word");
    // The same call with the right certificate passes.
    node.operator.run(&["memory"]).map(|_| ())
}

fn says_hardening(node: &mut Node) -> Result<()> {
    for line in
        ["hardening kernel arguments hold", "hardening sysctls hold", "required sysctls hold"]
    {
        node.machine.console().wait(&said("machined", line), SOON)?;
    }
    Ok(())
}

fn runs_containers(node: &mut Node) -> Result<()> {
    // The last of them is not waited for by the boot.
    node.healthy(SOON)?;
    let containers = node.operator.rows(&["containers"])?;
    for id in CONTAINERS {
        let row = containers.iter().find(|row| row.text("id") == id);
        let row = row.with_context(|| format!("no container {id} among {containers:?}"))?;
        ensure!(row.text("namespace") == "system" && row.text("status") == "RUNNING", "{row:?}");
    }
    let mut agent = node.machine.agent()?;
    // Where a container is being created, containerd asks by a process of the same name.
    until(SOON, || {
        let shims = agent.pids("containerd-shim-runc-v2")?;
        // One for each namespace of containerd: the daemons', and that of the API server.
        ensure!(shims.len() == 2, "{} shims", shims.len());
        Ok(())
    })
}

fn answers_commands(node: &mut Node) -> Result<()> {
    // The API server is not waited for by the boot.
    node.healthy(SOON)?;
    let run = |args: &[&str], wanted: &str| {
        let text = node.operator.run(args)?;
        ensure!(text.contains(wanted), "{args:?} does not say {wanted:?}:\n{text}");
        Ok(())
    };
    run(&["version"], "Tag:")?;
    run(&["services"], "SERVICE")?;
    run(&["service", "apid"], "Health check successful")?;
    run(&["service", "apiserver"], "Health check successful")?;
    run(&["containers", "--kubernetes"], "apiserver")?;
    run(&["processes"], "/bin/containerd")?;
    run(&["mounts"], "/dev/loop0")?;
    run(&["stats"], "apid")?;
    run(&["logs", "apid"], "listening")?;
    run(&["dmesg"], "Linux version")?;
    run(&["interfaces"], "eth0")?;
    run(&["routes"], "10.0.2.2")?;
    run(&["list", "/etc"], "os-release")?;
    run(&["usage", "/etc"], "ssl/certs")?;
    run(&["read", "/proc/sys/kernel/ostype"], "Linux")?;
    run(&["netstat", "--listening"], "50000")?;
    run(&["logs", "machined"], "ready in")?;
    run(&["timeline"], "apid")?;
    run(&["metrics"], "orlop_service_healthy")?;
    let folder = node.folder.path().join("copied");
    std::fs::create_dir(&folder)?;
    run(&["copy", "/etc", folder.to_str().context("a path in UTF-8")?], "")?;
    ensure!(folder.join("os-release").exists(), "/etc was not copied");
    let nodes = node.operator.run(&["-n", "127.0.0.1,10.0.2.15", "version"])?;
    ensure!(nodes.contains("10.0.2.15"), "two nodes asked through one endpoint:\n{nodes}");
    Ok(())
}

fn follows_log(node: &mut Node) -> Result<()> {
    use std::io::BufRead as _;
    let mut follower = node.operator.command(60, &["dmesg", "--follow"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let output = follower.stdout.take().context("no output")?;
    let mut lines = std::io::BufReader::new(output).lines();
    let first = lines.next();
    let still_there = follower.try_wait()?.is_none();
    // `timeout`, which runs it, passes this on.
    kill(Pid::from_raw(follower.id().try_into()?), Signal::SIGTERM)?;
    follower.wait()?;
    let first = first.context("not a line")??;
    ensure!(first.contains("Linux version"), "{first}");
    ensure!(still_there, "ended by itself");
    node.operator.run(&["memory"]).map(|_| ())
}

fn reaps_orphan(node: &mut Node) -> Result<()> {
    let mut agent = node.machine.agent()?;
    let orphan = agent.orphan()?;
    let state = agent.state(orphan)?;
    ensure!(state.ends_with(" 1"), "PID 1 has not adopted {orphan}: {state}");
    until(SOON, || {
        let state = agent.state(orphan)?;
        ensure!(state == "gone", "{orphan} is left as {state}");
        Ok(())
    })
}

fn brings_back_services(node: &mut Node) -> Result<()> {
    node.healthy(RECOVERY)?;
    let mut agent = node.machine.agent()?;
    let mut killed = HashMap::new();
    for id in CONTAINERS {
        killed.insert(id, agent.kill(id)?);
    }
    until(RECOVERY, || {
        for (id, old) in &killed {
            let now = agent.pids(id)?;
            ensure!(now.iter().any(|pid| !old.contains(pid)), "{id} is not back: {now:?}");
        }
        Ok(())
    })?;
    node.healthy(RECOVERY).map(|_| ())
}

fn brings_back_containerd(node: &mut Node) -> Result<()> {
    let mut agent = node.machine.agent()?;
    let apid = agent.pids("apid")?;
    let old = agent.kill("containerd")?;
    until(RECOVERY, || {
        let now = agent.pids("containerd")?;
        ensure!(now.iter().any(|pid| !old.contains(pid)), "containerd is not back: {now:?}");
        Ok(())
    })?;
    node.healthy(RECOVERY)?;
    let after = agent.pids("apid")?;
    ensure!(after == apid, "apid was {apid:?} and is {after:?}");
    Ok(())
}

fn lives_through_kills(node: &mut Node) -> Result<()> {
    let mut agent = node.machine.agent()?;
    let (over, operator) = (AtomicBool::new(false), node.operator.clone());
    let asking = || -> Result<(u32, Vec<String>)> {
        let (mut answered, mut refusals) = (0, Vec::new());
        while !over.load(Ordering::Relaxed) {
            let output = operator.command(30, &["memory"]).output()?;
            if output.status.success() {
                answered += 1;
            } else {
                refusals.push(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        Ok((answered, refusals))
    };
    let (answered, refusals) = thread::scope(|scope| {
        let client = scope.spawn(asking);
        let killed = (0..KILLS).try_for_each(|i| {
            let id = KILLED[i % KILLED.len()];
            // The console tells it: to look for the process would keep the machine from starting it.
            let mark = node.machine.console().mark();
            agent.kill(id)?;
            let back = said("machined", &format!(r"service\[{id}\]\(Running\): .*tarted "));
            node.machine.console().wait_after(mark, &back, RECOVERY).map(drop)
        });
        over.store(true, Ordering::Relaxed);
        let asked = client.join().map_err(|_| anyhow!("the client panicked"))?;
        killed.and(asked)
    })?;
    // A client sees that nobody answers for a while, and nothing else.
    let strange = refusals.iter().find(|said| {
        let expected = ["Unavailable", "connect to", "broke off", "peer closed connection"];
        !expected.iter().any(|word| said.contains(word))
    });
    ensure!(strange.is_none(), "a client was told: {strange:?}");
    ensure!(answered > 0, "nobody was answered: {refusals:?}");
    node.healthy(RECOVERY)?;
    first_process_is_small(node)
}

fn first_process_is_small(node: &Node) -> Result<()> {
    let processes = node.operator.rows(&["processes"])?;
    let first = processes.iter().find(|row| row.number("pid") == 1).context("no PID 1")?;
    let resident = first.number("resident_bytes");
    ensure!(resident <= 16 << 20, "PID 1 has {resident} bytes resident");
    Ok(())
}

fn holds_limits(node: &mut Node) -> Result<()> {
    node.healthy(RECOVERY)?;
    let mut agent = node.machine.agent()?;
    // A daemon of ours may have 128 threads and processes. It may fail for want of one meanwhile.
    let bomb = agent.bomb("timed")?;
    let count: usize = bomb.split(' ').next().unwrap_or_default().parse()?;
    ensure!((1..=128).contains(&count), "a fork bomb had {bomb}");
    node.healthy(RECOVERY)?;
    // And timed, 32 MiB.
    let before = agent.pids("timed")?;
    let hog = agent.hog("timed")?;
    ensure!(hog == "killed", "a hog had {hog}");
    agent.orphans(ORPHANS)?;
    node.healthy(RECOVERY)?;
    // Only who took the memory was killed for it.
    ensure!(agent.pids("timed")? == before, "timed went as well");
    until(RECOVERY, || {
        let processes = node.operator.rows(&["processes"])?;
        let dead = processes.iter().filter(|row| row.text("state") == "Z").count();
        ensure!(dead == 0, "{dead} of {} processes are zombies", processes.len());
        Ok(())
    })?;
    // It hears no TERM: it is killed when its time is over.
    agent.freeze("timed")?;
    let mark = node.machine.console().mark();
    node.operator.command(120, &["service", "timed", "restart"]).output()?;
    let back = said("machined", r"service\[timed\]\(Running\): .*tarted ");
    node.machine.console().wait_after(mark, &back, RECOVERY)?;
    node.healthy(RECOVERY)?;
    ensure!(agent.pids("timed")?.iter().all(|pid| !before.contains(pid)), "the deaf one lives on");
    first_process_is_small(node)
}

fn lives_with_full_var(node: &mut Node) -> Result<()> {
    let mut agent = node.machine.agent()?;
    let taken = agent.fill("/var")?;
    let asked = (|| {
        ensure!(taken > 1 << 20, "/var had room for {taken} bytes only");
        node.operator.run(&["memory"])?;
        agent.kill("routerd").map(drop)
    })();
    agent.clear("/var")?;
    asked?;
    node.healthy(RECOVERY).map(|_| ())
}

fn restarts_when_asked(node: &mut Node) -> Result<()> {
    let mut agent = node.machine.agent()?;
    let old = agent.pids("networkd")?;
    node.operator.run(&["service", "networkd", "restart"])?;
    until(RECOVERY, || {
        let now = agent.pids("networkd")?;
        ensure!(now.iter().any(|pid| !old.contains(pid)), "networkd is not back: {now:?}");
        Ok(())
    })?;
    node.healthy(RECOVERY)?;
    let refused = node.operator.refused(&["service", "apid", "stop"])?;
    ensure!(refused.contains("doesn't support stop operation via API"), "{refused}");
    Ok(())
}

fn reboots(node: &mut Node) -> Result<()> {
    let identity = |operator: &Operator| -> Result<String> {
        let version = operator.run(&["version"])?;
        let interfaces = operator.rows(&["interfaces"])?;
        let mac = interfaces
            .iter()
            .find(|row| row.text("name") == "eth0")
            .map(|row| row.text("mac").to_owned());
        Ok(format!("{version}{mac:?}"))
    };
    let before = identity(&node.operator)?;
    // It reboots when there is no room to write to as well.
    node.machine.agent()?.fill("/var")?;
    let mark: Mark = node.machine.console().mark();
    // Two at once: one reboots the node, the other is told so or is too late.
    let mut first = node.operator.command(60, &["reboot"]);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let second = node.operator.command(60, &["reboot"]).output()?;
    let first = first.wait()?;
    ensure!(first.success() || second.status.success(), "neither was taken: {second:?}");
    node.machine.console().wait_after(mark, &said("machined", "rebooting now"), SHUTDOWN_LIMIT)?;
    node.machine.console().wait_after(mark, "init: started", BOOT_LIMIT)?;
    node.machine.console().wait_after(mark, READY, BOOT_LIMIT)?;
    // The same authority on both sides: the old client configuration is still good.
    let after = identity(&node.operator)?;
    ensure!(before == after, "before: {before}\nafter: {after}");
    Ok(())
}

fn shuts_down(node: &mut Node) -> Result<()> {
    let mark = node.machine.console().mark();
    node.operator.run(&["shutdown"])?;
    let status = node.machine.wait_off(SHUTDOWN_LIMIT)?;
    node.off = true;
    ensure!(status.success(), "QEMU ended with {status}");
    node.machine.console().wait_after(mark, &said("machined", "powering off now"), SOON)?;
    Ok(())
}

fn configured_from_disc(node: &mut Node) -> Result<()> {
    node.machine.console().wait("machine configuration accepted.*metal-iso", SOON)?;
    node.healthy(SOON).map(|_| ())
}

fn ignores_interface(node: &mut Node) -> Result<()> {
    let addresses = addresses(node, "eth0")?;
    ensure!(addresses.iter().all(String::is_empty), "eth0 has {addresses:?}");
    Ok(())
}

fn keeps_static_address(node: &mut Node) -> Result<()> {
    let [a, b, c, d] = STATIC_ADDRESS;
    let addresses = addresses(node, "eth1")?;
    let wanted = format!("{a}.{b}.{c}.{d}/24");
    ensure!(addresses.contains(&wanted), "eth1 has {addresses:?}, not {wanted}");
    ensure!(
        !addresses.iter().any(|address| address.starts_with("10.0.3.15")),
        "DHCP as well: {addresses:?}"
    );
    let routes = node.operator.run(&["routes"])?;
    ensure!(routes.contains("10.0.3.2"), "no default route:\n{routes}");
    Ok(())
}

fn obeys_power_button(node: &mut Node) -> Result<()> {
    node.healthy(RECOVERY)?;
    let volume = node.folder.path().join(format!("{EPHEMERAL}.ext4"));
    ensure!(!volume::is_unmounted(&volume)?, "/var is not on the volume that is there for it");
    let mark = node.machine.console().mark();
    node.machine.press_power_button()?;
    let status = node.machine.wait_off(SHUTDOWN_LIMIT)?;
    node.off = true;
    ensure!(status.success(), "QEMU ended with {status}");
    let lines = [
        "the power button was pressed",
        "shutdown sequence: stopping services",
        r"service\[apid\]\(Finished\)",
        "powering off now",
    ];
    let told = lines.map(|line| {
        let found = node.machine.console().wait_after(mark, &said("machined", line), SOON)?;
        Ok::<_, anyhow::Error>(found.line.at)
    });
    let told = told.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(told.is_sorted(), "not in this order: {lines:?}\n{}", node.machine.console().tail());
    ensure!(volume::is_unmounted(&volume)?, "/var was not unmounted");
    Ok(())
}

fn tells_broken_line(node: &mut Node) -> Result<()> {
    let line = node.broken_at.context("its configuration is not broken")?;
    let wanted = format!(
        r"(?:machined: |\[machined\] )config\.yaml:{line}:\d+: machine\.network\.interfaces\[0\]\.mtu: .*70000.*65535"
    );
    node.machine.console().wait(&wanted, SOON).map(|_| ())
}

fn stays_up_when_broken(node: &mut Node) -> Result<()> {
    let reboot = "rebooting|reboot:|init: started";
    node.machine.console().wait(&said("machined", "waiting for a person"), SOON)?;
    let mark = node.machine.console().mark();
    node.machine.console().stays_silent(mark, reboot, LONGER_THAN_A_REBOOT_DELAY)?;
    ensure!(node.folder.path().exists());
    Ok(())
}

fn boots_from_disk(node: &mut Node) -> Result<()> {
    // It has none, and no network card either.
    node.machine.console().wait(&said("machined", "this node has no address yet"), BOOT_LIMIT)?;
    // Its command line comes with it: without the required arguments machined would say so.
    node.machine
        .console()
        .wait(&said("machined", "hardening kernel arguments hold"), SOON)
        .map(|_| ())
}

/// Waits for the console's invitation after `mark`; the fingerprint in it.
fn invitation(node: &Node, mark: Mark) -> Result<String> {
    let found = node.machine.console().wait_after(mark, INVITATION, BOOT_LIMIT)?;
    let fingerprint = found.line.text.split("--cert-fingerprint ").nth(1).unwrap_or_default();
    let fingerprint = fingerprint.split_whitespace().next().context("no fingerprint")?;
    Ok(fingerprint.to_owned())
}

fn shows_fingerprint(node: &mut Node) -> Result<()> {
    let found = node.machine.console().wait("fingerprint [A-Za-z0-9+/]{43}=", SOON)?;
    ensure!(found.line.text.contains("10.0.2.15"), "no address: {}", found.line.text);
    let another = "A".repeat(43) + "=";
    let config = node.folder.path().join("controlplane.yaml");
    let said = node.operator.refused(&apply(&config, &another))?;
    ensure!(said.contains("has the fingerprint") && said.contains("console"), "{said}");
    Ok(())
}

fn tells_disks(node: &mut Node) -> Result<()> {
    let fingerprint = invitation(node, Mark::default())?;
    let rows = node.operator.rows(&["disks", "--insecure", "--cert-fingerprint", &fingerprint])?;
    let sizes = ["/dev/vda", "/dev/vdb", "/dev/vdc"].map(|device| {
        rows.iter().find(|row| row.text("device") == device).map(|row| row.number("size_bytes"))
    });
    ensure!(sizes == [Some(32 << 20), Some(32 << 20), Some(3 << 20)], "{rows:?}");
    Ok(())
}

fn takes_no_broken_configuration(node: &mut Node) -> Result<()> {
    let (text, line) = broken(&node.cluster.controlplane()?)?;
    let path = node.folder.path().join("broken.yaml");
    std::fs::write(&path, text)?;
    let said = node.operator.refused(&apply(&path, &invitation(node, Mark::default())?))?;
    ensure!(said.contains(&format!("config.yaml:{line}:")), "no line {line} in: {said}");
    ensure!(said.contains("machine.network.interfaces[0].mtu"), "{said}");
    Ok(())
}

fn is_configured(node: &mut Node) -> Result<()> {
    let fingerprint = invitation(node, Mark::default())?;
    let config = node.folder.path().join("controlplane.yaml");
    let mark = node.machine.console().mark();
    node.operator.run(&apply(&config, &fingerprint))?;
    node.machine.console().wait_after(mark, READY, BOOT_LIMIT)?;
    node.healthy(SOON)?;
    // The door is closed to strangers.
    node.operator.refused(&apply(&config, &fingerprint)).map(|_| ())
}

fn applies_a_change(node: &mut Node) -> Result<()> {
    let path = changed(node, "77")?;
    let said = told(node, &["apply-config", "-f", &path, "--dry-run"])?;
    ensure!(said.contains("would change: machine.sysctls, "), "{said}");
    let mark = node.machine.console().mark();
    let said = told(node, &["apply-config", "-f", &path])?;
    ensure!(said.contains("changed: machine.sysctls, "), "{said}");
    ensure!(said.contains("not before the next boot: machine.files, machine.env"), "{said}");
    node.machine.console().wait_after(mark, "sysctls of the configuration hold", SOON)?;
    has_panic_sysctl(node, "77")
}

fn shows_logs_with_debug(node: &mut Node) -> Result<()> {
    let path = changed(node, "77")?;
    let apply = |debug: bool| -> Result<()> {
        let mut document: serde_yaml::Value =
            serde_yaml::from_str(&std::fs::read_to_string(&path)?)?;
        document["debug"] = debug.into();
        std::fs::write(&path, serde_yaml::to_string(&document)?)?;
        let said = told(node, &["apply-config", "-f", &path])?;
        ensure!(said.contains("changed: debug"), "{said}");
        Ok(())
    };
    let console = node.machine.console();
    // It says what it finds when it starts; where it does is the mark.
    let restart = || -> Result<Mark> {
        node.healthy(RECOVERY)?;
        let mark = console.mark();
        node.operator.run(&["service", "networkd", "restart"])?;
        let runs = said("machined", r"service\[networkd\]\(Running\): ");
        console.wait_after(mark, &runs, RECOVERY)?;
        node.healthy(RECOVERY)?;
        Ok(mark)
    };
    apply(true)?;
    console.wait_after(restart()?, "(?:^|[^a-z])networkd: ", RECOVERY)?;
    apply(false)?;
    console.stays_silent(restart()?, "^networkd: ", Duration::ZERO)
}

fn takes_back_what_was_tried(node: &mut Node) -> Result<()> {
    let mark = node.machine.console().mark();
    let path = changed(node, "99")?;
    told(node, &["apply-config", "-f", &path, "--mode", "try", "--timeout", "20"])?;
    has_panic_sysctl(node, "99")?;
    node.machine.console().wait_after(mark, "that was tried is taken back", RECOVERY)?;
    until(SOON, || has_panic_sysctl(node, "77"))
}

fn stages_for_the_next_boot(node: &mut Node) -> Result<()> {
    let said = told(node, &["apply-config", "-f", &changed(node, "88")?, "--mode", "staged"])?;
    ensure!(said.contains("with the next boot"), "{said}");
    has_panic_sysctl(node, "77")?;
    boots_again(node, &["reboot"])?;
    has_panic_sysctl(node, "88")?;
    // What the configuration wants written is there, over the read-only root as well.
    for (path, _) in FILES {
        let text = node.operator.run(&["read", path])?;
        ensure!(text == format!("of {path}"), "{path}: {text}");
    }
    Ok(())
}

fn keeps_configuration(node: &mut Node) -> Result<()> {
    // What this boot logged is still there after the next one.
    let boots = |node: &Node| -> Result<usize> {
        let log = node.operator.run(&["read", "/var/log/orlop/machined.log"])?;
        Ok(log.matches("ready in").count())
    };
    let before = boots(node)?;
    boots_again(node, &["apply-config", "-f", &changed(node, "66")?, "--mode", "reboot"])?;
    has_panic_sysctl(node, "66")?;
    let after = boots(node)?;
    ensure!(after > before, "{after} boots in the log of machined, {before} before the last");
    Ok(())
}

/// Nobody but the disk tells a value, and who deletes one hears when there is none.
fn keeps_meta(node: &mut Node) -> Result<()> {
    let disk = node.folder.path().join("meta.raw");
    for value in ["one", "two"] {
        node.operator.run(&["meta", "write", KEPT_KEY, value])?;
        let copies = volume::meta_values(&disk, KEPT_KEY.parse()?)?;
        let wanted = Some(Some(value.to_owned()));
        ensure!(copies == [wanted.clone(), wanted], "{copies:?} after {value:?} was written");
    }
    // The machine is reset while one value is written after another.
    let (last, operator) = (AtomicU32::new(0), node.operator.clone());
    let (mark, machine) = (node.machine.console().mark(), &mut node.machine);
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            for value in 1.. {
                let written = ["meta", "write", CHANGED_KEY, &value.to_string()];
                if !operator.command(60, &written).output()?.status.success() {
                    break;
                }
                last.store(value, Ordering::SeqCst);
            }
            Ok(())
        });
        let written = until(RECOVERY, || {
            ensure!(last.load(Ordering::SeqCst) >= 3, "META takes no values");
            Ok(())
        });
        machine.reset()?;
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        written
    })?;
    node.machine.console().wait_after(mark, READY, BOOT_LIMIT)?;
    node.healthy(RECOVERY)?;
    let (last, copies) = (last.into_inner(), volume::meta_values(&disk, CHANGED_KEY.parse()?)?);
    // The first whole copy is the one that counts.
    let value = copies.iter().flatten().next().context("no copy is whole")?;
    let wanted = [last, last + 1].map(|value| Some(value.to_string()));
    ensure!(wanted.contains(value), "{copies:?} after {last} was kept");
    for key in [KEPT_KEY, CHANGED_KEY] {
        node.operator.run(&["meta", "delete", key])?;
        let told = node.operator.refused(&["meta", "delete", key])?;
        ensure!(told.contains(&format!("key {key} is not in META")), "{told}");
        ensure!(volume::meta_values(&disk, key.parse()?)? == [Some(None), Some(None)]);
    }
    Ok(())
}

/// Runs a command that reboots the node, and waits until it is healthy with the configuration it kept.
fn boots_again(node: &Node, command: &[&str]) -> Result<()> {
    let mark = node.machine.console().mark();
    told(node, command)?;
    node.machine.console().wait_after(mark, "accepted.*/system/state", BOOT_LIMIT)?;
    node.machine.console().wait_after(mark, READY, BOOT_LIMIT)?;
    node.healthy(SOON).map(|_| ())
}

/// A file with the node's configuration and more, `kernel.panic` among it.
fn changed(node: &Node, panic: &str) -> Result<String> {
    let mut document: serde_yaml::Value = serde_yaml::from_str(&node.cluster.controlplane()?)?;
    document["machine"]["sysctls"] = serde_yaml::from_str(&format!("{{kernel.panic: '{panic}'}}"))?;
    document["machine"]["env"] = serde_yaml::from_str("{WORD: here}")?;
    let files = FILES.map(|(path, op)| {
        format!("{{path: {path}, op: {op}, permissions: 0o644, content: of {path}}}")
    });
    document["machine"]["files"] = serde_yaml::from_str(&format!("[{}]", files.join(", ")))?;
    let path = node.folder.path().join("changed.yaml");
    std::fs::write(&path, serde_yaml::to_string(&document)?)?;
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

/// What a command says beside its answer.
fn told(node: &Node, args: &[&str]) -> Result<String> {
    let output = node.operator.command(60, args).output()?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn has_panic_sysctl(node: &Node, wanted: &str) -> Result<()> {
    let value = node.operator.run(&["read", "/proc/sys/kernel/panic"])?;
    ensure!(value.trim() == wanted, "kernel.panic is {}, not {wanted}", value.trim());
    Ok(())
}

fn forgets_configuration(node: &mut Node) -> Result<()> {
    let answer = node.operator.refused(&["reset", "--system-labels-to-wipe", "HOME"])?;
    ensure!(answer.contains("label \"HOME\" is not supported"), "{answer}");
    let mark = node.machine.console().mark();
    node.operator.run(&["reset", "--reboot"])?;
    node.machine.console().wait_after(mark, &said("machined", "wiped"), SHUTDOWN_LIMIT)?;
    invitation(node, mark).map(|_| ())
}

/// The command that configures a node in maintenance.
fn apply<'a>(config: &'a std::path::Path, fingerprint: &'a str) -> [&'a str; 6] {
    let path = config.to_str().unwrap_or_default();
    ["apply-config", "--insecure", "--cert-fingerprint", fingerprint, "-f", path]
}

/// The configuration with an MTU no link can have, and the number of its line.
fn broken(text: &str) -> Result<(String, usize)> {
    let mut document: serde_yaml::Value = serde_yaml::from_str(text)?;
    document["machine"]["network"] =
        serde_yaml::from_str("{interfaces: [{interface: eth0, mtu: 70000}]}")?;
    let text = serde_yaml::to_string(&document)?;
    let line = text
        .lines()
        .position(|line| line.contains("mtu: 70000"))
        .context("the mistake is not there")?;
    Ok((text, line + 1))
}

fn addresses(node: &Node, name: &str) -> Result<Vec<String>> {
    let rows = node.operator.rows(&["interfaces"])?;
    let of: Vec<_> = rows.iter().filter(|row| row.text("name") == name).collect();
    ensure!(!of.is_empty(), "no interface {name}: {rows:?}");
    Ok(of.iter().map(|row| row.text("address").to_owned()).collect())
}

fn healthy(row: &Row) -> bool {
    match row.text("state") {
        "Running" => matches!(row.text("health"), "OK" | "?"),
        // Its program is not in this image.
        state => state == "Skipped",
    }
}

/// Tries again until it passes; after `limit`, its last failure. Each try is a question to the guest,
/// which takes its time.
fn until<T>(limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Err(_) if Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// Who is killed, in turn, and how often in all.
const KILLED: [&str; 5] = ["routerd", "networkd", "udevd", "apid", "containerd"];
const KILLS: usize = 20 * KILLED.len();
/// Processes that PID 1 adopts at once, dead.
const ORPHANS: usize = 100;
/// Files of a configuration, with their operation: one in a new folder, one over the read-only root.
const FILES: [(&str, &str); 2] =
    [("/var/lib/greeting", "create"), ("/etc/os-release", "overwrite")];
/// Of META: one that stays as it is, one that changes.
const KEPT_KEY: &str = "10";
const CHANGED_KEY: &str = "11";
/// The label of the volume under /var.
const EPHEMERAL: &str = "EPHEMERAL";
/// How often a kind of machine is booted for checks that failed.
const RETRIES: usize = 2;
const SERVICES: [&str; 7] =
    ["machined", "containerd", "udevd", "networkd", "timed", "routerd", "apid"];
const CONTAINERS: [&str; 4] = ["networkd", "timed", "routerd", "apid"];
const STATIC_ADDRESS: [u8; 4] = [10, 0, 3, 77];
/// What the console of a node without a configuration ends in.
const INVITATION: &str = "orlopctl apply-config --insecure .*controlplane.yaml";
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
const RECOVERY: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
/// machined waits 10 s before it reboots.
const LONGER_THAN_A_REBOOT_DELAY: Duration = Duration::from_secs(20);
