//! `pcap`: what passes a link of a node, as a pcap file.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_proto::machine::{BpfInstruction, PacketCaptureRequest};

use crate::client::{Client, machine};
use crate::error::Error;
use crate::table::print;
use crate::units::parse_duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The link
    #[arg(short, long, default_value = "eth0", value_name = "LINK")]
    interface: String,
    /// Frames for others, too
    #[arg(long)]
    promiscuous: bool,
    /// Bytes kept of each frame
    #[arg(short, long, default_value_t = 4096, value_name = "BYTES")]
    snaplen: u32,
    /// Only what this passes: the output of `tcpdump -dd EXPRESSION`
    #[arg(long, value_name = "PROGRAM", value_parser = parse_filter)]
    bpf_filter: Option<Filter>,
    /// Stop after this long; else at Ctrl-C
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// Where to write; `-`: stdout
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    output: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
struct Filter(Vec<BpfInstruction>);

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    client.one_node("pcap")?;
    let path = options.output.clone();
    let failed = |source| Error::Write { path: path.clone(), source };
    let mut file = match &*options.output {
        stdout if stdout == Path::new("-") && std::io::stdout().is_terminal() => {
            return Err(Error::Terminal);
        }
        stdout if stdout == Path::new("-") => None,
        path => Some(File::create(path).map_err(failed)?),
    };
    let request = PacketCaptureRequest {
        interface: options.interface.clone(),
        promiscuous: options.promiscuous,
        snap_len: options.snaplen,
        bpf_filter: options.bpf_filter.clone().map(|Filter(steps)| steps).unwrap_or_default(),
    };
    let call = async |node| machine(node).packet_capture(request.clone()).await;
    let what = format!("capture on {}", options.interface);
    let followed = client.follow(&what, call, |_, data| match &mut file {
        Some(file) => file.write_all(&data.bytes).map_err(failed),
        None => print(&data.bytes),
    });
    match options.duration {
        Some(duration) => tokio::time::timeout(duration, followed).await.unwrap_or(Ok(())),
        None => followed.await,
    }
}

/// Reads `{ 0x28, 0, 0, 0x0000000c },` and so on.
fn parse_filter(text: &str) -> Result<Filter, String> {
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => word.parse(),
    };
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let numbers = words.map(number).collect::<Result<Vec<u32>, _>>();
    match numbers.as_deref() {
        Ok(numbers) if !numbers.is_empty() && numbers.len() % 4 == 0 => {
            let step =
                |one: &[u32]| BpfInstruction { op: one[0], jt: one[1], jf: one[2], k: one[3] };
            Ok(Filter(numbers.chunks_exact(4).map(step).collect()))
        }
        _ => Err("this is not what tcpdump -dd prints: { OP, JT, JF, K }, …".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_filter_is_what_tcpdump_prints() {
        let text = "{ 0x28, 0, 0, 0x0000000c },\n{ 0x15, 0, 1, 0x00000806 },\n";
        let steps = vec![
            BpfInstruction { op: 0x28, jt: 0, jf: 0, k: 12 },
            BpfInstruction { op: 0x15, jt: 0, jf: 1, k: 0x806 },
        ];
        assert_eq!(parse_filter(text), Ok(Filter(steps)));
        for wrong in ["", "arp", "{ 1, 2, 3 }", "{ 1, 2, 3, 0x1ffffffff }"] {
            assert!(parse_filter(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn reading_a_filter_never_panics(text in "\\PC*|[0-9x{}, ]*") {
            let _ = parse_filter(&text);
        }
    }
}
