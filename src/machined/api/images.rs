//! Images in a namespace of containerd, with their sizes.

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{Image, ListImagesRequest, ReadContentRequest};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status as Refusal};
use containerd_client::with_namespace;
use orlop_proto::machine::ImageListResponse;
use serde::Deserialize;

use super::go_arch;

/// A manifest or an index that is longer is none.
const MANIFEST_LIMIT: i64 = 4 << 20;

/// All images of `namespace`, by name.
pub(super) async fn list(
    channel: Channel,
    namespace: &str,
) -> Result<Vec<ImageListResponse>, Refusal> {
    let request = with_namespace!(ListImagesRequest::default(), namespace);
    let mut images = ImagesClient::new(channel.clone()).list(request).await?.into_inner().images;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    let mut listed = Vec::with_capacity(images.len());
    for Image { name, target, created_at, .. } in images {
        let (digest, size) = match target {
            Some(target) => {
                let size = size(&channel, namespace, &target.digest, target.size).await?;
                (target.digest, size)
            }
            None => (String::new(), 0),
        };
        let created_at =
            created_at.map(|at| prost_types::Timestamp { seconds: at.seconds, nanos: at.nanos });
        listed.push(ImageListResponse { metadata: None, name, digest, size, created_at });
    }
    Ok(listed)
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
    use super::*;

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
