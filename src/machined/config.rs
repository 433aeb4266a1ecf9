//! Getting the machine configuration: which source, the network it may need, the child that fetches
//! it, and how often it is tried again.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use orlop_config::machine::{self, MachineConfig};
use orlop_rt::{Backoff, Exit};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::Error;
use crate::node::Node;
use crate::services;
use crate::source::Source;

/// Where the accepted document is kept (spec §6.1).
const KEPT: &str = "/system/state/config.yaml";
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
    /// The document is wrong: trying again would not help.
    Refused,
    /// It could not be had, and why.
    Failed(String),
}

/// Loads the configuration into the node. Waits for a source that does not answer; a document that
/// is wrong is an error, with its lines on the console.
pub(crate) async fn load(node: &Node) -> Result<(), Error> {
    let word = node.cmdline().config().ok_or(Error::NoConfiguration)?;
    let uuid = fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let source = Source::parse(word, uuid.trim()).map_err(|problem| {
        error!("{problem}");
        Error::NoConfiguration
    })?;
    fs::create_dir_all("/run/orlop")
        .map_err(|source| Error::file("create the folder", "/run/orlop", source))?;
    info!(from = word, "fetching the machine configuration");
    if source.needs_network() {
        services::start_early_network(node).await?;
    }
    fetch(node, word).await?;
    node.set_config(read_kept(node, &source)?);
    info!(from = word, "machine configuration accepted");
    Ok(())
}

async fn fetch(node: &Node, word: &str) -> Result<(), Error> {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut tries: u32 = 0;
    loop {
        match try_once(node, word).await? {
            Try::Accepted => return Ok(()),
            Try::Refused => return Err(Error::BadConfiguration),
            Try::Failed(why) => {
                tries += 1;
                // The first failure, then each doubling.
                if tries.is_power_of_two() {
                    warn!(from = word, tries, why, "no machine configuration yet; trying on");
                }
                sleep(backoff.next(tries.wrapping_mul(0x9e37_79b9))).await;
            }
        }
    }
}

async fn try_once(node: &Node, word: &str) -> Result<Try, Error> {
    let run = || {
        let complaints = File::create(COMPLAINTS)?;
        node.reaper().spawn(
            Command::new(services::BINARY)
                .args(["machined", "acquire", word, "--to", KEPT])
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(complaints),
        )
    };
    let mut child = run().map_err(|source| Error::Acquire { source })?;
    let Ok(status) = timeout(TRY_LIMIT, child.wait()).await else {
        child.signal(Signal::SIGKILL).map_err(|source| Error::Acquire { source })?;
        return Ok(Try::Failed(format!("no answer in {} s", TRY_LIMIT.as_secs())));
    };
    let complaints = fs::read_to_string(COMPLAINTS).unwrap_or_default();
    Ok(match status.code() {
        Some(code) if code == Exit::Ok as i32 => Try::Accepted,
        Some(code) if code == Exit::Config as i32 => {
            complaints.lines().take(COMPLAINT_LINES).for_each(|line| error!("{line}"));
            Try::Refused
        }
        _ => {
            Try::Failed(complaints.lines().next().map_or_else(|| status.to_string(), str::to_owned))
        }
    })
}

/// Reads what the child has accepted; the same bytes cannot be wrong now.
fn read_kept(node: &Node, source: &Source) -> Result<MachineConfig, Error> {
    let text = fs::read_to_string(KEPT).map_err(|source| Error::file("read", KEPT, source))?;
    node.timeline().story().configured(text.as_bytes(), SystemTime::now());
    machine::parse(source.file_name(), &text).map_err(|problems| {
        error!("{problems}");
        Error::BadConfiguration
    })
}
