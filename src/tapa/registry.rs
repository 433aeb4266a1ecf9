//! The registry of a trench, as a client: what the conduits are configured with, and the calls about targets
//! (spec/ambassador §3.1, §4).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use orlop_proto::nsp::v1::configuration_manager_client::ConfigurationManagerClient;
use orlop_proto::nsp::v1::target::Status;
use orlop_proto::nsp::v1::target_registry_client::TargetRegistryClient;
use orlop_proto::nsp::v1::{Conduit, Flow, Stream, Target, Trench};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::codegen::http::uri::InvalidUri;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tracing::{debug, info};

use crate::member::{Answer, Ask, Seen};
use crate::table::Name;

/// How long a call about a target may take, whatever else is set.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Between attempts to watch streams, and flows.
const STREAMS_AGAIN: Duration = Duration::from_millis(500);
const FLOWS_AGAIN: Duration = Duration::from_secs(2);
/// Of a stream that does not say how many targets it has.
const MAX_TARGETS: u32 = 100;
/// Under which the context of a target has its identifier.
const IDENTIFIER: &str = "identifier";

/// Where the registry of a trench is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// On the node.
    Socket(PathBuf),
    /// `http://host:port`, with which nobody proves anything.
    Plain(String),
}

impl Address {
    /// A channel that is dialled when it is needed.
    ///
    /// # Errors
    /// It is no address.
    pub fn channel(&self) -> Result<Channel, InvalidUri> {
        Ok(match self {
            Self::Socket(path) => orlop_rpc::unix::channel(path),
            Self::Plain(url) => Channel::from_shared(url.clone())?.connect_lazy(),
        })
    }
}

/// A trench's registry.
#[derive(Clone, Debug)]
pub struct Registry {
    targets: TargetRegistryClient<Channel>,
    configuration: ConfigurationManagerClient<Channel>,
}

/// What a conduit is configured with: its streams with their most targets, and the addresses of its flows.
/// Each `None` until it is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configured {
    /// Most targets by stream.
    pub streams: Option<BTreeMap<String, u32>>,
    /// Of all flows, as they are written.
    pub vips: Option<BTreeSet<String>>,
}

impl Registry {
    /// Over a channel.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self {
            targets: TargetRegistryClient::new(channel.clone()),
            configuration: ConfigurationManagerClient::new(channel),
        }
    }

    /// Asks about a target. What goes wrong is logged and an answer, too.
    pub async fn ask(&self, stream: &Name, ips: &[String], ask: Ask) -> Answer {
        let target = |status: Status, identifier: Option<u32>| Target {
            ips: ips.to_vec(),
            context: identifier
                .map(|identifier| (IDENTIFIER.to_owned(), identifier.to_string()))
                .into_iter()
                .collect(),
            status: status.into(),
            r#type: 0,
            stream: Some(message(stream)),
        };
        let mut client = self.targets.clone();
        let call = async {
            match ask {
                Ask::List => {
                    let all = Target { ips: Vec::new(), ..target(Status::Any, None) };
                    let mut lists = client.watch(all).await?.into_inner();
                    let first = lists.message().await?.unwrap_or_default();
                    Ok(Answer::Listed(first.targets.into_iter().map(seen).collect()))
                }
                Ask::Register { enabled, identifier } => {
                    let status = if enabled { Status::Enabled } else { Status::Disabled };
                    client.register(target(status, Some(identifier))).await?;
                    Ok(Answer::Done)
                }
                Ask::Unregister { identifier } => {
                    client.unregister(target(Status::Disabled, Some(identifier))).await?;
                    Ok(Answer::Done)
                }
            }
        };
        match timeout(CALL_LIMIT, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => {
                let status: tonic::Status = status;
                info!(%stream, ?ask, code = ?status.code(), "the registry: {}", status.message());
                if status.code() == Code::AlreadyExists { Answer::Taken } else { Answer::Failed }
            }
            Err(_) => {
                info!(%stream, ?ask, "the registry does not answer");
                Answer::Failed
            }
        }
    }

    /// Returns once fewer identifiers than `used` are in use, or when the registry is lost.
    pub async fn fewer(&self, stream: &Name, ips: &[String], max: u32, used: usize) {
        let ours: BTreeSet<_> = ips.iter().cloned().collect();
        let all = Target {
            status: Status::Any.into(),
            stream: Some(message(stream)),
            ..Target::default()
        };
        let mut client = self.targets.clone();
        let Ok(lists) = client.watch(all).await else { return std::future::pending().await };
        let mut lists = lists.into_inner();
        while let Ok(Some(list)) = lists.message().await {
            let others = list.targets.into_iter().map(seen).filter(|seen| seen.ips != ours);
            let valid =
                others.filter_map(|seen| seen.identifier).filter(|id| (1..=max).contains(id));
            if valid.collect::<BTreeSet<_>>().len() < used {
                return;
            }
        }
        // Lost: the time to try again comes anyway.
        std::future::pending().await
    }

    /// Keeps `told` at what the conduit is configured with; what is known stays when the registry is lost. Never ends.
    pub async fn follow(&self, trench: &str, conduit: &str, told: &watch::Sender<Configured>) {
        let conduit = Conduit {
            name: conduit.to_owned(),
            trench: Some(Trench { name: trench.to_owned() }),
            ..Conduit::default()
        };
        let of_conduit = Stream { conduit: Some(conduit), ..Stream::default() };
        let streams = async {
            loop {
                let mut client = self.configuration.clone();
                let take = |response: orlop_proto::nsp::v1::StreamResponse| {
                    let most = |most: u32| if most == 0 { MAX_TARGETS } else { most };
                    let streams = response.streams.into_iter();
                    let streams = streams.map(|stream| (stream.name, most(stream.max_targets)));
                    let streams = Some(streams.collect());
                    change(told, |configured| &mut configured.streams, streams);
                };
                take_all(client.watch_stream(of_conduit.clone()).await, take).await;
                sleep(STREAMS_AGAIN).await;
            }
        };
        let flows = async {
            loop {
                let mut client = self.configuration.clone();
                let filter = Flow { stream: Some(of_conduit.clone()), ..Flow::default() };
                let take = |response: orlop_proto::nsp::v1::FlowResponse| {
                    let vips = response.flows.into_iter().flat_map(|flow| flow.vips);
                    let vips = Some(vips.map(|vip| vip.address).collect());
                    change(told, |configured| &mut configured.vips, vips);
                };
                take_all(client.watch_flow(filter).await, take).await;
                sleep(FLOWS_AGAIN).await;
            }
        };
        tokio::join!(streams, flows);
    }
}

/// Takes messages until there are no more.
async fn take_all<T>(
    called: Result<tonic::Response<Streaming<T>>, tonic::Status>,
    mut take: impl FnMut(T),
) {
    match called {
        Ok(answer) => {
            let mut messages = answer.into_inner();
            while let Some(Ok(message)) = messages.next().await {
                take(message);
            }
        }
        Err(status) => {
            debug!(code = ?status.code(), "watch the configuration: {}", status.message())
        }
    }
}

fn change<T: PartialEq>(
    told: &watch::Sender<Configured>,
    part: impl FnOnce(&mut Configured) -> &mut T,
    value: T,
) {
    told.send_if_modified(|configured| {
        let part = part(configured);
        let other = *part != value;
        *part = value;
        other
    });
}

fn message(name: &Name) -> Stream {
    let trench = Some(Trench { name: name.trench.clone() });
    let conduit = Conduit { name: name.conduit.clone(), trench, ..Conduit::default() };
    Stream { name: name.stream.clone(), conduit: Some(conduit), max_targets: 0 }
}

fn seen(target: Target) -> Seen {
    let enabled = target.status() == Status::Enabled;
    let identifier = target.context.get(IDENTIFIER).and_then(|text| text.parse().ok());
    Seen { ips: target.ips.into_iter().collect(), identifier, enabled }
}
