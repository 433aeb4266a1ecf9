//! What a trench is configured with: read from YAML texts, checked, and linked into the messages that are told
//! (spec/ambassador §5.4).
//!
//! The seven parts may come as texts of their own ([`Parts`]: a folder, a ConfigMap) or in one document for each
//! trench ([`inline`]). Whatever names something that is not there is left out, with a warning.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use orlop_config::Problems;
use orlop_proto::nsp::v1::conduit::PortNat;
use orlop_proto::nsp::v1::gateway::{BfdSpec, BgpAuth};
use orlop_proto::nsp::v1::{Attractor, Conduit, Flow, Gateway, Stream, Trench, Vip};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Targets of a stream that does not say how many.
pub const MAX_TARGETS: u32 = 100;

/// The parts of a ConfigMap, and the files of a folder that is one.
pub const PARTS: [&str; 7] =
    ["trench", "conduits", "streams", "flows", "vips", "attractors", "gateways"];

/// Of all trenches; each object has those it belongs to in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// By name.
    pub trenches: Vec<Trench>,
    /// Of all trenches.
    pub conduits: Vec<Conduit>,
    /// Of all conduits.
    pub streams: Vec<Stream>,
    /// Of all streams.
    pub flows: Vec<Flow>,
    /// Of all trenches.
    pub vips: Vec<Vip>,
    /// Of all trenches.
    pub attractors: Vec<Attractor>,
    /// Of all trenches.
    pub gateways: Vec<Gateway>,
}

/// A part's name, what its author calls it, and its text.
pub type Parts<'a> = [(&'a str, String, &'a str)];

/// A configuration, and what in it leads nowhere.
#[derive(Debug)]
pub struct Loaded {
    /// What there is.
    pub configuration: Configuration,
    /// One line for each reference to something that is not there.
    pub warnings: Vec<String>,
}

/// Reads a trench from texts of its parts; what is missing is empty.
///
/// # Errors
/// All problems of the first part that has any.
pub fn parts(parts: &Parts<'_>) -> Result<Loaded, Problems> {
    let mut document = Document::default();
    for (part, file, text) in parts {
        match *part {
            "trench" => document.trench = read(file, text, |_| Vec::new())?,
            "conduits" => document.conduits = items(file, text)?,
            "streams" => document.streams = items(file, text)?,
            "flows" => document.flows = items(file, text)?,
            "vips" => document.vips = items(file, text)?,
            "attractors" => document.attractors = items(file, text)?,
            "gateways" => document.gateways = items(file, text)?,
            _ => {}
        }
    }
    Ok(link(vec![document]))
}

/// Reads a file with a trench's parts as its keys, or with a list of such under `trench`.
///
/// # Errors
/// All problems found.
pub fn inline(file: &str, text: &str) -> Result<Loaded, Problems> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Several {
        trench: Vec<Document>,
    }
    let several = orlop_config::read::<serde_yaml::Value>(file, text, |_| Vec::new())?
        .get("trench")
        .is_some_and(serde_yaml::Value::is_sequence);
    let documents = if several {
        read::<Several>(file, text, |several| {
            let documents = several.trench.iter().enumerate();
            documents.flat_map(|(at, document)| document.check(&format!("/trench/{at}"))).collect()
        })?
        .trench
    } else {
        vec![read::<Document>(file, text, |document| document.check(""))?]
    };
    Ok(link(documents))
}

/// Reads a ConfigMap object, in YAML or JSON: its `data` are the parts.
///
/// # Errors
/// It is none, or a part has problems.
pub fn config_map(file: &str, text: &str) -> Result<Loaded, Problems> {
    #[derive(Default, Deserialize)]
    struct ConfigMap {
        #[serde(default)]
        data: BTreeMap<String, String>,
    }
    let data = read::<ConfigMap>(file, text, |_| Vec::new())?.data;
    let known: Vec<_> = PARTS
        .iter()
        .filter_map(|part| Some((*part, format!("{file}: data.{part}"), data.get(*part)?.as_str())))
        .collect();
    parts(&known)
}

/// Is it a ConfigMap object?
#[must_use]
pub fn is_config_map(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<String>,
    }
    serde_yaml::from_str::<Kind>(text).is_ok_and(|kind| kind.kind.as_deref() == Some("ConfigMap"))
}

fn read<T: DeserializeOwned + Default>(
    file: &str,
    text: &str,
    check: impl FnOnce(&T) -> Vec<(String, String)>,
) -> Result<T, Problems> {
    if text.trim().is_empty() { Ok(T::default()) } else { orlop_config::read(file, text, check) }
}

fn items<T: Item>(file: &str, text: &str) -> Result<Items<T>, Problems> {
    read(file, text, |items: &Items<T>| items.check(""))
}

/// One trench as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    trench: Named,
    conduits: Items<WrittenConduit>,
    streams: Items<WrittenStream>,
    flows: Items<WrittenFlow>,
    vips: Items<WrittenVip>,
    attractors: Items<WrittenAttractor>,
    gateways: Items<WrittenGateway>,
}

impl Document {
    fn check(&self, at: &str) -> Vec<(String, String)> {
        let mut found = self.conduits.check(&format!("{at}/conduits"));
        found.extend(self.streams.check(&format!("{at}/streams")));
        found.extend(self.flows.check(&format!("{at}/flows")));
        found.extend(self.vips.check(&format!("{at}/vips")));
        found.extend(self.attractors.check(&format!("{at}/attractors")));
        found.extend(self.gateways.check(&format!("{at}/gateways")));
        found
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Items<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<T: Item> Items<T> {
    fn check(&self, at: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut names = BTreeSet::new();
        for (index, item) in self.items.iter().enumerate() {
            let mut tell = |field: &str, message: String| {
                found.push((format!("{at}/items/{index}{field}"), message));
            };
            let name = item.name();
            if name.is_empty() {
                tell("", "it has no name".to_owned());
            } else if !names.insert(name) {
                tell("/name", format!("there is another one named {name:?}"));
            }
            item.check(&mut tell);
        }
        found
    }
}

/// What all lists have in common.
trait Item: DeserializeOwned {
    fn name(&self) -> &str;
    /// Tells what is wrong with which field.
    fn check(&self, tell: &mut dyn FnMut(&str, String));
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenConduit {
    name: String,
    trench: String,
    destination_port_nats: Vec<WrittenNat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenNat {
    port: u16,
    target_port: u16,
    vips: Vec<String>,
    protocol: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenStream {
    name: String,
    conduit: String,
    max_targets: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenFlow {
    name: String,
    source_subnets: Vec<String>,
    destination_port_ranges: Vec<String>,
    source_port_ranges: Vec<String>,
    protocols: Vec<String>,
    vips: Vec<String>,
    priority: i32,
    stream: String,
    byte_matches: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenVip {
    name: String,
    address: String,
    trench: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenAttractor {
    name: String,
    vips: Vec<String>,
    gateways: Vec<String>,
    trench: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenGateway {
    name: String,
    address: String,
    remote_asn: u32,
    local_asn: u32,
    remote_port: u16,
    local_port: u16,
    ip_family: String,
    bfd: bool,
    protocol: String,
    hold_time: u32,
    min_tx: u32,
    min_rx: u32,
    multiplier: u32,
    trench: String,
    bgp_auth: Option<WrittenAuth>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenAuth {
    key: String,
    source: String,
}

impl Item for WrittenConduit {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, _: &mut dyn FnMut(&str, String)) {}
}

impl Item for WrittenStream {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, tell: &mut dyn FnMut(&str, String)) {
        if self.max_targets > 10_000 {
            tell("/max-targets", "a stream has at most 10000 targets".to_owned());
        }
    }
}

impl Item for WrittenFlow {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, tell: &mut dyn FnMut(&str, String)) {
        let mut all = |field: &str, texts: &[String], sound: fn(&str) -> bool, what: &str| {
            for (at, text) in texts.iter().enumerate().filter(|(_, text)| !sound(text)) {
                tell(&format!("/{field}/{at}"), format!("{text:?} is no {what}"));
            }
        };
        all("source-subnets", &self.source_subnets, is_network, NETWORK);
        all("destination-port-ranges", &self.destination_port_ranges, is_ports, PORTS);
        all("source-port-ranges", &self.source_port_ranges, is_ports, PORTS);
        all("byte-matches", &self.byte_matches, is_byte_match, "match such as tcp[4:2]&0xff=0x10");
    }
}

impl Item for WrittenVip {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, tell: &mut dyn FnMut(&str, String)) {
        if !is_network(&self.address) {
            tell("/address", format!("{:?} is no {NETWORK}", self.address));
        }
    }
}

impl Item for WrittenAttractor {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, _: &mut dyn FnMut(&str, String)) {}
}

impl Item for WrittenGateway {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, _: &mut dyn FnMut(&str, String)) {}
}

const NETWORK: &str = "network such as 20.0.0.1/32 whose other bits are zero";
const PORTS: &str = "range of ports such as 80 or 90-95";

fn is_network(text: &str) -> bool {
    text.parse::<IpNet>().is_ok_and(|network| network.trunc() == network)
}

/// `80`, `90-95`, and `any`, which the operator writes out.
fn is_ports(text: &str) -> bool {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    text == "any"
        || matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if first <= last)
}

/// `(sctp|tcp|udp)[offset:1|2|4]`, perhaps `&0xhex`, then `=number` or `=0xhex`; spaces around `:`, `&` and `=`.
fn is_byte_match(text: &str) -> bool {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => {
            !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        }
        None => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()),
    };
    let Some((place, value)) = text.split_once('=') else { return false };
    let (place, mask) = match place.split_once('&') {
        Some((place, mask)) => (place, Some(mask.trim())),
        None => (place, None),
    };
    let inside = ["sctp[", "tcp[", "udp["]
        .iter()
        .find_map(|begin| place.trim_end().strip_prefix(begin)?.strip_suffix(']'));
    let Some((offset, length)) = inside.and_then(|inside| inside.split_once(':')) else {
        return false;
    };
    let offset = offset.trim_end();
    !offset.is_empty()
        && offset.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(length.trim_start(), "1" | "2" | "4")
        && mask.is_none_or(|mask| mask.starts_with("0x") && number(mask))
        && number(value.trim_start())
}

/// Puts what belongs together into each other.
fn link(documents: Vec<Document>) -> Loaded {
    let mut configuration = Configuration::default();
    let mut warnings = Warnings(Vec::new());
    for document in documents {
        link_trench(document, &mut configuration, &mut warnings);
    }
    Loaded { configuration, warnings: warnings.0 }
}

struct Warnings(Vec<String>);

impl Warnings {
    /// What `wanted` of `of` is, if it is there.
    fn find<'a, T>(
        &mut self,
        known: &'a BTreeMap<String, T>,
        kind: &str,
        wanted: &str,
        of: &str,
    ) -> Option<&'a T> {
        let found = known.get(wanted);
        if found.is_none() {
            self.0.push(format!("the {kind} {wanted:?} of the {of} is not there"));
        }
        found
    }

    fn find_all<T: Clone>(
        &mut self,
        known: &BTreeMap<String, T>,
        kind: &str,
        wanted: &[String],
        of: &str,
    ) -> Vec<T> {
        wanted.iter().filter_map(|wanted| self.find(known, kind, wanted, of).cloned()).collect()
    }
}

fn link_trench(document: Document, whole: &mut Configuration, warnings: &mut Warnings) {
    let Document { trench, conduits, streams, flows, vips, attractors, gateways } = document;
    let trench = Trench { name: trench.name };
    // What names no trench is of the one there is.
    let trenches: BTreeMap<_, _> =
        [String::new(), trench.name.clone()].map(|name| (name, trench.clone())).into();

    let mut known_vips = BTreeMap::new();
    for WrittenVip { name, address, trench } in vips.items {
        let of = format!("vip {name:?}");
        let Some(trench) = warnings.find(&trenches, "trench", &trench, &of) else { continue };
        let vip = Vip { name: name.clone(), address, trench: Some(trench.clone()) };
        known_vips.insert(name, vip);
    }

    let mut known_conduits = BTreeMap::new();
    for WrittenConduit { name, trench, destination_port_nats } in conduits.items {
        let of = format!("conduit {name:?}");
        let Some(trench) = warnings.find(&trenches, "trench", &trench, &of) else { continue };
        let nats = destination_port_nats.into_iter().map(|nat| PortNat {
            port: nat.port.into(),
            target_port: nat.target_port.into(),
            vips: warnings.find_all(&known_vips, "vip", &nat.vips, &of),
            protocol: nat.protocol,
        });
        let destination_port_nats = nats.collect();
        let trench = Some(trench.clone());
        known_conduits.insert(name.clone(), Conduit { name, trench, destination_port_nats });
    }

    let mut known_streams = BTreeMap::new();
    for WrittenStream { name, conduit, max_targets } in streams.items {
        let of = format!("stream {name:?}");
        let Some(conduit) = warnings.find(&known_conduits, "conduit", &conduit, &of) else {
            continue;
        };
        let conduit = Some(conduit.clone());
        let max_targets = if max_targets == 0 { MAX_TARGETS } else { max_targets };
        known_streams.insert(name.clone(), Stream { name, conduit, max_targets });
    }

    for flow in flows.items {
        let of = format!("flow {:?}", flow.name);
        let Some(stream) = warnings.find(&known_streams, "stream", &flow.stream, &of) else {
            continue;
        };
        whole.flows.push(Flow {
            name: flow.name,
            source_subnets: flow.source_subnets,
            destination_port_ranges: ports(flow.destination_port_ranges),
            source_port_ranges: ports(flow.source_port_ranges),
            protocols: flow.protocols,
            priority: flow.priority,
            stream: Some(stream.clone()),
            vips: warnings.find_all(&known_vips, "vip", &flow.vips, &of),
            byte_matches: flow.byte_matches,
        });
    }

    let mut known_gateways = BTreeMap::new();
    for gateway in gateways.items {
        let of = format!("gateway {:?}", gateway.name);
        if let Some(trench) = warnings.find(&trenches, "trench", &gateway.trench, &of) {
            known_gateways.insert(gateway.name.clone(), gateway.message(trench));
        }
    }

    for WrittenAttractor { name, vips, gateways, trench } in attractors.items {
        let of = format!("attractor {name:?}");
        let Some(trench) = warnings.find(&trenches, "trench", &trench, &of) else { continue };
        whole.attractors.push(Attractor {
            name,
            trench: Some(trench.clone()),
            vips: warnings.find_all(&known_vips, "vip", &vips, &of),
            gateways: warnings.find_all(&known_gateways, "gateway", &gateways, &of),
        });
    }
    whole.conduits.extend(known_conduits.into_values());
    whole.streams.extend(known_streams.into_values());
    whole.vips.extend(known_vips.into_values());
    whole.gateways.extend(known_gateways.into_values());
    if !trench.name.is_empty() {
        whole.trenches.push(trench);
    }
}

impl WrittenGateway {
    fn message(self, trench: &Trench) -> Gateway {
        let bfd_spec =
            BfdSpec { min_tx: self.min_tx, min_rx: self.min_rx, multiplier: self.multiplier };
        let auth = |auth: WrittenAuth| BgpAuth { key_name: auth.key, key_source: auth.source };
        Gateway {
            name: self.name,
            address: self.address,
            ip_family: self.ip_family,
            protocol: self.protocol,
            remote_asn: self.remote_asn,
            local_asn: self.local_asn,
            remote_port: self.remote_port.into(),
            local_port: self.local_port.into(),
            hold_time: self.hold_time,
            bfd: self.bfd,
            bfd_spec: self.bfd.then_some(bfd_spec),
            trench: Some(trench.clone()),
            bgp_auth: self.bgp_auth.map(auth),
        }
    }
}

fn ports(written: Vec<String>) -> Vec<String> {
    let out = |text: String| if text == "any" { "0-65535".to_owned() } else { text };
    written.into_iter().map(out).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INLINE: &str = "
trench: {name: t}
vips: {items: [{name: v4, address: 20.0.0.1/32, trench: t}, {name: v6, address: '2000::1/128'}]}
conduits:
  items:
  - {name: c, trench: t, destination-port-nats: [{port: 80, target-port: 8080, vips: [v4], protocol: tcp}]}
streams: {items: [{name: s, conduit: c}, {name: lost, conduit: x, max-targets: 3}]}
flows:
  items:
  - {name: f, stream: s, vips: [v4, gone], priority: 7, protocols: [tcp], destination-port-ranges: [any, 90-95],
     source-subnets: [0.0.0.0/0], byte-matches: ['tcp[4 : 2] & 0xff = 0x10']}
gateways: {items: [{name: g, address: 169.254.1.1, protocol: bgp, bfd: true, min-tx: 100, bgp-auth: {key: k, source: s}}]}
attractors: {items: [{name: a, vips: [v6], gateways: [g, none], trench: t}]}
";

    #[test]
    fn everything_carries_what_it_belongs_to_and_what_leads_nowhere_is_told() {
        let Loaded { configuration, warnings } = inline("x.yaml", INLINE).expect("it is sound");
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for wanted in
            ["vip \"gone\" of the flow", "conduit \"x\" of the stream", "gateway \"none\""]
        {
            assert!(warnings.iter().any(|line| line.contains(wanted)), "{wanted}: {warnings:?}");
        }
        let flow = &configuration.flows[0];
        assert_eq!(flow.destination_port_ranges, ["0-65535", "90-95"]);
        let stream = flow.stream.as_ref().expect("a stream");
        assert_eq!(stream.max_targets, MAX_TARGETS);
        let conduit = stream.conduit.as_ref().expect("a conduit");
        assert_eq!(conduit.destination_port_nats[0].vips, flow.vips);
        assert_eq!(conduit.trench, Some(Trench { name: "t".to_owned() }));
        assert_eq!(configuration.streams.len(), 1);
        let attractor = &configuration.attractors[0];
        assert_eq!(attractor.gateways, configuration.gateways);
        assert_eq!(attractor.gateways[0].bfd_spec.map(|spec| spec.min_tx), Some(100));
    }

    #[test]
    fn parts_a_config_map_and_one_file_say_the_same() {
        let whole: serde_yaml::Value = serde_yaml::from_str(INLINE).expect("YAML");
        let texts: Vec<_> = PARTS
            .iter()
            .map(|part| (*part, serde_yaml::to_string(&whole[*part]).expect("YAML")))
            .collect();
        let parts_of: Vec<_> =
            texts.iter().map(|(part, text)| (*part, (*part).to_owned(), text.as_str())).collect();
        let one = inline("x", INLINE).expect("one file").configuration;
        assert_eq!(parts(&parts_of).expect("parts").configuration, one);
        let data: BTreeMap<_, _> = texts.iter().cloned().collect();
        let object = serde_yaml::to_string(&BTreeMap::from([
            ("kind", serde_yaml::Value::from("ConfigMap")),
            ("data", serde_yaml::to_value(&data).expect("a value")),
        ]))
        .expect("YAML");
        assert!(is_config_map(&object) && !is_config_map(INLINE));
        assert_eq!(config_map("x", &object).expect("a map").configuration, one);
    }

    #[test]
    fn several_trenches_are_in_one_list() {
        let text =
            "trench:\n- trench: {name: a}\n  conduits: {items: [{name: c}]}\n- trench: {name: b}\n";
        let configuration = inline("x", text).expect("two").configuration;
        let names: Vec<_> = configuration.trenches.iter().map(|trench| &*trench.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(configuration.conduits[0].trench, Some(configuration.trenches[0].clone()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let text = "vips:\n  items:\n  - name: v\n    address: 20.0.0.1/24\n  - name: v\n    address: x\nflows: {}\n";
        let problems = inline("x.yaml", text).expect_err("three problems").to_string();
        let lines: Vec<_> = problems.lines().collect();
        assert_eq!(lines.len(), 3, "{problems}");
        assert!(lines[0].starts_with("x.yaml:4:"), "{problems}");
        assert!(problems.contains("another one named \"v\""), "{problems}");
        let unknown = inline("x.yaml", "streams: {items: [{name: s, colour: red}]}");
        assert!(unknown.expect_err("unknown").to_string().contains("colour"));
        let part = parts(&[(
            "flows",
            "flows".to_owned(),
            "items:\n- name: f\n  source-port-ranges: [9-3]\n",
        )]);
        let problem = part.expect_err("a bad range").to_string();
        assert!(
            problem.starts_with("flows:3:") && problem.contains("\"9-3\" is no range"),
            "{problem}"
        );
    }

    #[test]
    fn byte_matches_are_those_of_the_grammar() {
        for text in ["tcp[0:1]=1", "udp[12:4] & 0xff00 = 0x1200", "sctp[2 : 2]=77", "tcp[4:2]=0xab"]
        {
            assert!(is_byte_match(text), "{text}");
        }
        let bad = [
            "",
            "tcp[0:3]=1",
            "icmp[0:1]=1",
            "tcp[0:1]",
            "tcp[0:1]=0xAB",
            "tcp[a:1]=1",
            "tcp[0:1]&12=1",
            "tcp[0:1]=-1",
        ];
        for text in bad {
            assert!(!is_byte_match(text), "{text}");
        }
    }
}
