//! `machine`, but for its network; and what a node of its type cannot do without.

use std::path::Path;

use orlop_pki::certificate;

use super::{Check, PairOf, Seen, network};
use crate::cmdline;
use crate::document::Step;
use crate::machine::{
    Cluster, Disk, File, FileOperation, Install, Kubelet, LogDestination, Logs, Machine,
    MachineType, Mode, Registries, RegistryConfig, Time, TimeServer, names,
};
use crate::value::{CertificateAndKey, Size};

/// Flags of the kubelet that the node sets itself.
const KUBELET_OWNED: &[&str] = &[
    "bootstrap-kubeconfig",
    "kubeconfig",
    "container-runtime",
    "container-runtime-endpoint",
    "config",
    "dynamic-config-dir",
    "cert-dir",
    "cni-conf-dir",
    "hostname-override",
];

pub(super) fn machine(check: &mut Check, machine: &Machine, mode: Option<Mode>) {
    check.token(machine.token.as_ref());
    if let Some(ca) = &machine.ca {
        check.key("ca", |check| check.pair(ca, PairOf::Authority));
    }
    check.accepted(&machine.accepted_cas);
    check.sans("certSANs", &machine.cert_sans);
    check.key("kubelet", |check| kubelet(check, &machine.kubelet));
    check.key("network", |check| network::network(check, &machine.network));
    disks(check, &machine.disks);
    install(check, machine.install.as_ref(), mode);
    files(check, &machine.files);
    check.entries("env", &machine.env, |check, name, value| {
        if !names::is_variable(name) {
            check.wrong(format!("{name:?} is no name of a variable: letters, digits, `_`"));
        } else if value.contains('\0') {
            check.wrong("a value cannot hold a NUL");
        }
    });
    check.key("time", |check| time(check, &machine.time));
    for (key, settings) in [("sysctls", &machine.sysctls), ("sysfs", &machine.sysfs)] {
        check.entries(key, settings, |check, name, value| {
            if names::sysctl_path(name).is_none() {
                let message = format!("{name:?} is no name such as net.ipv4.ip_forward");
                check.wrong(message);
            } else if value.contains(['\0', '\n']) {
                check.wrong("a value is a single line");
            }
        });
    }
    check.key("registries", |check| registries(check, &machine.registries));
    kernel(check, machine);
    check.key("logging", |check| {
        check.each("destinations", &machine.logging.destinations, destination);
    });
    check.key("logs", |check| logs(check, &machine.logs));
    check.entries("nodeLabels", &machine.node_labels, |check, key, value| {
        if !names::is_label_key(key) {
            check.wrong(format!("{key:?} is no key of a label such as example.org/rack"));
        } else if !names::is_label_value(value) {
            check.wrong(format!(
                "{value:?} is no value of a label: at most 63 letters, digits, -_."
            ));
        }
    });
    check.key("trustd", |check| {
        check.each("drop", &machine.trustd.drop, |check, folder| {
            names::absolute(folder).into_iter().for_each(|message| check.wrong(message));
        });
        check.each("endpoints", &machine.trustd.endpoints, |check, host| {
            if !names::is_host(host) {
                check.wrong(format!("{host:?} must be an address or a name, without a port"));
            }
        });
    });
}

/// What a node of this type cannot do without.
pub(super) fn secrets(check: &mut Check, machine: &Machine, cluster: &Cluster) {
    const NEEDED: &str = "a control plane needs it; orlopctl gen config makes it";
    let etcd = cluster.etcd.as_ref().and_then(|etcd| etcd.ca.as_ref());
    let is_control_plane = machine.kind.is_control_plane();
    let missing = |needed: &'static str| move |there: bool| (!there).then_some(needed);
    let admission = missing("a node needs it to be admitted; orlopctl gen config makes it");
    check.key("machine", |check| {
        check.maybe("token", admission(machine.token.is_some()));
        if is_control_plane {
            authority(check, machine.ca.as_ref(), NEEDED);
        }
    });
    check.key("cluster", |check| {
        check.maybe("token", admission(cluster.token.is_some()));
        if is_control_plane {
            // Another control plane hands it over to one that has none at all.
            let handed = !machine.trustd.endpoints.is_empty() && machine.kind != MachineType::Init;
            if !(handed && cluster.ca.is_none()) {
                authority(check, cluster.ca.as_ref(), NEEDED);
            }
            let secret = missing(NEEDED)(cluster.aescbc_encryption_secret.is_some());
            check.maybe("aescbcEncryptionSecret", secret);
            if !(handed && etcd.is_none()) {
                check.key("etcd", |check| authority(check, etcd, NEEDED));
            }
        }
    });
}

fn authority(check: &mut Check, ca: Option<&CertificateAndKey>, needed: &str) {
    check.key("ca", |check| match ca {
        None => check.wrong(needed),
        Some(ca) if ca.crt.is_empty() => check.wrong_at("crt", needed),
        Some(ca) if ca.key.is_none() => check.wrong_at("key", needed),
        Some(_) => {}
    });
}

fn kubelet(check: &mut Check, kubelet: &Kubelet) {
    check.image("image", kubelet.image.as_ref());
    check.flags(&kubelet.extra_args, KUBELET_OWNED);
    let mut seen = Seen::default();
    check.each("extraMounts", &kubelet.extra_mounts, |check, mount| {
        check.maybe("destination", names::absolute(&mount.destination));
        let bind =
            mount.kind == "bind" || mount.options.iter().any(|o| o == "bind" || o == "rbind");
        if bind {
            check.maybe("source", names::absolute(&mount.source));
        }
        if seen.again(&mount.destination) {
            check.wrong_at("destination", format!("{:?} is mounted twice", mount.destination));
        }
    });
}

fn disks(check: &mut Check, disks: &[Disk]) {
    let (mut devices, mut mountpoints) = (Seen::default(), Seen::default());
    check.each("disks", disks, |check, disk| {
        if disk.device.is_empty() {
            check.wrong_at("device", "a device is required");
        } else if names::absolute(&disk.device).is_some() {
            check.wrong_at("device", format!("{:?} is no device such as /dev/sdb", disk.device));
        } else if devices.again(&disk.device) {
            check.wrong_at("device", format!("{:?} is here a second time", disk.device));
        }
        let last = disk.partitions.len().saturating_sub(1);
        check.each("partitions", &disk.partitions, |check, partition| {
            if partition.size.0 == 0 && check.at.last() != Some(&Step::Index(last)) {
                check.wrong(format!(
                    "partition for disk {:?} is set to occupy full disk, but it's not the last \
                     partition in the list",
                    disk.device
                ));
            }
            let mountpoint = &partition.mountpoint;
            if let Some(message) = names::absolute(mountpoint) {
                check.wrong_at("mountpoint", message);
            } else if mountpoints.again(mountpoint) {
                check.wrong_at("mountpoint", format!("{mountpoint:?} is mounted twice"));
            }
        });
    });
}

fn install(check: &mut Check, install: Option<&Install>, mode: Option<Mode>) {
    let needed = mode == Some(Mode::Metal);
    match install {
        None if needed => {
            check.wrong_at("install", "install instructions are required in metal mode");
        }
        None => {}
        Some(install) => check.key("install", |check| {
            match install.disk.as_str() {
                "" if needed => {
                    check.wrong_at("disk", "an install disk is required in metal mode: /dev/sda");
                }
                "" => {}
                disk if names::absolute(disk).is_some() => {
                    check.wrong_at("disk", format!("{disk:?} is no device such as /dev/sda"));
                }
                _ => {}
            }
            check.image("image", install.image.as_ref());
            check.each("extraKernelArgs", &install.extra_kernel_args, |check, argument| {
                let one = cmdline::parse(argument).arguments().len() == 1;
                if !one || argument.contains(|c: char| c.is_control()) {
                    check.wrong(format!("{argument:?} must be a single argument of the kernel"));
                }
            });
        }),
    }
}

fn files(check: &mut Check, files: &[File]) {
    let mut created = Seen::default();
    check.each("files", files, |check, file| {
        if let Some(message) = names::absolute(&file.path) {
            check.wrong_at("path", message);
        } else if file.path.ends_with('/') {
            check.wrong_at("path", format!("{:?} is a folder", file.path));
        } else if file.op == FileOperation::Create {
            check.because("op", |check| {
                let path = Path::new(&file.path);
                // Static pods are where the kubelet looks for them (spec/node-api §6.3).
                let is_manifest = path.parent() == Some(Path::new("/etc/kubernetes/manifests"));
                if !path.starts_with("/var") && !is_manifest {
                    let message = format!("create operation not allowed outside of /var: {path:?}");
                    check.wrong_at("path", message);
                } else if created.again(&file.path) {
                    check.wrong_at("path", format!("{:?} is created twice", file.path));
                }
            });
        }
    });
}

pub(super) fn time(check: &mut Check, time: &Time) {
    check.each("servers", &time.servers, |check, server| {
        if let Err(wrong) = server.parse::<TimeServer>() {
            check.wrong(wrong.to_string());
        }
    });
    if !time.nts_ca.is_empty() && certificate::validity(&time.nts_ca).is_err() {
        check.wrong_at("ntsCA", "no certificate can be read in it");
    }
}

fn registries(check: &mut Check, registries: &Registries) {
    let host = |check: &mut Check, host: &str| {
        if host != "*" && !names::is_host_and_port(host) {
            check.wrong(format!("{host:?} is no registry such as docker.io or 10.0.0.9:5000"));
        }
    };
    check.entries("mirrors", &registries.mirrors, |check, name, mirror| {
        host(check, name);
        if mirror.endpoints.is_empty() {
            check.wrong_at("endpoints", "at least one URL is required");
        }
        check.each("endpoints", &mirror.endpoints, |check, url| check.fetched(url));
    });
    check.entries("config", &registries.config, |check, name, config| {
        host(check, name);
        let RegistryConfig { tls, auth } = config;
        if let Some(tls) = tls {
            check.key("tls", |check| {
                if let Some(pair) = &tls.client_identity {
                    check.key("clientIdentity", |check| {
                        check.pair(pair, PairOf::Leaf);
                        if pair.key.is_none() {
                            check.wrong_at("key", "a client's certificate needs its key");
                        }
                    });
                }
                if !tls.ca.is_empty() && certificate::validity(&tls.ca).is_err() {
                    check.wrong_at("ca", "no certificate can be read in it");
                }
            });
        }
        if let Some(auth) = auth
            && auth.username.is_some() != auth.password.is_some()
        {
            let missing = if auth.password.is_none() { "password" } else { "username" };
            check.key("auth", |check| {
                check.wrong_at(missing, "`username` and `password` belong together");
            });
        }
    });
}

fn kernel(check: &mut Check, machine: &Machine) {
    let mut seen = Seen::default();
    check.key("kernel", |check| {
        check.each("modules", &machine.kernel.modules, |check, module| {
            if !names::is_module(&module.name) {
                check.wrong_at("name", format!("{:?} is no name of a module", module.name));
            } else if seen.again(&module.name) {
                check.wrong_at("name", format!("{:?} is loaded twice", module.name));
            }
            check.each("parameters", &module.parameters, |check, parameter| {
                if parameter.is_empty() || parameter.contains(|c: char| c.is_control()) {
                    check.wrong(format!("{parameter:?} is no parameter of a module"));
                }
            });
        });
    });
    check.key("udev", |check| {
        check.each("rules", &machine.udev.rules, |check, rule| {
            if rule.trim().is_empty() || rule.contains('\0') {
                check.wrong("a rule is required");
            }
        });
    });
}

fn destination(check: &mut Check, destination: &LogDestination) {
    let sound = destination.endpoint.as_ref().is_some_and(|url| {
        matches!(url.scheme(), "udp" | "tcp")
            && url.has_host()
            && url.port().is_some_and(|port| port > 0)
            && matches!(url.path(), "" | "/")
    });
    if !sound {
        check.wrong_at("endpoint", "must be udp://host:port or tcp://host:port");
    }
}

fn logs(check: &mut Check, logs: &Logs) {
    let mut size = |key, Size(size), least: u64, most: u64| {
        if !(least..=most).contains(&size) {
            let message =
                format!("{size} is out of range {} KiB..={} MiB", least >> 10, most >> 20);
            check.wrong_at(key, message);
        }
    };
    size("ringSize", logs.ring_size, 16 << 10, 64 << 20);
    size("diskSize", logs.disk_size, 64 << 10, 4 << 30);
}
