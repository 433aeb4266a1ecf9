//! Health checks most services need.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::{TcpStream, UnixStream};

use crate::definition::Health;

/// Healthy while a TCP connection to `address` can be made.
#[must_use]
pub fn tcp(address: SocketAddr) -> Health {
    Health::new(move || async move {
        TcpStream::connect(address)
            .await
            .map(drop)
            .map_err(|error| format!("connect to {address}: {error}"))
    })
}

/// Healthy while a connection to the unix socket at `path` can be made.
pub fn unix(path: impl Into<PathBuf>) -> Health {
    let path = path.into();
    Health::new(move || {
        let path = path.clone();
        async move {
            UnixStream::connect(&path)
                .await
                .map(drop)
                .map_err(|error| format!("connect to {}: {error}", path.display()))
        }
    })
}
