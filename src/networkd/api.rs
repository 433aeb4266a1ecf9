//! `network.NetworkService` and `health.Health` (node-api §5.7) on the unix socket, and what changed, for machined.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use orlop_netlink::{Address, Link, Mac, Netlink, Protocol, Route};
use orlop_proto::network::network_service_server::{NetworkService, NetworkServiceServer};
use orlop_proto::network::{self, AddressFamily};
use orlop_proto::orlop::inside;
use orlop_proto::orlop::inside::network_news_server::{NetworkNews, NetworkNewsServer};
use orlop_proto::orlop::v1alpha1 as orlop;
use orlop_rpc::Routes;
use orlop_rt::{CancellationToken, Chain};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};
use tracing::warn;

use crate::Error;
use crate::news::{self, Change, Notice, Standing, What};

/// Answers on the socket `path` until `shutdown`.
pub(crate) async fn serve(
    path: PathBuf,
    Asked { netlink, ready, news }: Asked,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let api = Api { netlink, news };
    let service = Routes::new(NetworkServiceServer::new(api.clone()))
        .add_service(NetworkNewsServer::new(api));
    let ready = move || *ready.borrow();
    orlop_rpc::health::serve(path, service, ready, shutdown).await.map_err(Error::Listen)
}

/// What calls are answered from.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) netlink: Netlink,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) news: News,
}

/// Where those who follow the news are told. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct News {
    standing: Arc<watch::Sender<Standing>>,
    notices: broadcast::Sender<Arc<Notice>>,
}

/// Notices come seconds apart.
const NOTICES: usize = 8;

impl Default for News {
    fn default() -> Self {
        Self { standing: Arc::default(), notices: broadcast::Sender::new(NOTICES) }
    }
}

impl News {
    /// Tells all who follow, if anybody does.
    pub(crate) fn tell(&self, notice: Notice) {
        self.standing.send_replace(notice.standing.clone());
        let _ = self.notices.send(notice.into());
    }
}

#[derive(Clone, Debug)]
struct Api {
    netlink: Netlink,
    news: News,
}

#[tonic::async_trait]
impl NetworkNews for Api {
    async fn follow(&self, _: Request<()>) -> Result<Response<BoxStream<inside::News>>, Status> {
        let notices = self.news.notices.subscribe();
        let standing = self.news.standing.borrow().clone();
        let first = message(&Notice { standing, ..Notice::default() });
        let later = stream::unfold(notices, async |mut notices| match notices.recv().await {
            Ok(notice) => Some((Ok(message(&notice)), notices)),
            Err(RecvError::Lagged(count)) => {
                let late = Status::data_loss(format!("{count} notices too late: follow again"));
                Some((Err(late), notices))
            }
            Err(RecvError::Closed) => None,
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(later))))
    }
}

#[tonic::async_trait]
impl NetworkService for Api {
    async fn interfaces(
        &self,
        _: Request<()>,
    ) -> Result<Response<network::InterfacesResponse>, Status> {
        let links = self.netlink.links().await.map_err(status)?;
        let addresses = self.netlink.addresses().await.map_err(status)?;
        let interfaces = links.iter().map(|link| interface(link, &addresses)).collect();
        let messages = vec![network::Interfaces { metadata: None, interfaces }];
        Ok(Response::new(network::InterfacesResponse { messages }))
    }

    async fn routes(&self, _: Request<()>) -> Result<Response<network::RoutesResponse>, Status> {
        let links = self.netlink.links().await.map_err(status)?;
        let routes = self.netlink.routes().await.map_err(status)?;
        let routes = routes.iter().map(|each| route(each, &links)).collect();
        let messages = vec![network::Routes { metadata: None, routes }];
        Ok(Response::new(network::RoutesResponse { messages }))
    }
}

fn interface(link: &Link, addresses: &[Address]) -> network::Interface {
    let own = addresses.iter().filter(|address| address.index == link.index);
    network::Interface {
        index: link.index,
        mtu: link.mtu,
        name: link.name.clone(),
        hardwareaddr: hardware_address(link.mac),
        flags: flags(link.flags),
        ipaddress: own.map(|address| address.net.to_string()).collect(),
    }
}

/// From the kernel's `IFF_*` to the API's mask: up, broadcast, loopback, point-to-point, multicast.
fn flags(kernel: u32) -> i32 {
    [(0x1, 1), (0x2, 2), (0x8, 4), (0x10, 8), (0x1000, 16)]
        .into_iter()
        .filter(|(bit, _)| kernel & bit != 0)
        .map(|(_, flag)| flag)
        .sum()
}

fn route(route: &Route, links: &[Link]) -> network::Route {
    let link = links.iter().find(|link| Some(link.index) == route.index);
    let family = match route.destination.addr() {
        IpAddr::V4(_) => AddressFamily::AfInet,
        IpAddr::V6(_) => AddressFamily::AfInet6,
    };
    network::Route {
        interface: link.map(|link| link.name.clone()).unwrap_or_default(),
        destination: route.destination.to_string(),
        // Of either family: clients know it no other way.
        gateway: route.gateway.map(|gateway| format!("{gateway}/32")).unwrap_or_default(),
        metric: route.metric,
        scope: route.scope.into(),
        source: route.source.map(|source| source.to_string()).unwrap_or_default(),
        family: family.into(),
        // Clients have no word for our own mark.
        protocol: match route.protocol {
            Protocol::CONFIGURED => Protocol::STATIC.0.into(),
            other => other.0.into(),
        },
        flags: route.flags,
    }
}

fn message(notice: &Notice) -> inside::News {
    let Notice { changes, more, standing } = notice;
    let event = orlop::NetworkEvent {
        changes: changes.iter().map(change).collect(),
        more: u32::try_from(*more).unwrap_or(u32::MAX),
    };
    inside::News {
        hostname: standing.host_name.clone(),
        addresses: standing.addresses.iter().map(ToString::to_string).collect(),
        event: (!changes.is_empty() || *more > 0).then_some(event),
    }
}

fn change(change: &Change) -> orlop::NetworkChange {
    use orlop::network_change::{Action, What as Shown};
    let action = match change.action {
        news::Action::Added => Action::Added,
        news::Action::Changed => Action::Changed,
        news::Action::Removed => Action::Removed,
    };
    let what = match &change.what {
        What::Link(link) => Shown::Link(orlop::NetworkLink {
            name: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
            up: link.up,
            carrier: link.carrier,
            hardware_address: hardware_address(link.mac),
            master: link.master.unwrap_or_default(),
        }),
        What::Address(link, it) => Shown::Address(orlop::NetworkAddress {
            link: link.clone(),
            address: it.net.to_string(),
        }),
        What::Route(link, route) => Shown::Route(orlop::NetworkRoute {
            link: link.clone(),
            destination: route.destination.to_string(),
            gateway: route.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            source: route.source.map(|source| source.to_string()).unwrap_or_default(),
            metric: route.metric,
            table: route.table.0,
            r#type: route.kind.into(),
        }),
    };
    orlop::NetworkChange { action: action.into(), what: Some(what) }
}

/// Empty where there is none, as on loopback.
fn hardware_address(mac: Option<Mac>) -> String {
    let some = mac.filter(|mac| *mac != Mac([0; 6]));
    some.map(|mac| mac.to_string()).unwrap_or_default()
}

fn status(error: orlop_netlink::Error) -> Status {
    let text = Chain(&error).to_string();
    warn!(error = %text, "request of a client failed");
    match error {
        orlop_netlink::Error::Closed { .. } => Status::unavailable(text),
        orlop_netlink::Error::Refused { .. } | orlop_netlink::Error::Unexpected { .. } => {
            Status::internal(text)
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            flags: 0x1 | 0x2 | 0x40 | 0x1000 | 0x10000,
            carrier_ups: 1,
            ..Link::default()
        }
    }

    #[test]
    fn an_interface_has_its_flags_as_one_mask() {
        let address = |index| Address {
            index,
            net: "10.0.2.15/24".parse().unwrap(),
            protocol: Protocol::DHCP,
            valid: None,
        };
        let shown = interface(&link(), &[address(2), address(3)]);
        assert_eq!(shown.flags, 19);
        assert_eq!(shown.hardwareaddr, "02:00:00:00:00:01");
        assert_eq!(shown.ipaddress, ["10.0.2.15/24"]);
    }

    #[test]
    fn a_gateway_is_shown_with_a_prefix() {
        let to = "0.0.0.0/0".parse().unwrap();
        let via = Some("10.0.2.2".parse().unwrap());
        let shown = route(&Route::through(2, to, via, 1024, Protocol::DHCP), &[link()]);
        assert_eq!(shown.interface, "eth0");
        assert_eq!(shown.destination, "0.0.0.0/0");
        assert_eq!((shown.gateway.as_str(), shown.metric), ("10.0.2.2/32", 1024));
        assert_eq!((shown.family, shown.protocol), (2, 16));
    }
}
