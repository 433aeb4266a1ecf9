//! The resolver among curators that say what the test tells them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::SystemTime;

use curator::curator_local_server::{CuratorLocal, CuratorLocalServer};
use curator::curator_server::{Curator, CuratorServer};
use futures_util::{Stream, StreamExt as _, stream};
use orlop_pki::{Leaf, Usage};
use orlop_proto::metropolis::proto::common::{NodeStatus, node_status::RunningCurator};
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response};

use super::*;

/// A curator that says this, and ends its streams when it is none.
#[derive(Clone)]
struct Fake {
    says: watch::Sender<Option<curator::GetCurrentLeaderResponse>>,
    nodes: watch::Sender<curator::WatchEvent>,
}

/// The value there is, and each one after it.
fn values<T: Clone + Send + Sync + 'static>(
    sender: &watch::Sender<T>,
) -> impl Stream<Item = T> + Send + 'static {
    let mut values = sender.subscribe();
    values.mark_changed();
    stream::unfold(values, |mut values| async {
        values.changed().await.ok()?;
        let value = values.borrow_and_update().clone();
        Some((value, values))
    })
}

#[tonic::async_trait]
impl CuratorLocal for Fake {
    async fn get_current_leader(
        &self,
        _: Request<curator::GetCurrentLeaderRequest>,
    ) -> Result<Response<BoxStream<curator::GetCurrentLeaderResponse>>, Status> {
        if self.says.borrow().is_none() {
            return Err(Status::unavailable("no leader is known"));
        }
        let said = values(&self.says).take_while(|said| std::future::ready(said.is_some()));
        Ok(Response::new(said.filter_map(std::future::ready).map(Ok).boxed()))
    }

    async fn get_ca_certificate(
        &self,
        _: Request<curator::GetCaCertificateRequest>,
    ) -> Result<Response<curator::GetCaCertificateResponse>, Status> {
        Ok(Response::new(curator::GetCaCertificateResponse::default()))
    }
}

#[tonic::async_trait]
impl Curator for Fake {
    async fn watch(
        &self,
        _: Request<curator::WatchRequest>,
    ) -> Result<Response<BoxStream<curator::WatchEvent>>, Status> {
        Ok(Response::new(values(&self.nodes).map(Ok).boxed()))
    }
}

impl Fake {
    /// Serves until `tasks` are dropped.
    async fn start(tasks: &mut JoinSet<()>) -> (Self, Place) {
        let fake = Self { says: watch::Sender::new(None), nodes: watch::Sender::default() };
        let leaf = Leaf {
            common_name: "fake".to_owned(),
            organizations: Vec::new(),
            usage: Usage::Server,
            dns: Vec::new(),
            ips: Vec::new(),
            lifetime: Duration::from_secs(3600),
        };
        let pair = orlop_pki::self_signed(&leaf, SystemTime::now()).unwrap();
        let tls = orlop_pki::stranger::server_config(&pair.crt, pair.key.expose()).unwrap();
        let listener =
            crate::tls::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_keep, tls) = watch::channel(tls);
        let incoming = crate::tls::incoming(listener, tls, Arc::default());
        let serving = crate::server()
            .add_service(CuratorLocalServer::new(fake.clone()))
            .add_service(CuratorServer::new(fake.clone()))
            .serve_with_incoming(incoming);
        tasks.spawn(async move { serving.await.unwrap() });
        (fake, Place { host: "127.0.0.1".to_owned(), port })
    }

    fn say(&self, leader: &str, place: &Place, this: &str) {
        self.says.send_replace(Some(curator::GetCurrentLeaderResponse {
            leader_node_id: leader.to_owned(),
            leader_host: place.host.clone(),
            leader_port: place.port.into(),
            this_node_id: this.to_owned(),
        }));
    }
}

fn node(id: &str, place: &Place) -> curator::Node {
    let running = RunningCurator { port: place.port.into() };
    let status = NodeStatus {
        external_address: place.host.clone(),
        running_curator: Some(running),
        ..NodeStatus::default()
    };
    curator::Node { id: id.to_owned(), status: Some(status), ..curator::Node::default() }
}

#[tokio::test]
async fn the_leader_is_followed_and_the_curators_are_learned() {
    let mut tasks = JoinSet::new();
    let (a, at_a) = Fake::start(&mut tasks).await;
    let (b, at_b) = Fake::start(&mut tasks).await;
    a.say("b", &at_b, "a");
    b.say("b", &at_b, "b");
    let progress = curator::watch_event::Progress::LastBacklogged.into();
    let nodes = vec![node("a", &at_a), node("b", &at_b), curator::Node::default()];
    b.nodes.send_replace(curator::WatchEvent { nodes, progress, ..curator::WatchEvent::default() });
    let resolver = Resolver::start(Terms {
        seeds: vec![at_a.clone()],
        overrides: BTreeMap::new(),
        tls: orlop_pki::stranger::client_config(None).unwrap(),
        learn: true,
    });
    let mut found = resolver.found();
    let leads = |place: &Place| {
        let place = place.clone();
        move |found: &Found| found.leader.as_ref().is_some_and(|leader| leader.place == place)
    };
    found.wait_for(leads(&at_b)).await.unwrap();
    let mut client = CuratorLocalClient::new(resolver.channel().await);
    client.get_ca_certificate(curator::GetCaCertificateRequest {}).await.unwrap();
    let mut curators = resolver.curators();
    curators.wait_for(|curators| curators.len() == 2).await.unwrap();

    // The other one leads now: first one is told so, then the one that was asked has gone, too.
    a.say("a", &at_a, "a");
    found.wait_for(leads(&at_a)).await.unwrap();
    b.say("b", &at_b, "b");
    a.says.send_replace(None);
    found.wait_for(leads(&at_b)).await.unwrap();

    // Nobody knows: everybody is asked, and the last one stays until there is another.
    b.says.send_replace(None);
    let vain = found.wait_for(|found| found.rounds > 0).await.unwrap().clone();
    assert!(leads(&at_b)(&vain));
    assert!(vain.failures.iter().all(|(_, status)| status.code() == Code::Unavailable), "{vain:?}");
    a.say("a", &at_a, "a");
    found.wait_for(leads(&at_a)).await.unwrap();
}

#[test]
fn nodes_come_and_go_among_the_curators() {
    let place = Place { host: "10.0.0.1".to_owned(), port: 7835 };
    let mut curators = BTreeMap::new();
    let mut event = curator::WatchEvent { nodes: vec![node("a", &place)], ..Default::default() };
    note(&mut curators, event.clone());
    assert_eq!(curators, BTreeMap::from([("a".to_owned(), place)]));
    let mut without = node("a", &Place { host: String::new(), port: 7835 });
    event.nodes = vec![without.clone()];
    note(&mut curators, event.clone());
    assert_eq!(curators.len(), 0, "it has no address any more");
    without.status.as_mut().unwrap().external_address = "10.0.0.2".to_owned();
    without.status.as_mut().unwrap().running_curator = Some(RunningCurator { port: 0 });
    event.nodes = vec![without];
    note(&mut curators, event);
    assert_eq!(curators["a"].port, PORT);
    let tombstone = curator::watch_event::NodeTombstone { node_id: "a".to_owned() };
    note(
        &mut curators,
        curator::WatchEvent { node_tombstones: vec![tombstone], ..Default::default() },
    );
    assert!(curators.is_empty());
}
