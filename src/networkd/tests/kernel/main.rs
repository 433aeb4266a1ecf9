//! networkd against the real kernel and real servers (dnsmasq, Kea), each test in network namespaces of
//! its own. Needs root and `ip`; skipped with a printed reason without them or without dnsmasq.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_line;
mod dhcp6;
mod hostile;
mod leases;
mod links;
mod relay;
mod resolver;
mod routers;
mod routing;
mod tables;
mod tunnels;
mod world;
