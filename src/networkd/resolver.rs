//! A caching stub resolver on loopback, for the node and the containers that share its network.
//!
//! [`machine`] decides; [`message`] reads and writes what is said, [`cache`] remembers it, [`upstreams`]
//! knows which server to ask. [`driver`] has the sockets: [`ADDRESS`] for clients, and for each question
//! to a server one of its own, with a port that nobody can guess.

pub mod cache;
pub mod machine;
pub mod message;
pub mod upstreams;

pub(crate) mod driver;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

pub use upstreams::Server;

/// Where clients ask, as they know it from systemd-resolved: not 127.0.0.1, where a name server of the
/// operator's may listen.
pub const ADDRESS: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 53), PORT));
/// Where resolvers listen.
pub const PORT: u16 = 53;
/// Where those listen that speak TLS (RFC 7858 §3.1).
pub const TLS_PORT: u16 = 853;

/// What the operator says of the resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Servers to ask over TLS, in place of all others: nothing is asked in clear text then.
    pub tls: Vec<TlsServer>,
}

/// A server that is asked over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsServer {
    /// Where, and what its certificate must say.
    pub server: Server,
    /// The authorities to trust, in PEM; empty: those of the distribution.
    pub ca: String,
}
