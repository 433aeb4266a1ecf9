//! The one binary as a user meets it: roles by name and by argument, exit codes, and that it needs
//! nothing but itself. `ORLOP` names the binary to test (`make` gives the one that ships), else it is
//! the one cargo has just built.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

const USAGE: i32 = 64;

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

fn run(name: &str, args: &[&str]) -> Output {
    Command::new(binary()).arg0(name).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn roles() -> Vec<String> {
    let output = run("orlop", &["roles"]);
    assert!(output.status.success());
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn every_role_answers_help_and_version_under_both_of_its_names() {
    let roles = roles();
    assert!(roles.iter().any(|role| role == "orlopctl"), "{roles:?}");
    for role in &roles {
        for flag in ["--help", "--version"] {
            let by_name = run(&format!("/sbin/{role}"), &[flag]);
            let by_argument = run("orlop", &[role, flag]);
            assert_eq!(by_name.status.code(), Some(0), "{role} {flag}: {}", stderr(&by_name));
            assert_eq!(stdout(&by_name), stdout(&by_argument), "{role} {flag}");
        }
        let version = stdout(&run("orlop", &[role, "--version"]));
        assert!(version.starts_with(&format!("{role} v")), "{role}: {version}");
    }
}

#[test]
fn an_unknown_name_or_none_prints_the_table_and_exits_64() {
    for (name, args) in [("orlop", &[][..]), ("orlop", &["nonsense"]), ("apid2", &[])] {
        let output = run(name, args);
        assert_eq!(output.status.code(), Some(USAGE), "{name} {args:?}");
        assert_eq!(stdout(&output), "");
        for role in roles() {
            assert!(stderr(&output).contains(&format!("\n  {role:<10} ")), "{}", stderr(&output));
        }
    }
}

#[test]
fn a_wrong_flag_exits_64_in_every_role() {
    for role in &roles() {
        let output = run(role, &["--no-such-flag"]);
        assert_eq!(output.status.code(), Some(USAGE), "{role}: {}", stderr(&output));
    }
}

/// ELF (elf(5)): a program that needs a loader says so in a program header of type PT_INTERP.
#[test]
fn the_binary_names_no_library() {
    let elf = fs::read(binary()).unwrap();
    let number = |at: usize, width: usize| {
        elf[at..at + width].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "64 bits, little end first");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<_> = (0..count).map(|i| number(table + i * size, 4)).collect();
    const LOAD: usize = 1;
    const INTERP: usize = 3;
    assert!(kinds.contains(&LOAD) && !kinds.contains(&INTERP), "program headers: {kinds:?}");
}

#[test]
fn it_runs_in_an_empty_root() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: it_runs_in_an_empty_root: chroot needs root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    fs::copy(binary(), root.path().join("orlop")).unwrap();
    let output =
        Command::new("chroot").arg(root.path()).args(["/orlop", "roles"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), roles());
}
