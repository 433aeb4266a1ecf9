//! Merging answers without decoding them (`node-api.md` §2.5 to §2.7).
//!
//! Pure. Each unary answer is `XResponse { repeated X messages = 1 }`, and each `X` has
//! `common.Metadata metadata = 1`. Encodings of such messages one after the other are one again, and
//! bytes appended to an `X` are fields of it. So an answer is marked with the node it comes from by
//! lengthening each entry, and answers are merged by concatenating them. In streams each message is
//! an `X` itself.
//!
//! No bytes make these functions panic; what they do not understand is an error.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use orlop_proto::common::{Empty, Metadata};
use orlop_proto::google::rpc;
use prost::Message as _;
use prost::encoding::{decode_varint, encode_varint};
use tonic::{Code, Status};

/// The key of field 1, length-delimited: `messages` of an answer, `metadata` of an entry.
const FIELD_1: u64 = 0x0a;

/// Why bytes are not what they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An answer holds something else than `messages`.
    #[error("unexpected message format: {0}")]
    Field(u64),
    /// An answer without any entry; every server must give one.
    #[error("empty message")]
    Empty,
    /// An answer ends within an entry, or a number in it never ends.
    #[error("unexpected message size")]
    Truncated,
}

/// Appends an encoded unary answer to `merged`, each entry marked as coming from `hostname`.
///
/// # Errors
/// When the answer is not a list of entries in field 1, or has none; `merged` is of no use then.
pub fn mark_answer(answer: &[u8], hostname: &str, merged: &mut Vec<u8>) -> Result<(), Malformed> {
    if answer.is_empty() {
        return Err(Malformed::Empty);
    }
    let mark = mark(hostname);
    let mut rest = answer;
    while !rest.is_empty() {
        let key = decode_varint(&mut rest).map_err(|_| Malformed::Truncated)?;
        if key != FIELD_1 {
            return Err(Malformed::Field(key));
        }
        let length = decode_varint(&mut rest).map_err(|_| Malformed::Truncated)?;
        let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        let (entry, after) = rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        put_entry(&[entry, &mark], merged);
        rest = after;
    }
    Ok(())
}

/// Marks one encoded message of a stream as coming from `hostname`.
#[must_use]
pub fn mark_message(message: &[u8], hostname: &str) -> Vec<u8> {
    [message, &mark(hostname)].concat()
}

/// Appends a unary answer that says why `hostname` gave none.
pub(crate) fn mark_failure(status: &Status, hostname: &str, merged: &mut Vec<u8>) {
    put_entry(&[&failed_message(hostname, status)], merged);
}

/// A message of a stream that says why `hostname` sends no more.
pub(crate) fn failed_message(hostname: &str, status: &Status) -> Vec<u8> {
    let metadata = Metadata {
        hostname: hostname.to_owned(),
        error: in_words(status),
        status: Some(rpc::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        }),
    };
    Empty { metadata: Some(metadata) }.encode_to_vec()
}

/// `metadata { hostname }`, as it is appended to an entry.
fn mark(hostname: &str) -> Vec<u8> {
    let metadata = Metadata { hostname: hostname.to_owned(), ..Metadata::default() };
    Empty { metadata: Some(metadata) }.encode_to_vec()
}

fn put_entry(parts: &[&[u8]], merged: &mut Vec<u8>) {
    encode_varint(FIELD_1, merged);
    encode_varint(parts.iter().map(|part| part.len()).sum::<usize>() as u64, merged);
    parts.iter().for_each(|part| merged.extend_from_slice(part));
}

/// A status as existing clients print it.
fn in_words(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

/// Bytes before each message in a gRPC stream: a flag and the length.
const PREFIX: usize = 5;

/// A message of a gRPC stream, still encoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Framed {
    /// Whether its bytes are compressed, by the method named in `grpc-encoding`.
    pub compressed: bool,
    /// The message.
    pub message: Bytes,
}

impl Framed {
    /// The message with its prefix.
    pub(crate) fn encode(&self) -> Bytes {
        frame(self.compressed, &self.message)
    }
}

/// Marked answers under one prefix: they are written once, where they stay.
#[derive(Debug)]
pub(crate) struct Merged(Vec<u8>);

impl Merged {
    /// `size`: about how many bytes there will be.
    pub(crate) fn with_capacity(size: usize) -> Self {
        let mut frame = Vec::with_capacity(PREFIX + size);
        frame.resize(PREFIX, 0);
        Self(frame)
    }

    /// See [`mark_answer`].
    pub(crate) fn add(&mut self, answer: &[u8], hostname: &str) -> Result<(), Malformed> {
        mark_answer(answer, hostname, &mut self.0)
    }

    pub(crate) fn add_failure(&mut self, status: &Status, hostname: &str) {
        mark_failure(status, hostname, &mut self.0);
    }

    /// The message with its prefix.
    pub(crate) fn into_frame(mut self) -> Bytes {
        let length = prefix_length(self.0.len() - PREFIX);
        self.0[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        self.0.into()
    }
}

/// Messages are at most [`orlop_rpc::MAX_MESSAGE`] bytes long, and a mark as long as a header: far
/// from what the prefix cannot say.
fn prefix_length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// `message` with the prefix of an uncompressed one.
pub(crate) fn plain_frame(message: &[u8]) -> Bytes {
    frame(false, message)
}

fn frame(compressed: bool, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(compressed.into());
    frame.put_u32(prefix_length(message.len()));
    frame.extend_from_slice(message);
    frame.freeze()
}

/// Cuts a gRPC stream into its messages.
#[derive(Debug)]
pub struct Frames {
    buffer: BytesMut,
    /// The longest message, in bytes.
    limit: usize,
}

/// Why a stream cannot be cut any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unframed {
    /// A message is longer than we take.
    #[error("received message larger than max ({length} vs. {limit})")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest we take.
        limit: usize,
    },
    /// The flag before a message is neither 0 nor 1.
    #[error("the flag before a message is {0}, neither 0 nor 1")]
    Flag(u8),
}

impl Frames {
    /// Messages are to be at most `limit` bytes long.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Takes in what came next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the next message is too long or its prefix makes no sense; it stays so.
    pub fn next_message(&mut self) -> Result<Option<Framed>, Unframed> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [flag, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if flag > 1 {
            return Err(Unframed::Flag(flag));
        }
        if length > self.limit {
            return Err(Unframed::TooLong { length, limit: self.limit });
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = self.buffer.split_to(length).freeze();
        Ok(Some(Framed { compressed: flag == 1, message }))
    }

    /// Whether no bytes of an unfinished message are left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_proto::machine::{Hostname, HostnameResponse};
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};

    use super::*;

    fn marked(answer: &[u8], hostname: &str) -> Result<Vec<u8>, Malformed> {
        let mut merged = Vec::new();
        mark_answer(answer, hostname, &mut merged).map(|()| merged)
    }

    fn answer(names: &[&str]) -> HostnameResponse {
        let entry = |name: &&str| Hostname { metadata: None, hostname: (*name).to_owned() };
        HostnameResponse { messages: names.iter().map(entry).collect() }
    }

    #[test]
    fn marked_answers_one_after_the_other_are_one_answer() {
        let mut bytes = Vec::new();
        for (node, names) in [("10.0.0.1", &["a"][..]), ("10.0.0.2", &["b", "c"])] {
            mark_answer(&answer(names).encode_to_vec(), node, &mut bytes).unwrap();
        }
        mark_failure(&Status::unavailable("connection refused"), "10.0.0.3", &mut bytes);
        let merged = HostnameResponse::decode(&bytes[..]).unwrap();
        let seen: Vec<_> = merged
            .messages
            .iter()
            .map(|entry| {
                (entry.metadata.as_ref().unwrap().hostname.as_str(), entry.hostname.as_str())
            })
            .collect();
        assert_eq!(
            seen,
            [("10.0.0.1", "a"), ("10.0.0.2", "b"), ("10.0.0.2", "c"), ("10.0.0.3", "")]
        );
        let failed = merged.messages[3].metadata.as_ref().unwrap();
        assert_eq!(failed.error, "rpc error: code = Unavailable desc = connection refused");
        let status = failed.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (14, "connection refused"));
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        // 0A <len> <X bytes> becomes 0A <len + 5> <X bytes> 0A <3> 0A <1> n.
        assert_eq!(
            marked(&[0x0a, 2, 0x12, 0], "n").unwrap(),
            [0x0a, 7, 0x12, 0, 0x0a, 3, 0x0a, 1, b'n']
        );
        assert_eq!(mark_message(&[0x12, 0], "n"), [0x12, 0, 0x0a, 3, 0x0a, 1, b'n']);
        // A length that needs a longer varint than before.
        let long = marked(&answer(&[&"x".repeat(120)]).encode_to_vec(), "node").unwrap();
        assert_eq!(HostnameResponse::decode(&long[..]).unwrap().messages[0].hostname.len(), 120);
    }

    #[test]
    fn what_is_no_list_of_entries_is_refused() {
        for (bytes, expected) in [
            (&[][..], Malformed::Empty),
            (&[0x08, 1], Malformed::Field(8)),
            (&[0x12, 0], Malformed::Field(18)),
            (&[0x0a, 0, 0x10, 1], Malformed::Field(16)),
            (&[0x0a], Malformed::Truncated),
            (&[0x0a, 2, 0], Malformed::Truncated),
            (
                &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
                Malformed::Truncated,
            ),
            (&[0xff; 11], Malformed::Truncated),
        ] {
            assert_eq!(marked(bytes, "n"), Err(expected), "{bytes:?}");
        }
        assert_eq!(Malformed::Field(8).to_string(), "unexpected message format: 8");
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_has_come() {
        let mut frames = Frames::new(8);
        frames.push(&[0, 0, 0, 0, 9]);
        let error = frames.next_message().unwrap_err();
        assert_eq!(error.to_string(), "received message larger than max (9 vs. 8)");
        let mut frames = Frames::new(8);
        frames.push(&[7, 0, 0, 0, 0]);
        assert_eq!(frames.next_message(), Err(Unframed::Flag(7)));
    }

    proptest! {
        #[test]
        fn marking_never_panics(bytes in vec(any::<u8>(), 0..64), hostname in ".{0,20}") {
            let _ = marked(&bytes, &hostname);
        }

        #[test]
        fn marking_keeps_what_was_there(names in vec(".{0,200}", 1..4), hostname in "[a-z]{1,20}") {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let mut plain = answer(&names);
            let marked = marked(&plain.encode_to_vec(), &hostname).unwrap();
            for entry in &mut plain.messages {
                entry.metadata = Some(Metadata { hostname: hostname.clone(), ..Metadata::default() });
            }
            assert_eq!(HostnameResponse::decode(&marked[..]).unwrap(), plain);
        }

        #[test]
        fn cutting_never_panics(chunks in vec(vec(any::<u8>(), 0..16), 0..8)) {
            let mut frames = Frames::new(16);
            for chunk in chunks {
                frames.push(&chunk);
                while let Ok(Some(_)) = frames.next_message() {}
            }
        }

        #[test]
        fn frames_come_out_as_they_went_in_wherever_the_stream_is_cut(
            messages in vec(vec(any::<u8>(), 0..40), 0..5), size in 1usize..20,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| plain_frame(message)).collect();
            let mut frames = Frames::new(64);
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                frames.push(chunk);
                while let Some(framed) = frames.next_message().unwrap() {
                    assert_eq!(framed.encode(), plain_frame(&framed.message));
                    seen.push(framed.message.to_vec());
                }
            }
            assert_eq!(seen, messages);
            assert!(frames.is_empty());
        }
    }
}
