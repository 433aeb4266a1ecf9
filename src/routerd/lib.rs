//! routerd: one socket for all services of the node.
//!
//! apid knows this socket only. A call's path names its service, [`table`] the daemon that serves it,
//! and [`orlop_rpc::proxy`] hands the call on as it is: no message is decoded here. What nobody
//! serves, and a daemon that is not there, is answered with a status. What there is ([`reflection`]) and
//! whether it is well ([`health`]), routerd says itself.

#![forbid(unsafe_code)]

mod health;
mod reflection;
mod table;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use http::{Request, Response};
use orlop_proto::grpc::health::v1::health_server::HealthServer;
use orlop_rpc::access::Call;
use orlop_rpc::proxy::{Backend, Method};
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt as _;
use tracing::info;

use crate::health::Checks;
use crate::reflection::{Reflection, Version};
use crate::table::Daemon;

/// How long calls under way may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// How often the daemons are asked how they are, for those who watch their health.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Passes local calls to the daemon that serves them.
#[derive(Clone, Debug, Parser)]
#[command(name = "routerd", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Where to listen
    #[arg(long, value_name = "PATH", default_value = "/system/run/routerd/routerd.sock")]
    pub socket: PathBuf,
    /// machined's socket
    #[arg(long, value_name = "PATH", default_value = "/system/run/machined/machine.sock")]
    pub machined: PathBuf,
    /// networkd's socket
    #[arg(long, value_name = "PATH", default_value = "/system/run/networkd/networkd.sock")]
    pub networkd: PathBuf,
    /// timed's socket
    #[arg(long, value_name = "PATH", default_value = "/system/run/timed/timed.sock")]
    pub timed: PathBuf,
    /// Log each call
    #[arg(long)]
    pub debug: bool,
    /// How often the daemons are asked how they are
    #[arg(skip = CHECK_EVERY)]
    pub check_every: Duration,
}

/// Why routerd stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The socket cannot be made.
    #[error("open the socket")]
    Listen(#[source] io::Error),
}

/// The role's entry: options, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    orlop_telemetry::to_stderr(options.debug);
    let result = orlop_rt::run_daemon(Error::Runtime, |shutdown| run(options, shutdown));
    orlop_rt::exit("routerd", result)
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the socket cannot be made.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let incoming = unix::listen(&options.socket).map_err(Error::Listen)?;
    info!(socket = %options.socket.display(), "listening");
    let router = Arc::new(Router::new(&options));
    let service = tower::service_fn(move |request| {
        let answer = router.call(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    orlop_rpc::serve(service, incoming, shutdown, GRACE).await;
    Ok(())
}

struct Router {
    daemons: Arc<Daemons>,
    health: HealthServer<Checks>,
    reflection: Reflection,
}

/// Who serves a call.
enum Server<'a> {
    Daemon(&'a Backend),
    Health,
    Reflection(reflection::Version),
}

impl Router {
    fn new(options: &Options) -> Self {
        let daemons = Arc::new(Daemons::new(options));
        let health = HealthServer::new(Checks::new(Arc::clone(&daemons), options.check_every));
        Self { daemons, health, reflection: Reflection::default() }
    }

    fn call(&self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send + use<> {
        let call = Call::begin(&request, || "local");
        // Decided here and now: what waits for the answer is small, and there is one for each call.
        let answering = match self.server(request.uri().path()) {
            Ok(Server::Daemon(backend)) => Either::Left(backend.forward(request)),
            Ok(Server::Reflection(version)) => {
                Either::Right(self.reflection.call(version, request).boxed())
            }
            Ok(Server::Health) => {
                let answer = self.health.clone().oneshot(request);
                Either::Right(answer.map(|Ok(response)| response).boxed())
            }
            Err(status) => Either::Right(ready(status.into_http()).boxed()),
        };
        async { call.watch(answering.await) }
    }

    fn server(&self, path: &str) -> Result<Server<'_>, Status> {
        let service = Method::parse(path)?.service;
        match service {
            "grpc.health.v1.Health" => return Ok(Server::Health),
            reflection::V1 => return Ok(Server::Reflection(Version::V1)),
            reflection::V1ALPHA => return Ok(Server::Reflection(Version::V1Alpha)),
            _ => {}
        }
        match table::daemon(service) {
            Some(daemon) => Ok(Server::Daemon(&self.daemons.get(daemon).backend)),
            None => Err(Status::unknown(format!("service {service} is not defined"))),
        }
    }
}

/// The ways to the daemons.
struct Daemons {
    machined: Way,
    networkd: Way,
    timed: Way,
}

struct Way {
    socket: PathBuf,
    channel: Channel,
    backend: Backend,
}

impl Daemons {
    fn new(options: &Options) -> Self {
        let way = |name, socket: &PathBuf| {
            let channel = unix::channel(socket);
            let backend = Backend::new(name, unix::lane(socket));
            Way { socket: socket.clone(), channel, backend }
        };
        Self {
            machined: way("machined", &options.machined),
            networkd: way("networkd", &options.networkd),
            timed: way("timed", &options.timed),
        }
    }

    fn get(&self, daemon: Daemon) -> &Way {
        match daemon {
            Daemon::Machined => &self.machined,
            Daemon::Networkd => &self.networkd,
            Daemon::Timed => &self.timed,
        }
    }

    fn channel(&self, daemon: Daemon) -> Channel {
        self.get(daemon).channel.clone()
    }

    /// Whether it has ever made its socket. (A look at a file system in memory.)
    fn present(&self, daemon: Daemon) -> bool {
        self.get(daemon).socket.exists()
    }
}

#[cfg(test)]
mod tests;
