//! networkd against the real kernel and real servers (dnsmasq, Kea), each test in network namespaces of
//! its own. Needs root and `ip`; skipped with a printed reason without them or without dnsmasq.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_line;
mod leases;
mod links;
mod resolver;
mod routers;
mod tables;
mod world;
