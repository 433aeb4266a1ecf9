//! The table of roles: what this binary can be, and how it is told.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// One thing the binary can be.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) summary: &'static str,
    /// Runs the role; the first argument is its name.
    pub(crate) run: fn(Vec<OsString>) -> ExitCode,
}

pub(crate) const ROLES: &[Role] = &[
    Role::new("init", "PID 1 in the initramfs: mount, switch root", init),
    Role::new("machined", "PID 1: boot, supervise, machine API", orlop_machined::main),
    Role::new("udevd", "device nodes, links, permissions, modules", orlop_udevd::main),
    Role::new("networkd", "links, addresses, routes, resolvers", orlop_networkd::main),
    Role::new("timed", "the clock, by NTP servers", orlop_timed::main),
    Role::new("routerd", "passes local calls to the daemon that serves them", orlop_routerd::main),
    Role::new("apid", "mutual-TLS front door on port 50000", orlop_apid::main),
    Role::new("trustd", "certificates for nodes that hold the token", orlop_trustd::main),
    Role::new("curator", "the cluster API on port 7835", orlop_curator::main),
    Role::new("apiserver", "the Kubernetes API on port 6443", orlop_apiserver::main),
    Role::new("nsp", "targets and configuration of the ambassador", orlop_nsp::main),
    Role::new("tapa", "the ambassador in a pod: streams for applications", orlop_tapa::main),
    Role::new("orlopctl", "the operator's command line", orlop_ctl::main),
];

impl Role {
    const fn new(
        name: &'static str,
        summary: &'static str,
        run: fn(Vec<OsString>) -> ExitCode,
    ) -> Self {
        Self { name, summary, run }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Choice {
    Run(&'static Role, Vec<OsString>),
    /// `orlop roles`: the names, one per line, for scripts.
    List,
    Version,
    Help,
    Unknown(Option<String>),
}

/// Chooses by the base name of `args[0]`, else by `args[1]`. Names match exactly.
pub(crate) fn choose(args: &[OsString]) -> Choice {
    let base = args.first().and_then(|name| Path::new(name).file_name());
    if let Some(role) = base.and_then(|name| find(&name.to_string_lossy())) {
        return Choice::Run(role, args.to_vec());
    }
    let Some(name) = args.get(1).map(|name| name.to_string_lossy()) else {
        return Choice::Unknown(None);
    };
    match (find(&name), &*name) {
        (Some(role), _) => Choice::Run(role, args[1..].to_vec()),
        (None, "roles") => Choice::List,
        (None, "--help" | "-h" | "help") => Choice::Help,
        (None, "--version" | "-V") => Choice::Version,
        (None, name) => Choice::Unknown(Some(name.to_owned())),
    }
}

/// The roles and what each is for, as shown to a person.
pub(crate) fn table() -> String {
    let mut text =
        "Usage: orlop ROLE [ARGUMENTS], or call it by a role's name.\n\nRoles:\n".to_owned();
    for role in ROLES {
        let _ = writeln!(text, "  {:<10} {}", role.name, role.summary);
    }
    text
}

fn find(name: &str) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.name == name)
}

/// After the switch to the real root, PID 1 is still called `init`: it is `machined` from there on.
fn init(args: Vec<OsString>) -> ExitCode {
    let on_the_root = std::process::id() == 1 && !orlop_init::in_initramfs();
    if on_the_root { orlop_machined::main(args) } else { orlop_init::main(args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(args: &[&str]) -> String {
        match choose(&args.iter().map(OsString::from).collect::<Vec<_>>()) {
            Choice::Run(role, args) => format!("{} with {}", role.name, args.len()),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_base_name_chooses_exactly() {
        assert_eq!(chosen(&["/sbin/machined", "x"]), "machined with 2");
        assert_eq!(chosen(&["xmachined"]), "Unknown(None)");
        assert_eq!(chosen(&["machined.old"]), "Unknown(None)");
    }

    #[test]
    fn the_first_argument_chooses_when_the_name_does_not() {
        assert_eq!(chosen(&["out/orlop", "orlopctl", "memory"]), "orlopctl with 2");
        assert_eq!(chosen(&["orlop", "nonsense"]), "Unknown(Some(\"nonsense\"))");
    }

    #[test]
    fn names_are_unique_and_each_has_a_line() {
        let table = table();
        for (i, role) in ROLES.iter().enumerate() {
            assert!(ROLES[..i].iter().all(|other| other.name != role.name));
            assert!(table.contains(&format!("  {:<10} {}\n", role.name, role.summary)));
        }
    }
}
