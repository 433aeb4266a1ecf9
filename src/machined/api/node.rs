//! What machined tells beyond the machine API (`orlop.v1alpha1.NodeService`).

use std::time::Duration;

use orlop_proto::orlop::v1alpha1 as proto;
use orlop_proto::orlop::v1alpha1::node_service_server::NodeService;
use orlop_proto::orlop::v1alpha1::span;
use tonic::{Request, Response};

use super::services::unsupervised;
use super::{Answer, failed};
use crate::metrics;
use crate::node::Node;
use crate::timeline::{Kind, Span};

#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) node: Node,
}

#[tonic::async_trait]
impl NodeService for Told {
    async fn metrics(&self, _: Request<()>) -> Answer<proto::MetricsResponse> {
        let text =
            metrics::text(&self.node).await.map_err(|error| failed("gather metrics", error))?;
        let metrics = proto::Metrics { metadata: None, text };
        Ok(Response::new(proto::MetricsResponse { messages: vec![metrics] }))
    }

    async fn timeline(&self, _: Request<()>) -> Answer<proto::TimelineResponse> {
        let services = self.node.supervisor().list().await.map_err(unsupervised)?;
        let story = self.node.timeline().story().clone();
        let spans = story.spans(orlop_sys::monotonic(), |id| metrics::is_up(&services, id));
        let timeline = proto::Timeline {
            metadata: None,
            spans: spans.into_iter().map(span).collect(),
            ready_ns: story.ready_at().map_or(0, nanos),
        };
        Ok(Response::new(proto::TimelineResponse { messages: vec![timeline] }))
    }
}

fn span(span: Span) -> proto::Span {
    let kind = match span.kind {
        Kind::Kernel => span::Kind::Kernel,
        Kind::Init => span::Kind::Init,
        Kind::Sequence => span::Kind::Sequence,
        Kind::Phase => span::Kind::Phase,
        Kind::Task => span::Kind::Task,
        Kind::Service => span::Kind::Service,
        Kind::Stage => span::Kind::Stage,
    };
    proto::Span {
        kind: kind.into(),
        name: span.name,
        parent: span.parent,
        start_ns: nanos(span.start),
        duration_ns: nanos(span.duration),
        unfinished: span.unfinished,
        failed: span.failed,
    }
}

/// Lasts 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
