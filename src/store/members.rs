//! Who the members of an etcd cluster are, and changes of that: one learner at a time, which becomes a voter once it
//! has caught up (etcd 3.4 and later).

use etcd_client::MemberAddOptions;

use crate::Result;
use crate::etcd::{Etcd, reading, writing};

/// A member of an etcd cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Member {
    /// etcd's number for it.
    pub id: u64,
    /// Empty until it has started once.
    pub name: String,
    /// Where the others find it, as URLs.
    pub peer_urls: Vec<String>,
    /// It does not vote yet.
    pub learner: bool,
}

impl Etcd {
    /// All members, as one of them knows them.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn members(&self) -> Result<Vec<Member>> {
        let answer = reading("list etcd's members", || {
            let mut client = self.client().cluster_client();
            async move { client.member_list().await }
        });
        Ok(answer.await?.members().iter().map(member).collect())
    }

    /// Takes in a member that will be found at `peer_url` and does not vote yet; its number.
    ///
    /// # Errors
    /// etcd refuses: there is a learner already, somebody has the URL, not all members are well; it does not answer.
    pub async fn add_learner(&self, peer_url: &str) -> Result<u64> {
        let doing = "add a learner to etcd";
        let answer = writing(doing, || {
            let mut client = self.client().cluster_client();
            let options = MemberAddOptions::new().with_is_learner();
            let urls = [peer_url.to_owned()];
            async move { client.member_add(urls, Some(options)).await }
        });
        let answer = answer.await?;
        answer.member().map(|member| member.id()).ok_or_else(|| crate::Error::Protocol {
            doing,
            what: "the answer has no member".to_owned(),
        })
    }

    /// Lets a learner vote.
    ///
    /// # Errors
    /// etcd refuses, as when the learner has not caught up yet; it does not answer.
    pub async fn promote(&self, id: u64) -> Result<()> {
        let answer = writing("let a learner of etcd's vote", || {
            let mut client = self.client().cluster_client();
            async move { client.member_promote(id).await }
        });
        answer.await.map(drop)
    }

    /// Removes a member.
    ///
    /// # Errors
    /// etcd refuses, as when too few would be left; it does not answer.
    pub async fn remove_member(&self, id: u64) -> Result<()> {
        let answer = writing("remove a member of etcd", || {
            let mut client = self.client().cluster_client();
            async move { client.member_remove(id).await }
        });
        answer.await.map(drop)
    }
}

fn member(member: &etcd_client::Member) -> Member {
    Member {
        id: member.id(),
        name: member.name().to_owned(),
        peer_urls: member.peer_urls().to_vec(),
        learner: member.is_learner(),
    }
}
