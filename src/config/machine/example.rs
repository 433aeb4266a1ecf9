//! A sound configuration of any length, for measurements and tests.

use std::fmt::Write as _;

/// A configuration of exactly `lines` lines, at least 26, with a bit of everything: most of it are
/// interfaces with routes, files, settings and mirrors.
#[doc(hidden)]
#[must_use]
pub fn example_of_lines(lines: usize) -> String {
    const TAIL: &str = "cluster:\n  controlPlane:\n    endpoint: https://10.0.0.1:6443\n";
    let mut sections = [
        "  network:\n    interfaces:\n".to_owned(),
        "  files:\n".to_owned(),
        "  sysctls:\n".to_owned(),
        "  registries:\n    mirrors:\n".to_owned(),
        "  env:\n".to_owned(),
    ];
    let head = "version: v1alpha1\nmachine:\n  type: worker\n";
    let mut left = lines.saturating_sub(3 + 7 + 3);
    let mut i = 0;
    // Six lines, three, one, two; then single ones until the number is right.
    while left > 6 + 3 + 1 + 2 {
        let (a, b) = (i / 250, i % 250);
        let _ = write!(
            sections[0],
            "      - interface: eth{i}\n        cidr: 10.{a}.{b}.5/24\n        mtu: 1500\n        \
             routes:\n          - network: 172.16.{b}.0/24\n            gateway: 10.{a}.{b}.1\n"
        );
        let _ = write!(
            sections[1],
            "    - path: /var/etc/file-{i}\n      permissions: 0o644\n      content: \"{i}\"\n"
        );
        let _ = writeln!(sections[2], "    net.ipv4.conf.eth{i}.forwarding: 1");
        let _ = write!(
            sections[3],
            "      registry-{i}.example.org:\n        endpoints: [\"https://10.0.0.9:5000\"]\n"
        );
        left -= 12;
        i += 1;
    }
    for i in 0..left {
        let _ = writeln!(sections[4], "    VARIABLE_{i}: value");
    }
    format!("{head}{}{TAIL}", sections.concat())
}
