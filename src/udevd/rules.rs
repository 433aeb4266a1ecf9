//! `machine.udev.rules`: what the owner of a node adds, in a subset of the language of udev(7).
//!
//! A rule is one line of matches (`KEY=="pattern"`, `KEY!="pattern"`) and assignments
//! (`KEY="value"`, `KEY+="value"`), with commas between them; it applies when all its matches hold.
//! Matched are `ACTION`, `KERNEL`, `SUBSYSTEM`, `DEVPATH`, `ENV{…}` and `ATTR{…}` of the device, and
//! `KERNELS`, `SUBSYSTEMS`, `DRIVERS`, `ATTRS{…}` of it or one device above it, the same for all of a
//! rule. Patterns are those of fnmatch(3), several with `|` between them. Assigned are `SYMLINK`,
//! `OWNER` and `GROUP` (numbers, or `root`), `MODE` (octal), `NAME` (of network interfaces) and
//! `ENV{…}`. `%k`, `%n`, `%M`, `%m`, `%p`, `%E{…}`, `%s{…}`, `%%` and `$kernel`, `$number`, `$major`,
//! `$minor`, `$devpath`, `$env{…}`, `$attr{…}`, `$$` stand for what they do in udev.
//!
//! Everything else (programs, imports, labels, options) is refused with its place, and the rule is left
//! out: one that is silently obeyed by half is worse than none. [`parse`] takes any text.

use std::iter::Peekable;
use std::str::CharIndices;

use crate::encode::plain;
use crate::modules::matches;
use crate::policy::{self, Access, Decision};
use crate::sysfs::Device;
use crate::uevent::Uevent;

/// Rules in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// Where a text is no rule, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {reason}")]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    matches: Vec<Match>,
    assignments: Vec<Assignment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Match {
    key: Key,
    /// `!=`
    negated: bool,
    patterns: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Action,
    Kernel,
    Subsystem,
    Devpath,
    Env(String),
    Attr(String),
    Kernels,
    Subsystems,
    Drivers,
    Attrs(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Assignment {
    /// More links; `only`: and none of those before.
    Links {
        only: bool,
        links: String,
    },
    Owner(u32),
    Group(u32),
    Mode(u32),
    Name(String),
    Env(String, String),
}

/// Reads rules: one on each line, empty lines and those that begin with `#` passed over; a backslash
/// at the end of a line joins it with the next. Beside the rules come all lines that are none, or none
/// that is understood.
#[must_use]
pub fn parse(text: &str) -> (Rules, Vec<Problem>) {
    let (mut rules, mut problems) = (Vec::new(), Vec::new());
    let mut lines = (1..).zip(text.lines());
    while let Some((line, first)) = lines.next() {
        let mut whole = first.to_owned();
        while whole.ends_with('\\') {
            whole.pop();
            let Some((_, next)) = lines.next() else { break };
            whole.push_str(next);
        }
        if whole.trim().is_empty() || whole.trim_start().starts_with('#') {
            continue;
        }
        match rule(&whole) {
            Ok(rule) => rules.push(rule),
            Err((at, reason)) => {
                let column = whole[..at].chars().count() + 1;
                problems.push(Problem { line, column, reason });
            }
        }
    }
    (Rules(rules), problems)
}

/// A place in bytes, and what is wrong there.
type Wrong = (usize, String);

fn rule(text: &str) -> Result<Rule, Wrong> {
    let mut rule = Rule::default();
    let mut chars = text.char_indices().peekable();
    loop {
        let blank = |c: &(usize, char)| c.1.is_whitespace() || c.1 == ',';
        while chars.next_if(blank).is_some() {}
        let Some(&(start, _)) = chars.peek() else { break };
        let word = |c: &(usize, char)| !c.1.is_whitespace() && !"=!+-:,\"".contains(c.1);
        let key: String = std::iter::from_fn(|| chars.next_if(word)).map(|(_, c)| c).collect();
        while chars.next_if(|c| c.1.is_whitespace()).is_some() {}
        let at = chars.peek().map_or(text.len(), |(at, _)| *at);
        let sign = |c: &(usize, char)| "=!+-:".contains(c.1);
        let operator: String = std::iter::from_fn(|| chars.next_if(sign)).map(|(_, c)| c).collect();
        while chars.next_if(|c| c.1.is_whitespace()).is_some() {}
        let value = quoted(&mut chars, text.len())?;
        match operator.as_str() {
            "==" | "!=" => rule.matches.push(Match {
                key: match_key(&key).map_err(|reason| (start, reason))?,
                negated: operator == "!=",
                patterns: value.split('|').map(str::to_owned).collect(),
            }),
            "=" | "+=" | ":=" => {
                let assignment = assignment(&key, &operator, value);
                rule.assignments.push(assignment.map_err(|reason| (start, reason))?);
            }
            _ => return Err((at, format!("{operator:?} is none of == != = +="))),
        }
    }
    if rule.assignments.is_empty() {
        return Err((0, "the rule assigns nothing".to_owned()));
    }
    Ok(rule)
}

/// `"…"`, in which `\"` is a quote.
fn quoted(chars: &mut Peekable<CharIndices<'_>>, end: usize) -> Result<String, Wrong> {
    let at = chars.peek().map_or(end, |(at, _)| *at);
    chars.next_if(|c| c.1 == '"').ok_or((at, "a value in double quotes is expected".to_owned()))?;
    let mut value = String::new();
    while let Some((_, c)) = chars.next() {
        match c {
            '"' => return Ok(value),
            '\\' if chars.next_if(|c| c.1 == '"').is_some() => value.push('"'),
            c => value.push(c),
        }
    }
    Err((at, "the value has no closing quote".to_owned()))
}

/// `KEY` or `KEY{name}`.
fn parts(key: &str) -> (&str, Option<&str>) {
    match key.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').filter(|inner| !inner.is_empty())),
        None => (key, None),
    }
}

fn match_key(key: &str) -> Result<Key, String> {
    Ok(match parts(key) {
        ("ACTION", None) => Key::Action,
        ("KERNEL", None) => Key::Kernel,
        ("SUBSYSTEM", None) => Key::Subsystem,
        ("DEVPATH", None) => Key::Devpath,
        ("KERNELS", None) => Key::Kernels,
        ("SUBSYSTEMS", None) => Key::Subsystems,
        ("DRIVERS", None) => Key::Drivers,
        ("ENV", Some(name)) => Key::Env(name.to_owned()),
        ("ATTR", Some(name)) => Key::Attr(attribute(name)?),
        ("ATTRS", Some(name)) => Key::Attrs(attribute(name)?),
        _ => {
            return Err(format!(
                "{key:?} cannot be matched here; ACTION, KERNEL, SUBSYSTEM, DEVPATH, ENV{{}}, ATTR{{}}, \
                 KERNELS, SUBSYSTEMS, DRIVERS and ATTRS{{}} can"
            ));
        }
    })
}

/// An attribute is in the device's own folder.
fn attribute(name: &str) -> Result<String, String> {
    let sound = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    sound.then(|| name.to_owned()).ok_or_else(|| format!("{name:?} is no attribute of a device"))
}

fn assignment(key: &str, operator: &str, value: String) -> Result<Assignment, String> {
    let id = |text: &str| match text {
        "root" => Ok(0),
        text => text.parse().map_err(|_| {
            format!("{text:?} is unknown: this node knows users and groups by number, and root")
        }),
    };
    Ok(match (parts(key), operator) {
        (("SYMLINK", None), operator) => Assignment::Links { only: operator != "+=", links: value },
        (_, "+=") if key != "SYMLINK" && !key.starts_with("ENV{") => {
            return Err(format!("nothing can be added to {key}; assign it with ="));
        }
        (("OWNER", None), _) => Assignment::Owner(id(&value)?),
        (("GROUP", None), _) => Assignment::Group(id(&value)?),
        (("MODE", None), _) => match u32::from_str_radix(&value, 8) {
            Ok(mode) if mode <= 0o777 => Assignment::Mode(mode),
            _ => return Err(format!("{value:?} is no mode: octal digits up to 0777 are")),
        },
        (("NAME", None), _) => Assignment::Name(value),
        (("ENV", Some(name)), "=" | ":=") => Assignment::Env(name.to_owned(), value),
        _ => {
            return Err(format!(
                "{key:?} cannot be assigned here; SYMLINK, OWNER, GROUP, MODE, NAME and ENV{{}} can"
            ));
        }
    })
}

impl Rules {
    /// What the rules make of a decision.
    pub fn apply(&self, event: &Uevent, device: Device<'_>, decision: &mut Decision) {
        for rule in &self.0 {
            let scene = Scene { event, device, decision };
            if rule.holds(&scene) {
                rule.assignments
                    .iter()
                    .for_each(|assignment| assign(assignment, event, device, decision));
            }
        }
    }
}

/// What a rule is held against.
struct Scene<'a> {
    event: &'a Uevent,
    device: Device<'a>,
    decision: &'a Decision,
}

impl Scene<'_> {
    fn env(&self, name: &str) -> Option<&str> {
        let found = self.decision.properties.get(name).map(String::as_str);
        found.or_else(|| self.event.get(name))
    }
}

impl Rule {
    fn holds(&self, scene: &Scene<'_>) -> bool {
        let (here, above): (Vec<_>, Vec<_>) =
            self.matches.iter().partition(|condition| condition.of_device_alone());
        let anywhere = || {
            let mut devices = std::iter::once(scene.device).chain(scene.device.above());
            devices.any(|device| above.iter().all(|condition| condition.holds_above(device)))
        };
        here.iter().all(|condition| condition.holds(scene)) && (above.is_empty() || anywhere())
    }
}

impl Match {
    fn of_device_alone(&self) -> bool {
        !matches!(self.key, Key::Kernels | Key::Subsystems | Key::Drivers | Key::Attrs(_))
    }

    fn holds(&self, scene: &Scene<'_>) -> bool {
        match &self.key {
            Key::Action => self.fits(Some(&scene.event.action.to_string())),
            Key::Kernel => self.fits(Some(scene.event.kernel_name())),
            Key::Subsystem => self.fits(Some(&scene.event.subsystem)),
            Key::Devpath => self.fits(Some(&scene.event.devpath)),
            // A property that is not there is an empty one, as in udev.
            Key::Env(name) => self.fits(Some(scene.env(name).unwrap_or_default())),
            Key::Attr(name) => self.fits(scene.device.text(name).as_deref()),
            _ => false,
        }
    }

    fn holds_above(&self, device: Device<'_>) -> bool {
        match &self.key {
            Key::Kernels => self.fits(Some(device.name())),
            Key::Subsystems => self.fits(device.subsystem().as_deref()),
            Key::Drivers => self.fits(device.sysfs().link(device.path, "driver").as_deref()),
            Key::Attrs(name) => self.fits(device.text(name).as_deref()),
            _ => false,
        }
    }

    /// What is not there fits no pattern, negated or not.
    fn fits(&self, text: Option<&str>) -> bool {
        text.is_some_and(|text| {
            self.patterns.iter().any(|pattern| matches(pattern, text)) != self.negated
        })
    }
}

fn assign(assignment: &Assignment, event: &Uevent, device: Device<'_>, decision: &mut Decision) {
    let expand = |text: &str, decision: &Decision| expand(text, &Scene { event, device, decision });
    let mut access = |change: &dyn Fn(&mut Access)| {
        // Of an event other than `add` nothing follows for the node; what a rule leaves open is as
        // it was when the device appeared.
        if let Some(mut changed) = decision.access.or_else(|| policy::access(event)) {
            change(&mut changed);
            decision.access = Some(changed);
        }
    };
    match assignment {
        Assignment::Links { only, links } => {
            let links = expand(links, decision);
            if *only {
                decision.links.clear();
            }
            let safe = |link: &str| link.split('/').map(plain).collect::<Vec<_>>().join("/");
            decision.links.extend(links.split_whitespace().map(safe));
        }
        Assignment::Owner(owner) => access(&|access| access.owner = *owner),
        Assignment::Group(group) => access(&|access| access.group = *group),
        Assignment::Mode(mode) => access(&|access| access.mode = *mode),
        Assignment::Name(name) => {
            let name = expand(name, decision);
            // What the kernel takes as the name of an interface (dev_valid_name()).
            let sound = (1..=15).contains(&name.len())
                && !matches!(name.as_str(), "." | "..")
                && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if sound && event.ifindex().is_some() {
                decision.name = Some(name);
            }
        }
        Assignment::Env(key, value) => {
            let value = expand(value, decision);
            // A record has a property on each line.
            let value = value.replace(|c: char| c.is_control(), "_");
            match value.is_empty() {
                true => drop(decision.properties.remove(key)),
                false => drop(decision.properties.insert(key.clone(), value)),
            }
        }
    }
}

/// Puts values in the place of `%k` and `$kernel`. What is not known stays as it stands.
fn expand(text: &str, scene: &Scene<'_>) -> String {
    const WORDS: [(&str, char); 7] = [
        ("kernel", 'k'),
        ("number", 'n'),
        ("major", 'M'),
        ("minor", 'm'),
        ("devpath", 'p'),
        ("env", 'E'),
        ("attr", 's'),
    ];
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['%', '$']) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let (sign, after) = found.split_at(1);
        let letter = match sign {
            "%" => after.chars().next().map(|c| (c, c.len_utf8())),
            _ if after.starts_with('$') => Some(('$', 1)),
            _ => WORDS
                .iter()
                .find(|(word, _)| after.starts_with(word))
                .map(|(word, c)| (*c, word.len())),
        };
        let (letter, mut length) = letter.unwrap_or((' ', 0));
        let name =
            after[length..].strip_prefix('{').and_then(|inner| Some(inner.split_once('}')?.0));
        let number = |key: &str| scene.event.get(key).unwrap_or_default().to_owned();
        let kernel = scene.event.kernel_name();
        let value = match (letter, name) {
            ('k', _) => Some(kernel.to_owned()),
            ('n', _) => {
                let base = kernel.trim_end_matches(|c: char| c.is_ascii_digit());
                Some(kernel[base.len()..].to_owned())
            }
            ('M', _) => Some(number("MAJOR")),
            ('m', _) => Some(number("MINOR")),
            ('p', _) => Some(scene.event.devpath.clone()),
            ('%' | '$', _) if sign.starts_with(letter) => Some(sign.to_owned()),
            ('E', Some(name)) => Some(scene.env(name).unwrap_or_default().to_owned()),
            ('s', Some(name)) => {
                let sound = attribute(name).ok();
                Some(sound.and_then(|name| scene.device.text(&name)).unwrap_or_default())
            }
            _ => None,
        };
        match value {
            Some(value) => {
                if let ('E' | 's', Some(name)) = (letter, name) {
                    length += name.len() + 2;
                }
                out.push_str(&value);
                rest = &after[length..];
            }
            None => {
                out.push_str(sign);
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sysfs::Fake;

    const DISK: &str = "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda12";

    fn decided(rules: &str) -> Decision {
        let event = Uevent::parse(
            format!(
                "add@{DISK}\0ACTION=add\0DEVPATH={DISK}\0SUBSYSTEM=block\0SEQNUM=1\0MAJOR=254\0\
                 MINOR=12\0DEVNAME=vda12\0DEVTYPE=partition\0"
            )
            .as_bytes(),
        )
        .unwrap();
        let fake = Fake::new(&[
            "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda12/size=8192",
            "/devices/pci0000:00/0000:00:04.0/virtio1/subsystem=virtio",
            "/devices/pci0000:00/0000:00:04.0/virtio1/driver=virtio_blk",
            "/devices/pci0000:00/0000:00:04.0/subsystem=pci",
            "/devices/pci0000:00/0000:00:04.0/vendor=0x1af4",
        ]);
        let mut decision = Decision::default();
        decision.properties.insert("ID_FS_TYPE".to_owned(), "xfs".to_owned());
        decision.links.insert("block/254:12".to_owned());
        let (rules, problems) = parse(rules);
        assert_eq!(problems, []);
        rules.apply(&event, Device::new(&fake, DISK), &mut decision);
        decision
    }

    #[test]
    fn a_rule_that_holds_is_obeyed() {
        let decision = decided(
            "# comment\n\
             SUBSYSTEM==\"block\", KERNEL==\"vd[a-z]*|sd*\", ENV{ID_FS_TYPE}==\"xfs\", \\\n  \
             SYMLINK+=\"data/%k data/$env{ID_FS_TYPE}-%n\", GROUP=\"6\", MODE=\"0640\", ENV{MINE}=\"$attr{size}%%\"\n",
        );
        let links: Vec<_> = decision.links.iter().map(String::as_str).collect();
        assert_eq!(links, ["block/254:12", "data/vda12", "data/xfs-12"]);
        assert_eq!(decision.access, Some(Access { owner: 0, group: 6, mode: 0o640 }));
        assert_eq!(decision.properties["MINE"], "8192%");
    }

    #[test]
    fn one_device_above_must_fit_all_that_is_said_of_one_above() {
        let named = |rule: &str| decided(rule).properties.contains_key("MINE");
        assert!(named("SUBSYSTEMS==\"pci\", ATTRS{vendor}==\"0x1af4\", ENV{MINE}=\"1\""));
        assert!(named("DRIVERS==\"virtio_blk\", ENV{MINE}=\"1\""));
        assert!(!named("SUBSYSTEMS==\"virtio\", ATTRS{vendor}==\"0x1af4\", ENV{MINE}=\"1\""));
        assert!(!named("ACTION!=\"add|change\", ENV{MINE}=\"1\""));
        assert!(!named("ATTR{missing}!=\"x\", ENV{MINE}=\"1\""));
        assert!(named("ENV{MISSING}!=\"?*\", ENV{MINE}=\"1\""));
    }

    #[test]
    fn later_rules_see_what_earlier_ones_did() {
        let decision =
            decided("ENV{A}=\"1\"\nENV{A}==\"1\", SYMLINK=\"only\", ENV{ID_FS_TYPE}=\"\"\n");
        assert_eq!(decision.links.into_iter().collect::<Vec<_>>(), ["only"]);
        assert!(!decision.properties.contains_key("ID_FS_TYPE"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        let problem = |text: &str| {
            let (_, problems) = parse(text);
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            problem("KERNEL==\"sda\", MODE=\"0999\"\n\nKERNEL=\"sda\"\n"),
            "1:16: \"0999\" is no mode: octal digits up to 0777 are\n\
             3:1: \"KERNEL\" cannot be assigned here; SYMLINK, OWNER, GROUP, MODE, NAME and ENV{} can"
        );
        for (text, place, word) in [
            ("KERNEL==\"sda\", RUN+=\"/bin/true\"", "1:16", "RUN"),
            ("PROGRAM==\"/bin/true\", MODE=\"0600\"", "1:1", "PROGRAM"),
            ("KERNEL==\"sda\"", "1:1", "assigns nothing"),
            ("KERNEL==\"sda", "1:9", "closing quote"),
            ("KERNEL==sda", "1:9", "double quotes"),
            ("KERNEL=~\"sda\"", "1:8", "double quotes"),
            ("OWNER=\"disk\"", "1:1", "by number"),
            ("MODE+=\"0600\"", "1:1", "assign it with ="),
            ("ATTR{../x}==\"1\", MODE=\"0600\"", "1:1", "no attribute"),
            ("GOTO=\"end\"", "1:1", "GOTO"),
        ] {
            let problem = problem(text);
            assert!(problem.starts_with(place) && problem.contains(word), "{text}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(KERNEL|ENV\\{A\\}|MODE|SYMLINK|[A-Z{}]{0,4}|==|!=|=|\\+=|\"[^\"]{0,6}\"|[,\\\\\n\"]){0,16}") {
            let (_, problems) = parse(&text);
            prop_assert!(problems.iter().all(|problem| problem.line > 0 && problem.column > 0));
        }

        #[test]
        fn any_value_is_expanded(value in "[%$kns{}aEé0-9attrenv]{0,16}") {
            decided(&format!("SYMLINK+=\"{value}\", ENV{{X}}=\"{value}\""));
        }
    }
}
