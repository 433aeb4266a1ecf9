//! The policy of an audit (`audit.k8s.io/v1`, kind `Policy`): how much is kept of which request. Its first rule that
//! fits decides; of what none fits nothing is kept.

use orlop_config::Problems;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::authz::Action;

/// A policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    api_version: String,
    kind: String,
    /// Nothing in it is used.
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    rules: Vec<Rule>,
    /// Of every request.
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    /// The empty one is that of what is in none.
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// Of one group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Resources {
    group: String,
    /// `pods`, `pods/log`, `pods/*`, `*/scale`, `*`; none: all.
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// How much is kept of a request.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who asked for what, when, and how it ended.
    Metadata,
    /// And its body.
    Request,
    /// And the answer's.
    RequestResponse,
}

/// When something is kept.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, serde::Serialize)]
pub enum Stage {
    /// Before anything was done.
    RequestReceived,
    /// The answer's head is sent, and its body will take long.
    ResponseStarted,
    /// It is answered.
    ResponseComplete,
    /// The server failed over it. This one ends then, so nothing is kept at this stage.
    Panic,
}

/// What a policy says to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// How much is kept.
    pub level: Level,
    /// When nothing is.
    pub omit_stages: Vec<Stage>,
    /// Are `managedFields` left out of bodies?
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads the text of a policy; `file` is what its owner calls it.
    ///
    /// # Errors
    /// All problems found, with their places.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        orlop_config::read(file, text, Self::problems)
    }

    /// What is wrong with it beyond its types: where, as a JSON pointer, and what.
    fn problems(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut problem = |place: String, what: &str| all.push((place, what.to_owned()));
        if self.api_version != "audit.k8s.io/v1" {
            problem("/apiVersion".to_owned(), "must be `audit.k8s.io/v1`");
        }
        if self.kind != "Policy" {
            problem("/kind".to_owned(), "must be `Policy`");
        }
        if self.rules.is_empty() {
            problem("/rules".to_owned(), "must have a rule: without any nothing would be kept");
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let place = |field: &str| format!("/rules/{i}/{field}");
            let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if of_resources && !rule.non_resource_urls.is_empty() {
                problem(
                    place("nonResourceURLs"),
                    "cannot stand beside resources or namespaces: make two rules of it",
                );
            }
            for (j, url) in rule.non_resource_urls.iter().enumerate() {
                let star = url.find('*');
                if url != "*" && !url.starts_with('/') {
                    problem(place(&format!("nonResourceURLs/{j}")), "must begin with `/`");
                } else if star.is_some_and(|star| star + 1 < url.len()) {
                    problem(place(&format!("nonResourceURLs/{j}")), "can have `*` only at its end");
                }
            }
            for (j, resources) in rule.resources.iter().enumerate() {
                if resources.resources.is_empty() && !resources.resource_names.is_empty() {
                    problem(
                        place(&format!("resources/{j}/resourceNames")),
                        "needs resources that are named so",
                    );
                }
            }
        }
        all
    }

    /// How much is kept of this.
    #[must_use]
    pub fn verdict(&self, action: &Action<'_>) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(action)) else {
            return Verdict {
                level: Level::None,
                omit_stages: self.omit_stages.clone(),
                omit_managed_fields: self.omit_managed_fields,
            };
        };
        Verdict {
            level: rule.level,
            omit_stages: [&rule.omit_stages[..], &self.omit_stages].concat(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn fits(&self, action: &Action<'_>) -> bool {
        let user = action.user;
        let has =
            |list: &[String], word: &str| list.is_empty() || list.iter().any(|own| own == word);
        if !has(&self.users, &user.name)
            || !has(&self.verbs, action.verb)
            || !(self.user_groups.is_empty()
                || self.user_groups.iter().any(|group| user.is_in(group)))
        {
            return false;
        }
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        match &action.asked {
            _ if !of_resources && self.non_resource_urls.is_empty() => true,
            Some(asked) => {
                of_resources
                    && has(&self.namespaces, asked.namespace)
                    && (self.resources.is_empty()
                        || self.resources.iter().any(|known| known.fit(asked)))
            }
            None => self.non_resource_urls.iter().any(|url| {
                url == action.path
                    || url.strip_suffix('*').is_some_and(|start| action.path.starts_with(start))
            }),
        }
    }
}

impl Resources {
    fn fit(&self, asked: &crate::request::Asked<'_>) -> bool {
        if self.group != asked.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty()
            || self.resource_names.iter().any(|name| name == asked.name);
        let sub = asked.subresource;
        named
            && self.resources.iter().any(|known| match known.split_once('/') {
                _ if known == "*" => true,
                // All of its parts, and itself.
                Some((plural, "*")) => plural == asked.plural,
                Some((plural, own)) => {
                    !sub.is_empty() && own == sub && (plural == "*" || plural == asked.plural)
                }
                None => sub.is_empty() && known == asked.plural,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::User;
    use crate::request::info;

    const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
metadata: {name: x}
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-proxy]
  verbs: [watch]
  resources:
  - group: \"\"
    resources: [endpoints, services/*]
- level: None
  userGroups: [system:authenticated]
  nonResourceURLs: [/api*, /version]
- level: Request
  namespaces: [kube-system]
  resources:
  - resources: [configmaps]
    resourceNames: [a]
  omitStages: [Panic]
  omitManagedFields: true
- level: RequestResponse
  resources:
  - group: apps
  - resources: ['*/scale', pods/log]
- level: Metadata
  namespaces: ['']
";

    fn level(policy: &Policy, user: &str, method: &str, path: &str) -> Verdict {
        let (name, group) = user.split_once('@').unwrap_or((user, ""));
        let user =
            User { name: name.to_owned(), groups: vec![group.to_owned()], ..User::default() };
        let (bare, query) = path.split_once('?').unwrap_or((path, ""));
        let query: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        policy.verdict(&Action::of(&user, &info(method, bare, &query), bare))
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = Policy::parse("p", POLICY).expect("it is sound");
        for (user, method, path, expected) in [
            ("system:kube-proxy", "GET", "/api/v1/services?watch=1", Level::None),
            ("system:kube-proxy", "GET", "/api/v1/services", Level::Metadata),
            ("ann", "GET", "/api/v1/namespaces/a/services?watch=1", Level::None),
            ("ann@system:authenticated", "GET", "/api", Level::None),
            ("ann@system:authenticated", "GET", "/apis/apps", Level::None),
            ("ann", "GET", "/version", Level::None),
            ("ann", "PUT", "/api/v1/namespaces/kube-system/configmaps/a", Level::Request),
            ("ann", "PUT", "/api/v1/namespaces/kube-system/configmaps/b", Level::None),
            ("ann", "PUT", "/api/v1/namespaces/x/configmaps/a", Level::None),
            (
                "ann",
                "GET",
                "/apis/apps/v1/namespaces/x/deployments/d/status",
                Level::RequestResponse,
            ),
            (
                "ann",
                "GET",
                "/api/v1/namespaces/x/replicationcontrollers/r/scale",
                Level::RequestResponse,
            ),
            ("ann", "GET", "/api/v1/namespaces/x/pods/p/log", Level::RequestResponse),
            ("ann", "GET", "/api/v1/namespaces/x/pods/p", Level::None),
            ("ann", "GET", "/api/v1/nodes/n", Level::Metadata),
        ] {
            assert_eq!(
                level(&policy, user, method, path).level,
                expected,
                "{user} {method} {path}"
            );
        }
        let of_config = level(&policy, "ann", "PUT", "/api/v1/namespaces/kube-system/configmaps/a");
        assert_eq!(
            of_config,
            Verdict {
                level: Level::Request,
                omit_stages: vec![Stage::Panic, Stage::RequestReceived],
                omit_managed_fields: true,
            }
        );
        assert!(Level::None < Level::Metadata && Level::Request < Level::RequestResponse);
    }

    #[test]
    fn all_that_is_wrong_is_told_with_its_place() {
        let text = "\
apiVersion: audit.k8s.io/v1beta1
kind: Policy
rules:
- level: Everything
- level: None
  namespaces: [a]
  nonResourceURLs: [/a*b, x]
  omitStages: [Later]
- level: None
  resources: [{resourceNames: [a]}]
  who: me
";
        let told = Policy::parse("policy.yaml", text).expect_err("it is not sound").to_string();
        for (line, word) in [("4:", "Everything"), ("8:", "Later"), ("11:", "who")] {
            let fits = |told: &str| {
                told.starts_with(&format!("policy.yaml:{line}")) && told.contains(word)
            };
            assert!(told.lines().any(fits), "{line} {word} in {told}");
        }
        let text = "apiVersion: v1\nkind: Policies\nrules:\n- level: None\n  namespaces: [a]\n  nonResourceURLs: [/a*b, x]\n- level: None\n  resources: [{resourceNames: [a]}]\n";
        let told = Policy::parse("p", text).expect_err("it is not sound").to_string();
        assert_eq!(
            told,
            "p:1:1: apiVersion: must be `audit.k8s.io/v1`\n\
             p:2:1: kind: must be `Policy`\n\
             p:6:3: rules[0].nonResourceURLs: cannot stand beside resources or namespaces: make two rules of it\n\
             p:6:21: rules[0].nonResourceURLs[0]: can have `*` only at its end\n\
             p:6:27: rules[0].nonResourceURLs[1]: must begin with `/`\n\
             p:8:16: rules[1].resources[0].resourceNames: needs resources that are named so"
        );
        let none = Policy::parse("p", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []\n");
        assert!(none.expect_err("no rules").to_string().contains("must have a rule"));
    }
}
