//! `version`: which build the command line is, and which the nodes run.

use std::fmt::Write as _;

use orlop_proto::machine::{Version, VersionInfo};
use orlop_rt::version;

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::stranger::Stranger;
use crate::table::{escape, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print the client's version only
    #[arg(long)]
    pub(crate) client: bool,
    /// Print only the tag of the client; what nodes run is printed in full
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    pub(crate) stranger: Stranger,
}

/// Prints the client's own version, without asking anybody.
pub(crate) fn own(options: &Options) -> Result<(), Error> {
    print(client_block(options.short).as_bytes())
}

/// Prints the version of every node.
pub(crate) async fn nodes(client: &Client) -> Result<(), Error> {
    let call = async |node| machine(node).version(()).await;
    let answers = client.ask("read the version", call).await?;
    print(server_block(&answers).as_bytes())
}

fn client_block(short: bool) -> String {
    if short {
        return format!("Client:\nOrlop {}\n", version::TAG);
    }
    let own = VersionInfo {
        tag: version::TAG.to_owned(),
        sha: version::SHA.to_owned(),
        built: version::BUILT.to_owned(),
        go_version: version::COMPILER.to_owned(),
        os: std::env::consts::OS.to_owned(),
        arch: arch(std::env::consts::ARCH).to_owned(),
    };
    format!("Client:\n{}", lines(&own))
}

pub(crate) fn server_block(answers: &[Answer<Version>]) -> String {
    let mut text = "Server:\n".to_owned();
    for Answer { node, message } in answers {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\tNODE:        {}", escape(node));
        text += &lines(&message.version.clone().unwrap_or_default());
    }
    text
}

/// The line of the compiler keeps the label that scripts look for.
fn lines(info: &VersionInfo) -> String {
    let VersionInfo { tag, sha, built, go_version, os, arch } = info;
    let os_arch = format!("{os}/{arch}");
    let pairs = [
        ("Tag", tag),
        ("SHA", sha),
        ("Built", built),
        ("Go version", go_version),
        ("OS/Arch", &os_arch),
    ];
    let line =
        |(key, value): (&str, &String)| format!("\t{:<12} {}\n", format!("{key}:"), escape(value));
    pairs.map(line).concat()
}

/// The name that the field uses for an architecture.
fn arch(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn a_node_is_named_above_its_version() {
        let version = VersionInfo {
            tag: "v0.1.0".to_owned(),
            sha: "5b30ed2".to_owned(),
            built: "2025-11-21T05:34:00Z".to_owned(),
            go_version: "rustc 1.95".to_owned(),
            os: "linux".to_owned(),
            arch: "amd64".to_owned(),
        };
        let message = Version { metadata: None, version: Some(version), platform: None };
        let answers = [Answer { node: "10.0.0.2".to_owned(), message }];
        golden::check("version.txt", &server_block(&answers));
    }

    #[test]
    fn the_client_knows_itself() {
        assert!(client_block(false).starts_with("Client:\n\tTag:         v"));
        assert_eq!(client_block(true), format!("Client:\nOrlop {}\n", version::TAG));
    }
}
