//! networkd's tests against a kernel, once more in a guest on ours: what the computer's own kernel
//! lacks (bonds, VLANs, dummy and WireGuard links, `tc netem`) is there, so nothing may be skipped.
//!
//! The guest has the computer's files ([`Boot::tester`]), so the same programs run, beside the same
//! servers. It is started by the first program. A guest whose instructions are translated is late at
//! times: tests that fail are run once more, one after the other, which is told in lines that begin
//! with `retried:`.

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
    let guest: Arc<Mutex<Option<Guest>>> = Arc::default();
    let checks = programs().into_iter().map(|name| {
        let guest = Arc::clone(&guest);
        Trial::test(format!("in_a_guest_networkd_tests_{name}"), move || {
            let mut guest = guest.lock().unwrap_or_else(PoisonError::into_inner);
            check(&mut guest, &name).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    libtest_mimic::run(&arguments, checks.collect()).exit_code()
}

/// The test programs of networkd: each a file, or a folder with a `main.rs`.
fn programs() -> Vec<String> {
    let entries = fs::read_dir(TESTS).into_iter().flatten().flatten().map(|entry| entry.path());
    let program = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "rs") || path.join("main.rs").exists()
    };
    let mut names: Vec<_> = entries
        .filter(program)
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

struct Guest {
    shell: Tester,
    machine: Machine,
}

impl Guest {
    fn boot() -> Result<Self> {
        let accel = Accel::from_environment()?;
        let machine = Boot::tester(accel, env!("CARGO_BIN_EXE_tester").as_ref())?
            .pace(Pace::Instructions)
            .start()?;
        let mut shell = machine.tester()?;
        shell.output("ip link set lo up", BOOT_LIMIT).with_context(|| machine.console().tail())?;
        Ok(Self { shell, machine })
    }

    /// Runs `program` with these arguments and says how each test ended, as soon as it did.
    fn test(&mut self, program: &Path, arguments: &str) -> Result<Outcome> {
        let program = program.display();
        let command = format!("cd {TESTS} && {program} {arguments} --show-output 2>{STDERR}");
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

fn check(guest: &mut Option<Guest>, name: &str) -> Result<()> {
    let program = built(name)?;
    let guest = match guest {
        Some(guest) => guest,
        none => none.insert(boot_again_after_int3(Guest::boot)?),
    };
    let outcome = guest.test(&program, "")?;
    ensure!(outcome.skipped.is_empty(), "not even in the guest:\n{}", outcome.skipped.join("\n"));
    for test in &outcome.failed {
        let again = guest.test(&program, &format!("--exact {test}"))?;
        let log = guest.shell.output(&format!("tail -n 200 {STDERR}"), BOOT_LIMIT)?;
        ensure!(again.failed.is_empty(), "{}\n{log}", again.said);
        eprintln!("\nretried: {test} in the guest\n{}", outcome.said);
    }
    Ok(())
}

/// Builds networkd's test program `name`, with all others as `make integration` does: then it is there
/// already.
fn built(name: &str) -> Result<PathBuf> {
    let tests = Path::new(TESTS).canonicalize()?;
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
        let of_networkd = Path::new(target["src_path"].as_str()?).starts_with(&tests);
        (of_networkd && target["name"] == name).then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.with_context(|| format!("cargo has not built {name} of networkd"))
}

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/networkd/tests");
/// Where a test program's standard error goes, in the guest.
const STDERR: &str = "/run/stderr";
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const TEST_LIMIT: Duration = Duration::from_secs(1200);
