//! Bounds how many connections are open: a newcomer is always let in, and when there are too many, one of
//! those who have most of them goes ([`Crowd`] says which).

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use orlop_rpc::tls::{Connection, Peer};
use orlop_rt::CancellationToken;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;
use tracing::debug;

use crate::limit::Crowd;

/// Lets connections in.
pub(crate) fn admitted(
    incoming: impl Stream<Item = io::Result<Connection>> + Send + 'static,
) -> impl Stream<Item = io::Result<Admitted>> + Send + 'static {
    let places = Arc::new(Mutex::new(Places::default()));
    incoming.map(move |connection| connection.map(|connection| Admitted::new(connection, &places)))
}

/// Who is in. Held for a moment at a connection's beginning and end.
#[derive(Debug, Default)]
struct Places {
    crowd: Crowd,
    /// Tells a connection to go.
    open: HashMap<u64, CancellationToken>,
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that has a place.
#[derive(Debug)]
pub(crate) struct Admitted {
    connection: Connection,
    told_to_go: Pin<Box<WaitForCancellationFutureOwned>>,
    number: u64,
    places: Arc<Mutex<Places>>,
}

impl Admitted {
    fn new(connection: Connection, places: &Arc<Mutex<Places>>) -> Self {
        let peer = connection.connect_info().address;
        let mut all = lock(places);
        let (number, leaves) = all.crowd.enter(peer.ip().into());
        if let Some(token) = leaves.and_then(|number| all.open.remove(&number)) {
            debug!(%peer, "too many connections: an older one is closed");
            token.cancel();
        }
        let token = CancellationToken::new();
        let told_to_go = Box::pin(token.clone().cancelled_owned());
        all.open.insert(number, token);
        drop(all);
        Self { connection, told_to_go, number, places: Arc::clone(places) }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        places.crowd.leave(self.number);
        places.open.remove(&self.number);
    }
}

impl Connected for Admitted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.connection.connect_info()
    }
}

impl AsyncRead for Admitted {
    /// A server always waits to read, so this is where a connection hears that it must go.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.told_to_go.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}
