//! Kubernetes' API, as far as health asks it: two lists, over HTTP/2 and mutual TLS.

use std::future::poll_fn;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use orlop_pki::Secret;
use orlop_rt::Chain;
use serde::{Deserialize, Serialize};
use tonic::body::Body;
use tonic::client::GrpcService as _;
use tonic::transport::Channel;

use super::judge::Object;

/// Where it is, whom to believe and what to show, PEM.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Access {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) ca: String,
    pub(super) crt: String,
    pub(super) key: Secret,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There is nobody.
    #[error("no API server answers at {at}: {why}")]
    Unreachable { at: String, why: String },
    #[error("the API server at {at}: {why}")]
    Refused { at: String, why: String },
}

/// Objects asked for at a time,
const PAGE: u32 = 500;
/// and bytes they may have.
const PAGE_LIMIT: usize = 32 << 20;
/// Pages of a list; more nodes than Kubernetes can have.
const PAGES: usize = 100;

/// The API server.
#[derive(Debug)]
pub(super) struct Api {
    channel: Channel,
    at: String,
}

impl Api {
    /// Dialled when it is first asked; must be called within a runtime.
    pub(super) fn new(access: &Access) -> Result<Self, orlop_pki::Error> {
        let Access { host, port, ca, crt, key } = access;
        let config = orlop_pki::tls::client_config(ca, Some((crt, key.expose())))?;
        let channel = orlop_rpc::tls::channel(host, *port, config);
        Ok(Self { channel, at: format!("https://{host}:{port}") })
    }

    /// The same for who shows nothing.
    pub(super) fn anonymous(host: &str, port: u16, ca: &str) -> Result<Self, orlop_pki::Error> {
        let channel = orlop_rpc::tls::channel(host, port, orlop_pki::tls::client_config(ca, None)?);
        Ok(Self { channel, at: format!("https://{host}:{port}") })
    }

    /// Whether it is ready, as it says to everybody.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        self.get("/readyz").await.map(drop)
    }

    pub(super) async fn nodes(&self) -> Result<Vec<Object>, Error> {
        self.list("/api/v1/nodes").await
    }

    /// The pods of Kubernetes' own programs.
    pub(super) async fn system_pods(&self) -> Result<Vec<Object>, Error> {
        self.list("/api/v1/namespaces/kube-system/pods").await
    }

    async fn list(&self, path: &str) -> Result<Vec<Object>, Error> {
        let (mut all, mut next) = (Vec::new(), String::new());
        for _ in 0..PAGES {
            let List { items, metadata } = self.page(path, &next).await?;
            all.extend(items.unwrap_or_default());
            if metadata.next.is_empty() {
                return Ok(all);
            }
            next = metadata.next;
        }
        Err(self.refused(format!("its list {path} does not end")))
    }

    async fn page(&self, path: &str, next: &str) -> Result<List, Error> {
        // The token is base64 of URLs' alphabet; what is none makes no URI.
        let more = if next.is_empty() { String::new() } else { format!("&continue={next}") };
        let body = self.get(&format!("{path}?limit={PAGE}{more}")).await?;
        serde_json::from_slice(body.as_ref())
            .map_err(|error| self.refused(format!("{path}: {error}")))
    }

    async fn get(&self, path: &str) -> Result<impl AsRef<[u8]> + use<>, Error> {
        let plain = path.split('?').next().unwrap_or_default();
        let refused = |why: &dyn std::fmt::Display| self.refused(format!("{plain}: {why}"));
        let request = Request::get(path)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| refused(&error))?;
        let mut channel = self.channel.clone();
        let unreachable = |error: tonic::transport::Error| {
            let causes =
                std::iter::successors(std::error::Error::source(&error), |one| one.source());
            let why = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
            Error::Unreachable { at: self.at.clone(), why }
        };
        poll_fn(|context| channel.poll_ready(context)).await.map_err(unreachable)?;
        let response = channel.call(request).await.map_err(unreachable)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), PAGE_LIMIT).collect().await;
        let body = body.map_err(|error| refused(&Chain(&*error)))?.to_bytes();
        if status != StatusCode::OK {
            // A `Status` of Kubernetes', if it is one.
            let said: Said = serde_json::from_slice(&body).unwrap_or_default();
            return Err(refused(&format!("{status} {}", said.message).trim_end()));
        }
        Ok(body)
    }

    fn refused(&self, why: String) -> Error {
        Error::Refused { at: self.at.clone(), why }
    }
}

#[derive(Debug, Deserialize)]
struct List {
    /// Go writes no items as `null`.
    items: Option<Vec<Object>>,
    #[serde(default)]
    metadata: ListMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListMetadata {
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    message: String,
}
