//! What can be called here, for clients that bring no `.proto` files (`grpcurl list`, `describe`).
//!
//! Of the services we have descriptions of, those are named that a daemon serves. Building the index
//! costs some hundred kilobytes, so it is made when somebody asks for the first time.

use std::sync::OnceLock;

use http::{Request, Response};
use orlop_proto::DESCRIPTORS;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Status;
use tonic::body::Body;
use tonic_reflection::server::{Builder, Error};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::table;

/// Today's name of the protocol.
pub(crate) const V1: &str = "grpc.reflection.v1.ServerReflection";
/// Its name until 2023, which most clients try as well.
pub(crate) const V1ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

type Service = BoxCloneSyncService<Request<Body>, Response<Body>, std::convert::Infallible>;

/// Which of the two protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V1Alpha,
}

/// Answers questions about our services.
#[derive(Debug, Default)]
pub(crate) struct Reflection {
    v1: OnceLock<Service>,
    v1alpha: OnceLock<Service>,
}

impl Reflection {
    pub(crate) fn call(
        &self,
        version: Version,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let service = self.service(version);
        async {
            match service {
                Ok(service) => {
                    let Ok(response) = service.oneshot(request).await;
                    response
                }
                Err(error) => {
                    Status::internal(format!("describe the services: {error}")).into_http()
                }
            }
        }
    }

    fn service(&self, version: Version) -> Result<Service, Error> {
        let built = match version {
            Version::V1 => &self.v1,
            Version::V1Alpha => &self.v1alpha,
        };
        Ok(match built.get() {
            Some(service) => service.clone(),
            None => {
                let service = build(version)?;
                built.get_or_init(|| service).clone()
            }
        })
    }
}

fn build(version: Version) -> Result<Service, Error> {
    let builder = Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let builder = served()?.into_iter().fold(builder, Builder::with_service_name);
    Ok(match version {
        Version::V1 => Service::new(builder.with_service_name(V1).build_v1()?),
        Version::V1Alpha => Service::new(builder.with_service_name(V1ALPHA).build_v1alpha()?),
    })
}

/// The services that can be described and called.
fn served() -> Result<Vec<String>, Error> {
    let files = FileDescriptorSet::decode(DESCRIPTORS)?.file;
    let of_file = files.iter().flat_map(|file| {
        file.service.iter().map(|service| format!("{}.{}", file.package(), service.name()))
    });
    Ok(of_file
        .filter(|service| service == "grpc.health.v1.Health" || table::daemon(service).is_some())
        .collect())
}
