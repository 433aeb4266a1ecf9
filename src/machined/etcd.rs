//! etcd on a control plane: when it begins a cluster and how it joins one, how it is called, what is asked
//! of it (spec §5.6, §8.3, §8.4, §11.3).
//!
//! [`launch`], [`join`] and [`snapshot`] decide; [`client`] speaks etcd's API; [`host`] has the files, the
//! children and the service.
//!
//! etcd is not in the image: it is used where it is found ([`host::PROGRAMS`]). On a node without it the
//! service ends as `Skipped`, and what works on etcd is refused with that reason.

pub mod client;
pub(crate) mod host;
pub mod join;
pub mod launch;
pub mod secrets;
pub mod snapshot;
