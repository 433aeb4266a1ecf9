//! `reboot` and `shutdown`: a node answers, then goes.

use crate::client::{Answer, Client, machine};
use crate::error::Error;

pub(crate) async fn reboot(client: &Client) -> Result<(), Error> {
    let call = async |node| machine(node).reboot(()).await;
    accepted("reboots", &client.ask("reboot", call).await?);
    Ok(())
}

pub(crate) async fn shutdown(client: &Client) -> Result<(), Error> {
    let call = async |node| machine(node).shutdown(()).await;
    accepted("shuts down", &client.ask("shut down", call).await?);
    Ok(())
}

/// Nothing goes to stdout, as scripts expect; a person sees which nodes took it.
fn accepted<M>(does: &str, answers: &[Answer<M>]) {
    for Answer { node, .. } in answers {
        say!("{node} {does}");
    }
}
