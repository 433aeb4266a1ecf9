//! Children of a process that reaps all of its: alone in it, because a reaper takes every child.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::Duration;

use nix::unistd::getuid;
use orlop_machined::child::{self, Talk};
use orlop_supervise::Reaper;

const LIMIT: Duration = Duration::from_secs(60);
const UID: u32 = 65534;

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

#[tokio::test]
async fn children_are_told_heard_confined_and_killed() {
    if !getuid().is_root() {
        eprintln!("skipped: only root gives up what a child may not have");
        return;
    }
    let reaper = Reaper::new();
    tokio::spawn(reaper.clone().run());
    let run =
        async |script: &str, limit| child::run(&reaper, shell(script), UID, b"asked", limit).await;

    assert_eq!(run("cat", LIMIT).await.unwrap(), "asked");
    let error = run("echo because >&2; echo more >&2; exit 1", LIMIT).await.unwrap_err();
    assert_eq!(error.to_string(), "because");
    let error = run("exit 3", LIMIT).await.unwrap_err();
    assert_eq!(error.to_string(), "exit status: 3");
    let error = run("exec sleep 1000", Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(error, child::Error::Late(_)), "{error}");
    let status = run("grep -E '^(Uid|CapBnd|CapEff|NoNewPrivs)' /proc/self/status", LIMIT).await;
    let status = status.unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{status}");
    assert!(status.contains("CapBnd:\t0000000000000000\n"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let sum: u32 = child::ask(&reaper, shell("cat"), UID, &7, LIMIT).await.unwrap();
    assert_eq!(sum, 7);

    let talk = |script: &str| Talk::begin(&reaper, shell(script), UID, &"hello").unwrap();
    let mut one = talk("cat; echo; echo 1; echo 2");
    assert_eq!(one.next::<String>().await.unwrap().as_deref(), Some("hello"));
    assert_eq!(one.next::<u32>().await.unwrap(), Some(1));
    assert_eq!(one.next::<u32>().await.unwrap(), Some(2));
    assert_eq!(one.next::<u32>().await.unwrap(), None);
    for (script, why) in [
        ("echo 1; echo tired >&2; exit 1", "tired"),
        ("echo 1; echo no json", "run a child"),
        ("echo 1; printf 2", "run a child"),
        ("echo 1; yes | tr -d '\\n'", "run a child"),
    ] {
        let mut talk = talk(script);
        assert_eq!(talk.next::<u32>().await.unwrap(), Some(1), "{script}");
        assert_eq!(talk.next::<u32>().await.unwrap_err().to_string(), why, "{script}");
    }
    // Nobody listens any more: it is gone, and reaped.
    let mut talk = talk("echo $$; exec sleep 1000");
    let pid: u32 = talk.next().await.unwrap().unwrap();
    drop(talk);
    let gone = async {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
}
