//! Trust on first use: the cluster's authority is asked for once, compared by a person, and pinned.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use orlop_pki::certificate::subject;
use orlop_pki::cluster::{Shown, authority_key, trusting_client_config};
use orlop_proto::metropolis::node::core::curator::proto::api::GetCaCertificateRequest;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_rpc::leader::Place;
use tokio::time::timeout;

use super::keyring::Kind;
use super::session::reason;
use super::{Context, Error};
use crate::error::Error as CommandError;

/// How long a curator may take to name its authority.
const LIMIT: Duration = Duration::from_secs(20);

/// The authority that is pinned, else that of the first curator that answers, once it is confirmed.
pub(super) async fn authority(
    context: &Context<'_>,
    curators: &[Place],
) -> Result<Vec<u8>, CommandError> {
    if let Some(pinned) = context.keyring.authority()? {
        return Ok(pinned);
    }
    let der = fetch(curators).await?;
    let digest = subject(&der).map_err(Error::Keys)?.digest;
    match context.keyring.certificate()? {
        Some(owner) => {
            // Whoever signed our certificate is who we want.
            let ours = Shown::read(&owner).map_err(Error::Keys)?.is_signed_by(&der);
            if !ours {
                let path = context.keyring.path(Kind::Certificate);
                return Err(Error::OtherAuthority { digest, path }.into());
            }
        }
        None if context.flags.insecure_accept_and_persist_first_encountered_ca => {
            say!(warning: "the authority SHA256:{digest} is taken as it is");
        }
        None => confirm(&digest)?,
    }
    let path = context.keyring.keep(Kind::Authority, &der)?;
    say!(note: "the cluster's authority is pinned in {}", path.display());
    Ok(der)
}

async fn fetch(curators: &[Place]) -> Result<Vec<u8>, Error> {
    let tls = trusting_client_config(None).map_err(Error::Keys)?;
    let mut failures = Vec::new();
    for place in curators {
        let channel = orlop_rpc::tls::channel(&place.host, place.port, tls.clone());
        let mut client = CuratorLocalClient::new(channel);
        match timeout(LIMIT, client.get_ca_certificate(GetCaCertificateRequest {})).await {
            Ok(Ok(answer)) => {
                let der = answer.into_inner().identity_ca_certificate;
                return match authority_key(&der) {
                    Ok(_) => Ok(der),
                    Err(error) => Err(Error::Strange(format!("the authority of {place}: {error}"))),
                };
            }
            Ok(Err(status)) => failures.push(reason(place, &status)),
            Err(_) => failures.push(format!("{place}: no answer after {} s", LIMIT.as_secs())),
        }
    }
    Err(Error::NoAuthority(failures.join("; ")))
}

/// Asks the person at the terminal; or reads the answer from a pipe.
fn confirm(digest: &str) -> Result<(), Error> {
    let mut error = io::stderr();
    // When nobody can read the question, nobody answers it either.
    let _ = writeln!(error, "The cluster's authority is new here. Its fingerprint is");
    let _ = writeln!(error, "  SHA256:{digest}");
    let _ = write!(error, "Is this the cluster you mean (yes/no)? ");
    let _ = error.flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if !io::stdin().is_terminal() {
        let _ = writeln!(error);
    }
    match (read, affirmative(&answer)) {
        (Ok(_), true) => Ok(()),
        _ => Err(Error::Unconfirmed(digest.to_owned())),
    }
}

fn affirmative(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "yes" | "y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        assert!(affirmative("yes\n") && affirmative(" Y \r\n"));
        for answer in ["", "\n", "no\n", "yess\n", "SHA256\n"] {
            assert!(!affirmative(answer), "{answer:?}");
        }
    }
}
