//! Requests to the kernel: list, add, change, remove.

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::stream::{Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::{Handle, IpVersion, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::sync::Mutex;

use crate::{Address, Error, Kind, Link, Neighbour, Route, Rule};

/// A connection to the kernel's network tables. Clones share it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// Held while the kernel lists: it makes one list per socket at a time, and answers a second
    /// request with EBUSY (`netlink_dump_start()`).
    list: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a connection. The caller runs the returned task for as long as it uses the connection.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> io::Result<(Self, impl Future<Output = ()> + Send + use<>)> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok((Self { handle, list: Arc::default() }, connection))
    }

    /// Every link of this network namespace, by index.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let messages = self.collect("list links", || self.handle.link().get().execute()).await?;
        let mut links: Vec<_> = messages.into_iter().map(Link::from_message).collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Every IPv4 and IPv6 address.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let messages =
            self.collect("list addresses", || self.handle.address().get().execute()).await?;
        Ok(messages.iter().filter_map(Address::from_message).collect())
    }

    /// Every IPv4 and IPv6 route of every table.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let request = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let messages =
                self.collect("list routes", || self.handle.route().get(request).execute()).await?;
            routes.extend(messages.iter().filter_map(Route::from_message));
        }
        Ok(routes)
    }

    /// Every policy rule for IPv4 and IPv6.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn rules(&self) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let listed = self
                .collect("list rules", || self.handle.rule().get(version.clone()).execute())
                .await;
            match listed {
                Ok(messages) => rules.extend(messages.iter().filter_map(Rule::from_message)),
                // A kernel without policy routing for this family has none.
                Err(error) if error.not_supported() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rules)
    }

    /// Every neighbour that somebody said is one, on all links.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        let messages =
            self.collect("list neighbours", || self.handle.neighbours().get().execute()).await?;
        Ok(messages.iter().filter_map(Neighbour::from_message).collect())
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// When the kernel refuses (see [`Error::already_exists`]), or the connection is gone.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        let what = format!("add the rule of priority {}", rule.priority);
        let message = RouteNetlinkMessage::NewRule(rule.to_message());
        self.request(what, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), Error> {
        let what = format!("remove the rule of priority {}", rule.priority);
        self.request(what, RouteNetlinkMessage::DelRule(rule.to_message()), 0).await
    }

    /// Says where frames for a neighbour go, whatever was known of it.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn put_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let what = format!("add neighbour {} to link {}", neighbour.address, neighbour.index);
        let message = RouteNetlinkMessage::NewNeighbour(neighbour.to_message());
        self.request(what, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Forgets a neighbour.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn remove_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let what = format!("remove neighbour {} from link {}", neighbour.address, neighbour.index);
        self.request(what, RouteNetlinkMessage::DelNeighbour(neighbour.to_message()), 0).await
    }

    /// Sets a link administratively down; its routes go.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn set_down(&self, index: u32) -> Result<(), Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).down().build();
        self.change_link(format!("set link {index} down"), message).await
    }

    /// Makes a link called `name` (at most 15 bytes), on top of `parent` where its kind needs one. It
    /// is down at first.
    ///
    /// # Errors
    /// When the kernel refuses (see [`Error::already_exists`]), or the connection is gone.
    pub async fn make_link(
        &self,
        name: &str,
        kind: &Kind,
        parent: Option<u32>,
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(parent.map(LinkAttribute::Link));
        let mut infos = kind.to_infos();
        // A new bridge is so anyway; not every kernel that has bridges takes options.
        if *kind == (Kind::Bridge { stp: false, vlan_filtering: false }) {
            infos.truncate(1);
        }
        message.attributes.push(LinkAttribute::LinkInfo(infos));
        let message = RouteNetlinkMessage::NewLink(message);
        self.request(format!("make link {name}"), message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Tells a made link other options; those that are not named stay.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn change_kind(&self, index: u32, kind: &Kind) -> Result<(), Error> {
        let info = LinkAttribute::LinkInfo(kind.to_infos());
        self.change_link(format!("set the options of link {index}"), attribute(index, info)).await
    }

    /// Removes a made link, with its addresses, its routes and the VLANs on top of it.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn remove_link(&self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let message = RouteNetlinkMessage::DelLink(message);
        self.request(format!("remove link {index}"), message, 0).await
    }

    /// Writes the remark that the kernel keeps with a link, at most 255 bytes.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        let alias = LinkAttribute::IfAlias(alias.to_owned());
        self.change_link(format!("mark link {index}"), attribute(index, alias)).await
    }

    /// Makes a link a port of a bond or bridge, or of none. A bond takes only links that are down.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn set_master(&self, index: u32, master: Option<u32>) -> Result<(), Error> {
        let what = match master {
            Some(master) => format!("make link {index} a port of link {master}"),
            None => format!("make link {index} a port of nothing"),
        };
        let master = LinkAttribute::Controller(master.unwrap_or_default());
        self.change_link(what, attribute(index, master)).await
    }

    /// Gives a link another name (at most 15 bytes); other processes know it by its index meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses, or the connection is gone.
    pub async fn rename(&self, index: u32, name: &str) -> Result<(), Error> {
        let message =
            LinkMessageBuilder::<LinkUnspec>::new().index(index).name(name.to_owned()).build();
        self.change_link(format!("rename link {index} to {name}"), message).await
    }

    async fn change_link(&self, what: String, message: LinkMessage) -> Result<(), Error> {
        self.request(what, RouteNetlinkMessage::NewLink(message), 0).await
    }

    async fn request(
        &self,
        what: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = match self.handle.clone().request(message) {
            Ok(answers) => answers,
            Err(_) => return Err(Error::Closed { what }),
        };
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(Error::Refused { what, source: error.to_io() });
            }
        }
        Ok(())
    }

    async fn collect<T, S>(&self, what: &str, ask: impl FnOnce() -> S) -> Result<Vec<T>, Error>
    where
        S: Stream<Item = Result<T, rtnetlink::Error>>,
    {
        let _turn = self.list.lock().await;
        ask().try_collect().await.map_err(|error| {
            let what = what.to_owned();
            match error {
                rtnetlink::Error::NetlinkError(error) => {
                    Error::Refused { what, source: error.to_io() }
                }
                rtnetlink::Error::RequestFailed => Error::Closed { what },
                other => Error::Unexpected { what, detail: other.to_string() },
            }
        })
    }
}

fn attribute(index: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lists_asked_for_at_once_take_turns() {
        let (netlink, connection) = Netlink::open().expect("anybody may open a netlink socket");
        let lists = futures_util::future::join_all((0..32).map(|i| {
            let netlink = netlink.clone();
            async move {
                match i % 3 {
                    0 => netlink.links().await.map(|links| links.len()),
                    1 => netlink.addresses().await.map(|addresses| addresses.len()),
                    _ => netlink.routes().await.map(|routes| routes.len()),
                }
            }
        }));
        let results = tokio::select! {
            results = lists => results,
            () = connection => unreachable!("the connection lives as long as its handle"),
        };
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}
