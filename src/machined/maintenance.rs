//! A node that nobody has configured: it shows on its console where it can be reached and by which key
//! it is known, and waits for somebody to apply a configuration (spec §11.2).

use std::net::IpAddr;

use tracing::info;

use crate::Error;
use crate::document::Document;
use crate::node::Node;
use crate::services::{self, Door};

/// Waits for a configuration. Until one is accepted, nothing of the node but its network and the way
/// to its API runs.
pub(crate) async fn configure(node: &Node) -> Result<Document, Error> {
    info!("there is no machine configuration (talos.config): maintenance");
    let door = services::start_maintenance(node).await?;
    invitation(&door).iter().for_each(|line| info!("{line}"));
    let document = node.wait_for_document().await;
    info!("machine configuration accepted, the node is being configured");
    services::stop_maintenance(node).await?;
    Ok(document)
}

/// What to type, for somebody in front of the console.
fn invitation(door: &Door) -> Vec<String> {
    let Door { fingerprint, addresses } = door;
    // Of several, a version-4 address is the easiest to type.
    let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    let Some(address) = address else {
        return vec![
            format!("fingerprint {fingerprint}"),
            "this node has no address yet; once it has one, apply a configuration there".to_owned(),
        ];
    };
    let all: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    vec![
        format!("addresses {}, fingerprint {fingerprint}", all.join(" ")),
        "to configure this node, type:".to_owned(),
        "  orlopctl gen config NAME https://ADDRESS:6443".to_owned(),
        format!(
            "  orlopctl apply-config --insecure -n {address} --cert-fingerprint {fingerprint} \
             -f controlplane.yaml"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_what_to_type() {
        let door = |addresses: &[IpAddr]| Door {
            fingerprint: "abc=".to_owned(),
            addresses: addresses.to_vec(),
        };
        let six = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 7]);
        let lines = invitation(&door(&[six, IpAddr::from([10, 0, 0, 7])]));
        assert_eq!(lines[0], "addresses fd00::7 10.0.0.7, fingerprint abc=");
        assert!(lines[3].contains("-n 10.0.0.7 --cert-fingerprint abc= -f"), "{lines:?}");
        let lines = invitation(&door(&[]));
        assert!(lines[0].contains("abc=") && lines[1].contains("no address yet"), "{lines:?}");
    }
}
