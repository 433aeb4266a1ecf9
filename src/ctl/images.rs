//! `images`, `image list`, `image pull` and `image remove`: what containerd holds of images, and shall
//! hold. Nodes of an older generation, which have no service for images, are asked as they know it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use orlop_proto::common::{ContainerdInstance, ContainerdNamespace};
use orlop_proto::machine::image_service_pull_response::Response as Told;
use orlop_proto::machine::{
    ImageListRequest, ImageListResponse, ImagePullRequest, ImageServiceListRequest,
    ImageServiceListResponse, ImageServicePullLayerProgress, ImageServicePullProgress,
    ImageServicePullRequest, ImageServicePullResponse, ImageServiceRemoveRequest,
    image_service_pull_layer_progress,
};
use time::OffsetDateTime;

use crate::client::{self, Client, machine};
use crate::error::{Error, Failure};
use crate::progress::Progress;
use crate::table::{Cell, Column, Output, Table, escape, print};
use crate::units::si;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List images
    #[command(visible_alias = "ls")]
    List(Options),
    /// Fetch an image
    Pull(NamedOptions),
    /// Remove an image; what runs of it goes on
    #[command(visible_alias = "rm")]
    Remove(NamedOptions),
}

#[derive(Debug, clap::Args)]
pub(crate) struct NamedOptions {
    /// HOST/NAME:TAG or HOST/NAME@DIGEST; without a host docker.io's
    reference: String,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Whose {
    /// Whose images
    #[arg(long, value_enum, default_value_t)]
    namespace: Namespace,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Namespace {
    /// Kubernetes'
    #[default]
    Cri,
    /// The node's own
    System,
}

impl Whose {
    fn instance(self) -> Option<ContainerdInstance> {
        Some(ContainerdInstance { driver: 0, namespace: self.number() })
    }

    fn number(self) -> i32 {
        match self.namespace {
            Namespace::Cri => ContainerdNamespace::NsCri.into(),
            Namespace::System => ContainerdNamespace::NsSystem.into(),
        }
    }
}

pub(crate) async fn run(client: &Client, command: &Command) -> Result<(), Error> {
    match command {
        Command::List(options) => list(client, options).await,
        Command::Pull(options) => pull(client, options).await,
        Command::Remove(options) => remove(client, options).await,
    }
}

async fn pull(client: &Client, options: &NamedOptions) -> Result<(), Error> {
    let NamedOptions { reference, whose } = options;
    let what = format!("pull {reference:?}");
    each(client, &what, async |client, node| {
        let request =
            ImageServicePullRequest { containerd: whose.instance(), image_ref: reference.clone() };
        let layers = RefCell::new(Layers::default());
        let pulling = async {
            let call = async |node| client::images(node).pull(request.clone()).await;
            match client.listen(&what, call, |told| layers.borrow_mut().take(told)).await {
                Err(error) if error.is_unserved() => {
                    let (namespace, reference) = (whose.number(), reference.clone());
                    let request = ImagePullRequest { namespace, reference };
                    let call = async |node| machine(node).image_pull(request.clone()).await;
                    client.ask_patiently(&what, call).await.map(drop)
                }
                pulled => pulled,
            }
        };
        let mut progress = Progress::new(&format!("{node}: {what}"));
        progress.during(pulling, || layers.borrow().to_string()).await?;
        progress.clear();
        say!("{node} has {reference}");
        Ok(())
    })
    .await
}

/// How far the layers of an image are, as a node tells while it fetches them. Ours tell the end alone.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, ImageServicePullLayerProgress>);

impl Layers {
    fn take(&mut self, told: ImageServicePullResponse) {
        if let Some(Told::PullProgress(ImageServicePullProgress { layer_id, progress })) =
            told.response
        {
            self.0.insert(layer_id, progress.unwrap_or_default());
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use image_service_pull_layer_progress::Status;

        if self.0.is_empty() {
            return Ok(());
        }
        let there = |layer: &&ImageServicePullLayerProgress| {
            matches!(layer.status(), Status::ExtractComplete | Status::AlreadyExists)
        };
        let done = self.0.values().filter(there).count();
        // While a layer is unpacked, its bytes are those of that.
        let fetched = self.0.values().filter(|layer| layer.status() == Status::Downloading);
        let (come, whole) = fetched.fold((0, 0), |(come, whole), layer| {
            let bytes = |count: i64| u64::try_from(count).unwrap_or_default();
            (come + bytes(layer.offset), whole + bytes(layer.total))
        });
        write!(f, "{done} of {} layers", self.0.len())?;
        if whole > 0 {
            write!(f, ", fetched {} of {}", si(come), si(whole))?;
        }
        Ok(())
    }
}

async fn remove(client: &Client, options: &NamedOptions) -> Result<(), Error> {
    let NamedOptions { reference, whose } = options;
    let what = format!("remove {reference:?}");
    each(client, &what, async |client, node| {
        let request = ImageServiceRemoveRequest {
            containerd: whose.instance(),
            image_ref: reference.clone(),
        };
        let call = async |node| client::images(node).remove(request.clone()).await;
        client.do_it(&what, call).await?;
        say!("{node} has no {reference} any more");
        Ok(())
    })
    .await
}

/// Does it on one node after the other; those that fail are told, unless all do.
async fn each(
    client: &Client,
    what: &str,
    mut one: impl AsyncFnMut(&Client, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let clients = client.alone();
    let (count, mut failures) = (clients.len(), Vec::new());
    for (node, client) in clients {
        match one(&client, &node).await {
            Ok(()) => {}
            // Nobody else is meant: all of it is told, and what to type next.
            Err(error) if count == 1 => return Err(error),
            Err(error @ (Error::Signal(_) | Error::Output(_))) => return Err(error),
            Err(error) => {
                failures.push(Failure { node, why: orlop_rt::Chain(&error).to_string() });
            }
        }
    }
    if failures.len() == count {
        return Err(Error::Failed { what: what.to_owned(), failures });
    }
    failures.iter().for_each(|failure| say!(warning: "{what}: {failure}"));
    Ok(())
}

async fn list(client: &Client, Options { whose, output }: &Options) -> Result<(), Error> {
    let mut images = Vec::new();
    let listed = each(client, "list images", async |client, node| {
        let request = ImageServiceListRequest { containerd: whose.instance() };
        let call = async |node| client::images(node).list(request).await;
        let mut its = Vec::new();
        let asked = client.listen("list images", call, |image| its.push(image)).await;
        match asked {
            Err(error) if error.is_unserved() => {
                follow(client, *whose, |_, image| {
                    let ImageListResponse { name, digest, size, created_at, .. } = image;
                    let labels = Default::default();
                    its.push(ImageServiceListResponse { name, digest, size, created_at, labels });
                    Ok(())
                })
                .await?;
            }
            asked => asked?,
        }
        images.extend(its.into_iter().map(|image| (node.to_owned(), image)));
        Ok(())
    })
    .await;
    if listed.is_ok() {
        table(&images).print(*output)?;
    }
    listed
}

/// References alone, one a line.
pub(crate) async fn references(client: &Client, whose: Whose) -> Result<(), Error> {
    follow(client, whose, |_, image| print((escape(&image.name) + "\n").as_bytes())).await
}

async fn follow(
    client: &Client,
    whose: Whose,
    each: impl FnMut(&str, ImageListResponse) -> Result<(), Error>,
) -> Result<(), Error> {
    let request = ImageListRequest { namespace: whose.number() };
    let call = async |node| machine(node).image_list(request).await;
    client.follow("list images", call, each).await
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("IMAGE", "image"),
    ("DIGEST", "digest"),
    ("SIZE", "size_bytes"),
    ("LABELS", "labels"),
    ("CREATED", "created"),
];

fn table(images: &[(String, ImageServiceListResponse)]) -> Table {
    let mut table = Table::new(COLUMNS);
    for (node, image) in images {
        let created = image.created_at.map(|at| at.seconds);
        let date = created.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let created = date.map_or_else(String::new, |at| {
            let (hour, minute, second) = at.to_hms();
            format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
        });
        let mut labels: Vec<_> =
            image.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        orlop_rt::sort(&mut labels);
        table.push([
            Cell::text(node),
            Cell::text(&image.name),
            Cell::text(&image.digest),
            Cell::shown(si(u64::try_from(image.size).unwrap_or_default()), image.size),
            Cell::text(&labels.join(",")),
            Cell::text(&created),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::table::Format;

    #[test]
    fn layers_that_are_fetched_are_counted_with_their_bytes() {
        use image_service_pull_layer_progress::Status;

        let mut layers = Layers::default();
        assert_eq!(layers.to_string(), "");
        let mut take = |id: &str, status: Status, offset, total| {
            let progress = ImageServicePullLayerProgress {
                status: status.into(),
                offset,
                total,
                ..ImageServicePullLayerProgress::default()
            };
            let layer_id = id.to_owned();
            let told = ImageServicePullProgress { layer_id, progress: Some(progress) };
            layers.take(ImageServicePullResponse { response: Some(Told::PullProgress(told)) });
            layers.to_string()
        };
        assert_eq!(take("a", Status::AlreadyExists, 0, 0), "1 of 1 layers");
        let text = take("b", Status::Downloading, 1_000_000, 4_000_000);
        assert_eq!(text, "1 of 2 layers, fetched 1.0 MB of 4.0 MB");
        // What makes no sense is nothing.
        let text = take("c", Status::Downloading, -1, -7);
        assert_eq!(text, "1 of 3 layers, fetched 1.0 MB of 4.0 MB");
        assert_eq!(take("b", Status::Extracting, 7, 9), "1 of 3 layers");
        assert_eq!(take("b", Status::ExtractComplete, 0, 0), "2 of 3 layers");
    }

    #[test]
    fn images_have_digest_size_and_date() {
        let labels = [("io.cri-containerd.pinned", "pinned"), ("a", "b")];
        let label = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let image = ImageServiceListResponse {
            name: "registry.k8s.io/pause:3.10".to_owned(),
            digest: "sha256:ee6521f290b2168b6e0935a181d4cff9be1ac3f505666ef0e3c98fae8199917a"
                .to_owned(),
            size: 320_000,
            created_at: Some(prost_types::Timestamp { seconds: 1_763_715_900, nanos: 0 }),
            labels: labels.map(label).into(),
        };
        let bare = ImageServiceListResponse {
            name: "bare".to_owned(),
            ..ImageServiceListResponse::default()
        };
        let images = [("10.0.0.2".to_owned(), image), ("10.0.0.2".to_owned(), bare)];
        golden::check("images.txt", &table(&images).render(Format::Table));
    }
}
