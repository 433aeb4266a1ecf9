//! What must hold of etcd on nodes that really boot: two control planes, joined by a network that is
//! theirs alone, with etcd's program on their EPHEMERAL volumes. The second one is handed the PKI of etcd,
//! and of the cluster, by the first.
//!
//! `ORLOP_ETCD` names the program, with `etcdutl` beside it; without it nothing is checked. Each check goes
//! on where the one before it ended; when one fails, all up to it are put to other machines once, which is
//! told by a line that begins with `retried:`, as in `smoke.rs`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use orlop_qemu::accel::Accel;
use orlop_qemu::{
    Boot, Cable, Cluster, Forward, Machine, Operator, READY, Row, boot_again_after_int3, said,
    volume,
};
use tempfile::TempDir;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Machines die with the thread that started them: the main one.
    arguments.test_threads = Some(1);
    let Some(program) = env::var_os("ORLOP_ETCD").filter(|program| !program.is_empty()) else {
        println!("skipped: no etcd on booted nodes (ORLOP_ETCD)");
        return ExitCode::SUCCESS;
    };
    let world =
        Arc::new(Mutex::new(World { program: program.into(), two: None, done: 0, retried: false }));
    let checks = CHECKS.iter().enumerate().map(|(index, (name, _))| {
        let world = Arc::clone(&world);
        Trial::test(*name, move || {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            world.check(index).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    libtest_mimic::run(&arguments, checks.collect()).exit_code()
}

type Check = fn(&mut Two) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("etcd_begins_with_a_bootstrap", begins),
    ("etcd_takes_in_another_control_plane", takes_in_another),
    ("etcd_keeps_a_member_from_a_reset_that_it_cannot_agree_to", keeps_who_cannot_leave),
    ("etcd_is_left_by_a_member_that_is_reset_and_not_by_one_that_reboots", outlives_its_nodes),
    ("etcd_begins_again_with_a_snapshot", begins_again),
];

/// The machines that run now, and how many checks they have passed.
struct World {
    program: PathBuf,
    two: Option<Two>,
    done: usize,
    retried: bool,
}

impl World {
    fn check(&mut self, index: usize) -> Result<()> {
        let Err(error) = self.checks_to(index) else { return Ok(()) };
        (self.two, self.done) = (None, 0);
        if self.retried {
            return Err(error);
        }
        self.retried = true;
        eprintln!("\nretried: {}: {error:#}", CHECKS[index].0);
        self.checks_to(index)
    }

    fn checks_to(&mut self, index: usize) -> Result<()> {
        let two = match &mut self.two {
            Some(two) => two,
            none => none.insert(boot_again_after_int3(|| Two::boot(&self.program))?),
        };
        for (_, check) in &CHECKS[self.done..=index] {
            let consoles =
                |two: &Two| two.machines.each_ref().map(|machine| machine.console().tail());
            check(two).with_context(|| consoles(two).join("\n"))?;
            self.done += 1;
        }
        Ok(())
    }
}

struct Two {
    machines: [Machine; 2],
    operator: Operator,
    /// What the second one has of etcd's data.
    snapshot: PathBuf,
    _folder: TempDir,
}

impl Two {
    fn boot(program: &Path) -> Result<Self> {
        let accel = Accel::from_environment()?;
        let folder = tempfile::tempdir()?;
        let cluster = Cluster::at(ADDRESSES[0], folder.path())?;
        let var = folder.path().join("var");
        let bin = var.join("lib/orlop/bin");
        fs::create_dir_all(&bin)?;
        for name in ["etcd", "etcdutl"] {
            let (from, to) = (program.with_file_name(name), bin.join(name));
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        for folder in bin.ancestors().take(4) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        let forward = Forward::from_free(50000)?;
        let (here, there) = Cable::new()?;
        // The first address of a node is the one that its peers know.
        let boot = |n: usize, others: &str| -> Result<Boot> {
            let (name, address) = (NAMES[n], ADDRESSES[n]);
            let mut config: serde_yaml::Value = serde_yaml::from_str(&cluster.controlplane()?)?;
            config["machine"]["network"] = serde_yaml::from_str(&format!(
                "{{hostname: {name}, interfaces: [{{interface: eth0, cidr: {address}/24}}{others}]}}"
            ))?;
            // No server of time is near; a node that knows no time begins no cluster.
            config["machine"]["time"] = serde_yaml::from_str("{disabled: true}")?;
            let [one, other] = ADDRESSES;
            config["machine"]["trustd"] =
                serde_yaml::from_str(&format!("{{endpoints: [{one}, {other}]}}"))?;
            if n > 0 {
                // It is handed them by the first one.
                let etcd = &["cluster", "etcd"][..];
                for (path, key) in
                    [(&etcd[..1], "ca"), (&etcd[..1], "serviceAccount"), (etcd, "ca")]
                {
                    let of = path.iter().fold(&mut config, |of, key| &mut of[*key]);
                    of.as_mapping_mut().context("no mapping")?.remove(key);
                }
            }
            // Translated machines are late at times, and so are heartbeats.
            config["cluster"]["etcd"]["extraArgs"] =
                serde_yaml::from_str("{heartbeat-interval: '1000', election-timeout: '10000'}")?;
            let folder = folder.path().join(name);
            fs::create_dir(&folder)?;
            Ok(Boot::node(accel)?
                .argument("talos.config=metal-iso")
                .disc(&volume::iso(&folder, &serde_yaml::to_string(&config)?)?)
                .scratch_disk(&volume::filled(&folder, "EPHEMERAL", VAR_BYTES, &var)?)
                .scratch_disk(&volume::empty(&folder, "STATE")?))
        };
        let machines = [
            boot(0, ", {interface: eth1, dhcp: true}")?
                .switch(vec![here])
                .network(&[forward])
                .start()?,
            boot(1, "")?.cable(there).start()?,
        ];
        for machine in &machines {
            machine.console().wait(READY, BOOT_LIMIT)?;
        }
        let snapshot = folder.path().join("snapshot");
        let operator = Operator::new(&cluster, forward.host);
        Ok(Self { machines, operator, snapshot, _folder: folder })
    }

    /// What a command says to the `n`th node.
    fn run(&self, n: usize, args: &[&str]) -> Result<String> {
        self.operator.run(&[&["-n", ADDRESSES[n]], args].concat())
    }

    fn rows(&self, n: usize, args: &[&str]) -> Result<Vec<Row>> {
        self.operator.rows(&[&["-n", ADDRESSES[n]], args].concat())
    }

    /// Waits until all of these nodes, and no others, are members, in the eyes of each; their ids.
    fn wait_for_members(&self, nodes: &[usize]) -> Result<Vec<String>> {
        until(|| {
            let mut ids = Vec::new();
            for asked in nodes {
                let mut rows = self.rows(*asked, &["etcd", "members"])?;
                rows.sort_by(|a, b| a.text("hostname").cmp(b.text("hostname")));
                let names: Vec<_> = rows.iter().map(|row| row.text("hostname")).collect();
                let wanted: Vec<_> = nodes.iter().map(|node| NAMES[*node]).collect();
                ensure!(names == wanted, "{} says that {rows:?} are members", NAMES[*asked]);
                ids = rows.iter().map(|row| row.text("id").to_owned()).collect();
            }
            Ok(ids)
        })
    }

    /// Waits until a node's etcd is a healthy service, in a container.
    fn wait_for_health(&self, n: usize) -> Result<()> {
        until(|| {
            let services = self.rows(n, &["services"])?;
            let etcd = services.iter().find(|row| row.text("service") == "etcd");
            let etcd = etcd.context("no service etcd")?;
            ensure!(etcd.text("state") == "Running" && etcd.text("health") == "OK", "{etcd:?}");
            let containers = self.rows(n, &["containers"])?;
            let etcd = containers.iter().find(|row| row.text("id") == "etcd");
            let etcd = etcd.with_context(|| format!("no container etcd: {containers:?}"))?;
            ensure!(etcd.text("status") == "RUNNING", "{etcd:?}");
            Ok(())
        })
    }

    /// Saves a snapshot of a node's etcd, which has what a bootstrap writes last.
    fn save_snapshot(&self, n: usize) -> Result<()> {
        let path = self.snapshot.to_str().context("a path in UTF-8")?;
        self.run(n, &["etcd", "snapshot", path])?;
        let bytes = fs::read(&self.snapshot)?;
        let key = b"initialized";
        ensure!(bytes.windows(key.len()).any(|bytes| bytes == key), "not in the data of {n}");
        Ok(())
    }
}

/// The other one may have joined by then.
fn begins(two: &mut Two) -> Result<()> {
    two.run(0, &["bootstrap"])?;
    two.wait_for_health(0)?;
    until(|| {
        let members = two.rows(0, &["etcd", "members"])?;
        let first = members.iter().find(|row| row.text("hostname") == NAMES[0]);
        let first = first.with_context(|| format!("{members:?}"))?;
        let status = two.rows(0, &["etcd", "status"])?;
        let [status] = status.as_slice() else { bail!("{status:?}") };
        ensure!(status.text("member") == first.text("id"), "{status:?} of {first:?}");
        ensure!(
            status.number("db_size_bytes") > 0 && status.number("raft_index") > 0,
            "{status:?}"
        );
        two.save_snapshot(0)
    })?;
    let refused = two.operator.refused(&["-n", ADDRESSES[0], "bootstrap"])?;
    ensure!(refused.contains("etcd data directory is not empty"), "{refused}");
    Ok(())
}

/// It has tried since it booted.
fn takes_in_another(two: &mut Two) -> Result<()> {
    two.wait_for_members(&[0, 1])?;
    two.wait_for_health(1)?;
    until(|| two.save_snapshot(1))
}

/// One of two is no quorum.
fn keeps_who_cannot_leave(two: &mut Two) -> Result<()> {
    two.wait_for_members(&[0, 1])?;
    two.machines[0].unplug(0)?;
    let refused = until(|| {
        let said = two.operator.refused(&["-n", ADDRESSES[0], "reset"])?;
        ensure!(said.contains("cannot leave etcd") && said.contains("--graceful=false"), "{said}");
        Ok(())
    });
    two.machines[0].plug(0)?;
    refused?;
    two.wait_for_members(&[0, 1]).map(drop)
}

fn outlives_its_nodes(two: &mut Two) -> Result<()> {
    let before = two.wait_for_members(&[0, 1])?;
    let [one, other] = two.machines.each_ref().map(Machine::console);
    let marks = [one.mark(), other.mark()];
    two.run(1, &["reset", "--reboot", "--system-labels-to-wipe", "STATE"])?;
    other.wait_after(marks[1], &said("machined", "rebooting now"), DOWN_LIMIT)?;
    two.wait_for_members(&[0])?;
    two.run(0, &["reboot"])?;
    one.wait_after(marks[0], &said("machined", "rebooting now"), DOWN_LIMIT)?;
    for (console, mark) in [one, other].into_iter().zip(marks) {
        console.wait_after(mark, READY, BOOT_LIMIT)?;
    }
    let after = two.wait_for_members(&[0, 1])?;
    ensure!(after[0] == before[0], "{} was {before:?} and is {after:?}", NAMES[0]);
    ensure!(after[1] != before[1], "{} came back as what it was: {after:?}", NAMES[1]);
    for n in [0, 1] {
        two.wait_for_health(n)?;
    }
    until(|| two.save_snapshot(0))
}

/// On a node that has left: the cluster of the snapshot is another one.
fn begins_again(two: &mut Two) -> Result<()> {
    two.run(1, &["etcd", "leave"])?;
    two.wait_for_members(&[0])?;
    let snapshot = two.snapshot.to_str().context("a path in UTF-8")?.to_owned();
    two.run(1, &["bootstrap", "--recover-from", &snapshot])?;
    two.wait_for_health(1)?;
    two.wait_for_members(&[1])?;
    two.wait_for_members(&[0])?;
    until(|| two.save_snapshot(1))
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

const NAMES: [&str; 2] = ["control-1", "control-2"];
const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];
/// A sparse file.
const VAR_BYTES: u64 = 512 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const DOWN_LIMIT: Duration = Duration::from_secs(180);
/// An etcd that joins waits for a moment between its tries, and so does a service that is restarted.
const RECOVERY: Duration = Duration::from_secs(300);
