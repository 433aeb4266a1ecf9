//! Which kernel modules drive a device: `modules.alias` and `modules.dep`, as depmod(8) writes them.
//! Pure.

use std::collections::BTreeMap;

/// The modules of a kernel. Empty when it has none.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// Patterns, each with a module.
    aliases: Vec<(String, String)>,
    /// Of each module its file and those of the modules it needs, below the kernel's folder.
    files: BTreeMap<String, Vec<String>>,
}

impl Modules {
    /// Reads the two texts; lines of other kinds are passed over.
    #[must_use]
    pub fn parse(alias: &str, dep: &str) -> Self {
        let aliases = alias.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (Some("alias"), pattern, module) = (words.next(), words.next()?, words.next()?)
            else {
                return None;
            };
            Some((pattern.to_owned(), module.to_owned()))
        });
        let files = dep.lines().filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            // Each needs those after it.
            let mut order: Vec<_> = needs.split_whitespace().rev().map(str::to_owned).collect();
            order.push(file.to_owned());
            order.iter().all(|file| sound(file)).then(|| (name(file), order))
        });
        Self { aliases: aliases.collect(), files: files.collect() }
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files to load for a device with this alias, in order.
    #[must_use]
    pub fn wanted(&self, modalias: &str) -> Vec<&str> {
        let mut files = Vec::new();
        let modules = self.aliases.iter().filter(|(pattern, _)| matches(pattern, modalias));
        for file in modules.filter_map(|(_, module)| self.files.get(&name(module))).flatten() {
            if !files.contains(&file.as_str()) {
                files.push(file);
            }
        }
        files
    }
}

/// A module's name as the kernel says it: of its file, with `_` for `-`.
#[must_use]
pub fn name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or_default();
    base.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn sound(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// fnmatch(3) with `*`, `?`, `[a-z]`, `[!a-z]` and, outside brackets, `\`: in the time of pattern ×
/// text at most.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit: one more byte for the star.
    let mut again = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            again = Some((p, t));
            continue;
        }
        match (text.get(t), one(&pattern[p..], text.get(t).copied())) {
            (None, _) if p == pattern.len() => return true,
            (Some(_), Some(length)) => (p, t) = (p + length, t + 1),
            _ => match again {
                Some((after, at)) if at < text.len() => {
                    (p, t) = (after, at + 1);
                    again = Some((after, at + 1));
                }
                _ => return false,
            },
        }
    }
}

/// How much of the pattern stands for `byte`; `None` when it does not.
fn one(pattern: &[u8], byte: Option<u8>) -> Option<usize> {
    let byte = byte?;
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => {
            // A bracket right at the start stands for itself.
            let skip = usize::from(matches!(rest.first(), Some(b'!' | b'^')));
            let end = rest.iter().skip(skip + 1).position(|byte| *byte == b']')? + skip + 1;
            let set = &rest[skip..end];
            let mut found = false;
            let mut at = 0;
            while at < set.len() {
                if let [low, b'-', high, ..] = set[at..] {
                    found |= (low..=high).contains(&byte);
                    at += 3;
                } else {
                    found |= set[at] == byte;
                    at += 1;
                }
            }
            (found != (skip == 1)).then_some(end + 2)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALIAS: &str = "# Aliases extracted from modules themselves.\n\
        alias pci:v00001AF4d00001041sv*sd*bc*sc*i* virtio_net\n\
        alias virtio:d00000001v* virtio-net\n\
        alias usb:v0BDAp8152d*dc*dsc*dp*ic[0-9]isc*ip*in* r8152\n";
    const DEP: &str = "kernel/drivers/net/virtio_net.ko.zst: kernel/net/core/failover.ko kernel/lib/dim.ko\n\
        kernel/drivers/net/usb/r8152.ko:\nkernel/../../../etc/bad.ko:\n";

    #[test]
    fn a_device_gets_its_module_after_those_it_needs() {
        let modules = Modules::parse(ALIAS, DEP);
        let virtio = [
            "kernel/lib/dim.ko",
            "kernel/net/core/failover.ko",
            "kernel/drivers/net/virtio_net.ko.zst",
        ];
        assert_eq!(modules.wanted("virtio:d00000001v00001AF4"), virtio);
        assert_eq!(
            modules.wanted("usb:v0BDAp8152d3000dc00dsc00dp00ic2isc06ip00in00"),
            ["kernel/drivers/net/usb/r8152.ko"]
        );
        assert!(modules.wanted("virtio:d00000002v00001AF4").is_empty());
        assert!(!modules.files.contains_key("bad"));
    }

    #[test]
    fn patterns_match_as_fnmatch() {
        for (pattern, text) in [
            ("*", ""),
            ("a*c", "abbbc"),
            ("a*b*c", "axxbxxbyyc"),
            ("[!a-c]x", "dx"),
            ("[]a]", "]"),
            ("\\*", "*"),
            ("sd?", "sda"),
            ("sd[a-z][0-9]", "sdb3"),
            ("[a-]", "-"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("a*c", "abbb"), ("[!a-c]", "b"), ("?", ""), ("[a", "a"), ("ab", "a")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(pattern in "[]\\[*?!^a-c\\\\-]{0,12}", text in "[]a-c*-]{0,12}") {
            let _ = matches(&pattern, &text);
        }

        #[test]
        fn a_text_matches_itself_with_a_star_anywhere(text in "[a-c]{0,8}", at in 0usize..9, cut in 0usize..9) {
            let (at, cut) = (at.min(text.len()), cut.min(text.len()));
            let (low, high) = (at.min(cut), at.max(cut));
            let pattern = format!("{}*{}", &text[..low], &text[high..]);
            prop_assert!(matches(&pattern, &text));
        }
    }
}
