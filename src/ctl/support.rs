//! `support`: what helps somebody else to understand what nodes do, as one tar.gz. Configurations are
//! in it without their secrets.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use futures_util::stream;
use orlop_config::machine as configuration;
use orlop_proto::common::{ContainerDriver, Data};
use orlop_proto::machine::{ContainersRequest, DmesgRequest, LogsRequest, ReadRequest};
use orlop_rt::Chain;
use tar::{Builder, Header};
use tokio::time::timeout;
use tonic::{Response, Status, Streaming};

use crate::client::{Answer, Client, Node, Reply, machine, network, told};
use crate::error::{Error, Failure};
use crate::health::ByKind;
use crate::processes::Sort;
use crate::progress::Progress;
use crate::table::Format;
use crate::{containers, memory, mounts, network as links, processes, services, timeline, version};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The file to make; `-` for stdout
    #[arg(short = 'O', long, default_value = "support.tar.gz", value_name = "FILE")]
    output: PathBuf,
    /// Write over a file that is there
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    nodes: ByKind,
}

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 8;
/// How much of one log is kept: its end.
const LOG_LIMIT: usize = 16 << 20;
/// How long one log may take.
const LOG_DEADLINE: Duration = Duration::from_secs(60);
/// Where a node has its configuration; the first that is there.
const CONFIGURATIONS: [&str; 2] = ["/system/state/config.yaml", "/run/orlop/config.yaml"];

/// What was found out about one node: files, and what could not be.
#[derive(Debug)]
struct Findings {
    node: String,
    files: Vec<(String, Vec<u8>)>,
    failures: Vec<String>,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let Options { output, force, nodes } = options;
    let to_stdout = output == Path::new("-");
    if !to_stdout && !force && output.exists() {
        return Err(Error::Exists { path: output.clone() });
    }
    let clients = nodes.choose(client)?.each();
    let mut found = stream::iter(&clients).map(collect).buffered(AT_ONCE);
    let (mut all, mut progress) = (Vec::new(), Progress::new("support"));
    loop {
        let said = || format!("{} of {} nodes", all.len(), clients.len());
        let Some(findings) = progress.during(found.next(), said).await else { break };
        progress.clear();
        let Findings { node, files, failures } = &findings;
        failures.iter().for_each(|failure| say!(warning: "{node}: {failure}"));
        say!("{node}: {} files", files.len());
        all.push(findings);
    }
    if all.iter().all(|findings| findings.files.is_empty()) {
        let failure =
            |found: Findings| Failure { node: found.node, why: found.failures.join("; ") };
        let failures = all.into_iter().map(failure).collect();
        return Err(Error::Failed { what: "ask for what is known".to_owned(), failures });
    }
    if to_stdout {
        let mut out = io::stdout().lock();
        return write(&mut out, &all, SystemTime::now()).map_err(Error::Output);
    }
    let made = || {
        let mut open = OpenOptions::new();
        let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(output)?;
        write(&mut file, &all, SystemTime::now())?;
        file.sync_all()
    };
    if let Err(source) = made() {
        // Half of it is of no use. That it cannot be removed either says nothing new.
        let _ = fs::remove_file(output);
        return Err(Error::Write { path: output.clone(), source });
    }
    say!("wrote {}", output.display());
    Ok(())
}

/// Asks one node for all of it.
async fn collect(client: &Client) -> Findings {
    let node = client.nodes().into_iter().next().unwrap_or_default();
    let mut found = Findings { node, files: Vec::new(), failures: Vec::new() };
    let call = async |node| machine(node).version(()).await;
    found.add("version.txt", text(client, call, version::server_block).await);
    if found.files.is_empty() {
        // It does not answer at all: no use to wait for it thirty times.
        return found;
    }
    let call = async |node| machine(node).service_list(()).await;
    let history = |answers: &_| services::history(answers).render(Format::Yaml);
    found.add("services.yaml", text(client, call, history).await);
    let call = async |node| machine(node).processes(()).await;
    let table = |answers: &_| processes::table(answers, Sort::Rss).render(Format::Table);
    found.add("processes.txt", text(client, call, table).await);
    let call = async |node| machine(node).memory(()).await;
    found.add("memory.txt", text(client, call, memory::verbose).await);
    let call = async |node| machine(node).mounts(()).await;
    let table = |answers: &_| mounts::table(answers).render(Format::Table);
    found.add("mounts.txt", text(client, call, table).await);
    let call = async |node| network(node).interfaces(()).await;
    let table = |answers: &_| links::interfaces(answers).render(Format::Table);
    found.add("interfaces.txt", text(client, call, table).await);
    let call = async |node| network(node).routes(()).await;
    let table = |answers: &_| links::routes(answers).render(Format::Table);
    found.add("routes.txt", text(client, call, table).await);
    for namespace in ["system", "k8s.io"] {
        let driver = ContainerDriver::Containerd.into();
        let request = ContainersRequest { namespace: namespace.to_owned(), driver };
        let call = async |node| machine(node).containers(request.clone()).await;
        let table = |answers: &_| containers::containers(answers).render(Format::Table);
        found.add(&format!("containers-{namespace}.txt"), text(client, call, table).await);
    }
    let call = async |node| told(node).timeline(()).await;
    let chart = |answers: &_| timeline::chart(answers, false);
    found.add("timeline.txt", text(client, call, chart).await);
    let call = async |node| told(node).metrics(()).await;
    let figures = |answers: &[Answer<orlop_proto::orlop::v1alpha1::Metrics>]| {
        answers.iter().map(|answer| answer.message.text.clone()).collect()
    };
    found.add("metrics.txt", text(client, call, figures).await);
    let request = DmesgRequest::default();
    let call = async |node| machine(node).dmesg(request).await;
    found.add("dmesg.log", bytes(client, call).await);
    for id in log_ids(client, &mut found).await {
        let (namespace, tail_lines) = ("system".to_owned(), -1);
        let request =
            LogsRequest { namespace, id: id.clone(), tail_lines, ..LogsRequest::default() };
        let call = async |node| machine(node).logs(request.clone()).await;
        found.add(&format!("logs/{}.log", file_name(&id)), bytes(client, call).await);
    }
    found.add("config.yaml", config(client).await);
    found
}

impl Findings {
    fn add(&mut self, name: &str, content: Result<Vec<u8>, String>) {
        match content {
            Ok(content) => self.files.push((name.to_owned(), content)),
            Err(why) => self.failures.push(format!("{name}: {why}")),
        }
    }
}

/// The answer of the node as text.
async fn text<R: Reply>(
    client: &Client,
    call: impl AsyncFn(Node) -> Result<Response<R>, Status>,
    render: impl FnOnce(&[Answer<R::Message>]) -> String,
) -> Result<Vec<u8>, String> {
    let (answers, failures) =
        client.gather("ask", call).await.map_err(|error| Chain(&error).to_string())?;
    match failures.first() {
        Some(failure) => Err(failure.why.clone()),
        None => Ok(render(&answers).into_bytes()),
    }
}

/// A stream of the node as it comes; of a long one, the end.
async fn bytes(
    client: &Client,
    call: impl AsyncFn(Node) -> Result<Response<Streaming<Data>>, Status>,
) -> Result<Vec<u8>, String> {
    let mut kept = Vec::new();
    let mut failed = None;
    let reading = client.stream("read", call, async |said| {
        match said {
            Ok(Answer { message, .. }) => kept.extend_from_slice(&message.bytes),
            Err(failure) => failed = Some(failure.why),
        }
        if kept.len() > 2 * LOG_LIMIT {
            kept.drain(..kept.len() - LOG_LIMIT);
        }
        Ok(())
    });
    match timeout(LOG_DEADLINE, reading).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failed = Some(Chain(&error).to_string()),
        Err(_) => failed = Some(format!("it takes longer than {} s", LOG_DEADLINE.as_secs())),
    }
    kept.drain(..kept.len().saturating_sub(LOG_LIMIT));
    match failed {
        // What came before is worth having.
        Some(why) if kept.is_empty() => Err(why),
        _ => Ok(kept),
    }
}

async fn log_ids(client: &Client, found: &mut Findings) -> Vec<String> {
    let call = async |node| machine(node).logs_containers(()).await;
    match client.gather("list logs", call).await {
        Ok((answers, _)) => answers.into_iter().flat_map(|answer| answer.message.ids).collect(),
        Err(error) => {
            found.failures.push(Chain(&error).to_string());
            Vec::new()
        }
    }
}

/// The node's configuration without its secrets.
async fn config(client: &Client) -> Result<Vec<u8>, String> {
    let mut why = String::new();
    for path in CONFIGURATIONS {
        let request = ReadRequest { path: path.to_owned() };
        let call = async |node| machine(node).read(request.clone()).await;
        match bytes(client, call).await {
            Ok(bytes) => return redacted(&bytes).map(String::into_bytes),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// A configuration as it may be shown. What cannot be understood is not shown at all: nobody knows
/// where its secrets are.
fn redacted(bytes: &[u8]) -> Result<String, String> {
    let bytes = configuration::unpack(bytes).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
    let config = configuration::parse("config.yaml", text)
        .map_err(|problems| format!("it is not shown: {}", problems.counted()))?;
    Ok(config.redacted_yaml())
}

/// A name as part of a path that leads nowhere else.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_:".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    if name.chars().all(|c| c == '.') { format!("_{name}") } else { name }
}

/// The archive: a folder for each node.
fn write(to: &mut impl Write, all: &[Findings], now: SystemTime) -> io::Result<()> {
    let mtime = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut archive = Builder::new(GzEncoder::new(to, Compression::fast()));
    for Findings { node, files, failures } in all {
        let failed = failures.iter().map(|failure| format!("{failure}\n")).collect::<String>();
        let failed = (!failed.is_empty()).then(|| ("failures.txt".to_owned(), failed.into_bytes()));
        for (name, content) in files.iter().chain(&failed) {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(mtime);
            let path = format!("support/{}/{name}", file_name(node));
            archive.append_data(&mut header, path, content.as_slice())?;
        }
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn each_node_has_a_folder_with_what_was_found_and_what_failed() {
        let found = Findings {
            node: "[fd00::2]:50000".to_owned(),
            files: vec![("logs/a.log".to_owned(), b"text".to_vec())],
            failures: vec!["routes.txt: no".to_owned()],
        };
        let mut zipped = Vec::new();
        write(&mut zipped, &[found], UNIX_EPOCH).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(&zipped[..]));
        let mut read = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            read.push((entry.path().unwrap().display().to_string(), text));
        }
        let expected = [
            ("support/_fd00::2_:50000/logs/a.log".to_owned(), "text".to_owned()),
            ("support/_fd00::2_:50000/failures.txt".to_owned(), "routes.txt: no\n".to_owned()),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn no_name_leads_out_of_the_archive() {
        assert_eq!(file_name("../etc/pass wd"), ".._etc_pass_wd");
        assert_eq!(file_name(".."), "_..");
        assert_eq!(file_name("kube-system/dns:dns"), "kube-system_dns:dns");
    }

    #[test]
    fn a_configuration_that_is_not_understood_is_not_shown() {
        assert!(redacted(b"machine: {token: geheim").is_err());
        assert!(redacted(b"\xff").is_err());
    }
}
