//! Links that are named by what they are (`deviceSelector`).

use std::path::{Path, PathBuf};

use orlop_config::machine::{DeviceSelector, Interface};
use orlop_netlink::Link;

use crate::plan::Settings;
use crate::settings;

/// A section of the configuration for every link that a selector fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// What the links are like.
    pub selector: DeviceSelector,
    /// What they shall have.
    pub interface: Interface,
}

/// The device behind a link, as sysfs shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name on its bus, as `0000:00:1f.6`.
    pub bus_path: Option<String>,
    /// Maker and model of its PCI device, as `8086:1533`.
    pub pci_id: Option<String>,
    /// The kernel's driver of it.
    pub driver: Option<String>,
}

impl Device {
    /// The device behind the link `name` below `folder` (`/sys/class/net`); of a virtio device, the PCI device
    /// that carries it. `None` when there is none: the link is made of software.
    #[must_use]
    pub fn of_link(folder: &Path, name: &str) -> Option<Self> {
        let device = folder.join(name).join("device").canonicalize().ok()?;
        let last = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let linked = |path: PathBuf| last(&path.canonicalize().ok()?);
        let driver = linked(device.join("driver"));
        let virtio = linked(device.join("subsystem")).is_some_and(|bus| bus == "virtio");
        let carrier = if virtio { device.parent()?.to_owned() } else { device };
        let id = |file| {
            let text = std::fs::read_to_string(carrier.join(file)).ok()?;
            Some(text.trim().trim_start_matches("0x").to_owned())
        };
        let pci_id =
            id("vendor").zip(id("device")).map(|(maker, model)| format!("{maker}:{model}"));
        Some(Self { bus_path: last(&carrier), pci_id, driver })
    }
}

/// Whether all that the selector says is so.
#[must_use]
pub fn fits(selector: &DeviceSelector, link: &Link, device: Option<&Device>) -> bool {
    let of_device = |field: fn(&Device) -> &Option<String>| device.and_then(|it| field(it).clone());
    let mac = |mac: Option<orlop_netlink::Mac>| mac.map(|mac| mac.to_string());
    let all = [
        (&selector.bus_path, of_device(|device| &device.bus_path)),
        (&selector.pci_id, of_device(|device| &device.pci_id)),
        (&selector.driver, of_device(|device| &device.driver)),
        (&selector.hardware_addr, mac(link.mac)),
        (&selector.permanent_addr, mac(link.permanent_mac)),
    ];
    let said = |(pattern, text): &(&Option<String>, Option<String>)| {
        let Some(pattern) = pattern else { return true };
        text.as_ref().is_some_and(|text| glob(pattern, text))
    };
    let physical = device.is_some() && link.kind.is_none();
    all.iter().all(said)
        && selector.physical.is_none_or(|wanted| wanted == physical)
        && !link.loopback()
}

/// Whether `text` is as `pattern` says, capitals or not: `*` is any text, `?` any character.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    let lower = |text: &str| text.to_ascii_lowercase().chars().collect::<Vec<_>>();
    let (pattern, text) = (lower(pattern), lower(text));
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

impl Settings {
    /// The settings with the selectors' sections added to each link they fit; `None` when there are no
    /// selectors.
    #[must_use]
    pub fn selected(
        &self,
        links: &[Link],
        device: impl Fn(&Link) -> Option<Device>,
    ) -> Option<Self> {
        if self.selected.is_empty() {
            return None;
        }
        let mut settings = self.clone();
        for link in links {
            let device = device(link);
            for Selected { selector, interface } in &self.selected {
                if fits(selector, link, device.as_ref()) {
                    let interface = Interface { interface: link.name.clone(), ..interface.clone() };
                    settings::add_interface(&mut settings.interfaces, interface);
                }
            }
        }
        Some(settings)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use orlop_config::machine::Network;
    use orlop_netlink::{Kind, Mac};
    use proptest::prelude::*;

    use super::*;
    use crate::settings::{add_config, from_kernel};

    /// A tree as sysfs has it: a PCI card, a virtio card, a USB one, and a link of software.
    fn sysfs() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let path = |text: &str| sys.path().join(text);
        let pci = "devices/pci0000:00/0000:00:1f.6";
        let carrier = "devices/pci0000:00/0000:00:04.0";
        let usb = "devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0";
        for (device, bus, driver) in
            [(pci, "pci", "e1000e"), (carrier, "pci", "virtio-pci"), (usb, "usb", "r8152")]
        {
            fs::create_dir_all(path(device)).unwrap();
            fs::create_dir_all(path("bus").join(bus)).unwrap();
            fs::create_dir_all(path("drivers").join(driver)).unwrap();
            symlink(path("bus").join(bus), path(device).join("subsystem")).unwrap();
            symlink(path("drivers").join(driver), path(device).join("driver")).unwrap();
        }
        for (device, maker, model) in
            [(pci, "0x8086\n", "0x15bb\n"), (carrier, "0x1af4\n", "0x1041\n")]
        {
            fs::write(path(device).join("vendor"), maker).unwrap();
            fs::write(path(device).join("device"), model).unwrap();
        }
        let virtio = path(carrier).join("virtio1");
        fs::create_dir_all(path("bus/virtio")).unwrap();
        fs::create_dir_all(path("drivers/virtio_net")).unwrap();
        fs::create_dir(&virtio).unwrap();
        symlink(path("bus/virtio"), virtio.join("subsystem")).unwrap();
        symlink(path("drivers/virtio_net"), virtio.join("driver")).unwrap();
        fs::write(virtio.join("vendor"), "0x1af4\n").unwrap();
        for (name, device) in [("eth0", path(pci)), ("eth1", virtio), ("eth2", path(usb))] {
            fs::create_dir_all(path("class/net").join(name)).unwrap();
            symlink(device, path("class/net").join(name).join("device")).unwrap();
        }
        fs::create_dir_all(path("class/net/dummy0")).unwrap();
        sys
    }

    #[test]
    fn devices_are_known_by_bus_model_and_driver() {
        let sys = sysfs();
        let device = |name| Device::of_link(&sys.path().join("class/net"), name);
        let known = |bus: &str, id: Option<&str>, driver: &str| {
            Some(Device {
                bus_path: Some(bus.to_owned()),
                pci_id: id.map(str::to_owned),
                driver: Some(driver.to_owned()),
            })
        };
        assert_eq!(device("eth0"), known("0000:00:1f.6", Some("8086:15bb"), "e1000e"));
        assert_eq!(device("eth1"), known("0000:00:04.0", Some("1af4:1041"), "virtio_net"));
        assert_eq!(device("eth2"), known("1-2:1.0", None, "r8152"));
        assert_eq!((device("dummy0"), device("eth9")), (None, None));
    }

    #[test]
    fn all_that_a_selector_says_must_fit() {
        let sys = sysfs();
        let link = Link {
            name: "eth0".to_owned(),
            mac: Some(Mac([2, 0, 0, 0, 0, 0xab])),
            ..Link::default()
        };
        let device = Device::of_link(&sys.path().join("class/net"), "eth0");
        let fits = |text: &str, link: &Link, device: Option<&Device>| {
            let network = format!("interfaces: [{{deviceSelector: {text}}}]");
            let network = Network::parse(&network).unwrap();
            super::fits(network.interfaces[0].device_selector.as_ref().unwrap(), link, device)
        };
        for right in [
            "{busPath: '0000:00:1f.*'}",
            "{hardwareAddr: '02:00:*:AB'}",
            "{hardwareAddr: '02:00:00:00:00:a?', driver: e1000e, pciID: '8086:*', physical: true}",
            "{physical: true}",
            "{driver: '*'}",
        ] {
            assert!(fits(right, &link, device.as_ref()), "{right}");
        }
        for wrong in [
            "{busPath: '0000:00:1f'}",
            "{hardwareAddr: '02:00:*', driver: virtio_net}",
            "{physical: false}",
            "{permanentAddr: '*'}",
        ] {
            assert!(!fits(wrong, &link, device.as_ref()), "{wrong}");
        }
        let made = Link { kind: Some(Kind::Vlan(5)), ..link };
        assert!(fits("{physical: false}", &made, None) && !fits("{driver: '*'}", &made, None));
    }

    #[test]
    fn every_link_that_fits_gets_the_section() {
        let text = "\
interfaces:
- deviceSelector: {hardwareAddr: '02:*'}
  mtu: 1400
  vlans: [{vlanId: 5, cidr: 10.5.0.5/24}]
- {interface: eth1, cidr: 10.0.0.5/24}
";
        let mut settings = from_kernel(&orlop_config::cmdline::parse(""));
        add_config(&mut settings, Network::parse(text).unwrap());
        let link = |name: &str, first| Link {
            name: name.to_owned(),
            mac: Some(Mac([first, 0, 0, 0, 0, 1])),
            ..Link::default()
        };
        let links = [link("eth0", 2), link("eth1", 2), link("eth2", 6)];
        let settings = settings.selected(&links, |_| None).unwrap();
        let names: Vec<_> = settings.interfaces.keys().collect();
        assert_eq!(names, ["eth0", "eth0.5", "eth1", "eth1.5"]);
        let eth1 = &settings.interfaces["eth1"];
        assert_eq!((eth1.mtu, eth1.addresses.len()), (Some(1400), 1));
    }

    proptest! {
        #[test]
        fn a_glob_is_what_a_slow_one_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, None) => true,
                    (Some((b'*', rest)), None) => slow(rest, text),
                    (Some((b'*', rest)), Some((_, others))) => {
                        slow(rest, text) || slow(pattern, others)
                    }
                    (Some((b'?', rest)), Some((_, others))) => slow(rest, others),
                    (Some((a, rest)), Some((b, others))) => a == b && slow(rest, others),
                    _ => false,
                }
            }
            prop_assert_eq!(glob(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
