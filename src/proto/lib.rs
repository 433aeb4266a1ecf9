//! Messages and services of the node API, generated from the `.proto` files in `proto/`.
//!
//! One module per protobuf package. Generated types stop at a room's `api.rs`: rooms turn them into
//! types of their own there. Unimplemented methods of a service answer `Unimplemented` by default.

// The generated code keeps its own style; this is the one place where lints are relaxed for it.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::wildcard_imports)]
#![forbid(unsafe_code)]

mod codec;

pub use codec::{Encoded, Verbatim};

/// All messages and services of this crate, and what they are made of: an encoded
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// What applications ask of the ambassador (`proto/ambassador/`).
pub mod ambassador {
    /// The version there is.
    pub mod v1 {
        tonic::include_proto!("ambassador.v1");
    }
}

/// The health of the cluster (`proto/cluster.proto`).
pub mod cluster {
    tonic::include_proto!("cluster");
}

/// Types that all services share (`proto/common.proto`).
pub mod common {
    tonic::include_proto!("common");
}

/// The container runtime interface, as far as we ask (`proto/cri.proto`).
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Connections of the network service mesh (`proto/nsm/`).
pub mod connection {
    tonic::include_proto!("connection");
}

/// What such a connection gives.
pub mod connectioncontext {
    tonic::include_proto!("connectioncontext");
}

/// etcd's own API (`proto/etcd.proto`).
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}

/// Health of a daemon inside the node (`proto/health.proto`).
pub mod health {
    tonic::include_proto!("health");
}

/// Health of what a server offers, as every client of gRPC knows it
/// (`proto/grpc/health/v1/health.proto`).
pub mod grpc {
    /// Health checking.
    pub mod health {
        /// The version there is.
        pub mod v1 {
            tonic::include_proto!("grpc.health.v1");
        }
    }
}

/// The machine API (`proto/machine.proto`, `image.proto`, `lifecycle.proto`).
pub mod machine {
    tonic::include_proto!("machine");
}

/// The network API (`proto/network.proto`).
pub mod network {
    tonic::include_proto!("network");
}

/// The cluster API (`proto/metropolis/`): the modules mirror its packages.
pub mod metropolis {
    /// What operators and nodes both know.
    pub mod proto {
        /// `AAA`, `Management`, `NodeManagement`, node parameters.
        pub mod api {
            tonic::include_proto!("metropolis.proto.api");
        }
        /// Types that they share.
        pub mod common {
            tonic::include_proto!("metropolis.proto.common");
        }
        /// Permissions.
        pub mod ext {
            tonic::include_proto!("metropolis.proto.ext");
        }
        /// What a node keeps for itself.
        pub mod private {
            tonic::include_proto!("metropolis.proto.private");
        }
    }
    /// What nodes ask.
    pub mod node {
        /// Its heart.
        pub mod core {
            /// Which the curator answers.
            pub mod curator {
                /// Messages.
                pub mod proto {
                    /// `Curator`, `CuratorLocal`.
                    pub mod api {
                        tonic::include_proto!("metropolis.node.core.curator.proto.api");
                    }
                    /// What it keeps in the store.
                    pub mod private {
                        tonic::include_proto!("metropolis.node.core.curator.proto.private");
                    }
                }
            }
        }
    }
}

/// What the cluster API takes from elsewhere (`proto/osbase/`).
pub mod osbase {
    /// Lines of logs.
    pub mod logtree {
        /// Messages.
        pub mod proto {
            tonic::include_proto!("osbase.logtree.proto");
        }
    }
    /// Static networks.
    pub mod net {
        /// Messages.
        pub mod proto {
            tonic::include_proto!("osbase.net.proto");
        }
    }
}

/// Versions of software (`proto/version/`).
pub mod version {
    /// Messages.
    pub mod spec {
        tonic::include_proto!("version.spec");
    }
}

/// How such a connection is asked for (`proto/nsm/networkservice.proto`).
pub mod networkservice {
    tonic::include_proto!("networkservice");
}

/// Targets and configuration of the ambassador (`proto/nsp/`).
pub mod nsp {
    /// The version there is.
    pub mod v1 {
        tonic::include_proto!("nsp.v1");
    }
}

/// What is ours alone.
pub mod orlop {
    /// What daemons of a node tell each other (`proto/inside.proto`).
    pub mod inside {
        tonic::include_proto!("orlop.inside");
    }

    /// What our nodes tell beyond the machine API (`proto/orlop.proto`).
    pub mod v1alpha1 {
        tonic::include_proto!("orlop.v1alpha1");
    }
}

/// trustd's API (`proto/security.proto`).
pub mod security {
    tonic::include_proto!("securityapi");
}

/// The disks of a node (`proto/storage.proto`).
pub mod storage {
    tonic::include_proto!("storage");
}

/// The time API (`proto/time.proto`).
pub mod time {
    tonic::include_proto!("time");
}

/// Public well-known types outside `google.protobuf`.
pub mod google {
    /// `google.rpc.Status`.
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}
