//! `restart`: ends a container's process, which its owner starts again.

use orlop_proto::machine::RestartRequest;

use crate::client::{Answer, Client, machine};
use crate::containers::Namespace;
use crate::error::Error;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The container
    id: String,
    #[command(flatten)]
    namespace: Namespace,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let request = RestartRequest {
        namespace: options.namespace.name(),
        id: options.id.clone(),
        driver: options.namespace.driver(),
    };
    let call = async |node| machine(node).restart(request.clone()).await;
    for Answer { node, .. } in client.ask(&format!("restart {:?}", options.id), call).await? {
        say!("{node} restarts {}", options.id);
    }
    Ok(())
}
