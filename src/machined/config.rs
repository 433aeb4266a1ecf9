//! Getting the machine configuration: what the node has kept, else the source it was told of and the
//! network that may need, else whoever comes in maintenance; the child that checks each of them; and
//! keeping what was accepted.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_rt::{Backoff, Exit, replace};
use orlop_supervise::container::Capability;
use orlop_supervise::process::Privileges;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::document::Document;
use crate::node::Node;
use crate::source::{Source, VOLUME_LABEL};
use crate::{Error, maintenance, parameters, services};

/// Where the document is kept (spec §6.1).
pub(crate) const KEPT: &str = "/system/state/config.yaml";
/// What the child has accepted.
const ACCEPTED: &str = "/run/orlop/config.yaml";
/// What somebody wants to apply.
const CANDIDATE: &str = "/run/orlop/candidate.yaml";
/// What the child has to say.
const COMPLAINTS: &str = "/run/orlop/acquire.log";
/// A child says no more than this that is worth a console.
const COMPLAINT_LINES: usize = 20;
/// One try, whatever it waits for (spec §7.1).
const TRY_LIMIT: Duration = Duration::from_secs(70);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(180);

/// What one try came to.
enum Try {
    Accepted,
    /// The document is wrong: trying again would not help. A line for each problem.
    Refused(String),
    /// It could not be had, and why.
    Failed(String),
}

/// Why a configuration that was sent is not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is wrong: a line for each problem.
    #[error("{0}")]
    Wrong(String),
    /// It could not be looked at.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Loads the configuration into the node. Waits for a source that does not answer; a document that
/// is wrong is an error, with its lines on the console.
pub(crate) async fn load(node: &Node) -> Result<(), Error> {
    make_folder()?;
    if let Some(document) = parameters::load(node).await? {
        node.set_document(document);
        return Ok(());
    }
    if let Some(document) = load_kept(node).await? {
        node.set_document(document);
        return Ok(());
    }
    let Some(word) = node.cmdline().config().filter(|word| *word != "none") else {
        let document = maintenance::configure(node).await?;
        node.set_document(document);
        return Ok(());
    };
    let uuid = fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let source = Source::parse(word, uuid.trim()).map_err(|problem| {
        error!("{problem}");
        Error::NoConfiguration
    })?;
    info!(from = word, "fetching the machine configuration");
    if source.needs_network() {
        services::start_early_network(node).await?;
    }
    fetch(node, word).await?;
    node.set_document(read_accepted(node, source.file_name())?);
    info!(from = word, "machine configuration accepted");
    Ok(())
}

/// Reads a configuration that somebody sent, in the child first.
///
/// # Errors
/// What is wrong with it, or why it could not be looked at.
pub(crate) async fn check(node: &Node, bytes: &[u8]) -> Result<Document, Refusal> {
    const NAME: &str = "config.yaml";
    make_folder()?;
    let write = |bytes| replace(Path::new(CANDIDATE), 0o600, bytes);
    write(bytes).map_err(|source| Error::file("write", CANDIDATE, source))?;
    let outcome = try_once(node, &format!("file://{CANDIDATE}")).await?;
    // It may hold secrets, and is not looked at again.
    fs::remove_file(CANDIDATE).map_err(|source| Error::file("remove", CANDIDATE, source))?;
    match outcome {
        Try::Accepted => Ok(read_accepted(node, NAME)?),
        Try::Refused(problems) => Err(Refusal::Wrong(problems.replace("candidate.yaml", NAME))),
        Try::Failed(why) => Err(Refusal::Wrong(why)),
    }
}

/// Writes what the node goes by where the next boot finds it.
pub(crate) fn save(node: &Node) -> Result<(), Error> {
    keep(&*node.document()?)
}

/// Writes a document where the next boot finds it, or removes an older one if it is not to be kept.
pub(crate) fn keep(document: &Document) -> Result<(), Error> {
    if document.config().persist {
        replace(Path::new(KEPT), 0o600, document.text().as_bytes())
            .map_err(|source| Error::file("write", KEPT, source))
    } else {
        match fs::remove_file(KEPT) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", KEPT, source))
            }
            _ => Ok(()),
        }
    }
}

/// What an earlier boot has kept. One that cannot be used is told, and passed over: the node can still
/// be told another.
async fn load_kept(node: &Node) -> Result<Option<Document>, Error> {
    if !Path::new(KEPT).exists() {
        return Ok(None);
    }
    match try_once(node, &format!("file://{KEPT}")).await? {
        Try::Accepted => {
            let document = read_accepted(node, "config.yaml")?;
            info!(from = KEPT, "machine configuration accepted");
            Ok(Some(document))
        }
        Try::Refused(problems) | Try::Failed(problems) => {
            say(&problems);
            warn!("the configuration that was kept cannot be used; looking for another");
            Ok(None)
        }
    }
}

async fn fetch(node: &Node, word: &str) -> Result<(), Error> {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut tries: u32 = 0;
    loop {
        match try_once(node, word).await? {
            Try::Accepted => return Ok(()),
            Try::Refused(problems) => {
                say(&problems);
                return Err(Error::BadConfiguration);
            }
            Try::Failed(why) => {
                tries += 1;
                // The first failure, then each doubling.
                if tries.is_power_of_two() {
                    let why = why.lines().next().unwrap_or_default();
                    warn!(from = word, tries, why, "no machine configuration yet; trying on");
                }
                sleep(backoff.next(tries.wrapping_mul(0x9e37_79b9))).await;
            }
        }
    }
}

fn say(problems: &str) {
    problems.lines().take(COMPLAINT_LINES).for_each(|line| error!("{line}"));
}

async fn try_once(node: &Node, word: &str) -> Result<Try, Error> {
    // The child reads and writes files of root's, and mounts a volume if it is told to: nothing else.
    let mounts = word == VOLUME_LABEL;
    let capabilities = if mounts { vec![Capability::CAP_SYS_ADMIN] } else { Vec::new() };
    let run = || {
        let complaints = File::create(COMPLAINTS)?;
        let mut command = Command::new(services::BINARY);
        command
            .args(["machined", "acquire", word, "--to", ACCEPTED])
            .args(["--mode", &node.mode().to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(complaints);
        Privileges { user: (0, 0), capabilities }.confine(&mut command);
        node.reaper().spawn(&mut command)
    };
    let mut child = run().map_err(|source| Error::Acquire { source })?;
    let Ok(status) = timeout(TRY_LIMIT, child.wait()).await else {
        child.signal(Signal::SIGKILL).map_err(|source| Error::Acquire { source })?;
        return Ok(Try::Failed(format!("no answer in {} s", TRY_LIMIT.as_secs())));
    };
    let complaints = fs::read_to_string(COMPLAINTS).unwrap_or_default();
    Ok(match status.code() {
        Some(code) if code == Exit::Ok as i32 => Try::Accepted,
        Some(code) if code == Exit::Config as i32 => Try::Refused(complaints),
        _ if complaints.is_empty() => Try::Failed(status.to_string()),
        _ => Try::Failed(complaints),
    })
}

/// Reads what the child has accepted; the same bytes cannot be wrong now.
fn read_accepted(node: &Node, name: &str) -> Result<Document, Error> {
    let text =
        fs::read_to_string(ACCEPTED).map_err(|source| Error::file("read", ACCEPTED, source))?;
    Document::parse(node.mode(), name, text).map_err(|problems| {
        error!("{problems}");
        Error::BadConfiguration
    })
}

fn make_folder() -> Result<(), Error> {
    fs::create_dir_all("/run/orlop")
        .map_err(|source| Error::file("create the folder", "/run/orlop", source))
}
