//! etcd's API, over mutual TLS to one member.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use orlop_proto::etcd::cluster_client::ClusterClient;
pub use orlop_proto::etcd::downgrade_request::Action as Downgrade;
use orlop_proto::etcd::kv_client::KvClient;
use orlop_proto::etcd::maintenance_client::MaintenanceClient;
use orlop_proto::etcd::{
    AlarmMember, AlarmRequest, AlarmType, DefragmentRequest, DowngradeRequest, Member,
    MemberAddRequest, MemberListRequest, MemberRemoveRequest, MoveLeaderRequest, PutRequest,
    RangeRequest, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, alarm_request,
};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::join::{self, Cluster, Step};
use super::launch::{CLIENT_PORT, Identity};

/// How long a call may take. etcd itself gives up after some 7 s when it has no quorum.
const LIMIT: Duration = Duration::from_secs(15);
/// A large database takes its time.
const DEFRAGMENT_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Whom to believe and what to show, PEM.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// etcd's authority.
    pub ca: String,
    /// A client's certificate.
    pub crt: String,
    /// Its key.
    pub key: orlop_pki::Secret,
}

impl Credentials {
    /// Reads `ca.crt`, `admin.crt` and `admin.key`.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let read = |name| fs::read_to_string(folder.join(name));
        let key = orlop_pki::Secret::new(read("admin.key")?);
        Ok(Self { ca: read("ca.crt")?, crt: read("admin.crt")?, key })
    }
}

/// A member of etcd, as its client sees it.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    limit: Duration,
}

/// Whose word on the members is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Agreed on by a quorum.
    Agreed,
    /// What the member knows, which may be old.
    Local,
}

impl Client {
    /// The member at `host`; must be called within a runtime. Dialled when it is first asked.
    ///
    /// # Errors
    /// When the credentials are no good.
    pub fn new(host: &str, credentials: &Credentials) -> Result<Self, orlop_pki::Error> {
        let Credentials { ca, crt, key } = credentials;
        let config = orlop_pki::tls::client_config(ca, Some((crt, key.expose())))?;
        Ok(Self { channel: orlop_rpc::tls::channel(host, CLIENT_PORT, config), limit: LIMIT })
    }

    /// Who the members are.
    ///
    /// # Errors
    /// What etcd answers, or that it does not.
    pub async fn members(&self, view: View) -> Result<Vec<Member>, Status> {
        let request = MemberListRequest { linearizable: view == View::Agreed };
        let answer = self.ask("list the members", self.cluster().member_list(request)).await?;
        Ok(answer.members)
    }

    /// Takes a member in, which will be found at `peer_url`; all members then.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn add(&self, peer_url: String) -> Result<Vec<Member>, Status> {
        let request = MemberAddRequest { peer_urls: vec![peer_url], is_learner: false };
        Ok(self.ask("add a member", self.cluster().member_add(request)).await?.members)
    }

    /// One try to make `own`, whose data directory is empty, a member of this one's cluster.
    ///
    /// # Errors
    /// Why it is none yet, in words.
    pub async fn join(&self, own: &Identity) -> Result<Cluster, String> {
        let said = |status: Status| status.message().to_owned();
        let members = self.members(View::Agreed).await.map_err(said)?;
        match join::step(&members, own) {
            Step::Done(cluster) => Ok(cluster),
            Step::Lost(id) => Err(format!(
                "member {id:016x} has this node's address, but its data are not here; \
                 remove it (orlopctl etcd remove-member {id:016x})"
            )),
            Step::Add => {
                let members = self.add(own.peer_url()).await.map_err(said)?;
                Ok(join::cluster(&members, own))
            }
        }
    }

    /// Removes a member.
    ///
    /// # Errors
    /// As [`Self::members`]; `NotFound` for one that is none.
    pub async fn remove(&self, id: u64) -> Result<(), Status> {
        let request = MemberRemoveRequest { id };
        self.ask("remove a member", self.cluster().member_remove(request)).await.map(drop)
    }

    /// How this member fares.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn status(&self) -> Result<StatusResponse, Status> {
        self.ask("ask for its status", self.maintenance().status(StatusRequest {})).await
    }

    /// Who this member is.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn own_id(&self) -> Result<u64, Status> {
        Ok(self.status().await?.header.unwrap_or_default().member_id)
    }

    /// Makes another member the leader, where this one is; the new leader's name, or `None` where it is not.
    ///
    /// # Errors
    /// As [`Self::members`]; `FailedPrecondition` when no other member can be.
    pub async fn forfeit(&self) -> Result<Option<String>, Status> {
        let status = self.status().await?;
        let own = status.header.unwrap_or_default().member_id;
        if status.leader != own {
            return Ok(None);
        }
        let mut last =
            Status::failed_precondition("forfeit the leadership: no other member can lead");
        for Member { id, name, .. } in successors(self.members(View::Agreed).await?, own) {
            let request = MoveLeaderRequest { target_id: id };
            match self.ask("move the leadership", self.maintenance().move_leader(request)).await {
                Ok(_) => return Ok(Some(name)),
                Err(status) => last = status,
            }
        }
        Err(last)
    }

    /// The alarms of all members.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn alarms(&self) -> Result<Vec<AlarmMember>, Status> {
        self.alarm(alarm_request::Action::Get, 0, AlarmType::None).await
    }

    /// Ends all alarms; those that were.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn disarm(&self) -> Result<Vec<AlarmMember>, Status> {
        let mut ended = Vec::new();
        for alarm in self.alarms().await? {
            let action = alarm_request::Action::Deactivate;
            ended.extend(self.alarm(action, alarm.member_id, alarm.alarm()).await?);
        }
        Ok(ended)
    }

    /// Raises, ends or lists alarms.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn alarm(
        &self,
        action: alarm_request::Action,
        member_id: u64,
        alarm: AlarmType,
    ) -> Result<Vec<AlarmMember>, Status> {
        let request = AlarmRequest { action: action.into(), member_id, alarm: alarm.into() };
        Ok(self.ask("ask for alarms", self.maintenance().alarm(request)).await?.alarms)
    }

    /// Gives back what this member's database no longer needs; it serves nobody meanwhile.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn defragment(&self) -> Result<(), Status> {
        let patient = Self { limit: DEFRAGMENT_LIMIT, ..self.clone() };
        let mut member = self.maintenance();
        patient.ask("defragment", member.defragment(DefragmentRequest {})).await.map(drop)
    }

    /// Asks for, allows or cancels a downgrade to `version`; the cluster's version.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn downgrade(&self, action: Downgrade, version: String) -> Result<String, Status> {
        let request = DowngradeRequest { action: action.into(), version };
        Ok(self.ask("downgrade", self.maintenance().downgrade(request)).await?.version)
    }

    /// The member's database and its hash, as it comes.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn snapshot(&self) -> Result<Streaming<SnapshotResponse>, Status> {
        self.ask("take a snapshot", self.maintenance().snapshot(SnapshotRequest {})).await
    }

    /// Writes a key.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn put(&self, key: &str, value: &str) -> Result<(), Status> {
        let request = PutRequest { key: key.into(), value: value.into() };
        self.ask("write a key", KvClient::new(self.channel.clone()).put(request)).await.map(drop)
    }

    /// Reads a key, as a quorum has it.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Status> {
        let request = RangeRequest { key: key.into() };
        let answer =
            self.ask("read a key", KvClient::new(self.channel.clone()).range(request)).await?;
        Ok(answer.kvs.into_iter().next().map(|found| found.value))
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    /// Puts what a call says, or does not say in time, into words.
    async fn ask<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        match timeout(self.limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refused(what, &status)),
            Err(_) => {
                let text =
                    format!("{what}: etcd does not answer within {} s", self.limit.as_secs());
                Err(Status::deadline_exceeded(text))
            }
        }
    }
}

/// What etcd said; or why it could not: a status that was made here has a source.
pub(crate) fn refused(what: &str, status: &Status) -> Status {
    let causes = std::iter::successors(std::error::Error::source(status), |cause| cause.source());
    match causes.last() {
        None => Status::new(status.code(), format!("{what}: {}", status.message())),
        Some(why) => Status::unavailable(format!("{what}: etcd does not answer: {why}")),
    }
}

/// Who may lead instead of `own`, in the order of the members.
fn successors(members: Vec<Member>, own: u64) -> impl Iterator<Item = Member> {
    let able =
        move |member: &Member| member.id != own && !member.is_learner && !member.name.is_empty();
    members.into_iter().filter(able)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_next_has_started_votes_and_is_another() {
        let member = |id, name: &str, is_learner| Member {
            id,
            name: name.to_owned(),
            is_learner,
            ..Member::default()
        };
        let members = vec![
            member(1, "a", false),
            member(2, "", false),
            member(3, "c", true),
            member(4, "d", false),
        ];
        let ids: Vec<_> = successors(members, 1).map(|member| member.id).collect();
        assert_eq!(ids, [4]);
    }
}
