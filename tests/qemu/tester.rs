//! PID 1 of a guest that has our kernel and the files of the computer it runs on: `rdinit=` of an
//! initramfs with nothing else in it. It mounts the host's root (9P, read-only) with room to write over
//! it, becomes part of that, and then runs shell commands, one a line, that come on the first virtio
//! serial port. Of each, the lines on its standard output go back, each after a `|`, and at the end
//! `=STATUS`. Its standard error goes to the console.
//!
//! What other programs leave behind when they end is not reaped: the guest lives for minutes.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

fn main() -> ExitCode {
    let Err(error) = become_the_host().and_then(|()| serve());
    // The kernel panics now, and the harness shows this.
    eprintln!("tester: {error}");
    ExitCode::FAILURE
}

/// Makes the host's files the root.
fn become_the_host() -> io::Result<()> {
    let read_only = MsFlags::MS_RDONLY;
    attach(
        "host",
        "/host",
        "9p",
        read_only,
        "trans=virtio,version=9p2000.L,cache=loose,msize=262144",
    )?;
    attach("tmpfs", "/written", "tmpfs", MsFlags::empty(), "")?;
    fs::create_dir("/written/upper")?;
    fs::create_dir("/written/work")?;
    let layers = "lowerdir=/host,upperdir=/written/upper,workdir=/written/work";
    attach("overlay", "/new", "overlay", MsFlags::empty(), layers)?;
    for (target, fstype) in
        [("proc", "proc"), ("sys", "sysfs"), ("dev", "devtmpfs"), ("run", "tmpfs")]
    {
        attach(fstype, &format!("/new/{target}"), fstype, MsFlags::empty(), "")?;
    }
    chdir("/new")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn attach(source: &str, target: &str, fstype: &str, flags: MsFlags, data: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    mount(Some(source), target, Some(fstype), flags, Some(data))
        .map_err(|error| io::Error::other(format!("mount {source} on {target}: {error}")))
}

fn serve() -> io::Result<Infallible> {
    let port = loop {
        match port()? {
            Some(port) => break port,
            None => sleep(Duration::from_millis(50)),
        }
    };
    let mut commands = BufReader::new(&port);
    loop {
        let mut command = String::new();
        // Nothing is read while nobody is at the other end.
        if commands.read_line(&mut command)? == 0 {
            sleep(Duration::from_millis(100));
            continue;
        }
        let status = run(command.trim(), &port)?;
        (&port).write_all(format!("={status}\n").as_bytes())?;
    }
}

/// The first virtio serial port; its name begins with its number among the virtio devices.
fn port() -> io::Result<Option<File>> {
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"vport") {
            return File::options().read(true).write(true).open(entry.path()).map(Some);
        }
    }
    Ok(None)
}

/// Gives its exit status; what it says goes to `port`.
fn run(command: &str, mut port: &File) -> io::Result<i32> {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", command])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = shell.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let mut lines = BufReader::new(output);
    let mut line = b"|".to_vec();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        port.write_all(&line)?;
        line.truncate(1);
    }
    // Ended by a signal: as a shell counts.
    let status = shell.wait()?;
    Ok(status.code().unwrap_or(128))
}
