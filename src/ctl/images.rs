//! `images`, `image list` and `image pull`: what containerd holds of images, and shall hold.

use orlop_proto::common::ContainerdNamespace;
use orlop_proto::machine::{ImageListRequest, ImageListResponse, ImagePullRequest};
use time::OffsetDateTime;

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table, escape, print};
use crate::units::si;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List images
    #[command(visible_alias = "ls")]
    List(Options),
    /// Fetch an image
    Pull(PullOptions),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PullOptions {
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
    }
}

async fn pull(
    client: &Client,
    PullOptions { reference, whose }: &PullOptions,
) -> Result<(), Error> {
    let request = ImagePullRequest { namespace: whose.number(), reference: reference.clone() };
    let call = async |node| machine(node).image_pull(request.clone()).await;
    for Answer { node, .. } in client.ask(&format!("pull {reference:?}"), call).await? {
        say!("{node} has {reference}");
    }
    Ok(())
}

async fn list(client: &Client, Options { whose, output }: &Options) -> Result<(), Error> {
    let mut images = Vec::new();
    let followed = follow(client, *whose, |node, image| {
        images.push((node.to_owned(), image));
        Ok(())
    });
    let followed = followed.await;
    if followed.is_ok() || !images.is_empty() {
        table(&images).print(*output)?;
    }
    followed
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
    ("CREATED", "created"),
];

fn table(images: &[(String, ImageListResponse)]) -> Table {
    let mut table = Table::new(COLUMNS);
    for (node, image) in images {
        let created = image.created_at.map(|at| at.seconds);
        let date = created.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let created = date.map_or_else(String::new, |at| {
            let (hour, minute, second) = at.to_hms();
            format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
        });
        table.push([
            Cell::text(node),
            Cell::text(&image.name),
            Cell::text(&image.digest),
            Cell::shown(si(u64::try_from(image.size).unwrap_or_default()), image.size),
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
    fn images_have_digest_size_and_date() {
        let image = ImageListResponse {
            metadata: None,
            name: "registry.k8s.io/pause:3.10".to_owned(),
            digest: "sha256:ee6521f290b2168b6e0935a181d4cff9be1ac3f505666ef0e3c98fae8199917a"
                .to_owned(),
            size: 320_000,
            created_at: Some(prost_types::Timestamp { seconds: 1_763_715_900, nanos: 0 }),
        };
        let bare = ImageListResponse { name: "bare".to_owned(), ..ImageListResponse::default() };
        let images = [("10.0.0.2".to_owned(), image), ("10.0.0.2".to_owned(), bare)];
        golden::check("images.txt", &table(&images).render(Format::Table));
    }
}
