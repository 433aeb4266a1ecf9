//! Who may do what (spec of the server, §1.2).
//!
//! - [`Authorizers`]: all that are asked, in their order; `system:masters` are asked nothing.
//! - [`rbac`]: roles and bindings, kept as an index that follows what is written.
//! - [`rule`]: one rule of a role.
//! - [`escalation`]: nobody grants what they do not have.
//! - [`aggregation`]: cluster roles that gather the rules of others.
//! - [`bootstrap`]: what is there from the start.
//! - [`reviews`]: the same questions, asked through the API.
//!
//! A refusal is told as the reference tells it: clients and people read these words.

pub mod aggregation;
pub mod bootstrap;
pub mod escalation;
pub mod rbac;
pub mod reviews;
pub mod rule;

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

pub use rbac::Rbac;
pub use rule::Rule;

use crate::object::User;
use crate::request::{Asked, Info};
use crate::status::{Details, Status, escaped};

/// The group that may do everything, and that no limit holds up.
pub const MASTERS: &str = "system:masters";

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// Who.
    pub user: &'a User,
    /// `get`; any word, as reviews ask for any.
    pub verb: &'a str,
    /// None: a path that is no resource.
    pub asked: Option<Asked<'a>>,
    /// The path, where it is no resource.
    pub path: &'a str,
}

impl<'a> Action<'a> {
    /// What a request is about.
    #[must_use]
    pub fn of(user: &'a User, info: &Info<'a>, path: &'a str) -> Self {
        Self { user, verb: info.verb, asked: info.resource, path }
    }
}

/// What somebody says to an [`Action`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Yes, and why.
    Allow(Arc<str>),
    /// No, whatever others say.
    Deny(String),
    /// Others may say yes. The reason is told if none does.
    NoOpinion(String),
}

/// What somebody may do in a namespace, as far as it is known.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// In no order.
    pub rules: Vec<Rule>,
    /// Why there may be more.
    pub unknown: Vec<String>,
}

/// Says who may do what.
pub trait Authorizer: Debug + Send + Sync {
    /// May they? Answers at once, from memory.
    fn decide(&self, action: &Action<'_>) -> Decision;

    /// What may they do in this namespace, and anywhere?
    fn held(&self, user: &User, namespace: &str) -> Held;
}

/// Those who are asked, in their order: the first that says yes or no decides.
#[derive(Clone, Debug)]
pub struct Authorizers(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Authorizers {
    fn decide(&self, action: &Action<'_>) -> Decision {
        if action.user.is_in(MASTERS) {
            return Decision::Allow(Arc::from(""));
        }
        let mut reasons: Vec<String> = Vec::new();
        for authorizer in &self.0 {
            match authorizer.decide(action) {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    fn held(&self, user: &User, namespace: &str) -> Held {
        let mut all = Held::default();
        for authorizer in &self.0 {
            let Held { rules, unknown } = authorizer.held(user, namespace);
            all.rules.extend(rules);
            all.unknown.extend(unknown);
        }
        all
    }
}

impl Authorizers {
    /// Lets it pass, with the reason, or tells why not.
    ///
    /// # Errors
    /// 403 in the reference's words, when nobody allows it.
    pub fn check(&self, action: &Action<'_>) -> Result<Arc<str>, Status> {
        match self.decide(action) {
            Decision::Allow(reason) => Ok(reason),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(action, &reason)),
        }
    }
}

/// 403: `pods "x" is forbidden: User "u" cannot get resource "pods" in API group "" in the namespace "ns"`. The
/// reason, if there is any, is appended.
#[must_use]
pub fn forbidden(action: &Action<'_>, reason: &str) -> Status {
    let user = quoted(&action.user.name);
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let (verb, mut details) = (action.verb, Details::default());
    let message = if let Some(asked) = &action.asked {
        let (sub, dot) = (asked.subresource, if asked.group.is_empty() { "" } else { "." });
        let slash = if sub.is_empty() { "" } else { "/" };
        let resource = quoted(&format!("{}{slash}{sub}", asked.plural));
        let name =
            if asked.name.is_empty() { String::new() } else { format!(" {}", quoted(asked.name)) };
        let place = match asked.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {}", quoted(namespace)),
        };
        let what = escaped(&format!(
            "User {user} cannot {verb} resource {resource} in API group {} {place}",
            quoted(asked.group)
        ));
        details.name = asked.name.to_owned();
        details.group = asked.group.to_owned();
        details.kind = asked.plural.to_owned();
        format!("{}{dot}{}{name} is forbidden: {what}{because}", asked.plural, asked.group)
    } else {
        let what = escaped(&format!("User {user} cannot {verb} path {}", quoted(action.path)));
        format!("forbidden: {what}{because}")
    };
    Status { code: 403, reason: "Forbidden", message, details: Box::new(details) }
}

/// A text between quotes as the reference writes it, which is how Go does (`%q`).
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            // Writing to a string does not fail.
            c if c < ' ' || c == '\u{7f}' => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c if c.is_control() => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Says(Decision);

    impl Authorizer for Says {
        fn decide(&self, _: &Action<'_>) -> Decision {
            self.0.clone()
        }

        fn held(&self, _: &User, _: &str) -> Held {
            Held { rules: vec![Rule::all_urls()], unknown: vec!["more".to_owned()] }
        }
    }

    fn user(name: &str) -> User {
        User { name: name.to_owned(), ..User::default() }
    }

    #[test]
    fn the_first_who_decides_is_heard_and_masters_are_asked_nothing() {
        let says = |list: Vec<Decision>| {
            Authorizers(
                list.into_iter().map(|said| Arc::new(Says(said)) as Arc<dyn Authorizer>).collect(),
            )
        };
        let no = |why: &str| Decision::NoOpinion(why.to_owned());
        let (yes, never) = (Decision::Allow("yes".into()), Decision::Deny("never".to_owned()));
        let ann = user("ann");
        let action = Action { user: &ann, verb: "get", asked: None, path: "/x" };
        assert_eq!(says(vec![no("a"), yes.clone(), never.clone()]).decide(&action), yes);
        let denies = says(vec![no(""), never.clone(), yes]);
        assert_eq!(denies.decide(&action), never);
        let none = says(vec![no("a"), no(""), no("b")]);
        assert_eq!(none.decide(&action), no("a\nb"));
        assert_eq!(
            none.check(&action).expect_err("nobody allows it").message,
            "forbidden: User \"ann\" cannot get path \"/x\": a\nb"
        );
        let root = User { groups: vec![MASTERS.to_owned()], ..ann.clone() };
        assert_eq!(
            denies.check(&Action { user: &root, ..action }).as_deref(),
            Ok(""),
            "before anything else"
        );
        assert_eq!(none.held(&root, "").rules.len(), 3);
        assert_eq!(none.held(&root, "").unknown, ["more"; 3]);
    }

    #[test]
    fn refusals_are_worded_as_the_reference_does() {
        let user = user("a<b>&\"c\"");
        let asked = Asked { version: "v1", plural: "pods", ..Asked::default() };
        let told = |asked| {
            let action = Action { user: &user, verb: "list", asked, path: "/x?<y>" };
            forbidden(&action, "").message
        };
        let who = "User \"a&lt;b&gt;&amp;\\\"c\\\"\" cannot list";
        assert_eq!(
            told(Some(Asked { namespace: "ns", ..asked })),
            format!(
                "pods is forbidden: {who} resource \"pods\" in API group \"\" in the namespace \"ns\""
            )
        );
        assert_eq!(
            told(Some(asked)),
            format!(
                "pods is forbidden: {who} resource \"pods\" in API group \"\" at the cluster scope"
            )
        );
        assert_eq!(
            told(Some(Asked {
                group: "apps",
                namespace: "ns",
                plural: "deployments",
                name: "x",
                subresource: "scale",
                ..asked
            })),
            format!(
                "deployments.apps \"x\" is forbidden: {who} resource \"deployments/scale\" in API group \"apps\" in the namespace \"ns\""
            )
        );
        assert_eq!(told(None), format!("forbidden: {who} path \"/x?&lt;y&gt;\""));
        let ann = self::user("ann");
        let action = Action {
            user: &ann,
            verb: "get",
            asked: Some(Asked { name: "x", namespace: "ns", ..asked }),
            path: "",
        };
        let status = forbidden(&action, "RBAC: <b>");
        assert_eq!(
            status.body(),
            serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden",
                "message": "pods \"x\" is forbidden: User \"ann\" cannot get resource \"pods\" in API group \"\" in the namespace \"ns\": RBAC: <b>",
                "details": {"name": "x", "kind": "pods"}, "code": 403,
            })
        );
        let path = forbidden(&Action { asked: None, path: "/", ..action }, "");
        assert_eq!(path.body()["details"], serde_json::json!({}));
        assert_eq!(path.message, "forbidden: User \"ann\" cannot get path \"/\"");
    }

    #[test]
    fn texts_are_quoted_as_go_does() {
        assert_eq!(quoted("a\"\\\n\t\u{1}\u{7f}\u{85}ä"), "\"a\\\"\\\\\\n\\t\\x01\\x7f\\u0085ä\"");
    }
}
