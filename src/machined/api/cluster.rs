//! `cluster.ClusterService`: the health of the cluster; [`crate::health`] sees to it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream;
use http::Uri;
use orlop_proto::cluster::cluster_service_server::ClusterService;
use orlop_proto::cluster::{ClusterInfo, HealthCheckProgress, HealthCheckRequest};
use orlop_rt::Chain;
use tokio::sync::Semaphore;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status};

use super::{Streamed, boxed};
use crate::health::{Nodes, Said, Terms};
use crate::node::Node;

/// Checks at a time: each is a process.
const PLACES: usize = 4;
/// How long is waited when the caller does not say (spec §10.1).
const WAIT: Duration = Duration::from_secs(20 * 60);
/// Longer than anybody waits.
const WAIT_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Nodes that can be named.
const NODES_LIMIT: usize = 1000;

#[derive(Debug)]
pub(super) struct Cluster {
    node: Node,
    places: Arc<Semaphore>,
}

impl Cluster {
    pub(super) fn new(node: Node) -> Self {
        Self { node, places: Arc::new(Semaphore::new(PLACES)) }
    }
}

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn health_check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Streamed<HealthCheckProgress> {
        let config = self.node.config().map_err(|error| {
            Status::failed_precondition(format!("check the cluster's health: {error}"))
        })?;
        let Wish { nodes, endpoint, limit } = Wish::of(request.into_inner())?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let text = format!("{PLACES} checks of the cluster's health are under way; try again");
            Status::resource_exhausted(text)
        })?;
        let terms = Terms::new(&config, nodes, endpoint, limit, SystemTime::now());
        let talk = terms.look(self.node.reaper());
        let talk = talk.map_err(|error| Status::internal(Chain(&error).to_string()))?;
        // The child lives as long as the stream, and so does its place.
        let lines = stream::try_unfold((talk, place), async |(mut talk, place)| {
            let said = talk.next().await.map_err(|error| {
                Status::internal(format!("check the cluster's health: {}", Chain(&error)))
            })?;
            match said {
                Some(Said::Line(message)) => {
                    Ok(Some((HealthCheckProgress { metadata: None, message }, (talk, place))))
                }
                Some(Said::Well) => Ok(None),
                Some(Said::Late(why)) => Err(Status::deadline_exceeded(why)),
                Some(Said::Unchecked(why)) => Err(Status::failed_precondition(why)),
                None => Err(Status::internal("the check of the cluster's health broke off")),
            }
        });
        Ok(boxed(&self.node, lines))
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    nodes: Nodes,
    endpoint: Option<(String, u16)>,
    limit: Duration,
}

impl Wish {
    fn of(request: HealthCheckRequest) -> Result<Self, Status> {
        let HealthCheckRequest { wait_timeout, cluster_info } = request;
        let limit = match wait_timeout.map(Duration::try_from) {
            None => WAIT,
            Some(Ok(limit)) if limit.is_zero() => WAIT,
            Some(Ok(limit)) => limit.min(WAIT_LIMIT),
            Some(Err(_)) => {
                return Err(Status::invalid_argument("wait_timeout: not a time to wait"));
            }
        };
        let ClusterInfo { control_plane_nodes, worker_nodes, force_endpoint } =
            cluster_info.unwrap_or_default();
        let nodes = Nodes { control_planes: control_plane_nodes, workers: worker_nodes };
        let all = || nodes.control_planes.iter().chain(&nodes.workers);
        if all().count() > NODES_LIMIT {
            let text = format!("more than {NODES_LIMIT} nodes are named");
            return Err(Status::invalid_argument(text));
        }
        let sent =
            |node: &&String| node.is_empty() || node.parse::<MetadataValue<Ascii>>().is_err();
        if let Some(node) = all().find(sent) {
            let text = format!("{node:?} is no node: a node is an address or a name");
            return Err(Status::invalid_argument(text));
        }
        let endpoint = match force_endpoint.as_str() {
            "" => None,
            url => Some(server(url).ok_or_else(|| {
                let text = format!("force_endpoint {url:?}: write https://HOST:PORT");
                Status::invalid_argument(text)
            })?),
        };
        Ok(Self { nodes, endpoint, limit })
    }
}

/// The host, without brackets, and the port of `https://HOST[:PORT]`.
fn server(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let host = uri.host().filter(|host| !host.is_empty() && uri.scheme_str() == Some("https"))?;
    Some((host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_request_is_taken_as_both_generations_write_it() {
        let wish = Wish::of(HealthCheckRequest::default()).unwrap();
        assert_eq!(wish, Wish { nodes: Nodes::default(), endpoint: None, limit: WAIT });
        let info = ClusterInfo {
            control_plane_nodes: vec!["10.0.0.2".to_owned()],
            worker_nodes: vec!["w".to_owned()],
            force_endpoint: "https://[fd00::1]:6443".to_owned(),
        };
        let wait_timeout = Some(prost_types::Duration { seconds: 90, nanos: 0 });
        let request = |info| HealthCheckRequest { wait_timeout, cluster_info: Some(info) };
        let wish = Wish::of(request(info.clone())).unwrap();
        assert_eq!(wish.limit, Duration::from_secs(90));
        assert_eq!(wish.endpoint, Some(("fd00::1".to_owned(), 6443)));
        assert_eq!((&*wish.nodes.control_planes[0], &*wish.nodes.workers[0]), ("10.0.0.2", "w"));
        for (wrong, what) in [
            (ClusterInfo { worker_nodes: vec![String::new()], ..info.clone() }, "is no node"),
            (ClusterInfo { worker_nodes: vec!["a\nb".to_owned()], ..info.clone() }, "is no node"),
            (ClusterInfo { worker_nodes: vec!["a".to_owned(); 1001], ..info.clone() }, "more than"),
            (ClusterInfo { force_endpoint: "http://a".to_owned(), ..info.clone() }, "https://"),
            (ClusterInfo { force_endpoint: "a:6443".to_owned(), ..info }, "https://"),
        ] {
            let status = Wish::of(request(wrong)).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(what), "{status}");
        }
        let wait_timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        Wish::of(HealthCheckRequest { wait_timeout, cluster_info: None }).unwrap_err();
    }
}
