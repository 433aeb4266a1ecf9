//! IPv6 settings with `radvd`, `kea-dhcp6` and dnsmasq.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_netlink::{Address, Protocol};

use crate::world::{LIMIT, RANGE, Server, World, in_namespaces, ip, watch_log};

/// The node, with radvd and Kea on the other end of its link, unless something is missing.
fn with_servers<F: Future<Output = ()>>(
    name: &'static str,
    (flags, pools): (&'static str, &'static str),
    test: impl FnOnce(World, Server, Server) -> F,
) {
    in_namespaces(name, async |world| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            return println!("skipped: this kernel has no IPv6");
        }
        for (program, package) in [("kea-dhcp6", "kea-dhcp6-server"), ("radvd", "radvd")] {
            let tried = Command::new(program)
                .arg(if program == "radvd" { "--version" } else { "-v" })
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if tried.is_err() {
                return println!("skipped: no `{program}` ({package})");
            }
        }
        world.on_server("address add fd77::1/64 dev srv0 nodad");
        // Kea does not open its sockets on a link without carrier or without a link-local address.
        ip(&format!("-n {}-node link set eth0 up", world.name));
        world.has_link_local().await;
        let (routers, servers) = (world.serve_with_radvd(flags), world.serve_with_kea6(pools));
        test(world, routers, servers).await;
    });
}

impl World {
    /// Waits until the server's end has an address that it may use.
    async fn has_link_local(&self) {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        let usable = async {
            loop {
                poll.tick().await;
                let shown = Command::new("ip")
                    .args(["-n", &format!("{}-server", self.name), "-6", "address", "show"])
                    .args(["dev", "srv0", "scope", "link", "-tentative"])
                    .output()
                    .unwrap();
                if String::from_utf8_lossy(&shown.stdout).contains("fe80::") {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, usable).await.expect("a link-local address");
    }

    fn on_server_runs(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-server", self.name), program]);
        command
    }

    /// Starts a router that says these flags, the resolver fd77::53 and the domain a.org.
    fn serve_with_radvd(&self, flags: &str) -> Server {
        let config = format!(
            "interface srv0 {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; {flags} \
             prefix fd77::/64 {{ AdvAutonomous off; }}; RDNSS fd77::53 {{ AdvRDNSSLifetime 600; }}; \
             DNSSL a.org {{ AdvDNSSLLifetime 600; }}; }};\n"
        );
        std::fs::write(self.path("radvd.conf"), config).unwrap();
        let mut process = self
            .on_server_runs("radvd")
            .args(["--nodaemon", "--logmethod", "stderr", "--debug", "1", "--config"])
            .arg(self.path("radvd.conf"))
            .arg("--pidfile")
            .arg(self.path("radvd.pid"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = process.stderr.take().unwrap();
        let (log, started) = watch_log(output, "radvd");
        started.recv_timeout(LIMIT).expect("radvd starts");
        Server { process, log }
    }

    /// Starts Kea with these pools, leases that are renewed after three seconds, and a resolver.
    fn serve_with_kea6(&self, pools: &str) -> Server {
        let folder = self.folder.path();
        let config = format!(
            r#"{{"Dhcp6": {{
            "interfaces-config": {{"interfaces": ["srv0"],
                "service-sockets-max-retries": 200, "service-sockets-retry-wait-time": 100}},
            "lease-database": {{"type": "memfile", "persist": false}},
            "server-id": {{"type": "LL", "identifier": "020000000001", "persist": false}},
            "preferred-lifetime": 100, "valid-lifetime": 120, "renew-timer": 3, "rebind-timer": 60,
            "subnet6": [{{"id": 1, "subnet": "fd77::/64", "interface": "srv0", "rapid-commit": true,
                "pools": [{pools}],
                "option-data": [
                    {{"name": "dns-servers", "data": "fd77::54"}},
                    {{"name": "domain-search", "data": "b.org"}}]}}],
            "loggers": [{{"name": "kea-dhcp6", "severity": "DEBUG", "debuglevel": 50,
                "output_options": [{{"output": "stderr", "flush": true}}]}}]}}}}"#
        );
        std::fs::write(self.path("kea6.json"), config).unwrap();
        let mut process = self
            .on_server_runs("kea-dhcp6")
            .arg("-c")
            .arg(self.path("kea6.json"))
            .env("KEA_PIDFILE_DIR", folder)
            .env("KEA_LOCKFILE_DIR", folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = process.stderr.take().unwrap();
        let (log, started) = watch_log(output, "DHCP6_STARTED");
        started.recv_timeout(LIMIT).expect("Kea starts");
        Server { process, log }
    }

    async fn address6(&self, prefix: &str) -> Address {
        self.until(async || {
            let addresses = self.netlink.addresses().await.unwrap();
            let ours = |address: &Address| address.protocol == Protocol::DHCP;
            let mut found = addresses.into_iter().filter(ours);
            found.find(|address| address.net.to_string().starts_with(prefix))
        })
        .await
    }

    /// Waits until `resolv.conf` is so.
    async fn resolves_with(&self, expected: &str) {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        let written = async {
            while self.read("resolv.conf") != expected {
                poll.tick().await;
            }
        };
        let written = tokio::time::timeout(LIMIT, written).await;
        written.unwrap_or_else(|_| panic!("{}", self.read("resolv.conf")));
    }
}

#[test]
fn kea_gives_an_address_with_two_messages_renews_it_and_gets_it_back() {
    let pools = r#"{"pool": "fd77::200 - fd77::20f"}"#;
    let servers = ("AdvManagedFlag on;", pools);
    with_servers("nwd-kea6", servers, async |mut world, routers, kea| {
        let node = world.start("", "");
        let held = world.address6("fd77::20").await;
        assert_eq!(held.net.prefix_len(), 128);
        assert!(held.valid.is_some_and(|valid| (60..=120).contains(&valid.as_secs())));
        world.resolves_with("nameserver fd77::54\nnameserver fd77::53\nsearch b.org a.org\n").await;
        kea.said("RENEW (type 5)", 1).await;
        assert!(
            kea.seen("SOLICIT (type 1)", 1) && !kea.seen("REQUEST (type 3)", 1),
            "two messages"
        );
        assert_eq!(world.address6("fd77::20").await.net, held.net);
        // A router that goes away takes its word back.
        let radvd = Pid::from_raw(routers.process.id().cast_signed());
        kill(radvd, Signal::SIGTERM).unwrap();
        world.resolves_with("nameserver fd77::54\nsearch b.org\n").await;
        std::fs::write(world.path("state").join("release"), "").unwrap();
        node.stop().await;
        kea.said("RELEASE (type 8)", 1).await;
    });
}

#[test]
fn kea_gives_settings_without_an_address() {
    with_servers(
        "nwd-kea6-other",
        ("AdvOtherConfigFlag on;", ""),
        async |mut world, routers, kea| {
            let node = world.start("", "");
            world
                .resolves_with("nameserver fd77::54\nnameserver fd77::53\nsearch b.org a.org\n")
                .await;
            let addresses = world.netlink.addresses().await.unwrap();
            assert!(!addresses.iter().any(|address| address.protocol == Protocol::DHCP));
            node.stop().await;
            drop((routers, kea));
        },
    );
}

#[test]
fn an_address_that_another_host_has_is_declined_and_another_one_used() {
    in_namespaces("nwd-dad", async |mut world| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            return println!("skipped: this kernel has no IPv6");
        }
        ip(&format!("-n {}-node link set eth0 address 02:00:00:00:00:77", world.name));
        world.on_server("address add fd77::1/64 dev srv0 nodad");
        world.on_server("address add fd77::150/128 dev srv0 nodad");
        let options = [
            "--enable-ra",
            "--ra-param=srv0,4,60",
            "--dhcp-range=fd77::100,fd77::1ff,64,10m",
            "--dhcp-host=id:00:03:00:01:02:00:00:00:00:77,[fd77::150]",
        ];
        world.serve(RANGE, &options);
        let node = world.start("", "");
        let server = world.server.as_ref().unwrap();
        server.said("DHCPDECLINE(srv0) 00:03:00:01:02:00:00:00:00:77", 1).await;
        let other = |address: &Address| {
            let text = address.net.to_string();
            text.starts_with("fd77::1") && text != "fd77::150/128"
        };
        world
            .until(async || {
                let addresses = world.netlink.addresses().await.unwrap();
                let mut ours = addresses.iter().filter(|it| it.protocol == Protocol::DHCP);
                ours.any(other).then_some(())
            })
            .await;
        node.stop().await;
    });
}
