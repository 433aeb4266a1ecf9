//! The daemon on this machine's devices, with nodes, links and records in folders of its own. Needs
//! root: for loop devices, nodes and events.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;

/// Far beyond what anything here takes; reached only when something is broken.
const LIMIT: Duration = Duration::from_secs(300);

/// A daemon that runs inside the test.
struct Daemon {
    folder: TempDir,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Daemon {
    /// `None`, with the reason printed, when this machine does not let us.
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root may make nodes and loop devices");
            return None;
        }
        Some(Self::start_in(TempDir::new().expect("a temp folder")))
    }

    fn start_in(folder: TempDir) -> Self {
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("dev")).expect("it is ours");
        fs::write(at("cmdline"), "quiet\n").expect("it is ours");
        let options = Options {
            socket: at("run/udevd.sock"),
            sys: "/sys".into(),
            dev: at("dev"),
            database: at("data"),
            modules: at("modules"),
            firmware: at("firmware"),
            cmdline: at("cmdline"),
            rules: at("rules"),
            debug: false,
            command: None,
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(options, shutdown.clone()));
        Self { folder, shutdown, task }
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("no error");
        self.folder
    }

    async fn ask(&self, line: &str) -> Result<String, Error> {
        let (socket, line) = (self.folder.path().join("run/udevd.sock"), line.to_owned());
        let asked = spawn_blocking(move || {
            let began = std::time::Instant::now();
            loop {
                match control::ask(&socket, &line, LIMIT) {
                    // It has not begun to listen.
                    Err(Error::Ask { .. }) if began.elapsed() < LIMIT => std::thread::yield_now(),
                    answer => return answer,
                }
            }
        });
        asked.await.expect("no panic")
    }

    async fn settle(&self) {
        assert_eq!(self.ask("settle").await.expect("it settles"), "");
    }

    /// Settles until `done`: for what the kernel tells us in its own time, as inotify does.
    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = std::time::Instant::now();
        while !done(self) {
            assert!(began.elapsed() < LIMIT, "{what} does not happen");
            self.settle().await;
        }
    }

    fn dev(&self, name: &str) -> PathBuf {
        self.folder.path().join("dev").join(name)
    }

    /// Where a link leads, as it is written.
    fn link(&self, name: &str) -> Option<String> {
        fs::read_link(self.dev(name)).ok().map(|target| target.to_string_lossy().into_owned())
    }

    /// Makes the node of a block device, as devtmpfs would have; its number.
    fn make_node(&self, name: &str) -> String {
        self.make_node_as(name, name)
    }

    fn make_node_as(&self, name: &str, node: &str) -> String {
        let number = fs::read_to_string(format!("/sys/class/block/{name}/dev")).expect("a device");
        let (major, minor) = number.trim().split_once(':').expect("a number");
        let device = makedev(major.parse().expect("digits"), minor.parse().expect("digits"));
        let mode = Mode::from_bits_truncate(0o600);
        mknod(&self.dev(node), SFlag::S_IFBLK, mode, device).expect("we are root");
        number.trim().to_owned()
    }
}

/// A file behind a loop device until it is dropped.
struct Loop(String);

impl Loop {
    fn attach(image: &Path, more: &[&str]) -> Option<Self> {
        let output =
            Program::new("losetup").args(["--find", "--show"]).args(more).arg(image).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                Some(Self(path.trim_start_matches("/dev/").to_owned()))
            }
            other => {
                println!("skipped: no loop device: {other:?}");
                None
            }
        }
    }

    fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Program::new("losetup").arg("--detach").arg(format!("/dev/{}", self.0)).status();
    }
}

/// Runs a tool quietly; whether it is there.
fn tool(program: &str, arguments: &[&str], input: &str) -> bool {
    use std::io::Write as _;
    let path = format!("/usr/sbin/{program}");
    if !Path::new(&path).exists() {
        println!("skipped: {path} is not installed");
        return false;
    }
    let mut command = Program::new(path);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let status = child.wait().expect("our child");
    assert!(status.success(), "{program} {arguments:?}: {status}");
    true
}

/// An image of 16 MiB.
fn image(folder: &TempDir, name: &str) -> String {
    let path = folder.path().join(name);
    File::create(&path).and_then(|file| file.set_len(16 << 20)).expect("it is ours");
    path.to_string_lossy().into_owned()
}

/// A name nobody else's test uses at the same time.
fn label(of: &str) -> String {
    format!("{of}{}", std::process::id())
}

#[tokio::test]
async fn a_volume_is_found_by_label_until_it_is_gone() {
    let Some(daemon) = Daemon::start() else { return };
    let images = TempDir::new().expect("a temp folder");
    let (image, first) = (image(&images, "disk"), label("one"));
    if !tool("mke2fs", &["-q", "-t", "ext4", "-L", &first, &image], "") {
        return;
    }
    let Some(device) = Loop::attach(Path::new(&image), &[]) else { return };
    let name = device.name().to_owned();
    let number = daemon.make_node(&name);
    daemon.ask("trigger").await.expect("it answers");
    daemon.settle().await;

    let by_label = format!("disk/by-label/{first}");
    assert_eq!(daemon.link(&by_label), Some(format!("../../{name}")));
    assert_eq!(daemon.link(&format!("block/{number}")), Some(format!("../{name}")));
    let mode = fs::metadata(daemon.dev(&name)).expect("our node").mode();
    assert_eq!(mode & 0o777, 0o660);
    let info = daemon.ask(&format!("info /dev/{by_label}")).await.expect("it is known");
    assert!(
        info.contains("E: ID_FS_TYPE=ext4\n") && info.contains(&format!("N: {name}\n")),
        "{info}"
    );
    let record = fs::read_to_string(daemon.folder.path().join(format!("data/b{number}")));
    let record = record.expect("it is remembered");
    assert!(record.contains(&format!("S:{by_label}\n")) && record.contains("I:"), "{record}");

    // Written to through its node: nobody but inotify says so.
    let second = label("two");
    let node = daemon.dev(&name).to_string_lossy().into_owned();
    assert!(tool("e2label", &[&node, &second], ""));
    daemon
        .until("the new label", |daemon| daemon.link(&format!("disk/by-label/{second}")).is_some())
        .await;
    assert_eq!(daemon.link(&by_label), None);

    drop(device);
    daemon
        .until("its end", |daemon| daemon.link(&format!("disk/by-label/{second}")).is_none())
        .await;
    daemon.stop().await;
}

#[tokio::test]
async fn partitions_are_found_by_the_names_in_their_table() {
    let Some(daemon) = Daemon::start() else { return };
    let images = TempDir::new().expect("a temp folder");
    let (image, name) = (image(&images, "disk"), label("state"));
    let script = format!("label: gpt\nsize=4MiB, name={name}\nsize=4MiB\n");
    if !tool("sfdisk", &["--quiet", &image], &script) {
        return;
    }
    let Some(device) = Loop::attach(Path::new(&image), &["--partscan"]) else { return };
    let partition = format!("{}p1", device.name());
    if !Path::new(&format!("/sys/class/block/{partition}")).exists() {
        return println!("skipped: this kernel scans no loop device for partitions");
    }
    daemon.make_node(device.name());
    daemon.make_node(&partition);
    daemon.ask("trigger").await.expect("it answers");
    daemon.settle().await;
    assert_eq!(
        daemon.link(&format!("disk/by-partlabel/{name}")),
        Some(format!("../../{partition}"))
    );
    let info = daemon.ask(&format!("info /dev/{partition}")).await.expect("it is known");
    assert!(info.contains("E: ID_PART_ENTRY_SCHEME=gpt\n"), "{info}");
    assert!(info.contains("E: ID_PART_ENTRY_OFFSET=2048\n"), "{info}");
    daemon.stop().await;
}

#[tokio::test]
async fn who_comes_second_takes_over_when_the_first_goes() {
    let Some(daemon) = Daemon::start() else { return };
    let images = TempDir::new().expect("a temp folder");
    let (image, name) = (image(&images, "disk"), label("twin"));
    if !tool("mke2fs", &["-q", "-t", "ext4", "-L", &name, &image], "") {
        return;
    }
    let twin = format!("{image}.twin");
    fs::copy(&image, &twin).expect("it is ours");
    let Some(first) = Loop::attach(Path::new(&image), &[]) else { return };
    daemon.make_node(first.name());
    daemon.ask("trigger").await.expect("it answers");
    daemon.settle().await;
    let Some(second) = Loop::attach(Path::new(&twin), &[]) else { return };
    daemon.make_node(second.name());
    daemon.ask("trigger").await.expect("it answers");
    daemon.settle().await;
    let by_label = format!("disk/by-label/{name}");
    assert_eq!(daemon.link(&by_label), Some(format!("../../{}", first.name())));
    drop(first);
    let heir = Some(format!("../../{}", second.name()));
    daemon.until("the change", |daemon| daemon.link(&by_label) == heir).await;

    // What went while nobody looked is noticed by the next run.
    let folder = daemon.stop().await;
    fs::write(folder.path().join("data/b4095:4095"), "N:gone\nS:disk/by-label/gone\nI:1\n")
        .expect("it is ours");
    std::os::unix::fs::symlink("../../gone", folder.path().join("dev/disk/by-label/gone"))
        .expect("it is ours");
    let daemon = Daemon::start_in(folder);
    daemon.settle().await;
    assert_eq!(daemon.link("disk/by-label/gone"), None);
    assert_eq!(daemon.link(&by_label), heir);
    daemon.stop().await;
}

#[tokio::test]
async fn a_disk_that_is_being_partitioned_is_looked_at_afterwards() {
    let Some(daemon) = Daemon::start() else { return };
    let images = TempDir::new().expect("a temp folder");
    let (image, name) = (image(&images, "disk"), label("locked"));
    if !tool("mke2fs", &["-q", "-t", "ext4", "-L", &name, &image], "") {
        return;
    }
    let Some(device) = Loop::attach(Path::new(&image), &[]) else { return };
    // Locked before it has the name the daemon looks for.
    daemon.make_node_as(device.name(), "hidden");
    let lock = File::open(daemon.dev("hidden")).expect("our node");
    lock.lock().expect("nobody else has it");
    fs::rename(daemon.dev("hidden"), daemon.dev(device.name())).expect("it is ours");
    daemon.ask("trigger").await.expect("it answers");
    // What else is asked is answered meanwhile.
    daemon.ask(&format!("info /dev/{}", device.name())).await.expect("it is there");
    assert_eq!(daemon.link(&format!("disk/by-label/{name}")), None);
    lock.unlock().expect("it is ours");
    daemon.settle().await;
    assert!(daemon.link(&format!("disk/by-label/{name}")).is_some());
    daemon.stop().await;
}

#[tokio::test]
async fn after_a_burst_of_ten_thousand_events_everything_is_known() {
    let Some(daemon) = Daemon::start() else { return };
    let images = TempDir::new().expect("a temp folder");
    let (image, name) = (image(&images, "disk"), label("burst"));
    if !tool("mke2fs", &["-q", "-t", "ext4", "-L", &name, &image], "") {
        return;
    }
    daemon.settle().await;
    let burst = || {
        (0..5_000).for_each(|_| fs::write("/sys/class/net/lo/uevent", "change").expect("root may"));
    };
    spawn_blocking(burst).await.expect("no panic");
    let Some(device) = Loop::attach(Path::new(&image), &[]) else { return };
    daemon.make_node(device.name());
    fs::write(format!("/sys/class/block/{}/uevent", device.name()), "change").expect("root may");
    spawn_blocking(burst).await.expect("no panic");
    daemon.settle().await;
    assert!(daemon.link(&format!("disk/by-label/{name}")).is_some());
    daemon.stop().await;
}

#[tokio::test]
async fn the_rules_of_the_owner_are_obeyed_and_those_not_understood_left_out() {
    let Some(daemon) = Daemon::start() else { return };
    let folder = daemon.stop().await;
    let images = TempDir::new().expect("a temp folder");
    let Some(device) = Loop::attach(Path::new(&image(&images, "disk")), &[]) else { return };
    let rules = format!(
        "KERNEL==\"{}\", SYMLINK+=\"mine/%k\", MODE=\"0604\"\nRUN+=\"/bin/true\"\n",
        device.name()
    );
    fs::write(folder.path().join("rules"), rules).expect("it is ours");
    let daemon = Daemon::start_in(folder);
    daemon.make_node(device.name());
    daemon.ask("trigger").await.expect("it answers");
    daemon.settle().await;
    let link = format!("mine/{}", device.name());
    assert_eq!(daemon.link(&link), Some(format!("../{}", device.name())));
    let mode = fs::metadata(daemon.dev(device.name())).expect("our node").mode();
    assert_eq!(mode & 0o777, 0o604);
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_reason() {
    let Some(daemon) = Daemon::start() else { return };
    for (line, reason) in [
        ("", "is no request"),
        ("settle now", "settle, trigger or info PATH"),
        ("info /etc/passwd", "/etc/passwd"),
        ("info /dev/nonsense", "find the device"),
    ] {
        let error = daemon.ask(line).await.expect_err(line).to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
    let socket = daemon.folder.path().join("run/udevd.sock");
    let mode = fs::metadata(socket).expect("it listens").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    daemon.stop().await;
}

#[test]
fn interfaces_keep_their_names_unless_the_kernel_line_says_otherwise() {
    assert!(!predictable_names("quiet"));
    assert!(!predictable_names("net.ifnames=0"));
    assert!(predictable_names("quiet net.ifnames=1 panic=10"));
    assert!(!predictable_names("net.ifnames=1 net.ifnames=0"));
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory as _;
    Options::command().debug_assert();
}
