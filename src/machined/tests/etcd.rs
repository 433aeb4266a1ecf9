//! A real etcd of three members, called and configured as a node does it, with mutual TLS by certificates of
//! ours: taking members in, and all that the machine API asks of etcd, to a snapshot and what is made of it.
//!
//! Each member has a loopback address of its own, made from this process's id: so the ports can be etcd's.
//! `ORLOP_ETCD` names the program (`.ci/etcd`); else the one in `PATH` is taken.

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
    client.put("key", "value").await.unwrap();

    let mut second = two.start(Begin::Join, &two.join(&client).await);
    let mut third = three.start(Begin::Join, &three.join(&client).await);
    assert_eq!(names(&client, View::Agreed).await, ["one", "two", "three"]);
    for other in [&two, &three] {
        assert_eq!(other.client().get("key").await.unwrap().unwrap(), b"value");
        // A member that has started is none that could be taken in.
        let refused = client.join(&other.identity).await.unwrap_err();
        assert!(refused.contains("its data are not here"), "{refused}");
    }

    // The leadership goes to another member, and from one that has it not, nowhere.
    let leader = client.forfeit().await.unwrap().unwrap();
    assert!(["two", "three"].contains(&&*leader), "{leader}");
    eventually(async || match client.status().await?.leader {
        leader if leader != own && leader != 0 => Ok(()),
        _ => Err(Status::unavailable("not moved yet")),
    })
    .await;
    assert_eq!(client.forfeit().await.unwrap(), None);

    client.defragment().await.unwrap();
    alarms(&client, own).await;
    // The members agree on the cluster's version when all have told theirs.
    eventually(async || client.downgrade(Downgrade::Validate, "3.4.0".to_owned()).await).await;
    let refused = client.downgrade(Downgrade::Validate, "nonsense".to_owned()).await.unwrap_err();
    assert!(refused.message().starts_with("downgrade: etcdserver: "), "{refused}");
    assert!(client.downgrade(Downgrade::Cancel, String::new()).await.is_err());

    let unknown = client.remove(7).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    let gone = three.client().own_id().await.unwrap();
    // Not before the members have been connected for a while.
    eventually(async || client.remove(gone).await).await;
    assert_eq!(names(&client, View::Agreed).await, ["one", "two"]);
    third.ends().await;
    let silent = three.client().members(View::Local).await.unwrap_err();
    assert!(silent.code() == Code::Unavailable, "{silent}");
    assert!(silent.message().contains("etcd does not answer: connect to "), "{silent}");

    // Without a quorum a member tells what it knows, and no more.
    client.put("long", &"x".repeat(1 << 20)).await.unwrap();
    let snapshot = one.folder.path().join("snapshot");
    take(&client, &snapshot).await;
    client.put("later", "lost").await.unwrap();
    second.kill();
    assert_eq!(names(&client, View::Local).await, ["one", "two"]);
    assert!(client.members(View::Agreed).await.is_err());
    first.kill();

    let again = node(3, "again");
    again.restore(&program, &snapshot);
    let mut recovered = again.start(Begin::Again, &again.alone());
    let client = again.client();
    assert_eq!(names(&client, View::Agreed).await, ["again"]);
    assert_eq!(client.get("key").await.unwrap().unwrap(), b"value");
    assert_eq!(client.get("long").await.unwrap().unwrap().len(), 1 << 20);
    assert_eq!(client.get("later").await.unwrap(), None);
    recovered.kill();
}

/// An alarm stops writing until it is disarmed.
async fn alarms(client: &Client, own: u64) {
    assert_eq!(client.alarms().await.unwrap(), []);
    let raise = alarm_request::Action::Activate;
    client.alarm(raise, own, AlarmType::Nospace).await.unwrap();
    let raised = client.alarms().await.unwrap();
    assert!(raised.len() == 1 && raised[0].member_id == own, "{raised:?}");
    assert_eq!(raised[0].alarm(), AlarmType::Nospace);
    assert_eq!(client.put("key", "x").await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(client.disarm().await.unwrap(), raised);
    assert_eq!(client.alarms().await.unwrap(), []);
    client.put("key", "value").await.unwrap();
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

async fn names(client: &Client, view: View) -> Vec<String> {
    let mut members = client.members(view).await.unwrap();
    // The address is in the order of the names' numbers.
    members.sort_by_key(|member| member.peer_urls.clone());
    members.into_iter().map(|member| member.name).collect()
}

/// Asks again while etcd is not ready for it; it tells nobody when it is.
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
        let extra = BTreeMap::from([("log-level".to_owned(), "info".to_owned())]);
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
