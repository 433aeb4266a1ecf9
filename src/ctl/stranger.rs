//! `--insecure`: calls to nodes in maintenance, which know nobody yet.

use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::options::Global;

/// Flags of the commands that nodes in maintenance answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Stranger {
    /// The node is in maintenance: no certificate is shown; -n or -e says where it is
    #[arg(short, long)]
    pub(crate) insecure: bool,
    /// The fingerprint that the node's console shows; without it, any node will do
    #[arg(long, value_name = "FINGERPRINT", requires = "insecure")]
    cert_fingerprint: Option<String>,
}

impl Stranger {
    /// Clients for such nodes, one for each: nothing is handed on by them.
    pub(crate) fn clients(&self, global: &Global) -> Result<Vec<Client>, Error> {
        let named = global.nodes.iter().map(|node| node.parse::<Endpoint>());
        let nodes: Vec<_> = match global.endpoints.as_slice() {
            [] => named.collect::<Result<_, _>>()?,
            endpoints => endpoints.to_vec(),
        };
        if nodes.is_empty() {
            return Err(Error::NoStranger);
        }
        let tls = orlop_pki::stranger::client_config(self.cert_fingerprint.clone());
        let tls = tls.map_err(Error::Tls)?;
        let client = |node| Client::new(vec![node], Vec::new(), "nobody".to_owned(), tls.clone());
        nodes.into_iter().map(client).collect()
    }
}
