//! Hears what the routers of one link say, and keeps what holds of it ([`Learned`]).

use std::io;

use orlop_netlink::RouterSocket;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use crate::advertisement::{Advertisement, Learned};
use crate::dhcp::{Carrier, now, wait_until};
use crate::machine::Uptime;

/// What was said on the link of that index, as far as it holds.
pub(crate) type Heard = (u32, Learned);

/// Listens on one link.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// When the sender goes, so do we.
    pub(crate) carrier: watch::Receiver<Carrier>,
    pub(crate) updates: mpsc::Sender<Heard>,
}

/// MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL of RFC 4861 §10.
const MAX_SOLICITATIONS: u32 = 3;
const SOLICITATION_INTERVAL: Uptime = Uptime::from_secs(4);
/// More than fits any frame.
const BUFFER: usize = 9216;

enum Happened {
    Advertisement(io::Result<usize>),
    Timer,
    Carrier(Carrier),
    Abandoned,
}

impl Listener {
    /// Runs until nobody wants to know any more.
    ///
    /// # Errors
    /// When there is no socket for it, or the socket fails.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let first = self.carrier.wait_for(|carrier| carrier.running).await.map(|seen| *seen);
        let Ok(mut carrier) = first else { return Ok(()) };
        let socket = RouterSocket::open(self.index, &self.name)?;
        let mut buffer = vec![0; BUFFER];
        let mut learned = Learned::default();
        // The kernel asks once the link is up; we, because its answer may have come before us.
        let mut solicit = Some((now(), MAX_SOLICITATIONS));
        loop {
            let timer = solicit.map(|(at, _)| at).into_iter().chain(learned.wake_at()).min();
            // All arms are cancel-safe: a packet not taken stays in the socket.
            let happened = tokio::select! {
                received = socket.receive(&mut buffer) => Happened::Advertisement(received),
                () = wait_until(timer) => Happened::Timer,
                changed = self.carrier.changed() => match changed {
                    Ok(()) => Happened::Carrier(*self.carrier.borrow_and_update()),
                    Err(_) => Happened::Abandoned,
                },
            };
            let before = learned.clone();
            match happened {
                Happened::Advertisement(received) => {
                    let length = received?;
                    if let Some(said) = Advertisement::decode(&buffer[..length]) {
                        debug!(?said, "router advertisement");
                        solicit = None;
                        learned.take(now(), &said);
                    }
                }
                Happened::Timer => {
                    learned.expire(now());
                    if let Some((at, left)) = solicit.filter(|(at, _)| *at <= now()) {
                        // Without a link-local address yet the kernel refuses; the next one may pass.
                        let sent = socket.solicit().await;
                        debug!(?sent, "router solicitation");
                        solicit = (left > 1).then(|| (at + SOLICITATION_INTERVAL, left - 1));
                    }
                }
                Happened::Carrier(seen) => {
                    let seen_before = std::mem::replace(&mut carrier, seen);
                    if seen.running && seen != seen_before {
                        // It may be another network.
                        learned = Learned::default();
                        solicit = Some((now(), MAX_SOLICITATIONS));
                    }
                }
                Happened::Abandoned => return Ok(()),
            }
            if !learned.says_the_same(&before) {
                let resolvers = learned.resolvers().count();
                info!(resolvers, domains = learned.search().count(), "routers said");
                // The other end goes away only with us.
                let _ = self.updates.send((self.index, learned.clone())).await;
            }
        }
    }
}
