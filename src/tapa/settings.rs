//! What the environment says (spec/ambassador §7.1): `MERIDIO_…`.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use orlop_config::environment::{self, Environment};

use crate::ambassador::World;
use crate::registry::Address;

/// Why it cannot be so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that cannot be read.
    #[error(transparent)]
    Invalid(#[from] environment::Invalid),
    /// A value that says what there is not.
    #[error("{0}")]
    Unknown(String),
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where applications ask.
    pub socket: PathBuf,
    /// Where probes ask.
    pub health_socket: PathBuf,
    /// How long an answer to a probe may take.
    pub probe_timeout: Duration,
    /// Are lists sent again that are as they were?
    pub repeat: bool,
    /// How the pod is connected.
    pub world: World,
}

/// Whether more than usual is logged.
#[must_use]
pub fn debug(environment: &Environment) -> bool {
    matches!(&*environment.text(&["MERIDIO_LOG_LEVEL"], "INFO"), "DEBUG" | "TRACE")
}

impl Settings {
    /// Reads them; what is not said is as upstream has it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(environment: &Environment) -> Result<Self, Error> {
        let path = |name: &str, default: &str| {
            let text = environment.text(&[name], default);
            PathBuf::from(text.strip_prefix("unix://").unwrap_or(&text))
        };
        let seconds = Duration::from_secs;
        let period = environment
            .duration(&["MERIDIO_NSP_ENTRY_TIMEOUT", "MERIDIO_NSP_ETRY_TIMEOUT"], seconds(30))?;
        // What is not there yet must still be sound.
        let _ = environment
            .duration(&["MERIDIO_GRPC_MAX_BACKOFF", "MERIDO_GRPC_MAX_BACKOFF"], seconds(5))?;
        let probe_timeout =
            environment.duration(&["MERIDIO_GRPC_PROBE_RPC_TIMEOUT"], seconds(1))?;
        let limit = environment.duration(&["MERIDIO_TIMEOUT"], seconds(15))?;
        match &*environment.text(&["MERIDIO_SECURITY"], "none") {
            "none" => {}
            other => return unknown("MERIDIO_SECURITY", other, "none"),
        }
        match &*environment.text(&["MERIDIO_FABRIC"], "none") {
            "none" => {}
            other => return unknown("MERIDIO_FABRIC", other, "none, with MERIDIO_STATIC_IPS"),
        }
        let ips = environment.text(&["MERIDIO_STATIC_IPS"], "");
        let ips = ips.split(',').filter(|ip| !ip.is_empty()).map(|ip| {
            let read = ip.trim().parse::<IpNet>();
            // As it is registered: RFC 5952 for IPv6.
            read.map(|ip| ip.to_string()).map_err(|_| environment::Invalid {
                name: "MERIDIO_STATIC_IPS".to_owned(),
                value: ip.to_owned(),
                what: "address with its length, such as 172.16.1.6/24",
            })
        });
        let static_ips = ips.collect::<Result<_, _>>()?;
        Ok(Self {
            socket: path("MERIDIO_SOCKET", "/ambassador.sock"),
            health_socket: path("MERIDIO_HEALTH_SOCKET", "/tmp/health.sock"),
            probe_timeout,
            repeat: environment.value(&["MERIDIO_WATCH_REPEAT"], "true or false", false)?,
            world: World {
                service: environment.text(&["MERIDIO_NSP_SERVICE_NAME"], "nsp-service"),
                namespace: environment.text(&["MERIDIO_NAMESPACE"], "default"),
                port: environment.value(&["MERIDIO_NSP_SERVICE_PORT"], "port", 7778)?,
                static_ips,
                period,
                limit,
            },
        })
    }
}

fn unknown<T>(name: &str, value: &str, there_is: &str) -> Result<T, Error> {
    Err(Error::Unknown(format!("{name}={value} is not there yet; there is {there_is}")))
}

impl World {
    /// Where the registry of a trench is: a service name with `://` is its address already.
    #[must_use]
    pub fn registry(&self, trench: &str) -> Address {
        match self.service.split_once("://") {
            Some(("unix", path)) => Address::Socket(path.into()),
            Some((_, place)) => Address::Plain(format!("http://{place}")),
            None => {
                let Self { service, namespace, port, .. } = self;
                Address::Plain(format!("http://{service}-{trench}.{namespace}:{port}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Settings::read(&variables.iter().map(owned).collect())
    }

    #[test]
    fn a_registry_is_where_the_service_of_its_trench_is() {
        let world = |service| read(&[("MERIDIO_NSP_SERVICE_NAME", service)]).expect("sound").world;
        let plain = read(&[("MERIDIO_NAMESPACE", "red")]).expect("sound").world.registry("t");
        assert_eq!(plain, Address::Plain("http://nsp-service-t.red:7778".to_owned()));
        let socket = world("unix:///run/nsp/nsp.sock").registry("t");
        assert_eq!(socket, Address::Socket("/run/nsp/nsp.sock".into()));
        let literal = world("tcp://[::1]:7778").registry("t");
        assert_eq!(literal, Address::Plain("http://[::1]:7778".to_owned()));
    }

    #[test]
    fn both_spellings_are_read_and_the_right_one_wins() {
        let wrong = ("MERIDIO_NSP_ETRY_TIMEOUT", "7s");
        assert_eq!(read(&[wrong]).expect("sound").world.period, Duration::from_secs(7));
        let both = read(&[wrong, ("MERIDIO_NSP_ENTRY_TIMEOUT", "8s")]).expect("sound");
        assert_eq!(both.world.period, Duration::from_secs(8));
    }

    #[test]
    fn what_cannot_be_is_told_with_its_variable() {
        let rows = [
            ("MERIDIO_TIMEOUT", "15"),
            ("MERIDIO_NSP_SERVICE_PORT", ""),
            ("MERIDIO_STATIC_IPS", "172.16.1.6/24,x"),
            ("MERIDIO_FABRIC", "nsm"),
            ("MERIDIO_SECURITY", "spiffe"),
        ];
        for (name, value) in rows {
            let error = read(&[(name, value)]).expect_err("refused").to_string();
            assert!(error.contains(name), "{error}");
        }
        let ips = read(&[("MERIDIO_STATIC_IPS", "172.16.1.6/24,FD00:0:0:1::6/64")]).expect("sound");
        assert_eq!(ips.world.static_ips, ["172.16.1.6/24", "fd00:0:0:1::6/64"]);
    }
}
