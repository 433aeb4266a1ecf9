//! The store that is an etcd cluster, of generation 3.4 or later.
//!
//! Reads are answered by a quorum, of whichever member is reached: those of one that is gone or has no leader are asked
//! again. A write that surely reached nobody is sent again, too; any other once: an answer that is lost makes it
//! [`Error::Unknown`].

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, DeleteOptions, EventType, GetOptions,
    GetResponse, Identity, KeyValue, PutOptions, ResponseHeader, TlsOptions, TxnOp, TxnOpResponse,
    WatchOptions, WatchStream,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::ConnectError;

use crate::{
    Batch, Compare, Done, Entry, Error, Event, LeaseId, Op, Outcome, Page, Range, Result, Revision,
    Txn,
};

/// How long an answer is waited for: two elections of a cluster with etcd's own times.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is asked again is asked after this, then after twice as long, and so on up to
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// With what a cluster is trusted and what we show it.
#[derive(Clone)]
pub struct EtcdTls {
    /// The authority of its certificates, PEM.
    pub authority: String,
    /// Our certificate and its key, PEM.
    pub identity: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdTls")
            .field("identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

/// A connection to a cluster; cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    client: Arc<Client>,
    /// Do its watches tell their progress only behind the events? See [`tells_progress`].
    tells_progress: bool,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("tells_progress", &self.tells_progress).finish_non_exhaustive()
    }
}

impl Etcd {
    pub(crate) async fn connect(members: &[String], tls: Option<EtcdTls>) -> Result<Self> {
        let doing = "connect to etcd";
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = tls {
            let mut trust = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.authority));
            if let Some((certificate, key)) = tls.identity {
                trust = trust.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(trust);
        }
        let client = reading(doing, || Client::connect(members, Some(options.clone()))).await?;
        let status = reading(doing, || {
            let mut client = client.maintenance_client();
            async move { client.status().await }
        });
        let version = status.await?.version().to_owned();
        let tells_progress = tells_progress(&version);
        if !tells_progress {
            tracing::info!(%version, "this etcd tells the progress of watches too early: it is not asked for it");
        }
        Ok(Self { client: Arc::new(client), tells_progress })
    }

    /// Whether its watches can be asked how far they are.
    #[must_use]
    pub fn tells_progress(&self) -> bool {
        self.tells_progress
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) async fn revision(&self) -> Result<Revision> {
        let doing = "read etcd's revision";
        let answer = reading(doing, || {
            let mut client = self.client.kv_client();
            let options = GetOptions::new().with_count_only();
            async move { client.get(Range::OPEN, Some(options)).await }
        });
        revision(doing, answer.await?.header())
    }

    pub(crate) async fn range(&self, range: Range) -> Result<Page> {
        let doing = "read from etcd";
        let answer = reading(doing, || {
            let (mut client, options) = (self.client.kv_client(), get_options(&range));
            let start = range.start.clone();
            async move { client.get(start, Some(options)).await }
        });
        page(doing, answer.await.map_err(|error| with_revision(error, range.at))?)
    }

    pub(crate) async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let doing = "write to etcd";
        let asked = [&txn.then, &txn.or_else].into_iter().flatten().find_map(|op| match op {
            Op::Get(range) => range.at,
            _ => None,
        });
        let lease = [&txn.then, &txn.or_else].into_iter().flatten().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            _ => None,
        });
        let compares: Vec<_> = txn.when.iter().map(compare).collect();
        let sent = etcd_client::Txn::new()
            .when(compares)
            .and_then(txn.then.into_iter().map(op).collect::<Vec<_>>())
            .or_else(txn.or_else.into_iter().map(op).collect::<Vec<_>>());
        let answer = writing(doing, || {
            let (mut client, sent) = (self.client.kv_client(), sent.clone());
            async move { client.txn(sent).await }
        });
        let answer = answer.await.map_err(|error| match (error, lease) {
            (Error::NoLease { .. }, Some(lease)) => Error::NoLease { lease },
            (error, _) => with_revision(error, asked),
        })?;
        let results = answer.op_responses().into_iter().map(|done| match done {
            TxnOpResponse::Put(_) => Ok(Done::Put),
            TxnOpResponse::Get(got) => Ok(Done::Got(page(doing, got)?)),
            TxnOpResponse::Delete(mut deleted) => {
                Ok(Done::Deleted(deleted.take_prev_kvs().into_iter().map(entry).collect()))
            }
            TxnOpResponse::Txn(_) => {
                Err(Error::Protocol { doing, what: "a transaction nobody asked for".to_owned() })
            }
        });
        Ok(Outcome {
            succeeded: answer.succeeded(),
            results: results.collect::<Result<_>>()?,
            revision: revision(doing, answer.header())?,
        })
    }

    pub(crate) async fn watch(&self, range: Range, after: Revision) -> Result<Watch> {
        let mut options = WatchOptions::new()
            .with_start_revision(number(after.next().0))
            .with_prev_key()
            .with_progress_notify();
        if !range.end.is_empty() {
            options = options.with_range(&range.end[..]);
        }
        let stream = reading("watch etcd", || {
            let (mut client, options) = (self.client.watch_client(), options.clone());
            let start = range.start.clone();
            async move { client.watch(start, Some(options)).await }
        });
        Ok(Watch { stream: stream.await?, after, tells_progress: self.tells_progress })
    }

    pub(crate) async fn compact(&self, revision: Revision) -> Result<()> {
        let answer = writing("compact etcd", || {
            let mut client = self.client.kv_client();
            async move { client.compact(number(revision.0), None).await }
        });
        answer.await.map(drop).map_err(|error| with_revision(error, Some(revision)))
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = number(ttl.as_secs().max(1));
        let answer = writing("grant a lease", || {
            let mut client = self.client.lease_client();
            async move { client.grant(seconds, None).await }
        });
        Ok(LeaseId(count(answer.await?.id())))
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        // It reads the first answer, which tells whether the lease is there.
        let kept = reading("keep a lease alive", || {
            let mut client = self.client.lease_client();
            async move { client.keep_alive(number(lease.0)).await }
        });
        kept.await.map(drop).map_err(|error| match error {
            Error::Protocol { .. } => Error::NoLease { lease },
            error => error,
        })
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let revoked = writing("revoke a lease", || {
            let mut client = self.client.lease_client();
            async move { client.revoke(number(lease.0)).await }
        });
        revoked.await.map(drop).map_err(|error| {
            if matches!(error, Error::NoLease { .. }) { Error::NoLease { lease } } else { error }
        })
    }

    pub(crate) async fn size(&self) -> Result<u64> {
        let status = reading("read etcd's size", || {
            let mut client = self.client.maintenance_client();
            async move { client.status().await }
        });
        Ok(count(status.await?.db_size()))
    }
}

/// A watch of one range on a stream of its own.
pub(crate) struct Watch {
    stream: WatchStream,
    after: Revision,
    tells_progress: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("after", &self.after).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) async fn request_progress(&mut self) -> Result<()> {
        if !self.tells_progress {
            return Err(Error::Refused {
                what: "the progress of a watch of this etcd, which tells it too early,",
            });
        }
        // The stream is there or not; it is not asked twice.
        let asked = self.stream.request_progress().await;
        asked.map_err(|error| refused("ask for a watch's progress", error, Sort::Read))
    }

    pub(crate) async fn next(&mut self) -> Result<Batch> {
        let doing = "watch etcd";
        loop {
            let answer =
                self.stream.message().await.map_err(|error| refused(doing, error, Sort::Read))?;
            let Some(answer) = answer else {
                return Err(Error::Unavailable { doing, source: "it ended the watch".into() });
            };
            if answer.compact_revision() > 0 {
                let oldest = Revision(count(answer.compact_revision()));
                return Err(Error::Compacted { asked: self.after.next(), oldest });
            }
            if answer.canceled() {
                return Err(Error::Unavailable { doing, source: answer.cancel_reason().into() });
            }
            if answer.created() {
                continue;
            }
            let events: Vec<Event> = answer.events().iter().filter_map(event).collect();
            let upto = match events.last() {
                Some(last) => last.revision,
                None => revision(doing, answer.header())?,
            };
            self.after = self.after.max(upto);
            return Ok(Batch { revision: self.after, events });
        }
    }
}

/// Before 3.4.31, and from 3.5.0 to 3.5.12, an answer about progress may come before events it covers
/// (etcd issue 15220).
fn tells_progress(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    match (part(), part(), part()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        known => known > (3, 5, 0),
    }
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let now = event.kv()?;
    Some(Event {
        key: Bytes::copy_from_slice(now.key()),
        revision: Revision(count(now.mod_revision())),
        entry: (event.event_type() == EventType::Put).then(|| entry(now.clone())),
        previous: event.prev_kv().cloned().map(entry),
    })
}

fn entry(pair: KeyValue) -> Entry {
    Entry {
        created: Revision(count(pair.create_revision())),
        modified: Revision(count(pair.mod_revision())),
        version: count(pair.version()),
        lease: (pair.lease() != 0).then(|| LeaseId(count(pair.lease()))),
        key: Bytes::copy_from_slice(pair.key()),
        value: pair.into_key_value().1.into(),
    }
}

fn page(doing: &'static str, mut answer: GetResponse) -> Result<Page> {
    let entries: Vec<Entry> = answer.take_kvs().into_iter().map(entry).collect();
    let shown = u64::try_from(entries.len()).unwrap_or(u64::MAX);
    Ok(Page {
        remaining: count(answer.count()).saturating_sub(shown),
        revision: revision(doing, answer.header())?,
        entries,
    })
}

fn revision(doing: &'static str, header: Option<&ResponseHeader>) -> Result<Revision> {
    header
        .map(|header| Revision(count(header.revision())))
        .ok_or_else(|| Error::Protocol { doing, what: "the answer has no header".to_owned() })
}

fn compare(compare: &Compare) -> etcd_client::Compare {
    match compare {
        Compare::Created(key, revision) => {
            etcd_client::Compare::create_revision(&key[..], CompareOp::Equal, number(revision.0))
        }
        Compare::Modified(key, revision) => {
            etcd_client::Compare::mod_revision(&key[..], CompareOp::Equal, number(revision.0))
        }
        Compare::Version(key, version) => {
            etcd_client::Compare::version(&key[..], CompareOp::Equal, number(*version))
        }
    }
}

fn op(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(number(lease.0)));
            TxnOp::put(key, value, options)
        }
        Op::Get(range) => {
            let options = get_options(&range);
            TxnOp::get(range.start, Some(options))
        }
        Op::Delete(range) => {
            let mut options = DeleteOptions::new().with_prev_key();
            if !range.end.is_empty() {
                options = options.with_range(range.end);
            }
            TxnOp::delete(range.start, Some(options))
        }
    }
}

fn get_options(range: &Range) -> GetOptions {
    let mut options = GetOptions::new().with_limit(i64::try_from(range.limit).unwrap_or(0));
    if !range.end.is_empty() {
        options = options.with_range(&range.end[..]);
    }
    if let Some(at) = range.at {
        options = options.with_revision(number(at.0));
    }
    options
}

/// etcd's numbers are signed, and never negative.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// May a lost answer have done something?
#[derive(Clone, Copy, Eq, PartialEq)]
enum Sort {
    Read,
    Write,
}

pub(crate) async fn reading<T, A>(doing: &'static str, ask: impl FnMut() -> A) -> Result<T>
where
    A: Future<Output = Result<T, etcd_client::Error>>,
{
    asking(doing, Sort::Read, ask).await
}

pub(crate) async fn writing<T, A>(doing: &'static str, ask: impl FnMut() -> A) -> Result<T>
where
    A: Future<Output = Result<T, etcd_client::Error>>,
{
    asking(doing, Sort::Write, ask).await
}

/// Asks until it is answered, as long as asking again can do no harm, which is told by [`Error::Unavailable`].
async fn asking<T, A>(doing: &'static str, sort: Sort, mut ask: impl FnMut() -> A) -> Result<T>
where
    A: Future<Output = Result<T, etcd_client::Error>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match timeout_at(deadline, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => refused(doing, error, sort),
            Err(_elapsed) => {
                return Err(lost(doing, sort, format!("no answer within {PATIENCE:?}").into()));
            }
        };
        if !matches!(error, Error::Unavailable { .. }) || Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(doing, ?error, "asking again");
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}

fn lost(
    doing: &'static str,
    sort: Sort,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> Error {
    match sort {
        Sort::Read => Error::Unavailable { doing, source },
        Sort::Write => Error::Unknown { doing, source },
    }
}

/// What etcd's words mean; its codes alone do not tell it.
fn refused(doing: &'static str, error: etcd_client::Error, sort: Sort) -> Error {
    let none = Revision::NONE;
    match &error {
        etcd_client::Error::GRpcStatus(status) => match status.message() {
            said if said.contains("revision has been compacted") => {
                Error::Compacted { asked: none, oldest: none }
            }
            said if said.contains("future revision") => Error::Future { asked: none, newest: none },
            said if said.contains("database space exceeded") => {
                Error::Full { what: "etcd's quota is used up (alarm NOSPACE)".to_owned() }
            }
            said if said.contains("lease not found") => Error::NoLease { lease: LeaseId(0) },
            said if said.contains("request is too large") => {
                Error::TooLarge { bytes: 0, limit: 1_500 * 1024 }
            }
            // Neither a quorum nor a leader, or one that hands over: it was not even proposed.
            said if said.contains("etcdserver: no leader") || said.contains("proposal dropped") => {
                Error::Unavailable { doing, source: error.into() }
            }
            _ if never_sent(status) => Error::Unavailable { doing, source: error.into() },
            _ => lost(doing, sort, error.into()),
        },
        etcd_client::Error::LeaseKeepAliveError(what) | etcd_client::Error::WatchError(what) => {
            Error::Protocol { doing, what: what.clone() }
        }
        _ => lost(doing, sort, error.into()),
    }
}

/// Was there no connection to send it over?
fn never_sent(status: &tonic::Status) -> bool {
    let mut causes = std::iter::successors(status.source(), |cause| (*cause).source());
    causes.any(|cause| cause.is::<ConnectError>())
}

/// etcd does not say which revision it refuses.
fn with_revision(error: Error, asked: Option<Revision>) -> Error {
    let asked = asked.unwrap_or_default();
    match error {
        Error::Compacted { oldest, .. } => Error::Compacted { asked, oldest },
        Error::Future { newest, .. } => Error::Future { asked, newest },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_believed_only_where_it_comes_behind_the_events() {
        for (version, believed) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.0", false),
            ("3.5.12", false),
            ("3.5.16", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(tells_progress(version), believed, "{version}");
        }
    }
}
