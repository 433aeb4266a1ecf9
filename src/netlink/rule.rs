//! Policy rules, `rtnetlink(7)` `RTM_NEWRULE`, `linux/fib_rules.h`.

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::{Protocol, Table};

/// Which table a packet is looked up in, or that it is not to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `true` for IPv4.
    pub ipv4: bool,
    /// Lower is asked first.
    pub priority: u32,
    /// Where the packet comes from; `None` means anywhere.
    pub source: Option<IpNet>,
    /// Where it goes to.
    pub destination: Option<IpNet>,
    /// The name of the link it came in by.
    pub incoming: Option<String>,
    /// The name of the link that its socket is bound to.
    pub outgoing: Option<String>,
    /// Its mark and the bits of that which count; a mark of 0 is none.
    pub mark: (u32, u32),
    /// What happens to it.
    pub action: Action,
    /// Who made the rule.
    pub protocol: Protocol,
}

/// What happens to a packet that a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is looked up here.
    Lookup(Table),
    /// `FR_ACT_*`: 6 it vanishes, 7 its host is unreachable, 8 it is forbidden; others are not ours.
    Other(u8),
}

impl Rule {
    /// `None` for what is not IPv4 or IPv6.
    pub(crate) fn from_message(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let ipv4 = match header.family {
            AddressFamily::Inet => true,
            AddressFamily::Inet6 => false,
            _ => return None,
        };
        let mut table = u32::from(header.table);
        let mut rule = Self {
            ipv4,
            priority: 0,
            source: None,
            destination: None,
            incoming: None,
            outgoing: None,
            mark: (0, 0),
            action: Action::Other(header.action.into()),
            protocol: Protocol::UNSPECIFIED,
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Source(ip) => rule.source = IpNet::new(*ip, header.src_len).ok(),
                RuleAttribute::Destination(ip) => {
                    rule.destination = IpNet::new(*ip, header.dst_len).ok();
                }
                RuleAttribute::Iifname(name) => rule.incoming = Some(name.clone()),
                RuleAttribute::Oifname(name) => rule.outgoing = Some(name.clone()),
                RuleAttribute::FwMark(mark) => rule.mark.0 = *mark,
                RuleAttribute::FwMask(mask) => rule.mark.1 = *mask,
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::Protocol(by) => rule.protocol = Protocol((*by).into()),
                _ => {}
            }
        }
        if header.action == RuleAction::ToTable {
            rule.action = Action::Lookup(Table(table));
        }
        Some(rule)
    }

    pub(crate) fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let header = &mut message.header;
        header.family = if self.ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        header.src_len = self.source.map_or(0, |net| net.prefix_len());
        header.dst_len = self.destination.map_or(0, |net| net.prefix_len());
        let mut attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Protocol(self.protocol.0.into()),
        ];
        match self.action {
            Action::Lookup(table) => {
                header.action = RuleAction::ToTable;
                // FRA_TABLE carries what does not fit the header.
                header.table = u8::try_from(table.0).unwrap_or_default();
                attributes.push(RuleAttribute::Table(table.0));
            }
            Action::Other(number) => header.action = number.into(),
        }
        let whole = |net: &IpNet| net.prefix_len() > 0;
        let (source, destination) = (self.source.filter(whole), self.destination.filter(whole));
        attributes.extend(source.map(|net| RuleAttribute::Source(net.addr())));
        attributes.extend(destination.map(|net| RuleAttribute::Destination(net.addr())));
        attributes.extend(self.incoming.clone().map(RuleAttribute::Iifname));
        attributes.extend(self.outgoing.clone().map(RuleAttribute::Oifname));
        if self.mark != (0, 0) {
            attributes.push(RuleAttribute::FwMark(self.mark.0));
            attributes.push(RuleAttribute::FwMask(self.mark.1));
        }
        message.attributes = attributes;
        message
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_its_message() {
        let plain = Rule {
            ipv4: true,
            priority: 100,
            source: Some("10.0.0.0/24".parse().unwrap()),
            destination: None,
            incoming: None,
            outgoing: None,
            mark: (0, 0),
            action: Action::Lookup(Table(1000)),
            protocol: Protocol::CONFIGURED,
        };
        let full = Rule {
            ipv4: false,
            source: Some("fd00::/64".parse().unwrap()),
            destination: Some("fd01::/64".parse().unwrap()),
            incoming: Some("eth0".to_owned()),
            outgoing: Some("eth1".to_owned()),
            mark: (5, 0xff),
            action: Action::Other(7),
            ..plain.clone()
        };
        for rule in [plain, full] {
            assert_eq!(Rule::from_message(&rule.to_message()), Some(rule));
        }
    }
}
