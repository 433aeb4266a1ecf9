//! Services as processes, and the reaper that waits for them and for every orphan.

#![expect(clippy::unwrap_used, reason = "a test's failure is its panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use orlop_supervise::machine::Status;
use orlop_supervise::process::{Capability, KillMode, Privileges, Spec};
use orlop_supervise::{Definition, Handle, Reaper, Restart, Runner, State, Supervisor};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn output_is_kept_and_nothing_of_the_parent_is_inherited() {
    let leak = fs::File::open("/dev/null").unwrap();
    fcntl(leak.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    SigSet::all().thread_block().unwrap();
    run(async |handle| {
        let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; echo /proc/self/fd/*; env; \
                      ps -o sid= -p $$ | tr -d ' '; echo $$ >&2";
        let status = once(handle, script).await;
        assert_eq!(status.state, State::Finished, "{status:#?}");
        let text = log(handle);
        // The shell reads its directory through 3.
        for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "A=b"] {
            assert!(text.lines().any(|other| other == line), "{line:?} in {text:?}");
        }
        let fds = text.lines().find(|line| line.starts_with("/proc/self/fd")).unwrap();
        assert!(fds.split(' ').all(|fd| fd <= "/proc/self/fd/3"), "{fds}");
        let [.., session, pid] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!(session, pid, "a session of its own");
        assert!(!text.contains("PATH=/usr/local/cargo") && !text.contains("CARGO_"), "{text}");
    });
}

#[test]
fn who_is_confined_has_its_user_its_capabilities_and_no_way_to_more() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";
    let raw = 1_u64 << 13 | 1 << 21;
    for (user, bits) in [((52, 53), raw), ((0, 0), raw), ((50, 50), 0)] {
        run(async |handle| {
            let mut definition = Definition { restart: Restart::Once, ..shell(script) };
            if let Runner::Process(spec, _) = &mut definition.runner {
                let capabilities = match bits {
                    0 => Vec::new(),
                    _ => vec![Capability::CAP_NET_RAW, Capability::CAP_SYS_ADMIN],
                };
                spec.privileges = Some(Privileges { user, capabilities });
            }
            handle.load(definition).await.unwrap();
            handle.start("x").await.unwrap();
            let status = until(handle, |status| status.state == State::Finished).await;
            let text = log(handle);
            let ((uid, gid), set) = (user, format!("{bits:016x}"));
            let mut wanted = vec![
                format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
                format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}"),
                "Groups:\t ".to_owned(),
                "NoNewPrivs:\t1".to_owned(),
            ];
            wanted.extend(
                ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|name| format!("Cap{name}:\t{set}")),
            );
            for line in wanted {
                assert!(text.lines().any(|other| other == line), "{line:?} in {text}: {status:#?}");
            }
        });
    }
}

#[test]
fn a_failure_is_told_with_its_reason() {
    run(async |handle| {
        let status = once(handle, "exit 3").await;
        assert_eq!(last(&status), "Failed running service: exit status: 3");
        let status = once(handle, "kill -SEGV $$").await;
        assert!(last(&status).contains("signal: 11 (SIGSEGV)"), "{status:#?}");
    });
    run(async |handle| {
        let runner = Runner::Process(Spec::new(["/nothing/here"]), reaper());
        let definition = Definition { restart: Restart::Once, ..Definition::new("x", runner) };
        handle.load(definition).await.unwrap();
        handle.start("x").await.unwrap();
        let status = until(handle, |status| status.state == State::Failed).await;
        assert_eq!(
            last(&status),
            "Failed running service: start /nothing/here: No such file or directory (os error 2)"
        );
    });
}

#[test]
fn who_is_deaf_to_term_is_killed() {
    run(async |handle| {
        let grace = Duration::from_millis(100);
        let script = "trap '' TERM; echo deaf; while :; do read x </dev/zero; done";
        handle.load(Definition { grace, ..shell(script) }).await.unwrap();
        handle.start("x").await.unwrap();
        said(handle, "deaf").await;
        handle.stop("x").await.unwrap();
        let status = handle.status("x").await.unwrap().status;
        let messages: Vec<&str> =
            status.history.iter().map(|entry| entry.message.split(' ').nth(1).unwrap()).collect();
        assert_eq!(messages[messages.len() - 3..], ["SIGTERM", "SIGKILL", "finished"]);
    });
}

#[test]
fn who_is_killed_comes_back() {
    run(async |handle| {
        handle.load(shell("echo here; exec sleep 1000")).await.unwrap();
        handle.start("x").await.unwrap();
        let first = until(handle, |status| status.pid.is_some()).await.pid;
        kill(Pid::from_raw(first.unwrap().cast_signed()), Signal::SIGKILL).unwrap();
        let second = until(handle, |status| status.pid.is_some() && status.pid != first).await;
        let messages: Vec<&str> = second.history.iter().map(|entry| &*entry.message).collect();
        assert!(
            messages.iter().any(|text| text.ends_with("forever: signal: 9 (SIGKILL)")),
            "{messages:?}"
        );
        assert_eq!(second.state, State::Running);
    });
}

/// In a time that passes when all wait: the back-off takes none.
#[test]
fn killed_a_hundred_times_it_comes_back_each_time() {
    let lives = || async {
        let (supervisor, handle) = Supervisor::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run());
        let mut changes = handle.subscribe();
        handle.load(shell("exec sleep 1000")).await.unwrap();
        handle.start("x").await.unwrap();
        let mut seen = BTreeSet::new();
        let mut rest = Duration::ZERO;
        while seen.len() <= 100 {
            let before = tokio::time::Instant::now();
            while changes.recv().await.unwrap().entry.state != State::Running {}
            rest += before.elapsed();
            let pid = handle.status("x").await.unwrap().status.pid.unwrap();
            assert!(seen.insert(pid), "{pid} was killed before");
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
        }
        tokio::time::resume();
        let status = handle.status("x").await.unwrap().status;
        handle.shutdown(LIMIT).await.unwrap();
        (status, rest)
    };
    let (sender, answer) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        sender.send(runtime.block_on(lives())).unwrap();
    });
    let answer = answer.recv_timeout(LIMIT);
    let (status, rest) = answer.unwrap_or_else(|error| panic!("{error}: {:?}", test.join()));
    assert!((100..=101).contains(&status.restarts), "{status:#?}");
    assert_eq!(status.history.len(), 64);
    // 250 ms and doubling to 5 s, each shortened by half at most.
    assert!((230..=500).contains(&rest.as_secs()), "{rest:?}");
}

#[test]
fn with_the_deaf_their_children_are_killed_wherever_they_hide() {
    let Some(cgroup) = cgroup("hiding") else {
        println!("skipped: no writable cgroup (version 2) with cgroup.kill");
        return;
    };
    run(async |handle| {
        // Twice forked, in a session of their own, deaf as well.
        let hidden = "(setsid sh -c 'trap \"\" TERM; echo hidden; sleep 1000 & wait' &)";
        let script =
            format!("trap '' TERM; {hidden}; {hidden}; while :; do read x </dev/zero; done");
        let mut definition = Definition { grace: Duration::from_millis(50), ..shell(&script) };
        if let Runner::Process(spec, _) = &mut definition.runner {
            spec.cgroup = Some(cgroup.clone());
        }
        handle.load(definition).await.unwrap();
        handle.start("x").await.unwrap();
        said(handle, "hidden\nhidden\n").await;
        let mut orphans = reaper().orphans();
        handle.stop("x").await.unwrap();
        let empty = || {
            let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap();
            events.lines().any(|line| line == "populated 0")
        };
        while !empty() {
            tokio::time::timeout(LIMIT, orphans.changed()).await.unwrap().unwrap();
        }
    });
    fs::remove_dir(cgroup).unwrap();
}

#[test]
fn who_is_killed_for_want_of_memory_is_said_to_be() {
    let Some(cgroup) = memory_cgroup() else {
        println!("skipped: no cgroup whose memory can be limited");
        return;
    };
    run(async |handle| {
        let mut definition = Definition { restart: Restart::Once, ..shell("exec tail /dev/zero") };
        if let Runner::Process(spec, _) = &mut definition.runner {
            spec.cgroup = Some(cgroup.clone());
            spec.memory_limit_bytes = Some(32 << 20);
        }
        handle.load(definition).await.unwrap();
        handle.start("x").await.unwrap();
        let status = until(handle, |status| status.state == State::Failed).await;
        assert_eq!(last(&status), "Failed running service: killed: out of memory");
    });
    fs::remove_dir(cgroup).unwrap();
}

#[test]
fn ten_thousand_orphans_at_once_are_reaped() {
    const MANY: u64 = 10_000;
    if !Path::new("/usr/bin/perl").exists() {
        println!("skipped: no perl to make them");
        return;
    }
    run(async |handle| {
        let mut orphans = reaper().orphans();
        let before = *orphans.borrow_and_update();
        // Each ends at once and waits, dead, for its parent, which leaves them all to us.
        let script = format!("exec perl -e 'for (1..{MANY}) {{ (fork // die) or exit }}'");
        let status = once(handle, &script).await;
        assert_eq!(status.state, State::Finished, "{status:#?} {}", log(handle));
        let all = tokio::time::timeout(LIMIT, orphans.wait_for(|count| *count >= before + MANY));
        all.await.unwrap().unwrap();
    });
}

#[test]
fn what_is_left_in_its_cgroup_is_killed_unless_it_shall_live() {
    let Some(cgroup) = cgroup("left") else {
        println!("skipped: no writable cgroup (version 2) with cgroup.kill");
        return;
    };
    run(async |handle| {
        for kill in [KillMode::Cgroup, KillMode::Process] {
            let mut definition =
                shell("cat /proc/self/cgroup; sleep 1000 >/dev/null 2>&1 & echo pid=$!");
            if let Runner::Process(spec, _) = &mut definition.runner {
                (spec.cgroup, spec.kill) = (Some(cgroup.clone()), kill);
            }
            let mut orphans = reaper().orphans();
            handle.load(Definition { restart: Restart::Once, ..definition }).await.unwrap();
            handle.start("x").await.unwrap();
            until(handle, |status| status.state == State::Finished).await;
            let text = log(handle);
            assert!(text.contains("0::/orlop-test-"), "{text}");
            let left = Path::new("/proc").join(text.rsplit("pid=").next().unwrap().trim());
            if kill == KillMode::Process {
                assert!(left.exists());
                fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
            }
            // It is ours now, and one of the orphans other tests make.
            while left.exists() {
                tokio::time::timeout(LIMIT, orphans.changed()).await.unwrap().unwrap();
            }
        }
    });
    fs::remove_dir(cgroup).unwrap();
}

#[test]
fn orphans_are_reaped_and_no_end_of_a_child_is_lost() {
    runtime().block_on(async {
        let reaper = reaper();
        let mut orphans = reaper.orphans();
        let before = *orphans.borrow_and_update();
        let mut children: Vec<_> = (0..100)
            .map(|code| {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", &format!("(exec true) & exit {code}")]);
                reaper.spawn(&mut command).unwrap()
            })
            .collect();
        for (code, child) in children.iter_mut().enumerate() {
            let status = tokio::time::timeout(LIMIT, child.wait()).await.unwrap();
            assert_eq!(status.code().map(i64::from), i64::try_from(code).ok());
            assert_eq!(child.wait().await, status);
            child.signal(Signal::SIGKILL).unwrap();
        }
        // A shell may have waited for a few of its own.
        let some = tokio::time::timeout(LIMIT, orphans.wait_for(|count| *count > before));
        some.await.unwrap().unwrap();
        assert!(reaper.spawn(&mut Command::new("/nothing")).is_err());
    });
}

fn shell(script: &str) -> Definition {
    let mut spec = Spec::new(["/bin/sh", "-c", script]);
    spec.env =
        vec![("A".to_owned(), "b".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    spec.oom_score_adj = Some(500);
    Definition::new("x", Runner::Process(spec, reaper()))
}

async fn once(handle: &Handle, script: &str) -> Status {
    handle.load(Definition { restart: Restart::Once, ..shell(script) }).await.unwrap();
    handle.start("x").await.unwrap();
    let over = [State::Finished, State::Failed];
    until(handle, |status| over.contains(&status.state)).await
}

fn log(handle: &Handle) -> String {
    let bytes = handle.logs().get("x").unwrap().read(None).available(usize::MAX);
    String::from_utf8(bytes).unwrap()
}

fn last(status: &Status) -> &str {
    &status.history.last().unwrap().message
}

async fn said(handle: &Handle, text: &str) {
    let mut reader = handle.logs().get("x").unwrap().read(None);
    let mut all = String::new();
    while !all.contains(text) {
        let bytes = tokio::time::timeout(LIMIT, reader.next(4096)).await.unwrap().unwrap();
        all.push_str(&String::from_utf8(bytes).unwrap());
    }
}

async fn until(handle: &Handle, wanted: impl Fn(&Status) -> bool) -> Status {
    let mut changes = handle.subscribe();
    loop {
        let status = handle.status("x").await.unwrap().status;
        if wanted(&status) {
            return status;
        }
        let change = tokio::time::timeout(LIMIT, changes.recv()).await;
        assert!(change.is_ok(), "too late: {status:#?}");
    }
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
        nix::sys::prctl::set_child_subreaper(true).unwrap();
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

/// One whose memory is limited, or can be: of version 2, or of version 1 with a limit of 32 MiB.
fn memory_cgroup() -> Option<PathBuf> {
    let name = format!("orlop-test-memory-{}", std::process::id());
    ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"].into_iter().find_map(|root| {
        let path = Path::new(root).join(&name);
        fs::create_dir(&path).ok()?;
        let old = path.join("memory.limit_in_bytes");
        let limited = old.exists() && fs::write(old, (32 << 20).to_string()).is_ok();
        if limited || path.join("memory.max").exists() {
            return Some(path);
        }
        let _ = fs::remove_dir(&path);
        None
    })
}

fn cgroup(name: &str) -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().find_map(|root| {
        let path = Path::new(root).join(format!("orlop-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        if path.join("cgroup.kill").exists() {
            return Some(path);
        }
        let _ = fs::remove_dir(&path);
        None
    })
}
