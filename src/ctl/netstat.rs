//! `netstat`: the sockets of a node.

use std::net::IpAddr;

use orlop_proto::machine::connect_record::{State, TimerActive};
use orlop_proto::machine::netstat_request::{Feature, Filter, L4proto, NetNs};
use orlop_proto::machine::{ConnectRecord, Netstat, NetstatRequest};

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{align, escape, print};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of netstat(8)")]
pub(crate) struct Options {
    /// Both listening and connected sockets
    #[arg(short, long)]
    all: bool,
    /// Only listening sockets (else only connected ones)
    #[arg(short, long, conflicts_with = "all")]
    listening: bool,
    /// UDP-Lite and raw sockets too, when no protocol is named
    #[arg(short, long)]
    verbose: bool,
    /// Show user and inode
    #[arg(short = 'x', long)]
    extend: bool,
    /// Only IPv4
    #[arg(short = '4', long)]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// The network namespaces of pods, too
    #[arg(short = 'k', long)]
    pods: bool,
    /// Show the process that holds a socket
    #[arg(short, long)]
    programs: bool,
    /// TCP sockets
    #[arg(short, long)]
    tcp: bool,
    /// UDP sockets
    #[arg(short, long)]
    udp: bool,
    /// UDP-Lite sockets
    #[arg(short = 'U', long)]
    udplite: bool,
    /// Raw sockets
    #[arg(short = 'w', long)]
    raw: bool,
    /// Show timers
    #[arg(short = 'o', long)]
    timers: bool,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let request = request(options);
    let call = async |node| machine(node).netstat(request.clone()).await;
    let answers = client.ask("list sockets", call).await?;
    print(table(&answers, options).as_bytes())
}

fn request(options: &Options) -> NetstatRequest {
    let filter = match options {
        Options { all: true, .. } => Filter::All,
        Options { listening: true, .. } => Filter::Listening,
        _ => Filter::Connected,
    };
    let Options { tcp, udp, udplite, raw, verbose, .. } = *options;
    let none = !(tcp || udp || udplite || raw);
    let (tcp, udp) = (tcp || none, udp || none);
    let (udplite, raw) = (udplite || none && verbose, raw || none && verbose);
    let (v4, v6) = (options.ipv4 || !options.ipv6, options.ipv6 || !options.ipv4);
    let l4proto = L4proto {
        tcp: tcp && v4,
        tcp6: tcp && v6,
        udp: udp && v4,
        udp6: udp && v6,
        udplite: udplite && v4,
        udplite6: udplite && v6,
        raw: raw && v4,
        raw6: raw && v6,
    };
    NetstatRequest {
        filter: filter.into(),
        feature: Some(Feature { pid: options.programs }),
        l4proto: Some(l4proto),
        netns: Some(NetNs { hostnetwork: true, netns: Vec::new(), allnetns: options.pods }),
    }
}

/// The columns depend on what was asked for, as in `netstat(8)`.
fn table(answers: &[Answer<Netstat>], options: &Options) -> String {
    let mut lines = vec![
        ["NODE", "Proto", "Recv-Q", "Send-Q", "Local Address", "Foreign Address", "State"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (wanted, heading) in [
        (options.extend, "Uid"),
        (options.extend, "Inode"),
        (options.programs, "PID/Program name"),
        (options.pods, "Netns"),
        (options.timers, "Timer"),
    ] {
        lines[0].extend(wanted.then(|| heading.to_owned()));
    }
    for Answer { node, message } in answers {
        for socket in &message.connectrecord {
            let mut line = vec![
                escape(node),
                escape(&socket.l4proto),
                socket.rxqueue.to_string(),
                socket.txqueue.to_string(),
                address(&socket.localip, socket.localport),
                address(&socket.remoteip, socket.remoteport),
                state(socket).to_owned(),
            ];
            if options.extend {
                line.extend([socket.uid.to_string(), socket.inode.to_string()]);
            }
            if options.programs {
                line.push(match &socket.process {
                    Some(process) => format!("{}/{}", process.pid, escape(&process.name)),
                    None => "-".to_owned(),
                });
            }
            if options.pods {
                line.push(if socket.netns.is_empty() {
                    "-".to_owned()
                } else {
                    escape(&socket.netns)
                });
            }
            if options.timers {
                line.push(timer(socket));
            }
            lines.push(line);
        }
    }
    let lines: Vec<Vec<&str>> =
        lines.iter().map(|line| line.iter().map(String::as_str).collect()).collect();
    align(&lines)
}

/// `10.0.0.2:22`, `[fd00::2]:22`, `0.0.0.0:*`.
fn address(ip: &str, port: u32) -> String {
    let port = if port == 0 { "*".to_owned() } else { port.to_string() };
    match ip.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Ok(IpAddr::V4(ip)) => format!("{ip}:{port}"),
        Err(_) => format!("{}:{port}", escape(ip)),
    }
}

/// Sockets of other protocols have one state that means nothing.
fn state(socket: &ConnectRecord) -> &'static str {
    match socket.state() {
        State::Close if !socket.l4proto.starts_with("tcp") => "",
        State::Reserved => "UNKNOWN",
        State::Established => "ESTABLISHED",
        State::SynSent => "SYN_SENT",
        State::SynRecv => "SYN_RECV",
        State::FinWait1 => "FIN_WAIT1",
        State::FinWait2 => "FIN_WAIT2",
        State::TimeWait => "TIME_WAIT",
        State::Close => "CLOSE",
        State::Closewait => "CLOSE_WAIT",
        State::Lastack => "LAST_ACK",
        State::Listen => "LISTEN",
        State::Closing => "CLOSING",
    }
}

/// Which timer runs, and (seconds left, in hundredths as the kernel counts / retransmissions / probes).
fn timer(socket: &ConnectRecord) -> String {
    let name = match socket.tr() {
        TimerActive::Off => "off",
        TimerActive::On => "on",
        TimerActive::Keepalive => "keepalive",
        TimerActive::Timewait => "timewait",
        TimerActive::Probe => "probe",
    };
    let (seconds, hundredths) = (socket.timerwhen / 100, socket.timerwhen % 100);
    format!("{name} ({seconds}.{hundredths:02}/{}/{})", socket.retrnsmt, socket.timeout)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use clap::Parser as _;
    use orlop_proto::machine::connect_record::Process;

    use super::*;
    use crate::golden;
    use crate::options::{self, Command};

    fn options(flags: &str) -> Options {
        let args = ["orlopctl", "netstat"].into_iter().chain(flags.split_whitespace());
        match options::Options::try_parse_from(args).unwrap().command {
            Command::Netstat(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_name_protocols_and_filters() {
        let names = |flags: &str| {
            let request = request(&options(flags));
            let L4proto { tcp, tcp6, udp, udp6, udplite, udplite6, raw, raw6 } =
                request.l4proto.unwrap();
            let wanted = [tcp, tcp6, udp, udp6, udplite, udplite6, raw, raw6];
            let wanted: String = wanted.iter().map(|one| if *one { '1' } else { '0' }).collect();
            (wanted, request.filter())
        };
        let is = |wanted: &str, filter| (wanted.to_owned(), filter);
        assert_eq!(names(""), is("11110000", Filter::Connected));
        assert_eq!(names("-v -l"), is("11111111", Filter::Listening));
        assert_eq!(names("-t -w -a"), is("11000011", Filter::All));
        assert_eq!(names("-u -4"), is("00100000", Filter::Connected));
        assert_eq!(names("-4 -6 -U"), is("00001100", Filter::Connected));
    }

    #[test]
    fn columns_are_those_that_were_asked_for() {
        let listening = ConnectRecord {
            l4proto: "tcp6".to_owned(),
            localip: "::".to_owned(),
            localport: 50000,
            remoteip: "::".to_owned(),
            state: State::Listen.into(),
            uid: 50,
            inode: 4711,
            process: Some(Process { pid: 77, name: "apid".to_owned() }),
            ..ConnectRecord::default()
        };
        let connected = ConnectRecord {
            l4proto: "udp".to_owned(),
            localip: "10.0.0.2".to_owned(),
            localport: 68,
            remoteip: "10.0.0.1".to_owned(),
            remoteport: 67,
            state: State::Close.into(),
            rxqueue: 12,
            tr: TimerActive::Keepalive.into(),
            timerwhen: 205,
            netns: "net:[4026532201]".to_owned(),
            ..ConnectRecord::default()
        };
        let message = Netstat { metadata: None, connectrecord: vec![listening, connected] };
        let answers = [Answer { node: "10.0.0.2".to_owned(), message }];
        golden::check("netstat.txt", &table(&answers, &options("-a")));
        golden::check("netstat-all.txt", &table(&answers, &options("-a -x -p -k -o")));
    }
}
