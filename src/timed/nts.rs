//! Network Time Security (RFC 8915): answers that only the server can have given, and that nobody can
//! tell whose questions they answer.
//!
//! Over TLS ([`records`]) client and server agree on keys, and the client gets cookies: the server's
//! own memory of these keys, which it can read and nobody else. Each question then carries one cookie
//! that was never used before and a code made with the keys ([`packet`]); each answer brings a new one.
//!
//! All of this is pure; `ke` speaks TLS. An answer that is not proven is no answer: once a server is
//! named with `nts://`, nothing it says without proof is believed.

pub mod packet;
pub mod records;
