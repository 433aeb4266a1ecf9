//! `takeownership`: the founder's key becomes the owner's certificate; and `cert`, which takes it elsewhere.

use std::path::PathBuf;
use std::time::SystemTime;

use futures_util::stream;
use orlop_pki::cluster::{Shown, ephemeral};
use orlop_pki::encoding::certificate_to_pem;
use orlop_proto::metropolis::proto::api::aaa_client::AaaClient;
use orlop_proto::metropolis::proto::api::{EscrowRequest, EscrowResponse, escrow_request};

use super::keyring::Kind;
use super::session::{Session, drain};
use super::{Context, Error};
use crate::error::Error as CommandError;

/// Whose certificate it is.
const OWNER: &str = "owner";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CertCommand {
    /// Write owner.crt and owner.key into the current folder
    Export {
        /// Write over files that are there
        #[arg(short, long)]
        force: bool,
    },
}

pub(super) async fn run(context: &Context<'_>) -> Result<(), CommandError> {
    let key = context.keyring.owned_key()?;
    // A certificate of before says which authority is meant; it is not shown here.
    let shown = ephemeral(&key, SystemTime::now()).map_err(Error::Keys)?;
    let session = Session::with(context, &shown, &key).await?;
    let what = "take ownership";
    let call = async |channel| {
        let parameters = escrow_request::Parameters {
            requested_identity_name: OWNER.to_owned(),
            public_key: key.public().to_vec(),
        };
        let request = EscrowRequest { parameters: Some(parameters), proofs: None };
        AaaClient::new(channel).escrow(stream::iter([request])).await
    };
    let answers = session.again(what, call).await?;
    let mut certificate = None;
    drain(what, answers, |answer: EscrowResponse| {
        if !answer.emitted_certificate.is_empty() {
            certificate = Some(answer.emitted_certificate);
        }
    })
    .await?;
    let certificate =
        certificate.ok_or_else(|| Error::Strange("it asks for more proofs".to_owned()))?;
    let read = Shown::read(&certificate).map_err(|error| Error::Strange(error.to_string()))?;
    if !read.is_signed_by(&session.authority) || read.public_key != Some(key.public()) {
        let why = "the certificate is not its own, or not for our key";
        return Err(Error::Strange(why.to_owned()).into());
    }
    let path = context.keyring.keep(Kind::Certificate, &certificate)?;
    say!("we own the cluster; the certificate is in {}", path.display());
    Ok(())
}

pub(super) fn certificate(
    context: &Context<'_>,
    CertCommand::Export { force }: &CertCommand,
) -> Result<(), CommandError> {
    let owner = context.keyring.owner()?;
    let files = [
        ("owner.crt", 0o644, certificate_to_pem(&owner.certificate)),
        ("owner.key", 0o600, owner.key.to_plain_pem().expose().to_owned()),
    ];
    for (name, ..) in &files {
        let path = PathBuf::from(name);
        if path.exists() && !force {
            return Err(CommandError::Exists { path });
        }
    }
    for (name, mode, text) in files {
        let path = PathBuf::from(name);
        orlop_rt::replace(&path, mode, text.as_bytes())
            .map_err(|source| CommandError::Write { path, source })?;
        say!("wrote {name}");
    }
    Ok(())
}
