//! The API server: what a decision of RBAC takes; from its start to a server that is ready; what it occupies; reading,
//! writing, listing and watching through its door, as a client does; and the same with more and more objects. Writes are
//! beside those to a bare etcd on the same disk, with what that disk takes to sync 4 KiB. Prints a line for each:
//! `kube NAME p50_us=…`; `cpu_us` is what the server's process took for each, which says something on a busy machine, too.
//!
//! Needs etcd: `ORLOP_ETCD`, or in `PATH`; without it what it is needed for is left out, and stderr says so. The binary is
//! `ORLOP`, or out/orlop, or else this program itself. `KUBE=authz` measures decisions alone; `KUBE=quick` tries the bench
//! itself, with figures that mean nothing.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_apiserver::authz::{Action, Authorizer as _, Decision, Rbac};
use orlop_apiserver::object::{Object, User};
use orlop_apiserver::request::Asked;
use orlop_apiserver::resources::find;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;
type Client = SendRequest<Full<Bytes>>;

const STARTS: usize = 5;
const READS: usize = 5_000;
const WRITES: usize = 6_400;
const OBJECTS: usize = 10_000;
const WATCHES: usize = 1_000;
const EVENTS: usize = 50;
/// Watches that hang on the pods while their memory is measured.
const HANGING: usize = 100;
/// So many objects, one after the other, is everything measured again with.
const GROWTH: [usize; 3] = [1_000, 10_000, 100_000];
/// Of a page.
const PAGE: usize = 500;
/// How long nothing is asked of a server, to see what it does.
const IDLE: Duration = Duration::from_secs(10);
/// How much less is done to try the bench itself.
const QUICK: usize = 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Until a server that has started has done what comes with it.
const SETTLE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|role| role == "apiserver") {
        return orlop_apiserver::main(args);
    }
    decisions();
    if std::env::var("KUBE").is_ok_and(|only| only == "authz") {
        return ExitCode::SUCCESS;
    }
    let run = tokio::runtime::Runtime::new().map_err(Error::from);
    match run.and_then(|runtime| runtime.block_on(server())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// So many, or fewer to try the bench.
fn several(count: usize) -> usize {
    let quick = std::env::var("KUBE").is_ok_and(|only| only == "quick");
    if quick { (count / QUICK).max(1) } else { count }
}

/// A thousand bindings: each of one user, or all of one group, of which the last allows it or none does.
fn decisions() {
    const BINDINGS: usize = 1_000;
    let rbac = Rbac::default();
    let see = |plural, namespace: &str, name: &str, value: Value| {
        let object: Object = value.as_object().cloned().unwrap_or_default();
        let resource = find("rbac.authorization.k8s.io", "v1", plural).expect("it is in the table");
        rbac.observe(resource, namespace, name, Some(&object));
    };
    for i in 0..BINDINGS {
        let rules = json!([
            {"apiGroups": ["", "apps"], "resources": ["pods", "pods/log", "deployments"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [format!("c{i}")], "verbs": ["*"]},
        ]);
        see("clusterroles", "", &format!("r{i}"), json!({"rules": rules}));
        let role = json!({"kind": "ClusterRole", "name": format!("r{i}")});
        let user = json!([{"kind": "User", "name": format!("u{i}")}]);
        see("rolebindings", "ns", &format!("b{i}"), json!({"roleRef": role, "subjects": user}));
        let group = json!([{"kind": "Group", "name": "everybody"}]);
        see("rolebindings", "other", &format!("b{i}"), json!({"roleRef": role, "subjects": group}));
    }
    let groups = ["dev", "system:authenticated"].map(str::to_owned).to_vec();
    let own = User { name: "u700".to_owned(), groups, ..User::default() };
    let one_of_all = User { groups: vec!["everybody".to_owned()], ..own.clone() };
    let last = format!("c{}", BINDINGS - 1);
    let configmap = |namespace, name| Asked {
        version: "v1",
        namespace,
        plural: "configmaps",
        name,
        ..Asked::default()
    };
    let pods = Asked { version: "v1", namespace: "ns", plural: "pods", ..Asked::default() };
    for (name, user, verb, asked, expected) in [
        ("decide_own", &own, "list", pods, true),
        ("decide_refused", &own, "delete", pods, false),
        ("decide_last_of_group", &one_of_all, "update", configmap("other", last.as_str()), true),
        ("decide_refused_group", &one_of_all, "update", configmap("other", "none"), false),
    ] {
        let action = Action { user, verb, asked: Some(asked), path: "" };
        assert_eq!(matches!(rbac.decide(&action), Decision::Allow(_)), expected, "{name}");
        const EACH: u32 = 1_000;
        let times = (0..200).map(|_| {
            let start = Instant::now();
            for _ in 0..EACH {
                black_box(rbac.decide(black_box(&action)));
            }
            start.elapsed() / EACH
        });
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        println!("kube {name} p50_ns={}", times[times.len() / 2].as_nanos());
    }
}

async fn server() -> Result<()> {
    let orlop = orlop()?;
    let folder = tempfile::tempdir()?;
    tell("fdatasync", syncs(folder.path())?);
    starts(&orlop).await?;

    let server = Server::start(&orlop, &folder.path().join("embedded"), None).await?;
    std::thread::sleep(SETTLE);
    println!("kube resident mib={:.2}", server.resident()?);
    idles(&server)?;
    reads(&server, "get").await?;
    for clients in [32, 64] {
        let before = server.busy()?;
        let took = writes(&server, clients).await?;
        tell_rate(&format!("create_{clients}"), took, Some(server.busy()? - before));
    }
    drop(server);
    let data = folder.path().join("many");
    let server = Server::start(&orlop, &data, None).await?;
    lists(&server).await?;
    watches(&server).await?;
    server.stop()?;
    let again = Instant::now();
    drop(Server::start(&orlop, &data, None).await?);
    tell("ready_10000", vec![again.elapsed()]);
    grows(&Server::start(&orlop, &folder.path().join("growing"), None).await?).await?;

    let Some(etcd) = Etcd::start(&folder.path().join("etcd"))? else {
        eprintln!("bench: etcd is left out: there is none (ORLOP_ETCD, or in PATH)");
        return Ok(());
    };
    for clients in [32, 64] {
        tell_rate(&format!("etcd_put_{clients}"), etcd.puts(clients).await?, None);
    }
    let store = format!("etcd://127.0.0.1:{}", etcd.port);
    let server = Server::start(&orlop, &folder.path().join("over-etcd"), Some(&store)).await?;
    for clients in [32, 64] {
        let before = server.busy()?;
        let took = writes(&server, clients).await?;
        let busy = server.busy()? - before;
        tell_rate(&format!("create_{clients}_over_etcd"), took, Some(busy));
    }
    Ok(())
}

/// The binary, or else this program, which can be the role.
fn orlop() -> Result<PathBuf> {
    let named = std::env::var_os("ORLOP").map(PathBuf::from);
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/../../out/orlop");
    let there = named.or_else(|| Some(made.into())).filter(|path| path.exists());
    there.map_or_else(|| Ok(std::env::current_exe()?), Ok)
}

/// What the disk takes for 4 KiB at the end of a file.
fn syncs(folder: &Path) -> Result<Vec<Duration>> {
    let mut file = File::create(folder.join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..500 {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// A server that ends with this.
struct Server {
    child: Child,
    kubeconfig: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was stopped has ended.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            end(&mut self.child);
        }
    }
}

fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        eprintln!("bench: end a process: {error}");
    }
}

impl Server {
    /// One that says it is ready.
    async fn start(orlop: &Path, data: &Path, store: Option<&str>) -> Result<Self> {
        let mut command = Command::new(orlop);
        command.args(["apiserver", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data);
        if let Some(store) = store {
            command.args(["--store", store]);
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(out).lines().map_while(std::result::Result::ok);
        let told = lines.find(|line| line.contains("KUBECONFIG="));
        let mut server = Self { child, kubeconfig: Value::Null };
        let path = told.ok_or("the server ended before it said where its kubeconfig is")?;
        let (_, path) = path.split_once("KUBECONFIG=").ok_or("no kubeconfig")?;
        server.kubeconfig = serde_yaml::from_str(&fs::read_to_string(path)?)?;
        let client = server.client().await?;
        let start = Instant::now();
        while send(&client, Method::GET, "/readyz", None).await?.0 != StatusCode::OK {
            if start.elapsed() > LIMIT {
                return Err("the server does not become ready".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(server)
    }

    /// A connection of its own.
    async fn client(&self) -> Result<Client> {
        let at = |pointer: &str| -> Result<&str> {
            let value = self.kubeconfig.pointer(pointer).and_then(Value::as_str);
            value.ok_or_else(|| format!("no {pointer} in the kubeconfig").into())
        };
        let pem = |pointer: &str| -> Result<Vec<u8>> {
            Ok(base64::engine::general_purpose::STANDARD.decode(at(pointer)?)?)
        };
        let mut roots = rustls::RootCertStore::empty();
        let authority = pem("/clusters/0/cluster/certificate-authority-data")?;
        roots.add(CertificateDer::from_pem_slice(&authority)?)?;
        let certificate =
            CertificateDer::from_pem_slice(&pem("/users/0/user/client-certificate-data")?)?;
        let key = PrivateKeyDer::from_pem_slice(&pem("/users/0/user/client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let url = at("/clusters/0/cluster/server")?;
        let address = url.strip_prefix("https://").ok_or("not https")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // It ends with its client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Ends it as whoever switches a node off does.
    fn stop(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        if !Command::new("kill").arg(&id).status()?.success() {
            return Err("the server could not be told to end".into());
        }
        self.child.wait()?;
        Ok(())
    }

    /// MiB.
    fn resident(&self) -> Result<f64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()).ok_or("no such memory")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }

    /// What it occupied at most from here on is `VmHWM` (`proc_pid_clear_refs(5)`).
    fn forget_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }

    /// Of the processor, until now, by the kernel's ticks of 10 ms.
    fn busy(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = stat.rsplit_once(')').ok_or("no name in stat")?;
        let mut ticks = 0;
        for field in rest.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
        Ok(Duration::from_millis(10 * ticks))
    }
}

/// A request, and when its answer's head is there.
async fn open(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<http::Response<Incoming>> {
    let uri = format!("https://127.0.0.1{path}");
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request =
        Request::builder().method(method).uri(uri).header("content-type", "application/json");
    let mut client = client.clone();
    client.ready().await?;
    Ok(client.send_request(request.body(Full::from(body))?).await?)
}

/// And all of the answer.
async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(StatusCode, Bytes)> {
    let response = open(client, method, path, body).await?;
    let code = response.status();
    Ok((code, response.into_body().collect().await?.to_bytes()))
}

/// Creates something that may be there.
async fn create(client: &Client, path: &str, body: &Value) -> Result<()> {
    match send(client, Method::POST, path, Some(body)).await? {
        (StatusCode::CREATED | StatusCode::CONFLICT, _) => Ok(()),
        (code, body) => {
            Err(format!("POST {path}: {code}: {}", String::from_utf8_lossy(&body)).into())
        }
    }
}

/// From the start of the process until it answers that it is ready: the first time, when it makes its keys and writes
/// what every cluster has, and again.
async fn starts(orlop: &Path) -> Result<()> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..several(STARTS) {
        let folder = tempfile::tempdir()?;
        for times in [&mut first, &mut again] {
            let start = Instant::now();
            drop(Server::start(orlop, folder.path(), None).await?);
            times.push(start.elapsed());
        }
    }
    tell("ready_first", first);
    tell("ready_again", again);
    Ok(())
}

/// What a server does when nobody asks it anything.
fn idles(server: &Server) -> Result<()> {
    let before = server.busy()?;
    std::thread::sleep(IDLE);
    let busy = (server.busy()? - before).as_secs_f64() / IDLE.as_secs_f64();
    println!("kube idle percent={:.2}", 100.0 * busy);
    Ok(())
}

/// One client, one object, again and again.
async fn reads(server: &Server, name: &str) -> Result<()> {
    let client = server.client().await?;
    let maps = "/api/v1/namespaces/default/configmaps";
    create(&client, maps, &json!({"metadata": {"name": "read"}, "data": {"a": "1"}})).await?;
    let mut times = Vec::new();
    let before = server.busy()?;
    for _ in 0..several(READS) {
        let start = Instant::now();
        let (code, _) = send(&client, Method::GET, &format!("{maps}/read"), None).await?;
        times.push(start.elapsed());
        if code != StatusCode::OK {
            return Err(format!("GET: {code}").into());
        }
    }
    println!("kube {name}_cpu us={}", each(server.busy()? - before, times.len()));
    tell(name, times);
    Ok(())
}

fn each(all: Duration, count: usize) -> u128 {
    all.as_micros() / (count as u128).max(1)
}

/// A read, a write and a page of a list, with more and more objects beside them.
async fn grows(server: &Server) -> Result<()> {
    let client = server.client().await?;
    create(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "more"}})).await?;
    let mut there = 0;
    for count in GROWTH {
        let until = several(count);
        fill(
            server,
            "/api/v1/namespaces/more/configmaps",
            there..until,
            |name| json!({"metadata": {"name": name}, "data": {"a": "x".repeat(100)}}),
        )
        .await?;
        there = until;
        reads(server, &format!("get_of_{count}")).await?;
        let before = server.busy()?;
        let took = writes(server, 64).await?;
        tell_rate(&format!("create_64_of_{count}"), took, Some(server.busy()? - before));
        let mut times = Vec::new();
        for _ in 0..several(100) {
            let start = Instant::now();
            let page = format!("/api/v1/namespaces/more/configmaps?limit={PAGE}");
            let (code, _) = send(&client, Method::GET, &page, None).await?;
            times.push(start.elapsed());
            if code != StatusCode::OK {
                return Err(format!("a page: {code}").into());
            }
        }
        tell(&format!("page_of_{count}"), times);
        println!("kube resident_of_{count} mib={:.2}", server.resident()?);
    }
    Ok(())
}

/// Makes objects by their numbers, by 64 clients.
async fn fill(
    server: &Server,
    path: &'static str,
    numbers: std::ops::Range<usize>,
    body: impl Fn(String) -> Value + Copy + Send + 'static,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for i in 0..64 {
        let client = server.client().await?;
        let numbers = numbers.clone();
        tasks.spawn(async move {
            for n in numbers.skip(i).step_by(64) {
                create(&client, path, &body(format!("o{n}"))).await?;
            }
            Ok::<_, Error>(Vec::new())
        });
    }
    gather(tasks, Instant::now()).await.map(drop)
}

/// How long each took, and all.
type Took = (Vec<Duration>, Duration);

async fn writes(server: &Server, clients: usize) -> Result<Took> {
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(server.client().await?);
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (i, client) in connections.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut times = Vec::new();
            for n in 0..several(WRITES) / clients {
                let body =
                    json!({"metadata": {"name": format!("w{round}-{i}-{n}")}, "data": {"a": "1"}});
                let start = Instant::now();
                create(&client, "/api/v1/namespaces/default/configmaps", &body).await?;
                times.push(start.elapsed());
            }
            Ok::<_, Error>(times)
        });
    }
    gather(tasks, start).await
}

async fn gather(mut tasks: JoinSet<Result<Vec<Duration>>>, start: Instant) -> Result<Took> {
    let mut all = Vec::new();
    while let Some(times) = tasks.join_next().await {
        all.extend(times??);
    }
    Ok((all, start.elapsed()))
}

/// Ten thousand pods of about 4 KiB: all in one answer, and what they occupy.
async fn lists(server: &Server) -> Result<()> {
    let client = server.client().await?;
    create(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "many"}})).await?;
    let account = json!({"metadata": {"name": "default"}});
    create(&client, "/api/v1/namespaces/many/serviceaccounts", &account).await?;
    let pods = "/api/v1/namespaces/many/pods";
    fill(server, pods, 0..several(OBJECTS), |name| {
        json!({
            "metadata": {"name": name, "annotations": {"filler": "x".repeat(3_000)}},
            "spec": {"containers": [{"name": "c", "image": "example.org/image:1"}]},
        })
    })
    .await?;
    let watch = format!("{pods}?watch=1&resourceVersion={}", revision(&client, pods).await?);
    let mut hanging = Vec::new();
    for _ in 0..HANGING {
        hanging.push(open(&client, Method::GET, &watch, None).await?);
    }
    println!("kube resident_10000 mib={:.2}", server.resident()?);
    drop(hanging);
    let before = server.resident()?;
    server.forget_peak()?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..10 {
        let start = Instant::now();
        let (code, body) = send(&client, Method::GET, "/api/v1/namespaces/many/pods", None).await?;
        times.push(start.elapsed());
        bytes = body.len();
        if code != StatusCode::OK {
            return Err(format!("LIST: {code}").into());
        }
    }
    println!("kube list_10000 bytes={bytes}");
    tell("list_10000", times);
    println!("kube list_10000_more mib={:.2}", server.memory("VmHWM:")? - before);
    Ok(())
}

/// Of now.
async fn revision(client: &Client, path: &str) -> Result<String> {
    let (_, list) = send(client, Method::GET, &format!("{path}?limit=1"), None).await?;
    let list: Value = serde_json::from_slice(&list)?;
    let revision = list["metadata"]["resourceVersion"].as_str().ok_or("a list has a revision")?;
    Ok(revision.to_owned())
}

/// From a write until a thousand watches have it.
async fn watches(server: &Server) -> Result<()> {
    let writer = server.client().await?;
    create(&writer, "/api/v1/namespaces", &json!({"metadata": {"name": "seen"}})).await?;
    let maps = "/api/v1/namespaces/seen/configmaps";
    let path = format!("{maps}?watch=1&resourceVersion={}", revision(&writer, maps).await?);
    let (seen, all_seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut tasks = JoinSet::new();
    // As many streams on a connection as any server allows.
    let mut client = None;
    let watches = several(WATCHES);
    for i in 0..watches {
        if i % 100 == 0 {
            client = Some(server.client().await?);
        }
        let Some(client) = &client else { unreachable!("made at the first") };
        let mut body = open(client, Method::GET, &path, None).await?.into_body();
        let (seen, all_seen) = (Arc::clone(&seen), Arc::clone(&all_seen));
        tasks.spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                let events = frame
                    .data_ref()
                    .map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                if events > 0 && (seen.fetch_add(events, Ordering::AcqRel) + events) % watches == 0
                {
                    all_seen.notify_one();
                }
            }
        });
    }
    println!("kube resident_1000_watches mib={:.2}", server.resident()?);
    let mut times = Vec::new();
    for i in 0..several(EVENTS) {
        let start = Instant::now();
        create(&writer, maps, &json!({"metadata": {"name": format!("e{i}")}})).await?;
        tokio::time::timeout(LIMIT, all_seen.notified()).await?;
        times.push(start.elapsed());
    }
    tell("fan_out_1000", times);
    tasks.abort_all();
    Ok(())
}

/// An etcd of one member that syncs; it ends with this.
struct Etcd {
    child: Child,
    port: u16,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

impl Etcd {
    fn start(data: &Path) -> Result<Option<Self>> {
        let named =
            std::env::var_os("ORLOP_ETCD").filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = || {
            std::env::split_paths(&path)
                .map(|folder| folder.join("etcd"))
                .find(|path| path.is_file())
        };
        let Some(program) = named.or_else(found) else { return Ok(None) };
        let url = "http://127.0.0.1:0";
        let mut child = Command::new(program)
            .arg("--data-dir")
            .arg(data)
            .args(["--name", "bench", "--initial-cluster", "bench=http://127.0.0.1:0"])
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", url, "--initial-advertise-peer-urls", url])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().ok_or("no standard error")?;
        let mut etcd = Self { child, port: 0 };
        let mut lines = BufReader::new(log).lines().map_while(std::result::Result::ok);
        // Its log tells the port it got.
        let port = lines.by_ref().filter(|line| line.contains("serving client traffic")).find_map(
            |line| {
                let (_, rest) = line.split_once("\"address\":\"127.0.0.1:")?;
                rest.split('"').next()?.parse().ok()
            },
        );
        etcd.port = port.ok_or("etcd did not start")?;
        // It waits when nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Some(etcd))
    }

    /// What the server writes for a small object, by as many clients.
    async fn puts(&self, clients: usize) -> Result<Took> {
        let mut connections = Vec::new();
        for _ in 0..clients {
            let at = format!("http://127.0.0.1:{}", self.port);
            connections.push(etcd_client::Client::connect([at], None).await?);
        }
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for (i, mut client) in connections.into_iter().enumerate() {
            tasks.spawn(async move {
                let mut times = Vec::new();
                for n in 0..several(WRITES) / clients {
                    let start = Instant::now();
                    client.put(format!("/bench/{clients}/{i}/{n}"), vec![b'x'; 300], None).await?;
                    times.push(start.elapsed());
                }
                Ok::<_, Error>(times)
            });
        }
        gather(tasks, start).await
    }
}

fn tell(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_micros();
    println!("kube {name} p50_us={} p99_us={}", at(50), at(99));
}

fn tell_rate(name: &str, (times, all): Took, busy: Option<Duration>) {
    println!("kube {name} per_second={}", times.len() as u128 * 1_000_000 / all.as_micros().max(1));
    if let Some(busy) = busy {
        println!("kube {name} cpu_us={}", each(busy, times.len()));
    }
    tell(name, times);
}
