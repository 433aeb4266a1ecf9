//! GenerateConfiguration (spec/node-api §5.5): one machine's configuration, from a form.

use std::time::SystemTime;

use super::{Error, Images, Options, Secrets, config, endpoint};
use crate::client::Configuration;
use crate::machine::{
    self, Cni, DhcpOptions, Interface, MachineConfig, MachineType, Route, VERSION,
};
use crate::value::Spelled;

/// The form of GenerateConfiguration; what was left empty in it is empty here.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `v1alpha1`; required.
    pub version: String,
    /// Required.
    pub cluster_name: String,
    /// `https://host[:port]`; required.
    pub endpoint: String,
    /// Empty means `cluster.local`.
    pub dns_domain: String,
    /// Empty means `flannel`.
    pub cni_name: String,
    /// Manifests of a custom one.
    pub cni_urls: Vec<String>,
    /// Control planes run workloads, too.
    pub allow_scheduling: bool,
    /// `None` is the form's unknown one.
    pub kind: Option<MachineType>,
    /// Required.
    pub install_disk: String,
    /// Empty means the installer of the running version.
    pub install_image: String,
    /// Empty means that of the running version.
    pub kubernetes_version: String,
    /// Empty means what DHCP says.
    pub hostname: String,
    /// Settings of links.
    pub devices: Vec<Device>,
}

/// A link in a [`Request`].
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Its name.
    pub interface: String,
    /// Address and prefix length, or empty.
    pub cidr: String,
    /// 0 leaves the link's own.
    pub mtu: i32,
    /// Addresses by DHCP.
    pub dhcp: bool,
    /// Leave the link alone.
    pub ignore: bool,
    /// Of DHCP's default route; 0 means the usual one.
    pub route_metric: u32,
    /// Network, gateway or empty, metric or 0.
    pub routes: Vec<(String, String, u32)>,
}

/// What [`answer`] makes of a [`Request`].
#[derive(Debug)]
pub struct Answer {
    /// The machine's.
    pub config: MachineConfig,
    /// For the administrator of its cluster.
    pub client: Configuration,
}

/// Makes the configuration of one machine. With `existing`, a configuration of its cluster, it gets
/// that cluster's secrets; without, it is the first of a new one.
///
/// # Errors
/// [`Error::Request`], whose source says what is missing or wrong; or when there is no randomness.
pub fn answer(
    request: &Request,
    existing: Option<&MachineConfig>,
    now: SystemTime,
) -> Result<Answer, Error> {
    let invalid = |why: String| Error::Request(why.into());
    let wrong = |error: Error| Error::Request(Box::new(error));
    if request.version != VERSION {
        return Err(invalid(format!("the version is {:?}, not {VERSION}", request.version)));
    }
    let kind = request.kind.ok_or_else(|| invalid("it names no type of machine".to_owned()))?;
    for (what, text) in [
        ("name of the cluster", &request.cluster_name),
        ("endpoint of the control plane", &request.endpoint),
        ("disk to install to", &request.install_disk),
    ] {
        if text.is_empty() {
            return Err(invalid(format!("it has no {what}")));
        }
    }
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let options = Options {
        install_disk: request.install_disk.clone(),
        install_image: given(&request.install_image),
        dns_domain: given(&request.dns_domain).unwrap_or(Options::default().dns_domain),
        kubernetes_version: given(&request.kubernetes_version),
        ..Options::default()
    };
    let endpoint = endpoint(&request.endpoint).map_err(wrong)?;
    let images = Images::of(options.kubernetes_version.as_deref()).map_err(wrong)?;
    let secrets = match existing {
        Some(config) => Secrets::of(config).map_err(Error::Request)?,
        None if kind.is_control_plane() => Secrets::generate(now)?,
        None => return Err(invalid("a worker needs a cluster that exists".to_owned())),
    };
    let name = &request.cluster_name;
    let mut config = config(kind, name, &endpoint, &options, images.as_ref(), &secrets);
    config.machine.network.hostname = given(&request.hostname);
    config.machine.network.interfaces =
        request.devices.iter().map(Device::interface).collect::<Result<_, _>>().map_err(invalid)?;
    config.cluster.allow_scheduling_on_masters = request.allow_scheduling;
    if let Some(network) = &mut config.cluster.network
        && !(request.cni_name.is_empty() && request.cni_urls.is_empty())
    {
        let urls = request.cni_urls.iter().map(|url| Spelled::spelled(url));
        let urls = urls.collect::<Result<_, _>>().map_err(invalid)?;
        network.cni = Some(Cni { name: request.cni_name.clone(), urls });
    }
    // What a node would refuse is better refused here.
    machine::parse("config.yaml", &config.to_yaml())
        .map_err(|problems| Error::Request(Box::new(problems)))?;
    Ok(Answer { config, client: secrets.client(name, &options.endpoints, now)? })
}

impl Device {
    fn interface(&self) -> Result<Interface, String> {
        fn given<T: Spelled>(text: &str) -> Result<Option<T>, String> {
            (!text.is_empty()).then(|| T::spelled(text)).transpose()
        }
        let routes = self.routes.iter().map(|(network, gateway, metric)| {
            Ok(Route {
                network: given(network)?,
                gateway: given(gateway)?,
                metric: (*metric > 0).then_some(*metric),
                ..Route::default()
            })
        });
        let mtu = u32::try_from(self.mtu).map_err(|_| format!("an MTU of {}", self.mtu))?;
        let metric = (self.route_metric > 0).then_some(self.route_metric);
        Ok(Interface {
            interface: self.interface.clone(),
            cidr: given(&self.cidr)?,
            dhcp: self.dhcp,
            dhcp_options: metric.map(|metric| DhcpOptions { route_metric: Some(metric) }),
            routes: routes.collect::<Result<_, String>>()?,
            mtu: (mtu > 0).then_some(mtu),
            ignore: self.ignore,
            ..Interface::default()
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request() -> Request {
        Request {
            version: VERSION.to_owned(),
            cluster_name: "trial".to_owned(),
            endpoint: "https://10.0.0.2:6443".to_owned(),
            kind: Some(MachineType::Init),
            install_disk: "/dev/vda".to_owned(),
            ..Request::default()
        }
    }

    fn answered(request: &Request, existing: Option<&MachineConfig>) -> Result<Answer, Error> {
        answer(request, existing, SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000))
    }

    #[test]
    fn a_form_becomes_a_configuration() {
        let device = Device {
            interface: "eth0".to_owned(),
            cidr: "10.0.0.5/24".to_owned(),
            mtu: 1400,
            routes: vec![("0.0.0.0/0".to_owned(), "10.0.0.1".to_owned(), 0)],
            ..Device::default()
        };
        let other = Device {
            interface: "eth1".to_owned(),
            dhcp: true,
            route_metric: 2048,
            ..Device::default()
        };
        let request = Request {
            dns_domain: "k8s.example.org".to_owned(),
            cni_name: "custom".to_owned(),
            cni_urls: vec!["https://example.org/cni.yaml".to_owned()],
            allow_scheduling: true,
            install_image: "example.org/installer:v1".to_owned(),
            kubernetes_version: "v1.20.2".to_owned(),
            hostname: "node-1".to_owned(),
            devices: vec![device, other],
            ..request()
        };
        let Answer { config, client } = answered(&request, None).unwrap();
        let (machine, cluster) = (&config.machine, &config.cluster);
        assert_eq!(machine.kind, MachineType::Init);
        assert_eq!(machine.network.hostname.as_deref(), Some("node-1"));
        let links = &machine.network.interfaces;
        assert_eq!(
            (links[0].cidr.unwrap().to_string(), links[0].mtu),
            ("10.0.0.5/24".to_owned(), Some(1400))
        );
        assert_eq!(links[0].routes[0].gateway.unwrap().to_string(), "10.0.0.1");
        assert_eq!(links[1].dhcp_options.as_ref().unwrap().route_metric, Some(2048));
        let install = machine.install.as_ref().unwrap();
        assert_eq!(
            (&*install.disk, install.image.as_deref()),
            ("/dev/vda", Some("example.org/installer:v1"))
        );
        assert_eq!(machine.kubelet.image.as_deref(), Some("ghcr.io/talos-systems/kubelet:v1.20.2"));
        assert_eq!(cluster.scheduler.image.as_deref(), Some("k8s.gcr.io/kube-scheduler:v1.20.2"));
        let network = cluster.network.as_ref().unwrap();
        assert_eq!(
            (&*network.dns_domain, &*network.cni.as_ref().unwrap().name),
            ("k8s.example.org", "custom")
        );
        assert!(cluster.allow_scheduling_on_masters);
        assert_eq!(client.contexts["trial"].ca, machine.ca.as_ref().unwrap().crt);
        machine::parse_for(machine::Mode::Metal, "m", &config.to_yaml()).unwrap();
    }

    #[test]
    fn a_cluster_that_exists_keeps_its_secrets() {
        let first = answered(&request(), None).unwrap().config;
        for kind in [MachineType::ControlPlane, MachineType::Worker] {
            let request = Request { kind: Some(kind), ..request() };
            let further = answered(&request, Some(&first)).unwrap();
            assert_eq!(further.config.machine.token, first.machine.token);
            assert_eq!(further.config.cluster.token, first.cluster.token);
            let crt = |config: &MachineConfig| config.cluster.ca.as_ref().unwrap().crt.clone();
            assert_eq!(crt(&further.config), crt(&first));
            let has_key = further.config.machine.ca.as_ref().unwrap().key.is_some();
            assert_eq!(has_key, kind == MachineType::ControlPlane);
            assert_eq!(further.client.contexts["trial"].ca, first.machine.ca.as_ref().unwrap().crt);
        }
        let again = answered(&request(), None).unwrap().config;
        assert_ne!(again.machine.token, first.machine.token);
    }

    #[test]
    fn an_incomplete_form_is_an_invalid_request_that_says_why() {
        let worker = answered(&request(), None).map(|first| {
            let request = Request { kind: Some(MachineType::Worker), ..request() };
            answered(&request, Some(&first.config)).unwrap().config
        });
        let worker = worker.unwrap();
        let with = |change: fn(&mut Request)| {
            let mut request = request();
            change(&mut request);
            request
        };
        for (request, existing, why) in [
            (with(|r| r.version = "v2".into()), None, "the version is \"v2\", not v1alpha1"),
            (with(|r| r.kind = None), None, "it names no type of machine"),
            (with(|r| r.cluster_name.clear()), None, "it has no name of the cluster"),
            (with(|r| r.endpoint.clear()), None, "it has no endpoint of the control plane"),
            (with(|r| r.install_disk.clear()), None, "it has no disk to install to"),
            (
                with(|r| r.endpoint = "10.0.0.2".into()),
                None,
                "no scheme and port specified for the cluster endpoint URL; try: \"https://10.0.0.2:6443\"",
            ),
            (
                with(|r| r.kind = Some(MachineType::Worker)),
                None,
                "a worker needs a cluster that exists",
            ),
            (
                with(|_| {}),
                Some(&worker),
                "the machine that is asked has no machine.ca.key; ask a control plane",
            ),
            (
                with(|r| r.kubernetes_version = "latest".into()),
                None,
                "Kubernetes version \"latest\" is not written like 1.20.1",
            ),
            (
                with(|r| r.devices = vec![Device { mtu: -1, ..Device::default() }]),
                None,
                "an MTU of -1",
            ),
            (
                with(|r| r.hostname = "a_b".into()),
                None,
                "config.yaml:11:5: machine.network.hostname: \"a_b\" must be letters, digits and inner hyphens",
            ),
        ] {
            let error = answered(&request, existing).unwrap_err();
            assert_eq!(error.to_string(), "invalid generate request");
            let sources = std::iter::successors(std::error::Error::source(&error), |e| e.source());
            let said = sources.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            assert_eq!(said, why);
        }
    }
}
