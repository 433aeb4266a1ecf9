//! What is particular about each resource: its defaults, what a client may not set, what is refused and in which words,
//! how it is deleted, what its subresources do. Pure functions over objects, driven by tables where a table says it.
//!
//! The order of a write: [`default`], admission that changes, [`default`] again, [`prepare_create`] or
//! [`prepare_update`], [`validate_create`] or [`validate_update`]. The caller gives a new object its uid, name and
//! creation timestamp before it is prepared.

mod binding;
mod defaults;
mod deletion;
mod eviction;
mod field;
mod pod;
mod prepare;
mod scale;
mod service;
pub mod service_ip;
mod validate;

pub use binding::bind;
pub use defaults::default;
pub use deletion::{DeleteOptions, Deletion, deletion, is_done};
pub use eviction::{Eviction, evict};
pub use field::field;
pub use pod::qos_class;
pub use prepare::{prepare_create, prepare_update};
pub use scale::{rescale, scale};
pub use validate::{validate_create, validate_update};
