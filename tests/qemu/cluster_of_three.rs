//! What must hold between machines: a control plane and two workers, joined by a network that is theirs
//! alone.
//!
//! The workers have no other network. So all they are given comes over it: their certificates from the
//! control plane's trustd, their calls from its apid, to which alone the host has a way. The machines
//! are started by the first check and shared by all, in the order below. As in `smoke.rs`, the first
//! check that fails is put to other machines, which is told by a line that begins with `retried:`.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_qemu::accel::Accel;
use orlop_qemu::{
    Boot, Cable, Cluster, Forward, Machine, Operator, READY, boot_again_after_int3, volume,
};
use tempfile::TempDir;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Machines die with the thread that started them: the main one.
    arguments.test_threads = Some(1);
    let world = Arc::new(Mutex::new(World::default()));
    let checks = CHECKS.iter().map(|(name, check)| {
        let world = Arc::clone(&world);
        Trial::test(*name, move || {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            world.check(name, *check).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    libtest_mimic::run(&arguments, checks.collect()).exit_code()
}

type Check = fn(&mut Three) -> Result<()>;

/// In this order: the last one costs a worker.
const CHECKS: &[(&str, Check)] = &[
    ("three_nodes_workers_get_their_certificates_over_the_private_network", get_certificates),
    ("three_nodes_each_command_has_a_row_for_each", has_rows),
    ("three_nodes_streams_have_all_of_them", has_streams),
    ("three_nodes_one_cut_off_has_its_error_in_its_own_row", survives_a_cut),
    ("three_nodes_one_believes_after_a_reboot_whom_it_met_first", believes_again),
    ("three_nodes_one_killed_ends_no_stream_but_its_own", survives_a_kill),
];

/// The machines that run now.
#[derive(Default)]
struct World {
    three: Option<Three>,
    retried: bool,
    /// Twice: there is no third time.
    failed_boots: usize,
}

impl World {
    /// Runs a check; if it is the first to fail, again on other machines. No check needs an earlier one.
    fn check(&mut self, name: &str, check: Check) -> Result<()> {
        let Err(error) = self.once(check) else { return Ok(()) };
        // The next check is not put to machines that failed this one.
        self.three = None;
        if self.retried {
            return Err(error);
        }
        self.retried = true;
        eprintln!("\nretried: {name}: {error:#}");
        self.once(check)
    }

    fn once(&mut self, check: Check) -> Result<()> {
        let three = match &mut self.three {
            Some(three) => three,
            none => {
                ensure!(self.failed_boots < 2, "the machines did not boot: see the checks before");
                self.failed_boots += 1;
                let three = none.insert(boot_again_after_int3(Three::boot)?);
                self.failed_boots -= 1;
                three
            }
        };
        check(three).with_context(|| three.control.console().tail())
    }
}

struct Three {
    control: Machine,
    /// They run as long as these are held. The second one was told no authority, and has a volume to keep
    /// what it learns of one.
    workers: [Option<Machine>; 2],
    operator: Operator,
    _folder: TempDir,
}

impl Three {
    fn boot() -> Result<Self> {
        let accel = Accel::from_environment()?;
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::at(CONTROL, folder.path())?;
        let forward = Forward::from_free(50000)?;
        let booted = |name: &str, config: &str, interface: &str, address: &str| -> Result<Boot> {
            let config = networked(config, name, interface, address)?;
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder)?;
            let disc = volume::iso(&folder, &config)?;
            Ok(Boot::node(accel)?.argument("talos.config=metal-iso").disc(&disc))
        };
        let ((here_1, there_1), (here_2, there_2)) = (Cable::new()?, Cable::new()?);
        let control = booted("control-1", &cluster.controlplane()?, "eth1", CONTROL)?
            .network(&[forward])
            .switch(vec![here_1, here_2])
            .start()?;
        let worker = |name, config: &str, address, cable| -> Result<Boot> {
            Ok(booted(name, config, "eth0", address)?.memory_mib(WORKERS_MIB).cable(cable))
        };
        let mut stranger: serde_yaml::Value = serde_yaml::from_str(&cluster.worker()?)?;
        stranger["machine"].as_mapping_mut().context("no machine")?.remove("ca");
        let stranger = serde_yaml::to_string(&stranger)?;
        let workers = [
            worker("worker-1", &cluster.worker()?, WORKERS[0], there_1)?.start()?,
            worker("worker-2", &stranger, WORKERS[1], there_2)?
                .scratch_disk(&volume::empty(folder.path(), "STATE")?)
                .start()?,
        ];
        for machine in [&control].into_iter().chain(&workers) {
            machine.console().wait(READY, BOOT_LIMIT)?;
        }
        let operator = Operator::new(&cluster, forward.host);
        Ok(Self { control, workers: workers.map(Some), operator, _folder: folder })
    }

    /// What a command says about `nodes`: on standard output, and on standard error.
    fn ask(&self, nodes: &[&str], args: &[&str]) -> Result<(String, String)> {
        let nodes = nodes.join(",");
        let args = [&["-n", nodes.as_str()], args].concat();
        let output = self.operator.command(LIMIT_SECS, &args).output().context("orlopctl")?;
        let [said, complained] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(output.status.success(), "{args:?}: {}: {complained}", output.status);
        Ok((said, complained))
    }

    /// The nodes that have rows in the table of a command which is put to all three, each once; and what
    /// it complained of.
    fn in_rows(&self, args: &[&str]) -> Result<(BTreeSet<String>, String)> {
        let (said, complained) = self.ask(&ALL, &[args, &["-o", "json"]].concat())?;
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&said).with_context(|| format!("{args:?} -o json: {said}"))?;
        let nodes = rows.iter().map(|row| row["node"].as_str().unwrap_or_default().to_owned());
        Ok((nodes.collect(), complained))
    }

    /// Waits until a command has rows of `nodes`, and of no other, each of which it complains of. A guest
    /// may be slower than the command line is patient.
    fn wait_for_rows(&self, nodes: &[&str], args: &[&str]) -> Result<()> {
        until(|| {
            let (found, complained) = self.in_rows(args)?;
            ensure!(found == set(nodes), "{args:?}: {found:?}, {complained}");
            for node in ALL {
                ensure!(complained.contains(node) != found.contains(node), "{complained}");
            }
            Ok(())
        })
    }

    /// Begins a command that streams.
    fn follow(&self, nodes: &[&str], args: &[&str]) -> Result<Follower> {
        let nodes = nodes.join(",");
        let mut command = self.operator.command(600, &[&["-n", nodes.as_str()], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = lines(child.stdout.take().context("no output")?);
        let complaints = lines(child.stderr.take().context("no complaints")?);
        Ok(Follower { child, said, complaints })
    }
}

/// A command that streams until it is dropped.
struct Follower {
    child: Child,
    said: Receiver<String>,
    complaints: Receiver<String>,
}

impl Follower {
    /// Until each of `nodes` has said a line with `text` in it, in whatever order they come.
    fn wait_for(&self, nodes: &[&str], text: &str) -> Result<()> {
        let mut missing = set(nodes);
        let deadline = Instant::now() + RECOVERY;
        while !missing.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left);
            let line = line.with_context(|| format!("no {text:?} of {missing:?}"))?;
            missing.retain(|node| !(line.starts_with(node.as_str()) && line.contains(text)));
        }
        Ok(())
    }

    /// What it complains of next.
    fn complaint(&self) -> Result<String> {
        self.complaints.recv_timeout(RECOVERY).context("not a word of the node that is gone")
    }

    /// How it ends, when it is asked to as by Ctrl-C.
    fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGINT);
        self.end()
    }

    /// How it ends by itself.
    fn end(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("wait for orlopctl")
    }

    /// `timeout`, which runs it, passes this on.
    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// The lines that come, read by a thread that ends with them.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(from).lines().map_while(Result::ok);
        // Nobody listens any more when the receiver is gone.
        lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
    });
    lines
}

fn get_certificates(three: &mut Three) -> Result<()> {
    let (trustd, _) = three.ask(&[CONTROL], &["logs", "trustd"])?;
    for (name, address) in ["worker-1", "worker-2"].into_iter().zip(WORKERS) {
        let signed = trustd.lines().find(|line| line.contains("signed") && line.contains(address));
        let signed = signed
            .with_context(|| format!("trustd has signed nothing for {address}:\n{trustd}"))?;
        ensure!(signed.contains(name), "{signed}");
        let (machined, _) = three.ask(&[address], &["logs", "machined"])?;
        let has = format!("from=\"{CONTROL}\"");
        ensure!(
            machined.lines().any(|line| line.contains("new certificate") && line.contains(&has)),
            "{name} has no certificate from {CONTROL}:\n{machined}"
        );
    }
    Ok(())
}

fn has_rows(three: &mut Three) -> Result<()> {
    let tables = ["memory", "containers", "services", "processes", "mounts", "stats", "interfaces"];
    for command in tables {
        three.wait_for_rows(&ALL, &[command])?;
    }
    until(|| {
        let (memory, _) = three.ask(&ALL, &["memory"])?;
        let rows: Vec<_> = memory.lines().skip(1).filter_map(|row| row.split(' ').next()).collect();
        ensure!(rows == ALL, "not one row for each, in the order asked for:\n{memory}");
        Ok(())
    })?;
    until(|| {
        let (version, _) = three.ask(&ALL, &["version"])?;
        let silent: Vec<_> = ALL.iter().filter(|node| !version.contains(**node)).collect();
        ensure!(silent.is_empty(), "version says nothing of {silent:?}:\n{version}");
        Ok(())
    })
}

fn has_streams(three: &mut Three) -> Result<()> {
    for args in [&["logs", "apid"][..], &["dmesg"], &["list", "/etc"]] {
        let (said, complained) = three.ask(&ALL, args)?;
        for node in ALL {
            let own = said.lines().filter(|line| line.starts_with(node)).count();
            ensure!(own > 0, "{args:?}: nothing of {node}: {complained}");
        }
    }
    Ok(())
}

/// Nobody is told that the cable is out: what is sent is not acknowledged, that is all.
fn survives_a_cut(three: &mut Three) -> Result<()> {
    three.wait_for_rows(&ALL, &["memory"])?;
    three.control.unplug(0)?;
    let others = [CONTROL, WORKERS[1]];
    // First over the connection of before, then over one that cannot be made.
    let answered = three
        .wait_for_rows(&others, &["memory"])
        .and_then(|()| three.wait_for_rows(&others, &["services"]));
    three.control.plug(0)?;
    answered?;
    three.wait_for_rows(&ALL, &["memory"])
}

/// The pin is kept beside the configuration; a node that had lost it would meet its authority anew.
fn believes_again(three: &mut Three) -> Result<()> {
    let stranger = WORKERS[1];
    let kept = |three: &Three| three.ask(&[stranger], &["read", "/system/state/authorities.json"]);
    let console = three.workers[1].as_ref().context("it runs")?.console().clone();
    console.wait(MEETS, RECOVERY)?;
    let (before, _) = kept(three)?;
    ensure!(before.contains("BEGIN CERTIFICATE"), "{before}");
    let mark = console.mark();
    three.ask(&[stranger], &["reboot"])?;
    console.wait_after(mark, "init: started", BOOT_LIMIT)?;
    console.wait_after(mark, READY, BOOT_LIMIT)?;
    three.wait_for_rows(&ALL, &["memory"])?;
    console.wait_after(mark, "apid has a new certificate", RECOVERY)?;
    console.stays_silent(mark, MEETS, Duration::ZERO)?;
    let (after, _) = kept(three)?;
    ensure!(after == before, "{before} became {after}");
    Ok(())
}

/// Nobody says goodbye: the connection to the node just has no other end any more.
fn survives_a_kill(three: &mut Three) -> Result<()> {
    three.wait_for_rows(&ALL, &["memory"])?;
    let (gone, alive) = (WORKERS[1], [CONTROL, WORKERS[0]]);
    let mut all = three.follow(&ALL, &["events", "--tail=1"])?;
    let mut own = three.follow(&[gone], &["events", "--tail=1"])?;
    all.wait_for(&ALL, "")?;
    own.wait_for(&[gone], "")?;
    three.workers[1] = None;
    // Each of these makes events.
    three.ask(&alive, &["service", "timed", "restart"])?;
    all.wait_for(&alive, "timed")?;
    let complaint = all.complaint()?;
    ensure!(complaint.contains(gone), "{complaint:?}");
    three.ask(&alive, &["service", "udevd", "restart"])?;
    all.wait_for(&alive, "udevd")?;
    // Whoever has followed two of three to the end has what there was; of none, nothing.
    let complaint = own.complaint()?;
    ensure!(complaint.contains(gone), "{complaint:?}");
    let [all, own] = [all.interrupt()?, own.end()?];
    ensure!(all.success() && own.code() == Some(1), "{all} and {own}");
    three.wait_for_rows(&alive, &["memory"])
}

/// Tries again until it passes; after a while, its last failure. Each try is a question to the guests,
/// which takes their time.
fn until<T>(mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        match check() {
            Err(_) if Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// The configuration with a host name and a static address.
fn networked(config: &str, name: &str, interface: &str, address: &str) -> Result<String> {
    let mut document: serde_yaml::Value = serde_yaml::from_str(config)?;
    document["machine"]["network"] = serde_yaml::from_str(&format!(
        "{{hostname: {name}, interfaces: [{{interface: {interface}, cidr: {address}/24}}]}}"
    ))?;
    Ok(serde_yaml::to_string(&document)?)
}

fn set(nodes: &[&str]) -> BTreeSet<String> {
    nodes.iter().map(|node| (*node).to_owned()).collect()
}

const CONTROL: &str = "10.9.0.1";
const WORKERS: [&str; 2] = ["10.9.0.2", "10.9.0.3"];
const ALL: [&str; 3] = [CONTROL, WORKERS[0], WORKERS[1]];
/// What a node says on its console when it takes the first trustd that answers for its own.
const MEETS: &str = "believed from now on";
const WORKERS_MIB: u32 = 1024;
/// Three at a time share the host's processors.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const RECOVERY: Duration = Duration::from_secs(120);
/// Of one command. The command line waits for nodes no longer than 20 s.
const LIMIT_SECS: u64 = 60;
