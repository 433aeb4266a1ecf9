//! What others learn of it all: names, resolvers and time servers in files, whether the node is ready, and news.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use orlop_netlink::host;
use orlop_rt::Chain;
use tracing::{Instrument as _, info, info_span, warn};

use super::{Driver, PATIENCE};
use crate::dhcp::now;
use crate::names;
use crate::news::{Change, LinkState, Look, Notice, RouteState, What};
use crate::plan::{self, Desired, Intent, Names, Observed};
use crate::resolver::driver::{self as resolver_driver, Sockets};
use crate::resolver::machine::Known;
use crate::resolver::message::Hosts;
use crate::resolver::{self, Server};

impl Driver {
    /// Writes names and resolvers, and says when the node is ready.
    pub(super) fn publish(
        &mut self,
        intents: &BTreeMap<u32, Intent>,
        observed: &Observed,
        desired: &Desired,
    ) {
        let configured = self.since.keys().any(|index| {
            intents
                .get(index)
                .is_some_and(|intent| plan::configured(*index, desired, observed, intent))
        });
        let now = now();
        let tried = self.since.values().all(|since| *since + PATIENCE <= now);
        let settled = configured || tried || *self.ready.borrow();
        if !settled {
            return;
        }
        let mut names = plan::names(
            &self.settings,
            intents,
            &self.leases,
            &self.leases6,
            &self.learned,
            &observed.links,
        );
        // A node that lost its lease is still called what it was.
        if names.claimed {
            self.named = Some(names.clone());
        } else if let Some(before) = &self.named {
            names.identity.clone_from(&before.identity);
            names.search.clone_from(&before.search);
        }
        self.write_names(&names);
        self.write_time_servers();
        if self.ready.send_if_modified(|ready| !std::mem::replace(ready, true)) {
            info!(configured, host_name = %names.identity.host_name, "network ready");
        }
    }

    /// For timed, which looks when the file is another.
    pub(super) fn write_time_servers(&mut self) {
        let v4 = self.leases.values().flat_map(|lease| &lease.ntp).map(ToString::to_string);
        let v6 = self.leases6.values().flat_map(|lease| lease.ntp.iter().cloned());
        let kernel = self.settings.kernel.iter().flat_map(|kernel| &kernel.intent.time_servers);
        let text = names::time_servers(v4.chain(v6).chain(kernel.map(ToString::to_string)));
        let path = self.options.time_servers.clone();
        let present = std::fs::read_to_string(&path).unwrap_or_default();
        // Who waits for a lease, after a start or its end, still goes by the last one's.
        let awaited = text.is_empty() && !self.keepers.is_empty();
        if present == text || awaited {
            return;
        }
        if let Err(error) = orlop_rt::replace(&path, 0o644, text.as_bytes()) {
            self.complain(&format!("write {}", path.display()), &error);
            self.try_again_later();
        }
    }

    pub(super) fn write_names(&mut self, names: &Names) {
        let identity = &names.identity;
        self.host_name = Some(identity.host_name.clone());
        let resolvers = self.resolve_on_loopback(names);
        let resolv_conf = names::resolv_conf(&resolvers, &names.search);
        let hosts = names::hosts(identity, &self.settings.extra_hosts);
        let files = [(&self.options.resolv_conf, resolv_conf), (&self.options.hosts, hosts)];
        let results = files.map(|(path, text)| (path.clone(), write_in_place(path, &text)));
        for (path, result) in results {
            if let Err(error) = result {
                self.complain(&format!("write {}", path.display()), &error);
                self.try_again_later();
            }
        }
        let told = (identity.host_name.clone(), identity.domain.clone());
        if self.options.keep_host_name || self.told.as_ref() == Some(&told) {
            return;
        }
        let domain = identity.domain.as_deref().unwrap_or("(none)");
        match host::set_name(&identity.host_name).and_then(|()| host::set_domain(domain)) {
            Ok(()) => self.told = Some(told),
            Err(error) => {
                self.complain("set the host name", &error);
                self.try_again_later();
            }
        }
    }

    /// Starts the resolver where there shall be one, and says which ones programs shall ask.
    pub(super) fn resolve_on_loopback(&mut self, names: &Names) -> Vec<IpAddr> {
        let Some(settings) = &self.settings.resolver else { return names.resolvers.clone() };
        let own = resolver::ADDRESS.ip();
        let servers = match &settings.tls[..] {
            // One that asked itself would never answer.
            [] => (names.resolvers.iter().filter(|address| **address != own))
                .map(|address| Server::plain((*address, resolver::PORT).into()))
                .collect(),
            tls => tls.iter().map(|tls| tls.server.clone()).collect(),
        };
        let hosts = Hosts::new(&names::host_entries(&names.identity, &self.settings.extra_hosts));
        let known = Known { servers, hosts };
        self.known.send_if_modified(|before| std::mem::replace(before, known.clone()) != known);
        if !self.resolver.is_empty() {
            return vec![own];
        }
        let encrypted = !settings.tls.is_empty();
        let failure = match resolver_driver::trust(settings) {
            Ok(trust) => match Sockets::open() {
                Ok(sockets) => {
                    let run = resolver_driver::run(sockets, self.known.subscribe(), trust);
                    self.resolver.spawn(run.instrument(info_span!("resolver")));
                    return vec![own];
                }
                Err(error) => ("listen on the resolver's address", Chain(&error).to_string()),
            },
            Err(error) => ("trust the resolvers", Chain(&error).to_string()),
        };
        let (what, error) = failure;
        if self.is_news(format!("{what}: {error}")) {
            warn!(%error, address = %resolver::ADDRESS, "{what} failed, will try again");
        }
        self.try_again_later();
        // What shall not be asked in clear text is not asked at all then.
        if encrypted { vec![own] } else { names.resolvers.clone() }
    }

    /// Notes what there is now, for those who hear what changed.
    pub(super) fn report(&mut self, observed: &Observed) {
        let Observed { links, addresses, routes, .. } = observed;
        let host_name = self.host_name.as_deref().unwrap_or_default();
        let look = Look::new(links, addresses, routes, host_name);
        if let Some(notice) = self.reporter.look(now(), look) {
            self.tell(notice);
        }
    }

    /// Others read of all links; the log has those that are ours.
    pub(super) fn tell(&mut self, notice: Notice) {
        let ours =
            |change: &&Change| change.index().is_none_or(|index| self.since.contains_key(&index));
        for change in notice.changes.iter().filter(ours) {
            let action = change.action.word();
            match &change.what {
                What::Link(LinkState { name, mtu, up, carrier, .. }) => {
                    info!(link = %name, mtu, up, carrier, "link {action}");
                }
                What::Address(link, it) => {
                    info!(%link, address = %it.net, "address {action}")
                }
                What::Route(link, RouteState { destination, gateway, metric, table, .. }) => {
                    let (gateway, table) = (gateway.map(tracing::field::display), table.0);
                    info!(%link, %destination, gateway, metric, table, "route {action}");
                }
            }
        }
        if notice.more > 0 {
            info!(count = notice.more, "more changes, not told one by one");
        }
        self.news.tell(notice);
    }
}

/// Writes in place, because the file is bind-mounted elsewhere; leaves alone what is right. Whoever reads
/// meanwhile finds the old lines or the new ones, and maybe empty ones behind them: never none.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let present = std::fs::read(path).unwrap_or_default();
    if present == text.as_bytes() && path.exists() {
        return Ok(());
    }
    let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
    let mut padded = text.as_bytes().to_vec();
    padded.resize(padded.len().max(present.len()), b'\n');
    file.write_all(&padded)?;
    file.set_len(text.len().try_into().map_err(io::Error::other)?)
}
