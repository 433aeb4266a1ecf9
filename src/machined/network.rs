//! What networkd tells of the node's network becomes events.
//!
//! networkd decides what is told how often ([`NetworkNews`](orlop_proto::orlop::inside)); it is asked again when it was
//! started anew. How the node is reached is an event when it is another than the last one.

use std::path::Path;
use std::time::Duration;

use orlop_proto::machine::AddressEvent;
use orlop_proto::orlop::inside::News;
use orlop_proto::orlop::inside::network_news_client::NetworkNewsClient;
use orlop_rt::{Backoff, CancellationToken};
use tonic::Status;
use tracing::debug;

use crate::events::Events;
use crate::identity::random;

/// Until networkd is asked again: it takes a moment to start.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// A notice has at most 32 changes of some 200 bytes, and the node's addresses.
const MAX_NEWS: usize = 256 << 10;

/// Makes events of the news on `socket`, until `shutdown`.
pub(crate) async fn follow(socket: &Path, events: Events, shutdown: CancellationToken) {
    let mut client = NetworkNewsClient::new(orlop_rpc::unix::channel(socket))
        .max_decoding_message_size(MAX_NEWS);
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut last = AddressEvent::default();
    let following = async {
        loop {
            let ended: Status = match client.follow(()).await {
                Ok(news) => {
                    let mut news = news.into_inner();
                    loop {
                        match news.message().await {
                            Ok(Some(news)) => {
                                backoff.reset();
                                publish(&events, &mut last, news);
                            }
                            Ok(None) => break Status::ok("it ended"),
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            debug!(error = %ended, "no news of the network");
            tokio::time::sleep(backoff.next(random())).await;
        }
    };
    // Cancel-safe: nobody is asked any more.
    shutdown.run_until_cancelled(following).await;
}

fn publish(events: &Events, last: &mut AddressEvent, News { hostname, addresses, event }: News) {
    if let Some(event) = event {
        events.publish(&event);
    }
    let reached = AddressEvent { hostname, addresses };
    // Until networkd has named the node.
    if !reached.hostname.is_empty() && *last != reached {
        events.publish(&reached);
        *last = reached;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::{StreamExt as _, stream};
    use orlop_proto::orlop::inside::network_news_server::{NetworkNews, NetworkNewsServer};
    use orlop_proto::orlop::v1alpha1::{NetworkChange, NetworkEvent};
    use orlop_rpc::Routes;
    use prost::Message as _;
    use tonic::codegen::BoxStream;
    use tonic::{Request, Response};

    use super::*;
    use crate::events::{Reader, Tail};

    /// A networkd that tells this each time it is asked, and then nothing.
    struct Teller(Arc<Mutex<Vec<Vec<News>>>>);

    #[tonic::async_trait]
    impl NetworkNews for Teller {
        async fn follow(&self, _: Request<()>) -> Result<Response<BoxStream<News>>, Status> {
            let told = self.0.lock().unwrap().pop();
            let Some(told) = told else {
                return Ok(Response::new(Box::pin(stream::pending())));
            };
            let late = Err(Status::data_loss("too late"));
            let told = stream::iter(told).map(Ok).chain(stream::iter([late]));
            Ok(Response::new(Box::pin(told)))
        }
    }

    fn news(hostname: &str, address: &str, more: Option<u32>) -> News {
        News {
            hostname: hostname.to_owned(),
            addresses: vec![address.to_owned()],
            event: more.map(|more| NetworkEvent { changes: vec![], more }),
        }
    }

    async fn next(reader: &mut Reader) -> (String, Vec<u8>) {
        let record = reader.next().await.unwrap();
        (record.data.type_url.clone(), record.data.value.clone())
    }

    #[tokio::test]
    async fn news_become_events_and_networkd_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("x.sock");
        let second = vec![news("n1", "10.0.0.5", None), news("n1", "10.0.0.6", Some(2))];
        let first = vec![news("", "10.0.0.5", None), news("n1", "10.0.0.5", Some(1))];
        let teller = Teller(Arc::new(Mutex::new(vec![second, first])));
        let events = Events::new([0; 3]);
        let mut reader = events.watch(&Tail::All).unwrap();
        let end = CancellationToken::new();
        let service = Routes::new(NetworkNewsServer::new(teller));
        let serving = orlop_rpc::health::serve(socket.clone(), service, || true, end.clone());
        let test = async {
            let address = |address: &str| {
                let (hostname, addresses) = ("n1".to_owned(), vec![address.to_owned()]);
                let event = AddressEvent { hostname, addresses };
                ("talos/runtime/machine.AddressEvent".to_owned(), event.encode_to_vec())
            };
            let network = |more| {
                let event = NetworkEvent { changes: Vec::<NetworkChange>::new(), more };
                ("talos/runtime/orlop.v1alpha1.NetworkEvent".to_owned(), event.encode_to_vec())
            };
            let wanted = [network(1), address("10.0.0.5"), network(2), address("10.0.0.6")];
            for wanted in wanted {
                assert_eq!(next(&mut reader).await, wanted);
            }
        };
        tokio::select! {
            ended = serving => panic!("{ended:?}"),
            () = follow(&socket, events, end) => panic!("it goes on"),
            () = test => {}
        }
    }
}
