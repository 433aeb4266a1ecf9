//! `network.NetworkService` and `health.Health` (node-api §5.7) on the unix socket.

use std::net::IpAddr;
use std::path::PathBuf;

use orlop_netlink::{Address, Link, Mac, Netlink, Protocol, Route};
use orlop_proto::network::network_service_server::{NetworkService, NetworkServiceServer};
use orlop_proto::network::{self, AddressFamily};
use orlop_rt::{CancellationToken, Chain};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tracing::warn;

use crate::Error;

/// Answers on the socket `path` until `shutdown`.
pub(crate) async fn serve(
    path: PathBuf,
    netlink: Netlink,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let service = Routes::new(NetworkServiceServer::new(Api { netlink }));
    let ready = move || *ready.borrow();
    orlop_rpc::health::serve(path, service, ready, shutdown).await.map_err(Error::Listen)
}

#[derive(Clone, Debug)]
struct Api {
    netlink: Netlink,
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
        hardwareaddr: link
            .mac
            .filter(|mac| *mac != Mac([0; 6]))
            .map_or_else(String::new, |mac| mac.to_string()),
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
