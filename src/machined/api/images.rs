//! Images in a namespace of containerd: listed with their sizes, removed, and fetched by containerd
//! itself (its transfer service), so that PID 1 never meets a registry. `machine.ImageService`.

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::transfer_client::TransferClient;
use containerd_client::services::v1::{
    DeleteImageRequest, Image, ListImagesRequest, ReadContentRequest, TransferRequest,
};
use containerd_client::to_any;
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status as Refusal};
use containerd_client::types::transfer::{ImageStore, OciRegistry};
use containerd_client::with_namespace;
use futures_util::stream;
use orlop_proto::common::{ContainerDriver, ContainerdInstance, ContainerdNamespace};
use orlop_proto::machine as proto;
use orlop_proto::machine::ImageServiceListResponse;
use orlop_proto::machine::image_service_pull_response::Response as Pulled;
use orlop_proto::machine::image_service_server::ImageService;
use serde::Deserialize;
use tonic::{Response, Status};

use super::{Answer, KUBERNETES, SYSTEM, Streamed, boxed, containerd, foreign, go_arch};
use crate::node::Node;

/// A manifest or an index that is longer is none.
const MANIFEST_LIMIT: i64 = 4 << 20;

/// Today's way to them; what is not here answers `Unimplemented`.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) node: Node,
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list(
        &self,
        request: tonic::Request<proto::ImageServiceListRequest>,
    ) -> Streamed<ImageServiceListResponse> {
        let images = list(whose(request.get_ref().containerd)?).await?;
        Ok(boxed(&self.node, stream::iter(images.into_iter().map(Ok))))
    }

    /// containerd tells nobody how far it is: the end is all there is to say.
    async fn pull(
        &self,
        request: tonic::Request<proto::ImageServicePullRequest>,
    ) -> Streamed<proto::ImageServicePullResponse> {
        let proto::ImageServicePullRequest { containerd, image_ref } = request.get_ref();
        let name = pull(whose(*containerd)?, image_ref).await?;
        let pulled = proto::ImageServicePullResponse { response: Some(Pulled::Name(name)) };
        Ok(boxed(&self.node, stream::iter([Ok(pulled)])))
    }

    async fn remove(
        &self,
        request: tonic::Request<proto::ImageServiceRemoveRequest>,
    ) -> Answer<()> {
        let proto::ImageServiceRemoveRequest { containerd, image_ref } = request.get_ref();
        remove(whose(*containerd)?, image_ref).await?;
        Ok(Response::new(()))
    }
}

/// Whose images are meant. The runtime interface has those of Kubernetes only.
fn whose(instance: Option<ContainerdInstance>) -> Result<ContainerdNamespace, Status> {
    let instance = instance.unwrap_or_default();
    match (instance.driver(), instance.namespace()) {
        (ContainerDriver::Cri, ContainerdNamespace::NsSystem) => Err(Status::invalid_argument(
            "the node's own images are containerd's, not the runtime interface's",
        )),
        (ContainerDriver::Cri, _) => Ok(ContainerdNamespace::NsCri),
        (ContainerDriver::Containerd, namespace) => Ok(namespace),
    }
}

/// The namespace of containerd whose images are meant.
fn images_of(namespace: ContainerdNamespace) -> Result<&'static str, Status> {
    match namespace {
        ContainerdNamespace::NsSystem => Ok(SYSTEM),
        ContainerdNamespace::NsCri => Ok(KUBERNETES),
        ContainerdNamespace::NsUnknown => {
            Err(Status::invalid_argument("whose images: NS_SYSTEM or NS_CRI?"))
        }
    }
}

/// All images of a namespace, by name.
pub(super) async fn list(
    namespace: ContainerdNamespace,
) -> Result<Vec<ImageServiceListResponse>, Status> {
    list_of(containerd().await?, images_of(namespace)?).await.map_err(foreign)
}

/// Fetches an image; its whole name.
pub(super) async fn pull(
    namespace: ContainerdNamespace,
    reference: &str,
) -> Result<String, Status> {
    pull_into(containerd().await?, images_of(namespace)?, reference).await
}

/// Removes an image.
async fn remove(namespace: ContainerdNamespace, reference: &str) -> Result<(), Status> {
    remove_from(containerd().await?, images_of(namespace)?, reference).await
}

/// Removes the image that goes by the name given, or by all of the name. What runs of it goes on; what
/// nobody needs any more goes, before this ends.
async fn remove_from(channel: Channel, namespace: &str, reference: &str) -> Result<(), Status> {
    let whole = full_name(reference).filter(|whole| whole != reference);
    for name in [Some(reference.to_owned()), whole].into_iter().flatten() {
        let request = DeleteImageRequest { name, sync: true, target: None };
        let request = with_namespace!(request, namespace);
        match ImagesClient::new(channel.clone()).delete(request).await {
            Err(refusal) if refusal.code() == Code::NotFound => {}
            removed => return removed.map(drop).map_err(foreign),
        }
    }
    Err(Status::not_found(format!("there is no image {reference:?} in namespace {namespace}")))
}

/// All images of `namespace`, by name.
async fn list_of(
    channel: Channel,
    namespace: &str,
) -> Result<Vec<ImageServiceListResponse>, Refusal> {
    let request = with_namespace!(ListImagesRequest::default(), namespace);
    let mut images = ImagesClient::new(channel.clone()).list(request).await?.into_inner().images;
    orlop_rt::sort_by(&mut images, |a, b| a.name.cmp(&b.name));
    let mut listed = Vec::with_capacity(images.len());
    for Image { name, target, created_at, labels, .. } in images {
        let (digest, size) = match target {
            Some(target) => {
                let size = size(&channel, namespace, &target.digest, target.size).await?;
                (target.digest, size)
            }
            None => (String::new(), 0),
        };
        let created_at =
            created_at.map(|at| prost_types::Timestamp { seconds: at.seconds, nanos: at.nanos });
        listed.push(ImageServiceListResponse { name, digest, size, created_at, labels });
    }
    Ok(listed)
}

/// Fetches the image that `reference` names, for this machine; done when all of it is here. Ends when
/// the call does. Gives its whole name.
async fn pull_into(channel: Channel, namespace: &str, reference: &str) -> Result<String, Status> {
    let Some(name) = full_name(reference) else {
        return Err(Status::invalid_argument(format!(
            "{reference:?} is no reference of an image: write HOST/NAME:TAG or HOST/NAME@DIGEST"
        )));
    };
    let request = with_namespace!(transfer(&name), namespace);
    match TransferClient::new(channel).transfer(request).await {
        Ok(_) => Ok(name),
        Err(refusal) if refusal.code() == Code::Unimplemented => Err(Status::failed_precondition(
            "this node's containerd fetches no images when asked: it has no transfer service, which \
             came with containerd 1.7",
        )),
        Err(refusal) => Err(foreign(refusal)),
    }
}

/// From the registry into the store, under the same name.
fn transfer(name: &str) -> TransferRequest {
    let source = OciRegistry { reference: name.to_owned(), resolver: None };
    let platform = containerd_client::types::Platform {
        os: "linux".to_owned(),
        architecture: go_arch().to_owned(),
        ..Default::default()
    };
    let destination =
        ImageStore { name: name.to_owned(), platforms: vec![platform], ..ImageStore::default() };
    TransferRequest {
        source: Some(to_any(&source)),
        destination: Some(to_any(&destination)),
        options: None,
    }
}

/// A reference with all that may be left out of one: `nginx` is `docker.io/library/nginx:latest`
/// (github.com/distribution/reference, "familiar names"). `None` for what is no reference.
pub(super) fn full_name(reference: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+[]".contains(&byte);
    if reference.is_empty() || !reference.bytes().all(allowed) {
        return None;
    }
    let (host, path) = match reference.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        Some(_) => ("docker.io", reference),
        None => ("docker.io", reference),
    };
    let (repository, digest) = match path.split_once('@') {
        Some((repository, digest)) => (repository, Some(digest)),
        None => (path, None),
    };
    // No host is left in it: a colon is that of the tag.
    let (bare, tag) = match repository.split_once(':') {
        Some((bare, tag)) => (bare, Some(tag)),
        None => (repository, None),
    };
    let word = |text: &str| !text.is_empty() && !text.contains(['@', '[', ']', '/', ':']);
    let path_is_sound = bare.split('/').all(|part| word(part) && !part.starts_with(['.', '-']));
    let sound = path_is_sound
        && !host.starts_with(['.', '-'])
        && tag.is_none_or(word)
        && digest
            .is_none_or(|digest| digest.split_once(':').is_some_and(|(a, b)| word(a) && word(b)));
    if !sound {
        return None;
    }
    let library = if host == "docker.io" && !bare.contains('/') { "library/" } else { "" };
    let latest = if tag.is_none() && digest.is_none() { ":latest" } else { "" };
    Some(format!("{host}/{library}{path}{latest}"))
}

/// Bytes of all content that running the image on this machine takes, as far as it is known here.
async fn size(channel: &Channel, namespace: &str, digest: &str, own: i64) -> Result<i64, Refusal> {
    let Some(mut document) = read(channel, namespace, digest, own).await? else { return Ok(own) };
    let mut total = own;
    if let Some(manifest) = document.for_this_machine() {
        let Descriptor { digest, size, .. } = manifest.clone();
        total += size;
        match read(channel, namespace, &digest, size).await? {
            Some(manifest) => document = manifest,
            None => return Ok(total),
        }
    }
    Ok(document.layers.iter().chain(&document.config).fold(total, |sum, part| sum + part.size))
}

/// A manifest or an index; `None` when it is not (or not any more) here, or is something else.
async fn read(
    channel: &Channel,
    namespace: &str,
    digest: &str,
    size: i64,
) -> Result<Option<Document>, Refusal> {
    if !(1..=MANIFEST_LIMIT).contains(&size) {
        return Ok(None);
    }
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size };
    let read = ContentClient::new(channel.clone()).read(with_namespace!(request, namespace)).await;
    let mut pieces = match read {
        Err(refusal) if refusal.code() == Code::NotFound => return Ok(None),
        read => read?.into_inner(),
    };
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend(piece.data);
    }
    Ok(serde_json::from_slice(&bytes).ok())
}

/// An index or a manifest of the OCI image format; each lacks what the other has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Descriptor {
    digest: String,
    size: i64,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
}

impl Document {
    fn for_this_machine(&self) -> Option<&Descriptor> {
        let fits = |manifest: &&Descriptor| {
            let fits = |one: &Platform| one.os == "linux" && one.architecture == go_arch();
            manifest.platform.as_ref().is_some_and(fits)
        };
        self.manifests.iter().find(fits).or_else(|| self.manifests.first())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use containerd_client::services::v1::CreateImageRequest;
    use containerd_client::types::transfer;
    use prost::Message as _;

    use super::super::containers::tests::Daemon;
    use super::*;

    #[test]
    fn a_reference_may_leave_out_what_everybody_knows() {
        for (given, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("10.0.0.1:5000/a/b:v1", "10.0.0.1:5000/a/b:v1"),
            ("registry.k8s.io/pause@sha256:00ff", "registry.k8s.io/pause@sha256:00ff"),
            ("registry.k8s.io/pause:3.10@sha256:00ff", "registry.k8s.io/pause:3.10@sha256:00ff"),
        ] {
            assert_eq!(full_name(given).as_deref(), Some(full));
        }
        for bad in ["", "a b", "/", "a//b", "a/", "../x", "a@", "a@sha256", "a:", "a:b:c", "a\n"] {
            assert_eq!(full_name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn containerd_is_asked_for_what_this_machine_runs() {
        let TransferRequest { source, destination, options } = super::transfer("host/app:v1");
        let (source, destination) = (source.unwrap(), destination.unwrap());
        // As containerd has registered them: without a prefix.
        assert_eq!(source.type_url, "containerd.types.transfer.OCIRegistry");
        assert_eq!(destination.type_url, "containerd.types.transfer.ImageStore");
        let source = transfer::OciRegistry::decode(&source.value[..]).unwrap();
        let store = transfer::ImageStore::decode(&destination.value[..]).unwrap();
        assert_eq!(
            (source.reference.as_str(), store.name.as_str()),
            ("host/app:v1", "host/app:v1")
        );
        assert_eq!(store.platforms[0].architecture, go_arch());
        assert_eq!(options, None);
    }

    #[tokio::test]
    async fn containerd_itself_is_sent_to_the_registry_or_says_that_it_cannot_go() {
        let Some(daemon) = Daemon::start().await else { return };
        // Whoever may listen there by now has no such image.
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let reference = format!("127.0.0.1:{port}/an/app:v1");
        let refused = pull_into(daemon.channel().await, "k8s.io", &reference).await.unwrap_err();
        match refused.code() {
            tonic::Code::FailedPrecondition => {
                assert!(refused.message().contains("containerd 1.7"), "{refused}");
            }
            _ => {
                let asked = format!("https://127.0.0.1:{port}/v2/an/app/manifests/v1");
                assert!(refused.message().contains(&asked), "{refused}");
            }
        }
        assert_eq!(list_of(daemon.channel().await, "k8s.io").await.unwrap(), []);
    }

    #[tokio::test]
    async fn an_image_is_removed_by_the_name_people_use() {
        let Some(daemon) = Daemon::start().await else { return };
        let remove =
            async |reference: &str| remove_from(daemon.channel().await, "k8s.io", reference).await;
        for (name, asked) in [
            ("docker.io/library/nginx:latest", "nginx"),
            ("docker.io/library/nginx:latest", "docker.io/library/nginx:latest"),
            ("odd name", "odd name"),
        ] {
            let target = containerd_client::types::Descriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                digest: format!("sha256:{}", "0".repeat(64)),
                size: 2,
                ..Default::default()
            };
            let image = Image { name: name.to_owned(), target: Some(target), ..Image::default() };
            let request = CreateImageRequest { image: Some(image), ..Default::default() };
            let request = with_namespace!(request, "k8s.io");
            ImagesClient::new(daemon.channel().await).create(request).await.unwrap();
            let listed = list_of(daemon.channel().await, "k8s.io").await.unwrap();
            assert_eq!(listed.len(), 1, "{listed:?}");
            remove(asked).await.unwrap();
            assert_eq!(list_of(daemon.channel().await, "k8s.io").await.unwrap(), []);
            let refused = remove(asked).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
        }
    }

    #[test]
    fn the_runtime_interface_has_the_images_of_kubernetes() {
        let instance = |driver: ContainerDriver, namespace: ContainerdNamespace| {
            whose(Some(ContainerdInstance { driver: driver.into(), namespace: namespace.into() }))
        };
        use ContainerDriver::{Containerd, Cri};
        use ContainerdNamespace::{NsCri, NsSystem, NsUnknown};
        assert_eq!(instance(Containerd, NsSystem).unwrap(), NsSystem);
        assert_eq!(instance(Cri, NsUnknown).unwrap(), NsCri);
        instance(Cri, NsSystem).unwrap_err();
        images_of(whose(None).unwrap()).unwrap_err();
    }

    #[test]
    fn of_an_index_the_manifest_for_this_machine_counts() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"digest":"sha256:a","size":1,"platform":{{"os":"linux","architecture":"m68k"}}}},
                {{"digest":"sha256:b","size":2,"platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
            go_arch()
        );
        let index: Document = serde_json::from_str(&index).unwrap();
        assert_eq!(index.for_this_machine().unwrap().digest, "sha256:b");
        let other: Document =
            serde_json::from_str(r#"{"manifests":[{"digest":"sha256:c"}]}"#).unwrap();
        assert_eq!(other.for_this_machine().unwrap().digest, "sha256:c");
        let manifest =
            r#"{"config":{"digest":"x","size":5},"layers":[{"size":7,"mediaType":"y"}]}"#;
        let manifest: Document = serde_json::from_str(manifest).unwrap();
        assert!(manifest.for_this_machine().is_none());
        assert_eq!((manifest.config.unwrap().size, manifest.layers[0].size), (5, 7));
    }
}
