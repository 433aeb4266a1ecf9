//! The kernel's command line, as far as a node's behaviour depends on it.
//!
//! [`parse`] splits the text as the kernel does; the accessors of [`Cmdline`] find the
//! arguments of spec/node-api §7.1, [`links`] those that make links. Each `talos.X` may be written `orlop.X`; of several, the first
//! on the line counts. What is malformed is ignored, and a [`Problem`] says why: nothing on this
//! line may keep a machine from booting.

mod links;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

pub use links::VlanArgument;

/// Arguments without which a node refuses to boot, as they are written.
const REQUIRED: [(&str, Option<&str>); 2] = [("slab_nomerge", None), ("pti", Some("on"))];

/// A kernel command line, split into arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    arguments: Vec<Argument>,
}

/// One `name` or `name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Up to the first `=`.
    pub name: String,
    /// After it, without the quotes around it; `None` when there is no `=`.
    pub value: Option<String>,
}

/// An argument that is ignored because it is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernel argument {argument} is ignored: {reason}")]
pub struct Problem {
    /// As it stands on the command line.
    pub argument: String,
    /// What is wrong with it.
    pub reason: String,
}

/// How a link gets its address, from `ip=` (Documentation/admin-guide/nfs/nfsroot.rst).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ip {
    /// Address and prefix length; `None`: a DHCP server is asked.
    pub address: Option<IpNet>,
    /// Where the default route leads.
    pub gateway: Option<IpAddr>,
    /// A source of the host name.
    pub hostname: Option<String>,
    /// The link; `None` means the first that is no loopback.
    pub device: Option<String>,
    /// At most two.
    pub resolvers: Vec<IpAddr>,
    /// At most one.
    pub time_servers: Vec<IpAddr>,
}

impl Cmdline {
    /// [`parse`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        parse(text)
    }
}

/// Splits a command line as the kernel's `next_arg` does (lib/cmdline.c): at white space outside
/// double quotes; quotes around an argument or a value are taken off, others stay. Never fails.
#[must_use]
pub fn parse(text: &str) -> Cmdline {
    let mut arguments = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let mut quoted = false;
        let end = rest
            .find(|c: char| {
                quoted ^= c == '"';
                c.is_ascii_whitespace() && !quoted
            })
            .unwrap_or(rest.len());
        let (argument, following) = rest.split_at(end);
        arguments.push(Argument::parse(argument));
        rest = following.trim_start();
    }
    Cmdline { arguments }
}

impl Argument {
    fn parse(text: &str) -> Self {
        let text = unquote(text);
        // A leading `=` belongs to the name, as in the kernel.
        match text.char_indices().skip(1).find(|(_, c)| *c == '=') {
            None => Self { name: text.to_owned(), value: None },
            Some((at, _)) => Self {
                name: text[..at].to_owned(),
                value: Some(unquote(&text[at + 1..]).to_owned()),
            },
        }
    }
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').map_or(text, |text| text.strip_suffix('"').unwrap_or(text))
}

impl Cmdline {
    /// All arguments, in order.
    #[must_use]
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments
    }

    /// The values of all arguments of this name, in order; those without `=` have none.
    pub fn values<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.arguments
            .iter()
            .filter(move |argument| argument.name == name)
            .filter_map(|argument| argument.value.as_deref())
    }

    /// Values of `talos.NAME` and `orlop.NAME`, in the order of the line.
    fn node<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.arguments
            .iter()
            .filter(move |argument| {
                let (vendor, rest) = argument.name.split_once('.').unwrap_or_default();
                matches!(vendor, "talos" | "orlop") && rest == name
            })
            .filter_map(|argument| argument.value.as_deref())
            .filter(|value| !value.is_empty())
    }

    /// `talos.platform`: where the machine runs.
    #[must_use]
    pub fn platform(&self) -> Option<&str> {
        self.node("platform").next()
    }

    /// `talos.config`: where the machine configuration is. `none`, which installers write where
    /// there is none, is nothing.
    #[must_use]
    pub fn config(&self) -> Option<&str> {
        self.node("config").next().filter(|source| *source != "none")
    }

    /// `node.params`: where node parameters are (spec/cluster-api §5.1).
    #[must_use]
    pub fn node_parameters(&self) -> Option<&str> {
        self.values("node.params").find(|source| !source.is_empty())
    }

    /// `talos.hostname`.
    #[must_use]
    pub fn hostname(&self) -> Option<&str> {
        self.node("hostname").next()
    }

    /// `talos.network.interface.ignore`, once for each link to leave alone.
    pub fn ignored_interfaces(&self) -> impl Iterator<Item = &str> {
        self.node("network.interface.ignore")
    }

    /// `talos.shutdown=halt`: stop at the end of a shutdown, but leave the power on.
    #[must_use]
    pub fn halts_on_shutdown(&self) -> bool {
        self.node("shutdown").next() == Some("halt")
    }

    /// What is malformed on the line, and therefore ignored; to be logged once.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let shutdown = self.node("shutdown").next();
        let shutdown = shutdown.filter(|word| !matches!(*word, "halt" | "poweroff"));
        let shutdown = shutdown.map(|word| Problem {
            argument: format!("talos.shutdown={word}"),
            reason: "it must be `halt` or `poweroff`".to_owned(),
        });
        let links =
            self.bonds().filter_map(Result::err).chain(self.vlans().filter_map(Result::err));
        shutdown.into_iter().chain(self.ips().filter_map(Result::err)).chain(links).collect()
    }

    /// `panic`: seconds until the kernel reboots after a panic; 0 means never, and so after a fatal
    /// error of ours; negative means at once. `None` when absent or malformed, as in the kernel.
    #[must_use]
    pub fn panic_seconds(&self) -> Option<i32> {
        self.values("panic").next_back()?.parse().ok()
    }

    /// `ip`: `client:server:gw:netmask:hostname:device:autoconf:dns0:dns1:ntp0`, or `device:dhcp`, each on the line. The
    /// netmask may be a prefix length; an IPv6 address stands in brackets. Those that ask for DHCP everywhere, which is
    /// what happens anyway, are left out.
    ///
    /// Of one that has fewer than four fields, or a malformed one, there is a [`Problem`].
    pub fn ips(&self) -> impl Iterator<Item = Result<Ip, Problem>> {
        self.each("ip", Ip::parse).filter_map(Result::transpose)
    }

    /// The hardening arguments that must be there and are not (spec/node-api §7.3), as written.
    #[must_use]
    pub fn missing_hardening(&self) -> Vec<String> {
        REQUIRED
            .iter()
            .filter(|(name, value)| match value {
                None => self.arguments.iter().all(|argument| argument.name != *name),
                Some(_) => self.values(name).next_back() != *value,
            })
            .map(|(name, value)| match value {
                None => (*name).to_owned(),
                Some(value) => format!("{name}={value}"),
            })
            .collect()
    }
}

impl Ip {
    fn parse(text: &str) -> Result<Option<Self>, String> {
        if matches!(text, "" | "dhcp" | "on" | "any" | "off" | "none") {
            return Ok(None);
        }
        let fields = fields(text);
        let by_dhcp = |device: Option<&str>| {
            device.map(|device| Self { device: Some(device.to_owned()), ..Self::default() })
        };
        if let [device, "dhcp" | "on" | "any"] = fields[..] {
            return Ok(by_dhcp(Some(device).filter(|device| !device.is_empty())));
        }
        if fields.len() < 4 {
            return Err(format!("it has {} of at least 4 fields", fields.len()));
        }
        let field = |i: usize| fields.get(i).copied().filter(|field| !field.is_empty());
        let Some(client) = field(0) else {
            return match field(6) {
                Some("dhcp" | "on" | "any") => Ok(by_dhcp(field(5))),
                _ => Err("it has no client address".to_owned()),
            };
        };
        let client = address("client address", client)?;
        let netmask = field(3).ok_or("it has no netmask")?;
        let address_and_prefix = prefix_of(netmask)
            .and_then(|prefix| IpNet::new(client, prefix).ok())
            .ok_or_else(|| format!("{netmask:?} is no netmask of {client}"))?;
        let resolvers = [field(7), field(8)].into_iter().flatten();
        Ok(Some(Self {
            address: Some(address_and_prefix),
            gateway: field(2).map(|gateway| address("gateway", gateway)).transpose()?,
            hostname: field(4).map(str::to_owned),
            device: field(5).map(str::to_owned),
            resolvers: resolvers
                .map(|resolver| address("DNS server", resolver))
                .collect::<Result<_, _>>()?,
            time_servers: field(9)
                .map(|server| address("time server", server))
                .transpose()?
                .into_iter()
                .collect(),
        }))
    }
}

/// Splits at colons outside brackets, and takes the brackets off.
fn fields(text: &str) -> Vec<&str> {
    let mut bracketed = false;
    text.split(|c: char| {
        bracketed = c == '[' || (bracketed && c != ']');
        c == ':' && !bracketed
    })
    .map(|field| field.trim_start_matches('[').trim_end_matches(']'))
    .collect()
}

fn address(what: &str, text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no {what}"))
}

/// `255.255.255.0` or `24`; `None` for a mask with gaps.
fn prefix_of(netmask: &str) -> Option<u8> {
    if let Ok(prefix) = netmask.parse() {
        return Some(prefix);
    }
    ipnet::ip_mask_to_prefix(IpAddr::V4(netmask.parse::<Ipv4Addr>().ok()?)).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_hold_an_argument_together_as_in_the_kernel() {
        let line = parse("a  b=\"c d\"\t\"e=f g\" h=i\"j k\"l =m n=\n");
        let shown: Vec<_> = line
            .arguments()
            .iter()
            .map(|argument| (argument.name.as_str(), argument.value.as_deref()))
            .collect();
        let expected = [
            ("a", None),
            ("b", Some("c d")),
            ("e", Some("f g")),
            ("h", Some("i\"j k\"l")),
            ("=m", None),
            ("n", Some("")),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn either_vendors_name_will_do_and_the_first_on_the_line_counts() {
        let line = parse("orlop.platform=metal talos.platform=aws talos.config=http://a/?b=c");
        assert_eq!(line.platform(), Some("metal"));
        assert_eq!(line.config(), Some("http://a/?b=c"));
        assert_eq!(line.hostname(), None);
        assert_eq!(parse("talos.config=none").config(), None);
        assert_eq!(parse("talos.hostname= other.hostname=x").hostname(), None);
        assert_eq!(parse("node.params= node.params=/a").node_parameters(), Some("/a"));
        let line = "talos.network.interface.ignore=eth1 orlop.network.interface.ignore=eth2";
        assert_eq!(parse(line).ignored_interfaces().collect::<Vec<_>>(), ["eth1", "eth2"]);
    }

    #[test]
    fn shutdown_powers_off_unless_told_to_halt() {
        assert!(!parse("").halts_on_shutdown() && parse("orlop.shutdown=halt").halts_on_shutdown());
        let line = parse("orlop.shutdown=sleep ip=1:2");
        assert!(!line.halts_on_shutdown());
        let problems: Vec<_> = line.problems().iter().map(ToString::to_string).collect();
        let expected = [
            "kernel argument talos.shutdown=sleep is ignored: it must be `halt` or `poweroff`",
            "kernel argument ip=1:2 is ignored: it has 2 of at least 4 fields",
        ];
        assert_eq!(problems, expected);
    }

    #[test]
    fn the_last_panic_argument_counts_as_in_the_kernel() {
        assert_eq!(parse("panic=10 panic=0").panic_seconds(), Some(0));
        assert_eq!(parse("panic=-1").panic_seconds(), Some(-1));
        assert_eq!(parse("panic=soon panic").panic_seconds(), None);
    }

    #[test]
    fn hardening_arguments_are_missed_by_the_way_they_are_written() {
        assert_eq!(parse("pti=on slab_nomerge=").missing_hardening(), [""; 0]);
        assert_eq!(parse("pti=on slab_nomerge").missing_hardening(), [""; 0]);
        assert_eq!(parse("pti=on pti=off").missing_hardening(), ["slab_nomerge", "pti=on"]);
    }

    #[test]
    fn ip_gives_address_route_names_and_resolvers() {
        let line = parse(
            "ip=10.0.0.7:10.0.0.1:10.0.0.254:255.255.255.0:n1:eth0:off:1.1.1.1::9.9.9.9 \
             ip=[fd00::7]::[fd00::1]:64::eth0 ip=eth1:dhcp ip=:::::bond0:dhcp",
        );
        let expected = Ip {
            address: Some("10.0.0.7/24".parse().unwrap()),
            gateway: Some("10.0.0.254".parse().unwrap()),
            hostname: Some("n1".to_owned()),
            device: Some("eth0".to_owned()),
            resolvers: vec!["1.1.1.1".parse().unwrap()],
            time_servers: vec!["9.9.9.9".parse().unwrap()],
        };
        let dhcp = |device: &str| Ip { device: Some(device.to_owned()), ..Ip::default() };
        let v6 = Ip {
            address: Some("fd00::7/64".parse().unwrap()),
            gateway: Some("fd00::1".parse().unwrap()),
            ..dhcp("eth0")
        };
        let all: Vec<_> = line.ips().map(Result::unwrap).collect();
        assert_eq!(all, [expected, v6, dhcp("eth1"), dhcp("bond0")]);
    }

    #[test]
    fn a_request_for_dhcp_everywhere_says_nothing() {
        for line in ["", "ip=dhcp", "ip=on", "ip", "ip=::::::dhcp", "ip=:dhcp"] {
            assert_eq!(parse(line).ips().next(), None, "{line}");
        }
    }

    #[test]
    fn a_malformed_ip_is_ignored_with_its_reason() {
        for (line, reason) in [
            ("ip=10.0.0.7:::", "it has no netmask"),
            ("ip=10.0.0.7::255.0.0.0", "it has 3 of at least 4 fields"),
            ("ip=10.0.0.7:::255.0.255.0", "\"255.0.255.0\" is no netmask of 10.0.0.7"),
            ("ip=10.0.0.7:::33", "\"33\" is no netmask of 10.0.0.7"),
            ("ip=10.0.0.700:::24", "\"10.0.0.700\" is no client address"),
            ("ip=10.0.0.7::x:24", "\"x\" is no gateway"),
            ("ip=10.0.0.7:::24::::y", "\"y\" is no DNS server"),
            ("ip=10.0.0.7:::24::::::z", "\"z\" is no time server"),
            ("ip=:::24", "it has no client address"),
        ] {
            let problem = parse(line).ips().next().unwrap().unwrap_err();
            assert_eq!((problem.reason.as_str(), problem.argument.as_str()), (reason, line));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text: String, ip in "ip=[0-9a-f:.\\[\\]]*") {
            let line = parse(&format!("{text} {ip}"));
            let _ = (line.problems(), line.panic_seconds(), line.missing_hardening());
        }

        #[test]
        fn what_is_written_is_read(names in proptest::collection::vec("[a-z.]{1,9}(=[!#-<>-~]*)?", 0..9)) {
            let line = parse(&names.join(" "));
            let written: Vec<_> = line
                .arguments()
                .iter()
                .map(|argument| match &argument.value {
                    None => argument.name.clone(),
                    Some(value) => format!("{}={value}", argument.name),
                })
                .collect();
            prop_assert_eq!(written, names);
        }
    }
}
