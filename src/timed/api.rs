//! `time.TimeService` and `health.Health` (node-api §5.7) on the unix socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_config::machine::TimeServer;
use orlop_proto::orlop::v1alpha1 as orlop;
use orlop_proto::orlop::v1alpha1::clock_service_server::{ClockService, ClockServiceServer};
use orlop_proto::time::time_service_server::{TimeService, TimeServiceServer};
use orlop_proto::time::{Time, TimeRequest, TimeResponse};
use orlop_rpc::Routes;
use orlop_rt::CancellationToken;
use prost_types::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status};

use crate::Error;
use crate::driver;
use crate::machine::{SourceView, Standing, View};
use crate::settings::Settings;
use crate::wire::Leap;

/// Servers are asked again and again for so long; clients wait for twice as long.
const LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Answers on the socket `path` until `shutdown`.
pub(crate) async fn serve(
    path: PathBuf,
    api: Api,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let service = Routes::new(TimeServiceServer::new(api.clone()))
        .add_service(ClockServiceServer::new(api.clone()));
    let ready = move || api.ready();
    orlop_rpc::health::serve(path, service, ready, shutdown).await.map_err(Error::Listen)
}

/// What calls are answered from.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) settings: watch::Receiver<Settings>,
    pub(crate) net: Arc<driver::Net>,
    pub(crate) view: watch::Receiver<View>,
    /// When this began: `machine.time.bootTimeout` counts from here.
    pub(crate) started: Instant,
}

impl Api {
    /// Whether those who wait for the right time may go on: it is right, or their patience is at an
    /// end (`machine.time.bootTimeout`, spec §9.6).
    fn ready(&self) -> bool {
        let patience = self.started + self.settings.borrow().boot_timeout;
        self.view.borrow().synchronized || Instant::now() >= patience
    }

    async fn ask(&self, servers: &[TimeServer]) -> Result<Response<TimeResponse>, Status> {
        let mut why = "no answer in time".to_owned();
        let nts_ca = self.settings.borrow().nts_ca.clone();
        let asking = async {
            loop {
                match driver::ask_any(servers, &self.net, &nts_ca).await {
                    Ok(answer) => return answer,
                    Err(failures) => why = failures,
                }
                sleep(RETRY).await;
            }
        };
        let Ok((server, answer)) = timeout(LIMIT, asking).await else {
            return Err(Status::unavailable(format!("error querying NTP server: {why}")));
        };
        let message = Time {
            metadata: None,
            server,
            localtime: Some(Timestamp::from(answer.at)),
            remotetime: Some(Timestamp::from(answer.time())),
        };
        Ok(Response::new(TimeResponse { messages: vec![message] }))
    }
}

#[tonic::async_trait]
impl TimeService for Api {
    async fn time(&self, _: Request<()>) -> Result<Response<TimeResponse>, Status> {
        let servers = self.settings.borrow().servers.clone();
        self.ask(&servers).await
    }

    async fn time_check(
        &self,
        request: Request<TimeRequest>,
    ) -> Result<Response<TimeResponse>, Status> {
        let server = request.into_inner().server;
        let server = server
            .parse::<TimeServer>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.ask(&[server]).await
    }
}

#[tonic::async_trait]
impl ClockService for Api {
    async fn clock(&self, _: Request<()>) -> Result<Response<orlop::ClockResponse>, Status> {
        let clock = clock(&self.view.borrow());
        Ok(Response::new(orlop::ClockResponse { messages: vec![clock] }))
    }
}

fn clock(view: &View) -> orlop::Clock {
    let leap = match view.leap {
        Leap::Insert => orlop::clock::Leap::Insert,
        Leap::Delete => orlop::clock::Leap::Delete,
        Leap::None | Leap::Unsynchronized => orlop::clock::Leap::None,
    };
    orlop::Clock {
        metadata: None,
        synchronized: view.synchronized,
        offset_seconds: view.offset,
        sigma_seconds: if view.sigma.is_finite() { view.sigma } else { 0.0 },
        frequency_ppm: view.frequency_ppm,
        stratum: view.stratum.into(),
        leap: leap.into(),
        steps: view.steps,
        sources: view.sources.iter().map(source).collect(),
    }
}

fn source(view: &SourceView) -> orlop::TimeSource {
    use orlop::time_source::State;
    let state = match view.standing {
        Standing::Unreachable => State::Unreachable,
        Standing::Unfit => State::Unfit,
        Standing::Falseticker => State::Falseticker,
        Standing::Spare => State::Spare,
        Standing::Followed => State::Followed,
    };
    orlop::TimeSource {
        server: view.server.clone(),
        address: view.place.clone(),
        state: state.into(),
        reach: view.reach.0.into(),
        stratum: view.stratum.into(),
        poll_seconds: view.poll.as_secs_f64(),
        offset_seconds: view.offset,
        frequency_ppm: view.frequency_ppm,
        jitter_seconds: view.jitter,
        delay_seconds: view.delay,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::names::Names;

    fn api(boot_timeout: Duration) -> (watch::Sender<View>, watch::Sender<Settings>, Api) {
        let (sender, view) = watch::channel(View::default());
        let names = Names { hosts: "/dev/null".into(), resolv_conf: "/dev/null".into() };
        let net = driver::Net { names, port: 0, roots: "/dev/null".into() }.into();
        let (setter, settings) = watch::channel(Settings { boot_timeout, ..Settings::default() });
        (sender, setter, Api { settings, net, view, started: Instant::now() })
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_when_the_clock_is_right_or_patience_ends() {
        let (view, settings, api) = api(Duration::from_secs(30));
        assert!(!api.ready());
        view.send_replace(View { synchronized: true, ..View::default() });
        assert!(api.ready());
        view.send_replace(View::default());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(api.ready());
        settings.send_modify(|settings| settings.boot_timeout = Duration::from_secs(31));
        assert!(!api.ready());
    }

    #[tokio::test]
    async fn what_is_no_server_is_refused() {
        let (_view, _settings, api) = api(Duration::ZERO);
        for server in ["", "a b", "/dev/mem"] {
            let request = Request::new(TimeRequest { server: server.to_owned() });
            let status = api.time_check(request).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{server}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_to_ask_is_told_after_a_while() {
        let (_view, _settings, api) = api(Duration::ZERO);
        let request = Request::new(TimeRequest { server: "ntp.example.org".to_owned() });
        let status = api.time_check(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("no resolver in /dev/null"), "{status}");
    }
}
