//! The store that is an etcd cluster, of generation 3.4 or later.
//!
//! Reads are answered by a quorum. A write is sent once: an answer that is lost makes it [`Error::Unknown`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, DeleteOptions, EventType, GetOptions,
    GetResponse, Identity, KeyValue, PutOptions, ResponseHeader, TlsOptions, TxnOp, TxnOpResponse,
    WatchOptions, WatchStream,
};
use tokio::time::timeout;

use crate::{
    Batch, Compare, Done, Entry, Error, Event, LeaseId, Op, Outcome, Page, Range, Result, Revision,
    Txn,
};

/// How long an answer is waited for: two elections of a cluster with etcd's own times.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let mut client = reading(doing, Client::connect(members, Some(options))).await?;
        let version = reading(doing, client.status()).await?.version().to_owned();
        let tells_progress = tells_progress(&version);
        if !tells_progress {
            tracing::info!(%version, "this etcd tells the progress of watches too early: it is not asked for it");
        }
        Ok(Self { client: Arc::new(client), tells_progress })
    }

    pub(crate) async fn revision(&self) -> Result<Revision> {
        let options = GetOptions::new().with_count_only();
        let mut client = self.client.kv_client();
        let doing = "read etcd's revision";
        let answer = reading(doing, client.get(Range::OPEN, Some(options))).await?;
        revision(doing, answer.header())
    }

    pub(crate) async fn range(&self, range: Range) -> Result<Page> {
        let doing = "read from etcd";
        let mut client = self.client.kv_client();
        let asked = range.at;
        let options = get_options(&range);
        let answer = reading(doing, client.get(&range.start[..], Some(options))).await;
        page(doing, answer.map_err(|error| with_revision(error, asked))?)
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
        let mut client = self.client.kv_client();
        let answer =
            writing(doing, client.txn(sent)).await.map_err(|error| match (error, lease) {
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
        let mut client = self.client.watch_client();
        let stream = reading("watch etcd", client.watch(&range.start[..], Some(options))).await?;
        Ok(Watch { stream, after, tells_progress: self.tells_progress })
    }

    pub(crate) async fn compact(&self, revision: Revision) -> Result<()> {
        let mut client = self.client.kv_client();
        let answer = writing("compact etcd", client.compact(number(revision.0), None)).await;
        answer.map(drop).map_err(|error| with_revision(error, Some(revision)))
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let mut client = self.client.lease_client();
        let seconds = number(ttl.as_secs().max(1));
        let answer = writing("grant a lease", client.grant(seconds, None)).await?;
        Ok(LeaseId(count(answer.id())))
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        let doing = "keep a lease alive";
        let mut client = self.client.lease_client();
        // It reads the first answer, which tells whether the lease is there.
        let kept = reading(doing, client.keep_alive(number(lease.0))).await;
        kept.map(drop).map_err(|error| match error {
            Error::Protocol { .. } => Error::NoLease { lease },
            error => error,
        })
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let mut client = self.client.lease_client();
        writing("revoke a lease", client.revoke(number(lease.0))).await.map(drop).map_err(|error| {
            if matches!(error, Error::NoLease { .. }) { Error::NoLease { lease } } else { error }
        })
    }

    pub(crate) async fn size(&self) -> Result<u64> {
        let mut client = self.client.maintenance_client();
        Ok(count(reading("read etcd's size", client.status()).await?.db_size()))
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
        reading("ask for a watch's progress", self.stream.request_progress()).await
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

async fn reading<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T> {
    asking(doing, answer, Sort::Read).await
}

async fn writing<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T> {
    asking(doing, answer, Sort::Write).await
}

async fn asking<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
    sort: Sort,
) -> Result<T> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| refused(doing, error, sort)),
        Err(_elapsed) => Err(lost(doing, sort, format!("no answer within {PATIENCE:?}").into())),
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
            // Neither a quorum nor a leader: it was not even proposed.
            said if said.contains("etcdserver: no leader") => {
                Error::Unavailable { doing, source: error.into() }
            }
            _ => lost(doing, sort, error.into()),
        },
        etcd_client::Error::LeaseKeepAliveError(what) | etcd_client::Error::WatchError(what) => {
            Error::Protocol { doing, what: what.clone() }
        }
        _ => lost(doing, sort, error.into()),
    }
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
