//! Bootstrap tokens whose time is over: their Secrets in `kube-system` are deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Action, Look, Loop, Now, Place, Seen, Step, served};
use crate::object::{Object, Objects, text};
use crate::resources::Resource;
use crate::strategy::DeleteOptions;

/// The longest wait: the clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(60);

/// The loop. Its keys are the names of Secrets.
#[derive(Debug, Default)]
pub struct Tokens {
    known: BTreeMap<String, Token>,
}

#[derive(Debug)]
struct Token {
    uid: String,
    revision: String,
    expires: OffsetDateTime,
}

impl Loop for Tokens {
    fn name(&self) -> &'static str {
        "tokens"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        resource.group.is_empty() && resource.plural == "secrets"
    }

    fn observe(&mut self, seen: &Seen<'_>, _: Now) -> Vec<Look> {
        if seen.namespace != "kube-system" || !seen.name.starts_with("bootstrap-token-") {
            return Vec::new();
        }
        self.known.remove(seen.name);
        if seen.gone || seen.meta.deletion_timestamp.is_some() {
            return Vec::new();
        }
        let Some(expires) = expires(&seen.object()) else { return Vec::new() };
        let (uid, revision) = (seen.meta.uid.clone(), seen.meta.resource_version.clone());
        self.known.insert(seen.name.to_owned(), Token { uid, revision, expires });
        vec![Look::now(seen.name)]
    }

    fn step(&mut self, key: &str, _: &dyn Objects, now: Now) -> Step {
        let Some(token) = self.known.get(key) else { return Step::idle() };
        if let Ok(left) = Duration::try_from(token.expires - now.wall)
            && !left.is_zero()
        {
            return Step::at(now.at + left.min(LOOK));
        }
        let options = DeleteOptions {
            uid: Some(token.uid.clone()),
            resource_version: Some(token.revision.clone()),
            ..DeleteOptions::default()
        };
        let place = Place::new(served("", "v1", "secrets"), "kube-system", key);
        Step::act(Action::Delete(place, options))
    }
}

/// Until when the token of a Secret holds; none if it is for ever, or none of a token.
fn expires(secret: &Object) -> Option<OffsetDateTime> {
    if text(secret, "/type") != "bootstrap.kubernetes.io/token" {
        return None;
    }
    let expires = STANDARD.decode(text(secret, "/data/expiration")).ok()?;
    OffsetDateTime::parse(std::str::from_utf8(&expires).ok()?, &Rfc3339).ok()
}
