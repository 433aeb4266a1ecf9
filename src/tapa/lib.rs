//! tapa: the ambassador in a pod. An application opens streams over a unix socket, and it keeps the pod a target of
//! them (spec/ambassador §2-4).
//!
//! ```text
//! application ─▶ api ─▶ ambassador ─▶ conduit (a keeper each) ─▶ stream (a worker each) ─▶ registry ─▶ nsp
//!                 ▲                        │ decide                   │ member: decides
//!                 └─────── table ◀─────────┴──────────────────────────┘
//! ```
//!
//! - [`table`]: the list applications watch, pure. [`member`]: how a pod becomes a target, pure.
//! - [`ambassador`]: the trench; [`conduit`], [`stream`]: what is wanted becomes so.
//! - [`registry`]: the client of nsp. [`api`]: the service. [`settings`]: what the environment says.

#![forbid(unsafe_code)]

pub mod ambassador;
pub mod api;
pub mod conduit;
pub mod member;
pub mod registry;
pub mod settings;
pub mod stream;
pub mod table;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use orlop_config::environment::Environment;
use orlop_proto::ambassador::v1::tap_server::TapServer;
use orlop_proto::grpc::health::v1::health_server::HealthServer;
use orlop_rpc::Routes;
use orlop_rpc::board::{Board, probe};
use orlop_rpc::unix;
use orlop_rt::{CancellationToken, Exit};
use tracing::info;

use crate::ambassador::Ambassador;
use crate::api::Answers;
use crate::settings::Settings;

/// Calls under way when it stops.
const GRACE: Duration = Duration::from_secs(1);

/// The ambassador in a pod. It is told what to do by environment variables: MERIDIO_SOCKET, MERIDIO_NSP_SERVICE_NAME,
/// MERIDIO_NSP_SERVICE_PORT, MERIDIO_NAMESPACE, MERIDIO_STATIC_IPS and others
#[derive(Clone, Debug, Parser)]
#[command(name = "tapa", version = orlop_rt::version::TAG, about)]
struct Options {}

/// Why it stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// What the environment says cannot be.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// A socket.
    #[error("listen")]
    Listen(#[source] io::Error),
}

/// The role's entry: environment, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    if let Err(code) = orlop_rt::parse::<Options>(args) {
        return code;
    }
    let environment = Environment::of_process();
    orlop_telemetry::to_stderr(settings::debug(&environment));
    let run = |shutdown| async move { serve(Settings::read(&environment)?, shutdown).await };
    // Upstream's charts know 1 for what cannot start.
    orlop_rt::exit_as("tapa", orlop_rt::run_daemon(Error::Runtime, run), |_| Exit::Failed)
}

/// Serves until `shutdown`, and leaves everything then.
///
/// # Errors
/// [`Error::Listen`].
pub async fn serve(settings: Settings, shutdown: CancellationToken) -> Result<(), Error> {
    let ambassador = Ambassador::new(settings.world);
    let board = Board::new(&[("Startup", &[]), ("Readiness", &[]), ("Liveness", &["Ambassador"])]);
    let socket = unix::listen(&settings.socket).map_err(Error::Listen)?;
    let probes = unix::listen(&settings.health_socket).map_err(Error::Listen)?;
    let answers = Answers { ambassador: ambassador.clone(), repeat: settings.repeat };
    let routes =
        Routes::new(TapServer::new(answers)).add_service(HealthServer::new(Board::new(&[])));
    info!(socket = %settings.socket.display(), "listening");
    let applications = orlop_rpc::serve(routes, socket, shutdown.clone(), GRACE);
    let probed =
        orlop_rpc::serve(Routes::new(HealthServer::new(board.clone())), probes, shutdown, GRACE);
    let channel = unix::channel(&settings.socket);
    tokio::select! {
        ((), ()) = async { tokio::join!(applications, probed) } => {}
        () = probe(channel, settings.probe_timeout, &board, "Ambassador") => {}
    }
    ambassador.leave().await;
    Ok(())
}
