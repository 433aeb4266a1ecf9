//! Bounds how many connections are open: a newcomer is always let in, and when there are too many, one of
//! those who have most of them goes.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tonic::transport::server::Connected;
use tracing::debug;

use crate::tls::Peer;

/// How many connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Of all sources together.
    pub all: usize,
    /// Of one [`Source`].
    pub each: usize,
}

/// Who is counted as one: an IPv4 address, or an IPv6 network of 64 bits, which is what one machine
/// can have all addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// Lets connections in, `most` at a time. One that must go for others reads an error.
pub fn admitted<IO: Connected<ConnectInfo = Peer>>(
    incoming: impl Stream<Item = io::Result<IO>> + Send + 'static,
    most: Most,
) -> impl Stream<Item = io::Result<Admitted<IO>>> + Send + 'static {
    let places = Arc::new(Mutex::new(Places { crowd: Crowd::new(most), open: HashMap::new() }));
    incoming.map(move |connection| connection.map(|connection| Admitted::new(connection, &places)))
}

/// Who is in. Held for a moment at a connection's beginning and end.
#[derive(Debug)]
struct Places {
    crowd: Crowd,
    /// Dropped, it tells a connection to go.
    open: HashMap<u64, oneshot::Sender<()>>,
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that has a place.
#[derive(Debug)]
pub struct Admitted<IO> {
    connection: IO,
    /// `None` once it has been told.
    told_to_go: Option<oneshot::Receiver<()>>,
    number: u64,
    source: Source,
    places: Arc<Mutex<Places>>,
}

impl<IO: Connected<ConnectInfo = Peer>> Admitted<IO> {
    fn new(connection: IO, places: &Arc<Mutex<Places>>) -> Self {
        let peer = connection.connect_info().address;
        let source = peer.ip().into();
        let (stays, told_to_go) = oneshot::channel();
        let mut all = lock(places);
        let (number, leaves) = all.crowd.enter(source);
        if leaves.and_then(|number| all.open.remove(&number)).is_some() {
            debug!(%peer, "too many connections: an older one is closed");
        }
        all.open.insert(number, stays);
        drop(all);
        Self {
            connection,
            told_to_go: Some(told_to_go),
            number,
            source,
            places: Arc::clone(places),
        }
    }
}

impl<IO> Admitted<IO> {
    /// The connection itself.
    #[must_use]
    pub fn get_ref(&self) -> &IO {
        &self.connection
    }
}

impl<IO> Drop for Admitted<IO> {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        places.crowd.leave(self.number, self.source);
        places.open.remove(&self.number);
    }
}

impl<IO: Connected> Connected for Admitted<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> IO::ConnectInfo {
        self.connection.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Admitted<IO> {
    /// A server always waits to read, so this is where a connection hears that it must go.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.told_to_go.take_if(|told| Pin::new(told).poll(context).is_ready());
        if self.told_to_go.is_none() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Admitted<IO> {
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

/// The connections that are open. When there are too many, the oldest of those who have most goes. Pure.
#[derive(Debug)]
struct Crowd {
    most: Most,
    /// Oldest first, none of them empty.
    open: HashMap<Source, VecDeque<u64>>,
    count: usize,
    last: u64,
}

impl Crowd {
    fn new(most: Most) -> Self {
        Self { most, open: HashMap::new(), count: 0, last: 0 }
    }

    /// Lets a connection in: its number, and the one that must go for it.
    fn enter(&mut self, source: Source) -> (u64, Option<u64>) {
        let leaves = self.must_go(source);
        if let Some((number, source)) = leaves {
            self.leave(number, source);
        }
        self.last += 1;
        self.count += 1;
        self.open.entry(source).or_default().push_back(self.last);
        (self.last, leaves.map(|(number, _)| number))
    }

    /// A connection is closed, or has been told to go.
    fn leave(&mut self, number: u64, source: Source) {
        let Some(open) = self.open.get_mut(&source) else { return };
        // Sorted: numbers only grow.
        let Ok(at) = open.binary_search(&number) else { return };
        open.remove(at);
        self.count -= 1;
        if open.is_empty() {
            self.open.remove(&source);
        }
    }

    fn must_go(&self, source: Source) -> Option<(u64, Source)> {
        let from = if self.open.get(&source).is_some_and(|open| open.len() >= self.most.each) {
            source
        } else if self.count >= self.most.all {
            // The oldest of theirs, when several have as many.
            let most = |(_, open): &(&Source, &VecDeque<u64>)| (open.len(), Reverse(open[0]));
            *self.open.iter().max_by_key(most)?.0
        } else {
            return None;
        };
        Some((*self.open.get(&from)?.front()?, from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most { all: 512, each: 32 };

    fn source(n: u32) -> Source {
        IpAddr::from(n.to_be_bytes()).into()
    }

    #[test]
    fn one_source_cannot_take_all_places() {
        let mut crowd = Crowd::new(MOST);
        let (good, _) = crowd.enter(source(1));
        for n in 0..100_000 {
            let (_, leaves) = crowd.enter(source(2));
            assert_eq!(leaves.is_some(), n >= MOST.each);
            assert_ne!(leaves, Some(good));
        }
        assert_eq!(crowd.count, 1 + MOST.each);
    }

    #[test]
    fn many_sources_together_are_bounded_and_the_greedy_go_first() {
        let mut crowd = Crowd::new(MOST);
        let single: Vec<_> = (0..100).map(|n| crowd.enter(source(n)).0).collect();
        for n in 0..100_000 {
            let (_, leaves) = crowd.enter(source(1000 + n % 50));
            assert!(leaves.is_none_or(|number| !single.contains(&number)));
            assert!(crowd.count <= MOST.all && crowd.open.len() <= 150);
        }
        for (n, number) in (0..).zip(single) {
            crowd.leave(number, source(n));
            crowd.leave(number, source(n));
        }
        assert_eq!(crowd.count, MOST.all - 100);
        assert_eq!(crowd.enter(source(0)).1, None, "there is room again");
    }

    #[test]
    fn a_network_of_64_bits_is_one_source() {
        let of = |address: &str| address.parse::<IpAddr>().map(Source::from);
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
