//! Bodies of answers: one piece, a list that is written while it is read, or a watch.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::Stream;
use http_body::Frame;

use crate::storage::cache::Entry;

/// What a list writes at once.
const PIECE: usize = 64 << 10;

/// The body of an answer.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// In one piece.
    Whole(Bytes),
    /// A list.
    Items(Box<Items>),
    /// A watch.
    Stream(Events),
}

/// The pieces of a watch.
pub(crate) struct Events(Pin<Box<dyn Stream<Item = Bytes> + Send>>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Body {
    pub(crate) fn stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::Stream(Events(Box::pin(stream)))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(bytes.into())
    }
}

/// A list of objects as JSON, whose bytes are those of the cache.
#[derive(Debug)]
pub(crate) struct Items {
    /// Up to the first item.
    head: Vec<u8>,
    entries: VecDeque<Arc<Entry>>,
    /// Behind the last.
    tail: &'static [u8],
    first: bool,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Items {
    /// `head` ends with the bracket that opens the list, `tail` begins with the one that closes it.
    pub(crate) fn new(
        head: Vec<u8>,
        entries: Vec<Arc<Entry>>,
        tail: &'static [u8],
        gzip: bool,
    ) -> Self {
        let gzip = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        Self { head, entries: entries.into(), tail, first: true, gzip }
    }

    /// All of it in one piece.
    pub(crate) fn text(&self) -> Vec<u8> {
        let bodies: Vec<&[u8]> = self.entries.iter().map(|entry| &*entry.body).collect();
        [&self.head, &bodies.join(&b',')[..], self.tail].concat()
    }

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut piece = std::mem::take(&mut self.head);
            while piece.len() < PIECE
                && let Some(entry) = self.entries.pop_front()
            {
                if !std::mem::take(&mut self.first) {
                    piece.push(b',');
                }
                piece.extend_from_slice(&entry.body);
            }
            if self.entries.is_empty() {
                piece.extend_from_slice(std::mem::take(&mut self.tail));
            }
            let over = piece.is_empty();
            let Some(gzip) = &mut self.gzip else {
                return (!over).then(|| piece.into());
            };
            if over {
                // Memory takes what is written.
                let rest = self.gzip.take().and_then(|gzip| gzip.finish().ok());
                return rest.filter(|rest| !rest.is_empty()).map(Bytes::from);
            }
            gzip.write_all(&piece).ok();
            if gzip.get_ref().len() >= PIECE / 4 {
                return Some(std::mem::take(gzip.get_mut()).into());
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Empty => None,
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                (!bytes.is_empty()).then_some(bytes)
            }
            Self::Items(items) => items.next(),
            Self::Stream(events) => match events.0.as_mut().poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(next) => next,
            },
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Items(_) | Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Empty => http_body::SizeHint::with_exact(0),
            Self::Whole(bytes) => http_body::SizeHint::with_exact(bytes.len() as u64),
            Self::Items(_) | Self::Stream(_) => http_body::SizeHint::default(),
        }
    }
}
