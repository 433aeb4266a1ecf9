//! Who asks: certificates, bearer tokens and nobody in particular (`spec/kube-api.md` §1.1).
//!
//! [`Authenticator`] tries what a request shows in the order of the table: its client certificate, then its bearer
//! token as one of the static file ([`tokens`]), of a service account ([`account`]) and of a joining node
//! ([`bootstrap`]). The first that holds says who it is. Where something is shown and nothing holds, the answer is 401,
//! also where anonymous requests are welcome. What it found is believed for [`cache::BELIEVED`] more.
//!
//! - [`jwt`]: the signed form of service accounts' tokens.
//! - [`impersonation`]: acting as somebody else, as far as a request's own user may.
//! - [`review`]: what others are told of a token, and everybody of themselves.
//! - [`issuer`]: the documents by which others check our tokens themselves.

pub mod account;
mod bootstrap;
mod cache;
pub mod impersonation;
pub mod issuer;
pub mod jwt;
pub mod review;
pub mod tokens;

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use orlop_pki::tls::Judge;
use orlop_rt::Chain;
use rustls_pki_types::CertificateDer;

use crate::object::{Objects, User};
use crate::status::Status;
use account::Accounts;
use cache::{Cache, Key};
use tokens::Tokens;

/// The group of everybody who is known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of those who are not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user of those who are not.
pub const ANONYMOUS: &str = "system:anonymous";
/// In a user's `extra`: the certificate or token that it was known by.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Longest token that is looked at.
const TOKEN_LIMIT: usize = 32 << 10;
/// What a bearer token in a WebSocket's protocols begins with: browsers can set no other header.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// Who may ask without showing anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// Anybody, as [`ANONYMOUS`].
    #[default]
    Welcome,
    /// Anybody, at these paths only.
    At(Vec<String>),
    /// Nobody.
    Refused,
}

/// What is needed to know users.
#[derive(Debug, Default)]
pub struct Settings {
    /// PEM of the authorities of client certificates; none: no certificate counts.
    pub client_ca: Option<String>,
    /// The static token file's text.
    pub tokens: Option<String>,
    /// Signs and knows service accounts' tokens.
    pub accounts: Accounts,
    /// Who shows nothing.
    pub anonymous: Anonymous,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authorities of clients.
    #[error("read the authorities of client certificates (--client-ca-file)")]
    ClientCa(#[source] orlop_pki::Error),
    /// The static tokens.
    #[error("read the static tokens (--token-auth-file)")]
    Tokens(#[source] tokens::Problem),
}

/// Knows users by what their requests show.
#[derive(Debug)]
pub struct Authenticator {
    certificates: Option<Judge>,
    tokens: Tokens,
    accounts: Accounts,
    anonymous: Anonymous,
    objects: Arc<dyn Objects>,
    cache: Cache,
}

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In [`AUTHENTICATED`], too.
    pub user: User,
    /// Those of the asked audiences that the token is for.
    pub audiences: Vec<String>,
    /// When it ends by itself.
    pub(crate) until: Option<SystemTime>,
}

impl Authenticator {
    /// Makes one; `objects` has the service accounts, their pods, and the tokens of joining nodes.
    ///
    /// # Errors
    /// When a text of the settings cannot be read.
    pub fn new(settings: Settings, objects: Arc<dyn Objects>) -> Result<Self, Error> {
        let Settings { client_ca, tokens, accounts, anonymous } = settings;
        let certificates = client_ca.as_deref().map(Judge::new).transpose();
        let tokens = Tokens::parse(tokens.as_deref().unwrap_or_default());
        Ok(Self {
            certificates: certificates.map_err(Error::ClientCa)?,
            tokens: tokens.map_err(Error::Tokens)?,
            accounts,
            anonymous,
            objects,
            cache: Cache::default(),
        })
    }

    /// Signs and knows service accounts' tokens.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// What is stored, as the tokens are checked against.
    #[must_use]
    pub fn objects(&self) -> &dyn Objects {
        &*self.objects
    }

    /// Who sends a request to `path`: `chain` is what its TLS session shows, the client's own certificate first.
    ///
    /// # Errors
    /// 401 when what it shows does not hold, or it shows nothing and has to.
    pub fn authenticate(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
        path: &str,
        now: SystemTime,
    ) -> Result<User, Status> {
        let mut refused = Vec::new();
        if self.certificates.is_some() && !chain.is_empty() {
            match self.by_certificate(chain, now) {
                Ok(user) => return Ok(user),
                Err(why) => refused.push(format!("client certificate: {why}")),
            }
        }
        match bearer(headers) {
            Ok(Some(token)) => match self.by_token(&token, None, now) {
                Ok(verdict) => return Ok(verdict.user),
                Err(why) => refused.push(format!("bearer token: {why}")),
            },
            Ok(None) => {}
            Err(why) => refused.push(why.to_owned()),
        }
        let welcome = match &self.anonymous {
            Anonymous::Welcome => true,
            Anonymous::At(paths) => paths.iter().any(|known| known == path),
            Anonymous::Refused => false,
        };
        if refused.is_empty() && welcome {
            return Ok(anonymous());
        }
        if !refused.is_empty() {
            tracing::debug!(path, why = refused.join("; "), "refused what a request shows");
        }
        Err(Status::unauthorized())
    }

    /// Whose token it is. `audiences`: those it must be for one of; none: our own.
    ///
    /// # Errors
    /// Why it is nobody's, in words for whoever may ask that.
    pub fn by_token(
        &self,
        token: &str,
        audiences: Option<&[String]>,
        now: SystemTime,
    ) -> Result<Verdict, String> {
        let audiences = audiences.unwrap_or_else(|| self.accounts.audiences());
        let key = Key::of_token(token, audiences);
        if let Some(known) = self.cache.find(&key, now) {
            return Ok(known);
        }
        let verdict = self.judge_token(token, audiences, now)?;
        self.cache.keep(key, &verdict, now);
        Ok(verdict)
    }

    fn judge_token(
        &self,
        token: &str,
        audiences: &[String],
        now: SystemTime,
    ) -> Result<Verdict, String> {
        if token.len() > TOKEN_LIMIT {
            return Err(format!("it is longer than {TOKEN_LIMIT} bytes"));
        }
        // What is no token of a service account is for those who talk to us.
        let ours = self.accounts.audiences();
        let plain = |user: User, until| {
            let audiences: Vec<_> =
                ours.iter().filter(|own| audiences.contains(own)).cloned().collect();
            if audiences.is_empty() {
                return Err("it is not for any of the audiences asked for".to_owned());
            }
            Ok(Verdict { user: user.known(), audiences, until })
        };
        if let Some(user) = self.tokens.find(token) {
            return plain(user.clone(), None);
        }
        if let Some(outcome) = self.accounts.verify(token, audiences, &*self.objects, now) {
            return outcome.map(|mut verdict| {
                verdict.user = verdict.user.known();
                verdict
            });
        }
        match bootstrap::verify(token, &*self.objects, now) {
            Some(Ok((user, until))) => plain(user, until),
            Some(Err(why)) => Err(why),
            None => Err("it is none that this server knows".to_owned()),
        }
    }

    fn by_certificate(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<User, String> {
        let key = Key::of_chain(chain);
        if let Some(known) = self.cache.find(&key, now) {
            return Ok(known.user);
        }
        let judge = self.certificates.as_ref().ok_or("no authority is trusted")?;
        judge.admits(chain, now).map_err(|error| Chain(&error).to_string())?;
        let own = chain.first().map(AsRef::as_ref).unwrap_or_default();
        let told = |error: orlop_pki::Error| Chain(&error).to_string();
        let subject = orlop_pki::certificate::subject(own).map_err(told)?;
        let (_, until) = orlop_pki::certificate::validity_of_der(own).map_err(told)?;
        if subject.common_name.is_empty() {
            return Err("it names no user: its subject has no CN".to_owned());
        }
        let mut user = User { name: subject.common_name, ..User::default() };
        for group in subject.organizations {
            user.join(&group);
        }
        let id = format!("X509SHA256={}", subject.digest);
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec![id]);
        let verdict = Verdict { user: user.known(), audiences: Vec::new(), until: Some(until) };
        self.cache.keep(key, &verdict, now);
        Ok(verdict.user)
    }
}

impl User {
    /// In the group of those who are known.
    fn known(mut self) -> Self {
        self.join(AUTHENTICATED);
        self
    }

    fn join(&mut self, group: &str) {
        if !self.is_in(group) {
            self.groups.push(group.to_owned());
        }
    }
}

/// Who shows nothing.
#[must_use]
pub fn anonymous() -> User {
    User { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..User::default() }
}

/// The token a request shows.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    if let Some(shown) = headers.get(AUTHORIZATION) {
        let shown = shown.to_str().map_err(|_| "Authorization: it is no text")?.trim();
        let (scheme, token) = shown.split_once(' ').unwrap_or((shown, ""));
        let token = token.trim();
        return match (scheme.eq_ignore_ascii_case("bearer"), token) {
            (false, _) => Err("Authorization: its scheme is not Bearer"),
            // Clients whose token is empty send that.
            (true, "") => Ok(None),
            (true, token) => Ok(Some(token.to_owned())),
        };
    }
    let protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let shown = protocols
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_BEARER));
    let Some(encoded) = shown else { return Ok(None) };
    URL_SAFE_NO_PAD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(Some)
        .ok_or("Sec-WebSocket-Protocol: the token in it is no base64url of a text")
}

#[cfg(test)]
mod tests;
