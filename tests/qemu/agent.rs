//! The hand of the tests inside a guest. It is booted as `rdinit=`: it starts itself a second time in
//! the background, becomes the real /init, and from then on serves one-line requests on the first
//! virtio serial port: `kill NAME`, `freeze NAME`, `pids NAME`, `bomb NAME`, `hog NAME`, `orphan`,
//! `orphans COUNT`, `state PID`, `fill FOLDER`, `clear FOLDER`.
//!
//! The node offers none of this, and its image has no such program.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

/// Survives the emptying of the initramfs, because it is made after it and lies in no one's way.
const PROC: &str = "/agent.proc";
const DEV: &str = "/agent.dev";
const AGAIN: &str = "/agent.proc/self/exe";
/// Processes, or MiB, that are too many for any service.
const MOST: usize = 512;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let result = match args.get(1).map(String::as_str) {
        Some("serve") => serve(),
        Some("orphan-parent") => orphan(),
        Some("orphans-parent") => orphans(args.get(2).map_or("", String::as_str)),
        Some("orphan") => {
            // Lives a moment longer than its parent.
            sleep(Duration::from_secs(1));
            Ok(())
        }
        Some("nothing") => Ok(()),
        Some("idle") => {
            sleep(Duration::from_secs(600));
            Ok(())
        }
        Some("bomb") => moved().and_then(|()| bomb()),
        Some("hog") => moved().and_then(|()| hog()),
        _ => become_init(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn become_init() -> io::Result<()> {
    Command::new("/agent").arg("serve").spawn()?;
    Err(Command::new("/init").exec())
}

fn serve() -> io::Result<()> {
    for (target, fstype) in [(PROC, "proc"), (DEV, "devtmpfs")] {
        make_mount(target, fstype)?;
    }
    let port = loop {
        match port()? {
            Some(port) => break port,
            None => sleep(Duration::from_millis(50)),
        }
    };
    let mut requests = BufReader::new(&port);
    loop {
        let mut line = String::new();
        // Nothing is read while nobody is at the other end.
        if requests.read_line(&mut line)? == 0 {
            sleep(Duration::from_millis(100));
            continue;
        }
        let reply = answer(line.trim()).unwrap_or_else(|error| format!("error: {error}"));
        (&port).write_all(format!("{reply}\n").as_bytes())?;
    }
}

/// Starts a process and says which, for its parent to end right after.
fn orphan() -> io::Result<()> {
    // It must not hold the pipe open that its grandparent reads to the end.
    let (stdin, stdout, stderr) = (nothing()?, nothing()?, nothing()?);
    let child =
        Command::new(AGAIN).arg("orphan").stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
    println!("{}", child.id());
    Ok(())
}

/// Starts processes that end at once, and waits for none: they are handed on together when it ends.
fn orphans(count: &str) -> io::Result<()> {
    for _ in 0..count.parse().map_err(io::Error::other)? {
        quiet("nothing")?.spawn()?;
    }
    Ok(())
}

/// Waits until it is in the cgroup it is meant for: then its input ends.
fn moved() -> io::Result<()> {
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

/// Starts processes until no more can be, says how many there were, and ends them.
fn bomb() -> io::Result<()> {
    let mut children = Vec::new();
    while children.len() < MOST {
        match quiet("idle")?.spawn() {
            Ok(child) => children.push(child),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    println!("{}", children.len());
    for mut child in children {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// Takes memory until it is killed, or has far more than any service may.
fn hog() -> io::Result<()> {
    let taken: Vec<_> = (0..MOST).map(|_| vec![1_u8; 1 << 20]).collect();
    println!("{} MiB", taken.len());
    Ok(())
}

/// This program in another part, which neither hears nor is heard.
fn quiet(part: &str) -> io::Result<Command> {
    let mut command = Command::new(AGAIN);
    command.arg(part).stdin(nothing()?).stdout(nothing()?).stderr(nothing()?);
    Ok(command)
}

/// What this program says in another part, with the cgroup of the service `name` as its own; `killed` when
/// it is.
fn within(name: &str, part: &str) -> io::Result<String> {
    let no = || io::Error::other(format!("no process is called {name}"));
    let service = pids(name)?.first().copied().ok_or_else(no)?;
    let cgroup = fs::read_to_string(format!("{PROC}/{service}/cgroup"))?;
    let cgroup = cgroup.trim().trim_start_matches("0::");
    let members = format!("{PROC}/1/root/sys/fs/cgroup{cgroup}/cgroup.procs");
    // It waits for a line before it begins: until then it is where we are.
    let mut child = Command::new(AGAIN)
        .arg(part)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(nothing()?)
        .spawn()?;
    let moved = fs::write(&members, child.id().to_string());
    drop(child.stdin.take());
    let output = child.wait_with_output()?;
    moved?;
    match output.status.signal() {
        Some(9) => Ok("killed".to_owned()),
        _ => Ok(format!("{} {}", String::from_utf8_lossy(&output.stdout).trim(), output.status)),
    }
}

/// /dev/null: the one std would open is gone with the initramfs.
fn nothing() -> io::Result<Stdio> {
    Ok(File::options().read(true).write(true).open(format!("{DEV}/null"))?.into())
}

/// The first virtio serial port; its name begins with its number among the virtio devices.
fn port() -> io::Result<Option<File>> {
    for entry in fs::read_dir(DEV)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"vport") {
            return File::options().read(true).write(true).open(entry.path()).map(Some);
        }
    }
    Ok(None)
}

fn make_mount(target: &str, fstype: &str) -> io::Result<()> {
    // The initramfs is emptied while we start: a folder made a moment too early is gone again.
    loop {
        fs::create_dir_all(target)?;
        match mount(Some(fstype), target, Some(fstype), MsFlags::empty(), None::<&str>) {
            Err(nix::Error::ENOENT) => {}
            result => return Ok(result?),
        }
    }
}

fn answer(request: &str) -> io::Result<String> {
    match request.split_once(' ').unwrap_or((request, "")) {
        ("ping", _) => Ok("pong".to_owned()),
        ("pids", name) => Ok(join(&pids(name)?)),
        ("kill", name) => signal(name, Signal::SIGKILL),
        ("freeze", name) => signal(name, Signal::SIGSTOP),
        ("bomb", name) => within(name, "bomb"),
        ("hog", name) => within(name, "hog"),
        ("orphans", count) => {
            let status = quiet("orphans-parent")?.arg(count).status()?;
            if status.success() { Ok(count.to_owned()) } else { Err(io::Error::other("failed")) }
        }
        ("orphan", _) => {
            let parent = Command::new(AGAIN)
                .arg("orphan-parent")
                .stdin(nothing()?)
                .stdout(Stdio::piped())
                .stderr(nothing()?)
                .output()?;
            Ok(String::from_utf8_lossy(&parent.stdout).trim().to_owned())
        }
        ("state", pid) => match fs::read_to_string(format!("{PROC}/{pid}/stat")) {
            Ok(stat) => {
                let mut after_name = stat.rsplit(") ").next().unwrap_or_default().split(' ');
                Ok(after_name.by_ref().take(2).collect::<Vec<_>>().join(" "))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("gone".to_owned()),
            Err(error) => Err(error),
        },
        ("fill", folder) => fill(&filler(folder)).map(|written| written.to_string()),
        ("clear", folder) => fs::remove_file(filler(folder)).map(|()| "cleared".to_owned()),
        _ => Err(io::Error::other("no such request")),
    }
}

/// A file in a folder of the node's root, which is not ours.
fn filler(folder: &str) -> String {
    format!("{PROC}/1/root{folder}/filled-by-the-agent")
}

/// Takes the room there is, most of it without writing to it, which takes a translated machine long;
/// how many bytes that was. Others take room at the same time, so a little is left to the writing.
fn fill(path: &str) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let room = statvfs(path)?;
    let room = room.blocks_available() * room.fragment_size();
    let mut taken = room.saturating_sub(8 << 20).max(4096);
    fallocate(&file, FallocateFlags::empty(), 0, taken.try_into().map_err(io::Error::other)?)?;
    file.seek(SeekFrom::End(0))?;
    loop {
        match file.write(&[1; 4096]) {
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(taken),
            Err(error) => return Err(error),
        }
    }
}

/// The processes whose first argument has the base name `name`; of `orlop NAME`, the second counts.
fn pids(name: &str) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(PROC)? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        // It may have ended since.
        let cmdline = fs::read(format!("{PROC}/{pid}/cmdline")).unwrap_or_default();
        let mut words = cmdline.split(|byte| *byte == 0);
        let mut base = || words.next()?.rsplit(|byte| *byte == b'/').next();
        let called = match base() {
            Some(b"orlop") => base(),
            first => first,
        };
        if called == Some(name.as_bytes()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Signals every process called `name`; who they were.
fn signal(name: &str, signal: Signal) -> io::Result<String> {
    let pids = pids(name)?;
    for pid in &pids {
        kill(Pid::from_raw(*pid), signal)?;
    }
    Ok(join(&pids))
}

fn join(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}
