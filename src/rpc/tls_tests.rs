#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use futures_util::StreamExt as _;
use http::{Request, Response};
use orlop_pki::{Authority, KeyKind, Leaf, Usage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn authority() -> Authority {
    Authority::generate("talos", KeyKind::Ed25519, HOUR, SystemTime::now()).unwrap()
}

fn leaf(authority: &Authority, usage: Usage, name: &str) -> orlop_pki::Pair {
    let leaf = Leaf {
        common_name: name.to_owned(),
        organizations: vec!["os:admin".to_owned()],
        usage,
        dns: vec!["localhost".to_owned()],
        ips: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        lifetime: HOUR,
    };
    authority.issue(&leaf, SystemTime::now()).unwrap()
}

fn server_config(authority: &Authority, name: &str) -> Arc<ServerConfig> {
    let pair = leaf(authority, Usage::Server, name);
    orlop_pki::tls::server_config(&authority.pair().crt, &pair.crt, pair.key.expose()).unwrap()
}

fn client_config(trusted: &Authority, identity: Option<&Authority>) -> Arc<ClientConfig> {
    let pair = identity.map(|identity| leaf(identity, Usage::Client, "admin"));
    let pair = pair.as_ref().map(|pair| (pair.crt.as_str(), pair.key.expose()));
    orlop_pki::tls::client_config(&trusted.pair().crt, pair).unwrap()
}

/// A server that answers each call with the number of the peer's certificates and its address.
struct Server {
    port: u16,
    config: watch::Sender<Arc<ServerConfig>>,
    /// Dropped with the test, which ends the server.
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(config: Arc<ServerConfig>) -> Self {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (config, receiver) = watch::channel(config);
        let service = tower::service_fn(|request: Request<Body>| async move {
            let peer = request.extensions().get::<Peer>().unwrap();
            let text = format!("{} certificates, {}", peer.certificates.len(), peer.address.ip());
            Ok::<_, Status>(Status::aborted(text).into_http::<Body>())
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            crate::server()
                .serve_with_incoming(service, incoming(listener, receiver, Arc::default()))
                .await
                .unwrap();
        });
        Self { port, config, _tasks: tasks }
    }

    fn dial(&self, host: &str, config: Arc<ClientConfig>) -> Channel {
        channel(host, self.port, config)
    }
}

/// What the server said, or why it could not be asked.
async fn ask(channel: &Channel) -> Result<String, Status> {
    let request = Request::post("/a.B/C").body(Body::empty()).unwrap();
    let answer: Response<Body> =
        channel.clone().oneshot(request).await.map_err(|error| Status::from_error(error.into()))?;
    Ok(Status::from_header_map(answer.headers()).unwrap().message().to_owned())
}

#[tokio::test]
async fn an_admitted_client_is_known_by_its_certificate_and_address() {
    let ca = authority();
    let server = Server::start(server_config(&ca, "node")).await;
    let config = client_config(&ca, Some(&ca));
    for (host, seen) in [
        ("127.0.0.1", "1 certificates, 127.0.0.1"),
        ("::1", "1 certificates, ::1"),
        ("[::1]", "1 certificates, ::1"),
    ] {
        assert_eq!(ask(&server.dial(host, Arc::clone(&config))).await.unwrap(), seen, "{host}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_or_of_another_authority_is_refused() {
    let (ca, foreign) = (authority(), authority());
    let server = Server::start(server_config(&ca, "node")).await;
    for config in [client_config(&ca, None), client_config(&ca, Some(&foreign))] {
        let error = ask(&server.dial("127.0.0.1", config)).await.unwrap_err();
        assert!(format!("{error:?}").contains("fatal alert"), "{error:?}");
    }
    let fine = client_config(&ca, Some(&ca));
    ask(&server.dial("127.0.0.1", fine)).await.unwrap();
}

#[tokio::test]
async fn a_server_must_prove_the_name_it_is_dialled_by_and_its_authority() {
    let (ca, foreign) = (authority(), authority());
    let server = Server::start(server_config(&ca, "node")).await;
    for (host, trusted, why) in [
        ("127.0.0.2", &ca, "not valid for name"),
        ("127.0.0.1", &foreign, "invalid peer certificate"),
    ] {
        let error = ask(&server.dial(host, client_config(trusted, Some(&ca)))).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unavailable);
        let begin = format!("connect to {host}:{}: ", server.port);
        assert!(error.message().starts_with(&begin) && error.message().contains(why), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_and_a_host_that_is_none_are_told_apart() {
    let config = client_config(&authority(), None);
    let closed = listen("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap().port();
    let error = ask(&channel("127.0.0.1", closed, Arc::clone(&config))).await.unwrap_err();
    let why = format!("connect to 127.0.0.1:{closed}: Connection refused (os error 111)");
    assert_eq!((error.code(), error.message()), (tonic::Code::Unavailable, why.as_str()));
    let error = ask(&channel("no host", 1, config)).await.unwrap_err();
    assert_eq!(error.message(), "connect to no host:1: not a host name or address");
}

#[tokio::test]
async fn new_certificates_hold_for_new_handshakes_and_old_connections_stay() {
    let (old, new) = (authority(), authority());
    let server = Server::start(server_config(&old, "node")).await;
    let before = server.dial("localhost", client_config(&old, Some(&old)));
    ask(&before).await.unwrap();
    server.config.send(server_config(&new, "node")).unwrap();
    let after = server.dial("localhost", client_config(&new, Some(&new)));
    ask(&after).await.unwrap();
    ask(&before).await.unwrap();
    let late = server.dial("localhost", client_config(&old, Some(&old)));
    assert!(ask(&late).await.is_err());
}

async fn dial_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

#[tokio::test]
async fn a_flood_from_one_source_only_makes_room_of_its_own() {
    let ca = authority();
    let server = Server::start(server_config(&ca, "node")).await;
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    let channel = server.dial("127.0.0.1", client_config(&ca, Some(&ca)));
    let mut silent = VecDeque::new();
    for _ in 0..HANDSHAKES_EACH {
        silent.push_back(dial_from([127, 0, 0, 9], address).await);
    }
    for _ in 0..2_000 {
        silent.push_back(dial_from([127, 0, 0, 9], address).await);
        let mut oldest = silent.pop_front().unwrap();
        assert_eq!(oldest.read(&mut [0; 1]).await.unwrap_or(0), 0, "the oldest is closed");
    }
    ask(&channel).await.unwrap();
}

#[tokio::test]
async fn who_is_cut_for_floods_again_and_again_is_held() {
    let ca = authority();
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_config, configs) = watch::channel(server_config(&ca, "node"));
    let tally = Arc::new(Tally::default());
    let service = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, Status>(Status::aborted("well").into_http::<Body>())
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(crate::serve(
        service,
        incoming(listener, configs, Arc::clone(&tally)),
        orlop_rt::CancellationToken::new(),
        Duration::ZERO,
    ));
    let connector = TlsConnector::from(client_config(&ca, Some(&ca)));
    // More SETTINGS than anybody may send, or what is no HTTP/2 at all behind the preface.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let flood = [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0].repeat(1000)].concat();
    let garbage = [&preface[..], &[255; 100]].concat();
    let mut cut = 0;
    while tally.turned_away() == 0 {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = dial_from([127, 0, 0, 88], address).await;
        let Ok(mut stream) = connector.connect(name, stream).await else { continue };
        let bytes = if cut % 2 == 0 { &flood } else { &garbage };
        // It may be cut while it speaks.
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        cut += 1;
    }
    assert!(cut >= FAILURES, "{cut}");
    assert_eq!(tally.failed(), 0, "all handshakes were well");
    let channel = channel("127.0.0.1", address.port(), client_config(&ca, Some(&ca)));
    assert_eq!(ask(&channel).await.unwrap(), "well");
}

/// Connections in memory, in virtual time.
struct Memory(mpsc::Receiver<(Counted, SocketAddr)>);

impl Listen for Memory {
    type Io = Counted;

    async fn next(&mut self) -> io::Result<(Counted, SocketAddr)> {
        match self.0.recv().await {
            Some(connection) => Ok(connection),
            None => std::future::pending().await,
        }
    }

    fn tune(_: &Counted) -> io::Result<()> {
        Ok(())
    }
}

/// The server's end of a connection, counted while it is open.
#[derive(Debug)]
struct Counted(DuplexStream, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_who_say_nothing_make_room_for_one_who_speaks() {
    const QUEUE: usize = 128;
    let ca = authority();
    let (connect, connections) = mpsc::channel(QUEUE);
    let (_config, configs) = watch::channel(server_config(&ca, "node"));
    let open = Arc::new(AtomicUsize::new(0));
    let dial = async |source: u32, size: usize| {
        let (client, server) = tokio::io::duplex(size);
        open.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((source.to_be_bytes(), 1));
        connect.send((Counted(server, Arc::clone(&open)), address)).await.unwrap();
        client
    };
    let mut door = Box::pin(shaken(Memory(connections), configs, Arc::default()));
    let (admitted, mut guests) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(connection) = door.next().await {
            admitted.send(connection.unwrap()).await.unwrap();
        }
    });
    let mut silent = Vec::new();
    for number in 0..100_000 {
        silent.push(dial(number % 1000, 16).await);
        // Those in the queue have cost nothing yet; one is in our hands.
        let held = open.load(Ordering::Relaxed);
        assert!(held <= HANDSHAKES + QUEUE + 1, "{held} are held");
    }
    let began = Instant::now();
    let stream = dial(2000, 16 << 10).await;
    let connector = TlsConnector::from(client_config(&ca, Some(&ca)));
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let (_client, guest) = tokio::join!(connector.connect(name, stream), guests.recv());
    assert_eq!(guest.unwrap().connect_info().address.ip().to_string(), "0.0.7.208");
    assert!(began.elapsed() <= SILENCE, "it waited {:?}", began.elapsed());
    sleep(HANDSHAKE_LIMIT).await;
    // What is left is nobody's but the runtime's to clear away.
    sleep(HANDSHAKE_LIMIT).await;
    assert_eq!(open.load(Ordering::Relaxed), 0);
    assert_eq!(silent.len(), 100_000);
}

#[tokio::test]
async fn a_crowd_that_waits_for_a_dead_node_dials_it_once() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let channel = channel("127.0.0.1", port, client_config(&authority(), None));
    let crowd = futures_util::future::join_all((0..20).map(|_| ask(&channel)));
    let mut dialled = 0;
    let hang_up = async {
        loop {
            drop(listener.accept().await.unwrap());
            dialled += 1;
        }
    };
    let answers = tokio::select! {
        answers = crowd => answers,
        () = hang_up => unreachable!("it never ends"),
    };
    let begin = format!("connect to 127.0.0.1:{port}: ");
    assert!(
        answers.iter().all(|answer| answer.as_ref().unwrap_err().message().starts_with(&begin))
    );
    assert_eq!(dialled, 1);
}

/// A stranger's handshake, to its end.
async fn knock(connector: &TlsConnector, source: [u8; 4], address: SocketAddr) {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = dial_from(source, address).await;
    if let Ok(mut stream) = connector.connect(name, stream).await {
        // What the server thinks of our certificate comes after our last word.
        let _ = stream.read(&mut [0; 64]).await;
    }
}

#[tokio::test]
async fn who_fails_too_many_handshakes_is_held_and_nobody_else_is() {
    let (ca, foreign) = (authority(), authority());
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_config, configs) = watch::channel(server_config(&ca, "node"));
    let tally = Arc::new(Tally::default());
    let mut door = Box::pin(incoming(listener, configs, Arc::clone(&tally)));
    let (admitted, mut guests) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(connection) = door.next().await {
            admitted.send(connection.unwrap()).await.unwrap();
        }
    });
    let stranger = TlsConnector::from(client_config(&ca, Some(&foreign)));
    let (bad, good) = ([127, 0, 0, 66], [127, 0, 0, 7]);
    // However slow this machine is, it fails faster than its debts are paid.
    while tally.turned_away() == 0 {
        let all = (0..2 * FAILURES).map(|_| knock(&stranger, bad, address));
        futures_util::future::join_all(all).await;
    }
    assert!(tally.failed() >= u64::from(FAILURES), "{tally:?}");
    // Others are not concerned, nor is the node itself, however often it fails.
    let local = (0..2 * FAILURES).map(|_| knock(&stranger, [127, 0, 0, 1], address));
    let (failed, away) = (tally.failed(), tally.turned_away());
    futures_util::future::join_all(local).await;
    while tally.failed() - failed < u64::from(2 * FAILURES) {
        tokio::task::yield_now().await;
    }
    assert_eq!(tally.turned_away(), away);
    let fine = TlsConnector::from(client_config(&ca, Some(&ca)));
    for source in [good, [127, 0, 0, 1]] {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = dial_from(source, address).await;
        let (_client, guest) = tokio::join!(fine.connect(name, stream), guests.recv());
        assert_eq!(guest.unwrap().connect_info().address.ip(), IpAddr::from(source));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_failures_from_one_source_costs_a_handshake_a_second() {
    let ca = authority();
    let (connect, connections) = mpsc::channel(8);
    let (_config, configs) = watch::channel(server_config(&ca, "node"));
    let (open, tally) = (Arc::new(AtomicUsize::new(0)), Arc::new(Tally::default()));
    let mut door = Box::pin(shaken(Memory(connections), configs, Arc::clone(&tally)));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { door.next().await.map(drop).unwrap() });
    // A hello, and no more: it costs us what any handshake does.
    let mut hello = Vec::new();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = rustls::ClientConnection::new(client_config(&ca, None), name).unwrap();
    client.write_tls(&mut hello).unwrap();
    let began = Instant::now();
    let mut tries = 0_u64;
    while began.elapsed() < Duration::from_secs(100) {
        let (mut stream, server) = tokio::io::duplex(4096);
        open.fetch_add(1, Ordering::Relaxed);
        // The whole network of 64 bits is one source.
        let address: std::net::Ipv6Addr = (0x2001_0db8_u128 << 96 | u128::from(tries)).into();
        connect.send((Counted(server, Arc::clone(&open)), (address, 1).into())).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        tries += 1;
    }
    let failed = tally.failed();
    assert!((u64::from(FAILURES)..u64::from(FAILURES) + 102).contains(&failed), "{failed}");
    assert_eq!(tally.turned_away() + failed, tries);
    assert_eq!(open.load(Ordering::Relaxed), 0);
}
