//! A real etcd of three members, called and configured as a node does it, with mutual TLS by certificates of
//! ours: taking members in, and all that the machine API asks of etcd, to a snapshot and what is made of it.
//!
//! Each member has a loopback address of its own, made from this process's id: so the ports can be etcd's.
//! `ORLOP_ETCD` names the program (`.ci/unpacked tests/etcd.lock` has it); else the one in `PATH` is taken.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use orlop_machined::etcd::client::{Client, Credentials, Downgrade, View};
use orlop_machined::etcd::join::{Action, Cluster, Event, Join};
use orlop_machined::etcd::launch::{Begin, Hash, Identity, Launch, Places};
use orlop_machined::etcd::secrets::Basis;
use orlop_machined::etcd::snapshot::Check;
use orlop_pki::{Authority, KeyKind};
use orlop_proto::etcd::{AlarmType, alarm_request};
use tempfile::TempDir;
use tonic::{Code, Status};

/// For everything that etcd must bring itself to.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_cluster_is_formed_looked_after_and_made_again_of_a_snapshot() {
    let Some(program) = program() else {
        println!("skipped: no etcd (ORLOP_ETCD, or in PATH)");
        return;
    };
    let ca = Authority::generate("etcd", KeyKind::P256, 100 * LIMIT, SystemTime::now()).unwrap();
    let node = |index, name| Node::new(&program, &ca, index, name);
    let (one, two, three) = (node(0, "one"), node(1, "two"), node(2, "three"));

    let mut first = one.start(Begin::First, &one.alone());
    let client = one.client();
    let own = client.own_id().await.unwrap();
    let status = client.status().await.unwrap();
    assert!(status.leader == own && status.version.starts_with("3."), "{status:?}");
    assert_eq!(client.forfeit().await.unwrap_err().code(), Code::FailedPrecondition);
    eventually(async || client.put("key", "value").await).await;

    let mut second = two.start(Begin::Join, &two.join(&client).await);
    let mut third = three.start(Begin::Join, &three.join(&client).await);
    assert_eq!(names(&client, View::Agreed).await, ["one", "three", "two"]);
    for other in [&two, &three] {
        assert_eq!(read(&other.client(), "key").await.unwrap(), b"value");
        // A member that has started is none that could be taken in.
        eventually(async || match client.join(&other.identity).await {
            Err(why) if why.contains("its data are not here") => Ok(()),
            joined => Err(Status::unavailable(format!("{joined:?}"))),
        })
        .await;
    }

    // Whoever leads makes another lead, and those who do not lead have nothing to give.
    let (from, to) = eventually(async || {
        for node in [&one, &two, &three] {
            if let Some(leader) = node.client().forfeit().await? {
                return Ok((node.identity.name.clone(), leader));
            }
        }
        Err(Status::unavailable("nobody leads"))
    })
    .await;
    assert!(from != to && ["one", "two", "three"].contains(&&*to), "{from} to {to}");

    client.defragment().await.unwrap();
    alarms(&client, own).await;
    // The members agree on the cluster's version when all have told theirs.
    eventually(async || client.downgrade(Downgrade::Validate, "3.4.0".to_owned()).await).await;
    let nonsense = async || client.downgrade(Downgrade::Validate, "nonsense".to_owned()).await;
    let refused = refusal(nonsense).await;
    assert!(refused.message().starts_with("downgrade: etcdserver: "), "{refused}");
    refusal(async || client.downgrade(Downgrade::Cancel, String::new()).await).await;

    let unknown = refusal(async || client.remove(7).await).await;
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    let gone = three.client().own_id().await.unwrap();
    // Not before the members have been connected for a while; and what timed out may have been done.
    eventually(async || match client.remove(gone).await {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        removed => removed,
    })
    .await;
    assert_eq!(names(&client, View::Agreed).await, ["one", "two"]);
    third.ends().await;
    let silent = three.client().members(View::Local).await.unwrap_err();
    assert!(silent.code() == Code::Unavailable, "{silent}");
    assert!(silent.message().contains("etcd does not answer: connect to "), "{silent}");

    // Without a quorum a member tells what it knows, and no more.
    let long = "x".repeat(1 << 20);
    eventually(async || client.put("long", &long).await).await;
    let snapshot = one.folder.path().join("snapshot");
    take(&client, &snapshot).await;
    eventually(async || client.put("later", "lost").await).await;
    second.kill();
    assert_eq!(names(&client, View::Local).await, ["one", "two"]);
    assert!(client.members(View::Agreed).await.is_err());
    first.kill();

    let again = node(3, "again");
    again.restore(&program, &snapshot);
    let mut recovered = again.start(Begin::Again, &again.alone());
    let client = again.client();
    assert_eq!(names(&client, View::Agreed).await, ["again"]);
    assert_eq!(read(&client, "key").await.unwrap(), b"value");
    assert_eq!(read(&client, "long").await.unwrap(), long.as_bytes());
    assert_eq!(read(&client, "later").await, None);
    recovered.kill();
}

/// An alarm stops writing until it is disarmed.
async fn alarms(client: &Client, own: u64) {
    let given = async || eventually(async || client.alarms().await).await;
    assert_eq!(given().await, []);
    let raise = alarm_request::Action::Activate;
    eventually(async || client.alarm(raise, own, AlarmType::Nospace).await).await;
    let raised = given().await;
    assert!(raised.len() == 1 && raised[0].member_id == own, "{raised:?}");
    assert_eq!(raised[0].alarm(), AlarmType::Nospace);
    let full = refusal(async || client.put("key", "x").await).await;
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    let ended = eventually(async || client.disarm().await).await;
    // The first try may have done it without saying so.
    assert!(ended == raised || ended.is_empty(), "{ended:?}");
    assert_eq!(given().await, []);
    eventually(async || client.put("key", "value").await).await;
}

async fn read(client: &Client, key: &str) -> Option<Vec<u8>> {
    eventually(async || client.get(key).await).await
}

async fn take(client: &Client, path: &Path) {
    let (mut pieces, mut check, mut all) =
        (client.snapshot().await.unwrap(), Check::new(), Vec::new());
    while let Some(piece) = pieces.message().await.unwrap() {
        check.push(&piece.blob).unwrap();
        all.extend(piece.blob);
    }
    assert_eq!(check.finish(), Ok(Hash::Right));
    fs::write(path, all).unwrap();
}

/// In the order of the alphabet.
async fn names(client: &Client, view: View) -> Vec<String> {
    let members = eventually(async || client.members(view).await).await;
    let mut names: Vec<_> = members.into_iter().map(|member| member.name).collect();
    names.sort();
    names
}

/// Asks until etcd does it. On a busy machine the leadership moves at any time, and what is under way then
/// fails; and some things must be a while old. Nobody is told when it is over.
async fn eventually<T>(ask: impl AsyncFn() -> Result<T, Status>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ask().await {
            Ok(done) => return done,
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Why etcd does not do it, other than that it cannot answer now.
async fn refusal<T: std::fmt::Debug>(ask: impl AsyncFn() -> Result<T, Status>) -> Status {
    eventually(async || match ask().await {
        Err(status) if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => {
            Ok(status)
        }
        Err(status) => Err(status),
        Ok(done) => panic!("done: {done:?}"),
    })
    .await
}

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("ORLOP_ETCD").filter(|path| !path.is_empty());
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.map(PathBuf::from).or_else(|| {
        std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|path| path.is_file())
    })
}

/// A node that can be a member.
struct Node {
    program: PathBuf,
    identity: Identity,
    places: Places,
    folder: TempDir,
}

impl Node {
    fn new(program: &Path, ca: &Authority, index: u32, name: &str) -> Self {
        // 127.0.0.0/8 has an address for four members of every process there can be (pids have 22 bits).
        let [_, a, b, c] = (std::process::id() << 2 | index).to_be_bytes();
        let address = Ipv4Addr::new(127, a, b, c).into();
        let folder = tempfile::tempdir().unwrap();
        let places =
            Places { data: folder.path().join("data"), secrets: folder.path().join("secrets") };
        let identity = Identity { name: name.to_owned(), address };
        let basis = Basis {
            own: identity.clone(),
            dns: vec![name.to_owned()],
            ips: vec![address, IpAddr::from(Ipv4Addr::LOCALHOST)],
            ca: ca.pair().crt.clone(),
            key: ca.pair().key.clone(),
        };
        fs::create_dir(&places.secrets).unwrap();
        for (name, text) in basis.issue(SystemTime::now()).unwrap() {
            fs::write(places.secrets.join(name), text.expose()).unwrap();
        }
        Self { program: program.to_owned(), identity, places, folder }
    }

    fn client(&self) -> Client {
        let credentials = Credentials::read(&self.places.secrets).unwrap();
        Client::new(&self.identity.address.to_string(), &credentials).unwrap()
    }

    fn alone(&self) -> Cluster {
        vec![(self.identity.name.clone(), self.identity.peer_url())]
    }

    /// As the driver does it, in real time.
    async fn join(&self, client: &Client) -> Cluster {
        let (join, mut event) = (Join::new(Instant::now()), Event::Due);
        loop {
            event = match join.handle(Instant::now(), 0, event) {
                Action::Start(cluster) => return cluster,
                Action::GiveUp(why) => panic!("{why}"),
                Action::WakeAt(at) => {
                    tokio::time::sleep_until(at.into()).await;
                    Event::Due
                }
                Action::Try => match client.join(&self.identity).await {
                    Ok(cluster) => Event::Joined(cluster),
                    Err(why) => Event::Failed(why),
                },
            };
        }
    }

    fn launch<T>(&self, begin: Begin, cluster: &Cluster, then: impl Fn(Launch<'_>) -> T) -> T {
        // A busy machine is late with everything.
        let extra = [("heartbeat-interval", "300"), ("election-timeout", "3000")];
        let extra: BTreeMap<_, _> = extra.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let (identity, places) = (&self.identity, &self.places);
        then(Launch { identity, places, listen: identity.address, begin, cluster, extra: &extra })
    }

    /// Starts it, and waits until it serves.
    fn start(&self, begin: Begin, cluster: &Cluster) -> Member {
        let mut child = Command::new(&self.program)
            .args(self.launch(begin, cluster, |launch| launch.arguments()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (said, serves) = mpsc::channel();
        // Ends with etcd.
        thread::spawn(move || {
            let mut last = Vec::new();
            for line in log.lines().map_while(Result::ok) {
                if line.contains("ready to serve client requests") {
                    let _ = said.send(Ok(()));
                }
                last.push(line);
                last.drain(..last.len().saturating_sub(20));
            }
            let _ = said.send(Err(last.join("\n")));
        });
        let member = Member(child);
        serves.recv_timeout(LIMIT).expect("etcd serves in time").unwrap();
        member
    }

    fn restore(&self, program: &Path, snapshot: &Path) {
        let arguments = self.launch(Begin::First, &self.alone(), |launch| {
            launch.restore_arguments(snapshot, false)
        });
        let program = program.with_file_name("etcdutl");
        let restored = Command::new(program).args(arguments).output().unwrap();
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    }
}

/// A running etcd.
struct Member(Child);

impl Member {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Waits for its own end.
    async fn ends(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "a removed member goes on");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
