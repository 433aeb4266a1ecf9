//! What services write, on disk: rotation, restarts of the node, disks that fill up, floods.

#![expect(clippy::unwrap_used, reason = "a test's failure is its panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use orlop_rt::CancellationToken;
use orlop_supervise::process::Spec;
use orlop_supervise::{
    Definition, DiskLimit, Handle, Logs, Reaper, Restart, Runner, State, Supervisor,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(60);
const SMALL: DiskLimit = DiskLimit { file_bytes: 1000, old_files: 2 };

#[tokio::test]
async fn files_are_rotated_between_lines_and_their_number_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::default();
    for number in 0..1000 {
        logs.register("x").write(format!("line {number}\n").as_bytes());
    }
    keep(&logs, folder.path(), SMALL).await;
    let names = files(folder.path());
    assert_eq!(names, ["x.log", "x.log.1", "x.log.2"]);
    let texts: Vec<String> = ["x.log.2", "x.log.1", "x.log"]
        .map(|name| fs::read_to_string(folder.path().join(name)).unwrap())
        .into();
    for text in &texts {
        assert!(text.len() <= 1000 && text.starts_with("line ") && text.ends_with('\n'), "{text}");
    }
    let all: Vec<u32> = texts.concat().lines().map(|line| line[5..].parse().unwrap()).collect();
    assert_eq!(all.last(), Some(&999));
    assert!(all.is_sorted_by(|a, b| a + 1 == *b), "nothing is missing in between");
}

#[tokio::test]
async fn another_boot_goes_on_in_the_same_files_and_reads_the_old() {
    let folder = tempfile::tempdir().unwrap();
    for boot in ["first", "second"] {
        let logs = Logs::default();
        logs.register("x").write(format!("{boot}\n").as_bytes());
        logs.register("../y").write(b"no way out\n");
        keep(&logs, folder.path(), SMALL).await;
    }
    assert_eq!(fs::read_to_string(folder.path().join("x.log")).unwrap(), "first\nsecond\n");
    assert_eq!(files(folder.path()), [".._y.log", "x.log"]);
}

#[tokio::test]
async fn a_line_without_an_end_is_cut_and_nothing_of_it_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::default();
    let bytes: Vec<u8> = (0..2500_u32).map(|number| number.to_le_bytes()[0] | 0x80).collect();
    logs.register("x").write(&bytes);
    keep(&logs, folder.path(), SMALL).await;
    let kept: Vec<u8> = ["x.log.2", "x.log.1", "x.log"]
        .iter()
        .flat_map(|name| fs::read(folder.path().join(name)).unwrap())
        .collect();
    assert_eq!(kept, bytes);
}

#[tokio::test]
async fn a_folder_that_comes_late_gets_all_that_is_still_known() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("log");
    fs::write(&folder, "in the way").unwrap();
    let logs = Logs::with_capacity(0);
    let log = logs.register("x");
    log.write(b"early\n");
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(logs.clone().keep_in(folder.clone(), fixed(SMALL), shutdown.clone()));
    // More than the ring holds.
    for _ in 0..1000 {
        log.write(b"nobody keeps this line of some length\n");
        tokio::task::yield_now().await;
    }
    log.write(b"last\n");
    fs::remove_file(&folder).unwrap();
    until(&folder.join("x.log"), "last\n").await;
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
    assert!(logs.dropped_bytes() > 10_000, "{}", logs.dropped_bytes());
}

#[tokio::test]
async fn a_full_disk_costs_what_the_ring_could_not_hold_and_no_more() {
    let place = tempfile::tempdir().unwrap();
    let Some(_small) = Small::mount(place.path()) else {
        println!("skipped: cannot mount a tmpfs");
        return;
    };
    let folder = place.path().join("log");
    let filler = place.path().join("filler");
    // As much as there is, to the last byte.
    let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let logs = Logs::with_capacity(16 << 10);
    let log = logs.register("x");
    let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let limit = DiskLimit { file_bytes: 64 << 10, old_files: 1 };
    tasks.spawn(logs.clone().keep_in(folder.clone(), fixed(limit), shutdown.clone()));
    for number in 0..10_000 {
        log.write(format!("line {number}\n").as_bytes());
        tokio::task::yield_now().await;
    }
    fs::remove_file(filler).unwrap();
    until(&folder.join("x.log"), "line 9999\n").await;
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
    let text = fs::read_to_string(folder.join("x.log")).unwrap();
    let note = text.lines().find(|line| line.starts_with('(')).unwrap();
    assert_eq!(
        note,
        format!("({} bytes are not here: the disk was not ready)", logs.dropped_bytes())
    );
}

/// 200 MB as fast as a pipe takes them: the service ends, and memory and disk stay small.
#[test]
fn a_flood_stalls_nobody_and_fills_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let before = resident_kib();
    run(async |handle| {
        let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let limit = fixed(DiskLimit::default());
        let keeper = handle.logs().clone().keep_in(path, limit, shutdown.clone());
        tasks.spawn(keeper);
        let status = once(handle, "yes 'one more line of the flood' | head -c 200000000").await;
        assert_eq!(status.state, State::Finished, "{status:#?}");
        let last = handle.logs().get("x").unwrap().read(Some(2)).available(usize::MAX);
        assert!(last.starts_with(b"one more line of the flood\n"), "{last:?}");
        shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap();
    });
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more than before");
    let disk: u64 = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!((1..=4 << 20).contains(&disk), "{disk}");
}

#[test]
fn garbage_without_a_newline_is_kept_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("garbage");
    let script =
        format!("head -c 3000000 /dev/urandom | tr -d '\\n' >{0}; cat {0}", path.display());
    run(async |handle| {
        let status = once(handle, &script).await;
        assert_eq!(status.state, State::Finished, "{status:#?}");
        let log = handle.logs().get("x").unwrap();
        let all = fs::read(&path).unwrap();
        let kept = log.read(Some(1)).available(usize::MAX);
        assert_eq!(kept.len(), 1 << 20);
        assert!(all.ends_with(&kept), "the last MiB of it is one line");
    });
}

/// Keeps what is there, and ends.
async fn keep(logs: &Logs, folder: &Path, limit: DiskLimit) {
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    logs.clone().keep_in(folder.to_owned(), fixed(limit), shutdown).await;
}

fn fixed(limit: DiskLimit) -> watch::Receiver<DiskLimit> {
    watch::channel(limit).1
}

/// Waits until the file ends so. A file cannot be waited for, so it is read until then.
async fn until(path: &Path, end: &str) {
    let read = async {
        while !fs::read_to_string(path).is_ok_and(|text| text.ends_with(end)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(LIMIT, read).await;
    assert!(found.is_ok(), "{:?}", fs::read_to_string(path));
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A file system of 128 KiB.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=128k", "none"]).arg(at);
        reaper_free(&mut command).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        reaper_free(Command::new("umount").args(["-l"]).arg(&self.0));
    }
}

/// Runs a command to its end, beside the reaper of this process.
fn reaper_free(command: &mut Command) -> bool {
    let mut child = reaper().spawn(command.stderr(std::process::Stdio::null())).unwrap();
    let wait = async move { child.wait().await.success() };
    std::thread::spawn(move || runtime().block_on(wait)).join().unwrap()
}

async fn once(handle: &Handle, script: &str) -> orlop_supervise::machine::Status {
    let mut spec = Spec::new(["/bin/sh", "-c", script]);
    spec.env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    let runner = Runner::Process(spec, reaper());
    let mut changes = handle.subscribe();
    let definition = Definition { restart: Restart::Once, ..Definition::new("x", runner) };
    handle.load(definition).await.unwrap();
    handle.start("x").await.unwrap();
    let over = [State::Finished, State::Failed];
    loop {
        let change = tokio::time::timeout(LIMIT, changes.recv()).await;
        if over.contains(&change.unwrap().unwrap().entry.state) {
            return handle.status("x").await.unwrap().status;
        }
    }
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn run(test: impl AsyncFnOnce(&Handle)) {
    runtime().block_on(async {
        let (supervisor, handle) = Supervisor::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run());
        test(&handle).await;
        handle.shutdown(LIMIT).await.unwrap();
    });
}

/// The reaper of this process, on a thread of its own so that all tests can share it.
fn reaper() -> Reaper {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    let start = || {
        let reaper = Reaper::new();
        let run = reaper.clone().run();
        std::thread::spawn(move || runtime().block_on(run).unwrap());
        reaper
    };
    REAPER.get_or_init(start).clone()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
