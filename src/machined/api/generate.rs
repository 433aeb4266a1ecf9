//! `GenerateConfiguration`: the form of the API becomes that of [`orlop_config::generate`].

use std::time::SystemTime;

use orlop_config::generate::{self, Device};
use orlop_config::machine::{MachineConfig, MachineType};
use orlop_proto::machine as proto;
use orlop_proto::machine::machine_config::MachineType as ProtoType;
use tonic::Status;

/// A machine's configuration, with the secrets of `existing` or new ones.
pub(super) fn generate(
    request: proto::GenerateConfigurationRequest,
    existing: Option<&MachineConfig>,
) -> Result<proto::GenerateConfigurationResponse, Status> {
    let now = match request.override_time {
        Some(time) => SystemTime::try_from(time)
            .map_err(|_| Status::invalid_argument("override_time: not a time"))?,
        None => SystemTime::now(),
    };
    let answer = generate::answer(&form(request), existing, now)
        .map_err(|error| Status::invalid_argument(orlop_rt::Chain(&error).to_string()))?;
    Ok(proto::GenerateConfigurationResponse {
        metadata: None,
        data: vec![answer.config.to_yaml().into_bytes()],
        talosconfig: answer.client.to_yaml().into_bytes(),
    })
}

fn form(request: proto::GenerateConfigurationRequest) -> generate::Request {
    let machine = request.machine_config.unwrap_or_default();
    let cluster = request.cluster_config.unwrap_or_default();
    let kind = match machine.r#type() {
        ProtoType::TypeUnknown => None,
        ProtoType::TypeInit => Some(MachineType::Init),
        ProtoType::TypeControlPlane => Some(MachineType::ControlPlane),
        ProtoType::TypeJoin => Some(MachineType::Worker),
    };
    let install = machine.install_config.unwrap_or_default();
    let network = machine.network_config.unwrap_or_default();
    let services = cluster.cluster_network.unwrap_or_default();
    let cni = services.cni_config.unwrap_or_default();
    generate::Request {
        version: request.config_version,
        cluster_name: cluster.name,
        endpoint: cluster.control_plane.unwrap_or_default().endpoint,
        dns_domain: services.dns_domain,
        cni_name: cni.name,
        cni_urls: cni.urls,
        allow_scheduling: cluster.allow_scheduling_on_masters,
        kind,
        install_disk: install.install_disk,
        install_image: install.install_image,
        kubernetes_version: machine.kubernetes_version,
        hostname: network.hostname,
        devices: network.interfaces.into_iter().map(device).collect(),
    }
}

fn device(device: proto::NetworkDeviceConfig) -> Device {
    let routes = device.routes.into_iter();
    Device {
        interface: device.interface,
        cidr: device.cidr,
        mtu: device.mtu,
        dhcp: device.dhcp,
        ignore: device.ignore,
        route_metric: device.dhcp_options.unwrap_or_default().route_metric,
        routes: routes.map(|route| (route.network, route.gateway, route.metric)).collect(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_config::machine;

    use super::*;

    fn request(kind: ProtoType) -> proto::GenerateConfigurationRequest {
        let machine = proto::MachineConfig {
            r#type: kind.into(),
            install_config: Some(proto::InstallConfig {
                install_disk: "/dev/sda".to_owned(),
                install_image: String::new(),
            }),
            network_config: Some(proto::NetworkConfig {
                hostname: "n1".to_owned(),
                interfaces: vec![proto::NetworkDeviceConfig {
                    interface: "eth0".to_owned(),
                    dhcp: true,
                    mtu: 1400,
                    ..proto::NetworkDeviceConfig::default()
                }],
            }),
            kubernetes_version: String::new(),
        };
        let cluster = proto::ClusterConfig {
            name: "c".to_owned(),
            control_plane: Some(proto::ControlPlaneConfig {
                endpoint: "https://10.0.0.2:6443".to_owned(),
            }),
            ..proto::ClusterConfig::default()
        };
        proto::GenerateConfigurationRequest {
            config_version: "v1alpha1".to_owned(),
            cluster_config: Some(cluster),
            machine_config: Some(machine),
            override_time: None,
        }
    }

    fn config(answer: &proto::GenerateConfigurationResponse) -> MachineConfig {
        machine::parse("a", std::str::from_utf8(&answer.data[0]).unwrap()).unwrap()
    }

    #[test]
    fn the_form_becomes_a_configuration_of_the_same_cluster() {
        let first = config(&generate(request(ProtoType::TypeInit), None).unwrap());
        assert_eq!(first.machine.kind, MachineType::Init);
        assert_eq!(first.machine.network.hostname.as_deref(), Some("n1"));
        let second = generate(request(ProtoType::TypeJoin), Some(&first)).unwrap();
        let second = config(&second);
        assert_eq!(second.machine.kind, MachineType::Worker);
        assert_eq!(second.machine.token, first.machine.token);
    }

    #[test]
    fn an_incomplete_form_and_a_lone_worker_are_refused() {
        let lone = generate(request(ProtoType::TypeJoin), None).unwrap_err();
        assert!(lone.message().starts_with("invalid generate request: "), "{lone}");
        let empty = proto::GenerateConfigurationRequest::default();
        let refused = generate(empty, None).unwrap_err();
        assert!(refused.message().starts_with("invalid generate request: "), "{refused}");
    }
}
