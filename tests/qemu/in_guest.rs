//! Tests of other programs, run in a guest on our kernel, where nothing may be skipped: networkd's tests
//! against a kernel once more, because the computer's own lacks much of what they need (bonds, VLANs,
//! dummy and WireGuard links, `tc netem`), and timed's test that sets the clock.
//!
//! The guest has the computer's files ([`Boot::tester`]), so the same programs run, beside the same
//! servers. It is started by the first that needs it. A guest whose instructions are translated is late at
//! times: tests that fail are run once more, one after the other, which is told in lines that begin
//! with `retried:`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use orlop_qemu::accel::Accel;
use orlop_qemu::{Boot, Machine, Pace, Tester, boot_again_after_int3};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Machines die with the thread that started them: the main one.
    arguments.test_threads = Some(1);
    let world: Arc<Mutex<World>> = Arc::default();
    // What it elects through an etcd needs nothing that other kernels lack.
    let networks = tests_of("networkd").filter(|tests| tests.name != "vip");
    let networks = networks.map(|tests| (tests, Kind::Network));
    let clock = tests_of("timed").filter(|tests| tests.name == "real_clock");
    let all = networks.chain(clock.map(|tests| (tests, Kind::Clock)));
    let checks = all.map(|(tests, kind)| {
        let world = Arc::clone(&world);
        Trial::test(format!("in_a_guest_{}_tests_{}", tests.room, tests.name), move || {
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            let result = world.guest(kind).and_then(|guest| guest.check(&tests));
            result.map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    libtest_mimic::run(&arguments, checks.collect()).exit_code()
}

/// A test program.
struct Tests {
    room: &'static str,
    name: String,
}

/// The test programs of a room: each a file, or a folder with a `main.rs`.
fn tests_of(room: &'static str) -> impl Iterator<Item = Tests> {
    let entries = fs::read_dir(folder(room)).into_iter().flatten().flatten();
    let program = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "rs") || path.join("main.rs").exists()
    };
    let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let names = entries.map(|entry| entry.path()).filter(program).filter_map(name);
    // In an order that does not change.
    let names: BTreeSet<_> = names.collect();
    names.into_iter().map(move |name| Tests { room, name })
}

/// Where the tests of a room are.
fn folder(room: &str) -> PathBuf {
    [SOURCES, room, "tests"].iter().collect()
}

/// A kind of guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It waits as others do: what runs in it is not to be hurried.
    Network,
    /// It does not wait: hours of its clock pass in seconds.
    Clock,
}

/// The guest that runs now.
#[derive(Default)]
struct World(Option<(Kind, Guest)>);

impl World {
    fn guest(&mut self, kind: Kind) -> Result<&mut Guest> {
        if self.0.as_ref().is_none_or(|(is, _)| *is != kind) {
            self.0 = None;
            self.0 = Some((kind, boot_again_after_int3(|| Guest::boot(kind))?));
        }
        self.0.as_mut().map(|(_, guest)| guest).context("booted above")
    }
}

struct Guest {
    shell: Tester,
    machine: Machine,
}

impl Guest {
    fn boot(kind: Kind) -> Result<Self> {
        let boot = Boot::tester(Accel::from_environment()?, env!("CARGO_BIN_EXE_tester").as_ref())?;
        let machine = match kind {
            Kind::Network => boot.pace(Pace::Instructions),
            Kind::Clock => boot.pace(Pace::Leaps),
        };
        let machine = machine.start()?;
        let mut shell = machine.tester()?;
        shell.output("ip link set lo up", BOOT_LIMIT).with_context(|| machine.console().tail())?;
        Ok(Self { shell, machine })
    }

    /// Builds a test program and runs it, tests that fail once more.
    fn check(&mut self, tests: &Tests) -> Result<()> {
        let program = format!(
            "cd {SOURCES}/{} && ORLOP_MAY_SET_THE_CLOCK=1 {}",
            tests.room,
            built(tests)?.display()
        );
        let outcome = self.test(&program, "")?;
        ensure!(
            outcome.skipped.is_empty(),
            "not even in the guest:\n{}",
            outcome.skipped.join("\n")
        );
        for test in &outcome.failed {
            let again = self.test(&program, &format!("--exact {test}"))?;
            let log = self.shell.output(&format!("tail -n 200 {STDERR}"), BOOT_LIMIT)?;
            ensure!(again.failed.is_empty(), "{}\n{log}", again.said);
            eprintln!("\nretried: {test} in the guest\n{}", outcome.said);
        }
        Ok(())
    }

    /// Runs `program` with these arguments and says how each test ended, as soon as it did.
    fn test(&mut self, program: &str, arguments: &str) -> Result<Outcome> {
        let command = format!("{program} {arguments} --show-output 2>{STDERR}");
        let mut outcome = Outcome::default();
        let status = self.shell.run(&command, TEST_LIMIT, |line| {
            if let Some(test) = line.strip_prefix("test ").filter(|test| test.contains(" ... ")) {
                println!("  in the guest: {test}");
                if let Some(failed) = test.strip_suffix(" ... FAILED") {
                    outcome.failed.push(failed.to_owned());
                }
            }
            outcome.ran |= line.starts_with("test result:");
            outcome.skipped.extend(line.starts_with("skipped:").then(|| line.to_owned()));
            outcome.said += line;
            outcome.said.push('\n');
        });
        let status = status.with_context(|| self.machine.console().tail())?;
        ensure!(
            outcome.ran && (status == 0) == outcome.failed.is_empty(),
            "{program}: status {status}\n{}{}",
            outcome.said,
            self.machine.console().tail()
        );
        Ok(outcome)
    }
}

/// How a test program ended.
#[derive(Default)]
struct Outcome {
    ran: bool,
    failed: Vec<String>,
    skipped: Vec<String>,
    said: String,
}

/// Builds a test program, with all others as `make integration` does: then it is there
/// already.
fn built(Tests { room, name }: &Tests) -> Result<PathBuf> {
    let folder = folder(room).canonicalize()?;
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells this program of itself would make the build scripts of others run again.
    let of_ours = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_ours)) {
        cargo.env_remove(name);
    }
    let output = cargo
        .args(["test", "--workspace", "--exclude", "orlop-qemu", "--test", "*", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let made = String::from_utf8(output.stdout)?;
    let program = made.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let of_room = Path::new(target["src_path"].as_str()?).starts_with(&folder);
        (of_room && target["name"] == name.as_str()).then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.with_context(|| format!("cargo has not built {name} of {room}"))
}

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src");
/// Where a test program's standard error goes, in the guest.
const STDERR: &str = "/run/stderr";
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const TEST_LIMIT: Duration = Duration::from_secs(3600);
