//! Real sockets: a routerd, and in place of the daemons a backend that echoes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use orlop_proto::grpc::health::v1::HealthCheckRequest;
use orlop_proto::grpc::health::v1::health_check_response::ServingStatus;
use orlop_proto::grpc::health::v1::health_client::HealthClient;
use orlop_rpc::proxy::trailers;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tonic::Code;

use super::*;

/// A routerd on a socket in a folder of its own, with an echoing machined. Ends with the test.
struct Fixture {
    channel: Channel,
    folder: tempfile::TempDir,
    /// A word for each call of `Hang` that began, and one when it was dropped.
    events: mpsc::Receiver<&'static str>,
    tasks: JoinSet<()>,
}

impl Fixture {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let options = Options {
            socket: path("routerd/routerd.sock"),
            machined: path("machine.sock"),
            networkd: path("networkd.sock"),
            timed: path("timed.sock"),
            debug: false,
            check_every: Duration::from_millis(5),
        };
        let channel = unix::channel(&options.socket);
        let (events, received) = mpsc::channel(8);
        let mut tasks = JoinSet::new();
        let machined = unix::listen(&options.machined).unwrap();
        let echo = tower::service_fn(move |request| backend(request, events.clone()));
        let forever = CancellationToken::new();
        let serving = orlop_rpc::serve(echo, machined, forever.clone(), GRACE);
        tasks.spawn(serving);
        tasks.spawn(async { run(options, forever).await.unwrap() });
        Self { channel, folder, events: received, tasks }
    }

    async fn call(&self, path: &str, body: Body) -> Response<Body> {
        // routerd's socket appears when its task first runs.
        while !self.folder.path().join("routerd/routerd.sock").exists() {
            tokio::task::yield_now().await;
        }
        let request = Request::post(path).header("x-word", "here").body(body).unwrap();
        self.channel.clone().oneshot(request).await.unwrap()
    }

    async fn status(&self, path: &str) -> (Code, String) {
        let answer = self.call(path, Body::empty()).await;
        let status = Status::from_header_map(answer.headers()).unwrap();
        (status.code(), status.message().to_owned())
    }
}

/// `Echo` sends back what comes in, and trailers; `Flood` sends without end, `Hang` answers never;
/// others are unimplemented.
async fn backend(
    request: Request<Body>,
    events: mpsc::Sender<&'static str>,
) -> Result<Response<Body>, Status> {
    struct Dropped(mpsc::Sender<&'static str>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.try_send("dropped");
        }
    }
    let word = request.headers().get("x-word").cloned();
    match request.uri().path() {
        "/machine.MachineService/Echo" => {
            let mut end = trailers(&Status::new(Code::DataLoss, "as told"));
            end.insert("x-end", word.unwrap());
            let end = async { Some(Ok::<_, Status>(end)) };
            Ok(Response::new(Body::new(request.into_body().with_trailers(end))))
        }
        "/machine.MachineService/Flood" => {
            let frame =
                || Ok::<_, Status>(http_body::Frame::data(Bytes::from_static(&[0; 16_384])));
            let frames = stream::repeat_with(frame);
            Ok(Response::new(Body::new(StreamBody::new(frames))))
        }
        "/machine.MachineService/Hang" => {
            events.try_send("began").unwrap();
            let _dropped = Dropped(events);
            std::future::pending().await
        }
        path => Err(Status::unimplemented(path)),
    }
}

#[tokio::test]
async fn frames_headers_and_trailers_pass_as_they_are() {
    let fixture = Fixture::start();
    let chunks = ["\0\0\0\0\u{1}", "a", "\u{1}no frame of gRPC at all"];
    let frames = chunks.map(|chunk| Ok::<_, Status>(http_body::Frame::data(Bytes::from(chunk))));
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    let answer = fixture.call("/machine.MachineService/Echo", body).await;
    let answer = answer.into_body().collect().await.unwrap();
    let end = answer.trailers().unwrap().clone();
    assert_eq!(end["x-end"], "here");
    let status = Status::from_header_map(&end).unwrap();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "as told"));
    assert_eq!(answer.to_bytes(), chunks.concat());
}

#[tokio::test]
async fn what_nobody_serves_gets_a_status_that_says_so() {
    let fixture = Fixture::start();
    for (path, code, text) in [
        ("/nobody.Service/X", Code::Unknown, "service nobody.Service is not defined"),
        ("/machine.MachineService/Strange", Code::Unimplemented, "/machine.MachineService/Strange"),
        ("/os.OSService/Dmesg", Code::Unimplemented, "/os.OSService/Dmesg"),
        ("/", Code::Unimplemented, "malformed method name: \"/\""),
        (
            "/machine.MachineService",
            Code::Unimplemented,
            "malformed method name: \"/machine.MachineService\"",
        ),
        (
            "/machine.MachineService/",
            Code::Unimplemented,
            "malformed method name: \"/machine.MachineService/\"",
        ),
        ("//x", Code::Unimplemented, "malformed method name: \"//x\""),
        ("/a/b/c", Code::Unknown, "service a/b is not defined"),
    ] {
        assert_eq!(fixture.status(path).await, (code, text.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_unavailable_at_once_and_served_when_it_comes() {
    let mut fixture = Fixture::start();
    let socket = fixture.folder.path().join("timed.sock");
    let text =
        format!("timed: connect to {}: No such file or directory (os error 2)", socket.display());
    assert_eq!(fixture.status("/time.TimeService/Time").await, (Code::Unavailable, text));
    let incoming = unix::listen(&socket).unwrap();
    let timed =
        tower::service_fn(|_| async { Err::<Response<Body>, _>(Status::out_of_range("late")) });
    let serving = orlop_rpc::serve(timed, incoming, CancellationToken::new(), GRACE);
    fixture.tasks.spawn(serving);
    let late = (Code::OutOfRange, "late".to_owned());
    assert_eq!(fixture.status("/time.TimeService/Time").await, late);
}

/// A daemon that answers everything with `text`.
struct Daemon {
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Daemon {
    fn start(socket: &std::path::Path, text: &'static str) -> Self {
        let incoming = unix::listen(socket).unwrap();
        let service =
            tower::service_fn(
                move |_| async move { Err::<Response<Body>, _>(Status::aborted(text)) },
            );
        let stop = CancellationToken::new();
        let serving = orlop_rpc::serve(service, incoming, stop.clone(), GRACE);
        Self { stop, serving: tokio::spawn(serving) }
    }

    /// Ends it, its connections included.
    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

#[tokio::test]
async fn a_daemon_that_restarts_is_unavailable_at_once_and_then_back() {
    let fixture = Fixture::start();
    let socket = fixture.folder.path().join("networkd.sock");
    let routes = "/network.NetworkService/Routes";
    for text in ["first", "second", "third"] {
        let running = Daemon::start(&socket, text);
        // The connection of the daemon before may only now be found to be gone.
        let said = loop {
            match fixture.status(routes).await {
                (Code::Unavailable, _) => tokio::task::yield_now().await,
                said => break said,
            }
        };
        assert_eq!(said, (Code::Aborted, text.to_owned()));
        running.end().await;
        assert_eq!(fixture.status(routes).await.0, Code::Unavailable);
    }
}

#[tokio::test]
async fn health_is_asked_of_the_daemons() {
    let mut fixture = Fixture::start();
    fixture.status("/").await;
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut health = HealthClient::new(fixture.channel.clone());
    for (service, expected) in [
        // machined has no `health.Health`, and says so; the others never came.
        ("", ServingStatus::Serving),
        ("machine.MachineService", ServingStatus::Serving),
        ("grpc.health.v1.Health", ServingStatus::Serving),
        ("network.NetworkService", ServingStatus::NotServing),
        ("time.TimeService", ServingStatus::NotServing),
    ] {
        let answer = health.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), expected, "{service}");
    }
    let unknown = health.check(ask("nobody.Service")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut unknown = health.watch(ask("nobody.Service")).await.unwrap().into_inner();
    let first = unknown.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);

    // A daemon that comes up unwell is the whole node's matter; its end, too.
    let mut whole = health.watch(ask("")).await.unwrap().into_inner();
    assert_eq!(whole.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let running = Daemon::start(&fixture.folder.path().join("networkd.sock"), "unwell");
    assert_eq!(whole.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    running.end().await;
    std::fs::remove_file(fixture.folder.path().join("networkd.sock")).unwrap();
    assert_eq!(whole.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    fixture.tasks.abort_all();
}

#[tokio::test]
async fn cancelling_reaches_the_backend() {
    let mut fixture = Fixture::start();
    {
        let call = fixture.call("/machine.MachineService/Hang", Body::empty());
        let mut call = std::pin::pin!(call);
        while fixture.events.is_empty() {
            tokio::select! {
                answer = &mut call => panic!("answered: {answer:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    assert_eq!(fixture.events.recv().await, Some("began"));
    assert_eq!(fixture.events.recv().await, Some("dropped"));
}

#[tokio::test]
async fn callers_who_do_not_read_do_not_stand_in_the_way_of_others() {
    let fixture = Fixture::start();
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(fixture.call("/machine.MachineService/Flood", Body::empty()).await);
    }
    let body = Body::new(http_body_util::Full::new(Bytes::from(vec![1; 1 << 20])));
    let answer = fixture.call("/machine.MachineService/Echo", body).await;
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 1 << 20);
}

#[tokio::test]
async fn a_deadline_is_kept_here_too() {
    let fixture = Fixture::start();
    fixture.call("/", Body::empty()).await;
    let request = Request::post("/machine.MachineService/Hang").header("grpc-timeout", "20m");
    let router = Router::new(&Options {
        machined: fixture.folder.path().join("machine.sock"),
        ..Options::parse_from(["routerd"])
    });
    let answer = router.call(request.body(Body::empty()).unwrap()).await;
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().starts_with("machined: "), "{}", status.message());
}

#[tokio::test]
async fn a_backend_lost_under_way_ends_the_answer_with_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("machine.sock");
    let incoming = unix::listen(&socket).unwrap();
    let mut tasks = JoinSet::new();
    let seen = Arc::new(Notify::new());
    let lose = Arc::clone(&seen);
    let half = tower::service_fn(move |_| {
        let lose = Arc::clone(&lose);
        let half = stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"half")))]);
        let end = stream::once(async move {
            lose.notified().await;
            Err(Status::data_loss("the rest is gone"))
        });
        async { Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(half.chain(end))))) }
    });
    let serving = orlop_rpc::serve(half, incoming, CancellationToken::new(), GRACE);
    tasks.spawn(serving);
    let router = Router::new(&Options { machined: socket, ..Options::parse_from(["routerd"]) });
    let request = Request::post("/machine.MachineService/Logs").body(Body::empty()).unwrap();
    let mut answer = router.call(request).await.into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    seen.notify_one();
    let end = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    let status = Status::from_header_map(&end).unwrap();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().starts_with("machined: "), "{}", status.message());
    assert!(answer.frame().await.is_none());
}
