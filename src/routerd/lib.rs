//! routerd: one socket for all services of the node.
//!
//! apid knows this socket only. A call's path names its service, [`table`] the daemon that serves it,
//! and [`orlop_rpc::proxy`] hands the call on as it is: no message is decoded here. What nobody
//! serves, and a daemon that is not there, is answered with a status.

#![forbid(unsafe_code)]

mod table;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http::{Request, Response};
use orlop_rpc::access::Call;
use orlop_rpc::proxy::{Backend, Method};
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tracing::info;

use crate::table::Daemon;

/// How long calls under way may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

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
    /// The server stopped.
    #[error("serve")]
    Serve(#[source] tonic::transport::Error),
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
        let router = Arc::clone(&router);
        async move { Ok::<_, Infallible>(router.call(request).await) }
    });
    orlop_rpc::serve(service, incoming, shutdown, GRACE).await.map_err(Error::Serve)
}

struct Router {
    machined: Backend,
    networkd: Backend,
    timed: Backend,
}

impl Router {
    fn new(options: &Options) -> Self {
        let backend = |name, path: &PathBuf| Backend::new(name, unix::channel(path));
        Self {
            machined: backend("machined", &options.machined),
            networkd: backend("networkd", &options.networkd),
            timed: backend("timed", &options.timed),
        }
    }

    async fn call(&self, request: Request<Body>) -> Response<Body> {
        let call = Call::begin(&request, || "local");
        let response = match self.backend(request.uri().path()) {
            Ok(backend) => backend.forward(request).await,
            Err(status) => status.into_http(),
        };
        call.watch(response)
    }

    fn backend(&self, path: &str) -> Result<&Backend, Status> {
        let service = Method::parse(path)?.service;
        match table::daemon(service) {
            Some(Daemon::Machined) => Ok(&self.machined),
            Some(Daemon::Networkd) => Ok(&self.networkd),
            Some(Daemon::Timed) => Ok(&self.timed),
            None => Err(Status::unknown(format!("service {service} is not defined"))),
        }
    }
}

#[cfg(test)]
mod tests;
