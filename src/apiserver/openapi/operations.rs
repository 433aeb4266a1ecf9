//! What can be done at each path, for both versions of documents.

use serde_json::{Map, Value, json};

use super::definitions::{Form, Gvk, META, extension, list_name, name_of};
use crate::encoding::Patch;
use crate::resources::{Resource, Subresource};

/// A path and what is done there.
pub(super) struct Path {
    /// With `{namespace}` and `{name}` in it.
    pub(super) path: String,
    operations: Vec<Operation>,
}

/// What one method does.
struct Operation {
    method: &'static str,
    /// For `x-kubernetes-action`; empty where there is no object.
    action: &'static str,
    id: String,
    description: String,
    tag: String,
    kind: Option<Gvk<'static>>,
    parameters: Vec<&'static [Parameter]>,
    /// The type of the body.
    body: Option<String>,
    /// The codes of success, and the type of what is answered; none: text.
    answers: (&'static [u16], Option<String>),
}

/// In the query.
struct Parameter(&'static str, &'static str, &'static str);

const LIST: &[Parameter] = &[
    Parameter("labelSelector", "string", "Only objects whose labels fit."),
    Parameter("fieldSelector", "string", "Only objects whose fields fit."),
    Parameter("limit", "integer", "At most as many; the answer says how to go on."),
    Parameter("continue", "string", "Goes on with a list, as its last part said."),
    Parameter("resourceVersion", "string", "How new the answer must be."),
    Parameter("resourceVersionMatch", "string", "Whether it must be just as new, or no older."),
    Parameter("timeoutSeconds", "integer", "No longer than this."),
    Parameter("watch", "boolean", "Tells what happens instead of what is."),
    Parameter("allowWatchBookmarks", "boolean", "Tells now and then how far a watch is."),
    Parameter("sendInitialEvents", "boolean", "Begins a watch with what is."),
];
const DRY_RUN: Parameter = Parameter("dryRun", "string", "All: does everything but store it.");
const WRITE: &[Parameter] = &[
    DRY_RUN,
    Parameter("fieldManager", "string", "Who changes it."),
    Parameter(
        "fieldValidation",
        "string",
        "What is done about fields that are unknown or stand twice: Ignore, Warn, Strict.",
    ),
];
const FORCE: &[Parameter] =
    &[Parameter("force", "boolean", "Server-side apply takes fields from their managers.")];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    Parameter("gracePeriodSeconds", "integer", "How long it has to end."),
    Parameter(
        "propagationPolicy",
        "string",
        "What becomes of what it owns: Orphan, Background, Foreground.",
    ),
    Parameter("orphanDependents", "boolean", "What it owns stays; the old word for Orphan."),
    Parameter(
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Deletes what cannot be read.",
    ),
];
const LOG: &[Parameter] = &[
    Parameter("container", "string", "Which container's."),
    Parameter("follow", "boolean", "Goes on as it grows."),
    Parameter("previous", "boolean", "Of the container before it was restarted."),
    Parameter("sinceSeconds", "integer", "No older than this."),
    Parameter("timestamps", "boolean", "Begins each line with when it was written."),
    Parameter("tailLines", "integer", "The last lines only."),
    Parameter("limitBytes", "integer", "No more than this."),
    Parameter("stream", "string", "All, Stdout or Stderr."),
    Parameter("insecureSkipTLSVerifyBackend", "boolean", "Whoever the node's kubelet is."),
];
const EXEC: &[Parameter] = &[
    Parameter("container", "string", "In which container."),
    Parameter("command", "string", "A word of the command; all of them in order."),
    Parameter("stdin", "boolean", "Takes input."),
    Parameter("stdout", "boolean", "Tells output."),
    Parameter("stderr", "boolean", "Tells errors."),
    Parameter("tty", "boolean", "On a terminal."),
];
const PROXY: &[Parameter] = &[Parameter("path", "string", "Where to, behind it.")];
const FORWARD: &[Parameter] = &[Parameter("ports", "integer", "Which ports.")];

/// All paths of a resource.
pub(super) fn of(resource: &'static Resource) -> Vec<Path> {
    let base = if resource.group.is_empty() { "/api" } else { "/apis" };
    let base = format!("{base}/{}", resource.api_version());
    let place = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{place}/{}", resource.plural);
    let item = format!("{collection}/{{name}}");
    let mut paths = Vec::new();
    let mut add = |path: String, operations: Vec<Operation>| {
        if !operations.is_empty() {
            paths.push(Path { path, operations });
        }
    };
    let has = |verb: &&str| resource.verbs.contains(verb);
    let all = |verbs: &[&'static str]| {
        verbs.iter().copied().filter(has).map(|verb| main(resource, verb, "")).collect::<Vec<_>>()
    };
    add(collection, all(&["list", "create", "deletecollection"]));
    if resource.namespaced && has(&"list") {
        let path = format!("{base}/{}", resource.plural);
        add(path, vec![main(resource, "list", "ForAllNamespaces")]);
    }
    add(item.clone(), all(&["get", "update", "patch", "delete"]));
    for sub in &resource.subresources {
        let operations = |end: &str| -> Vec<_> {
            sub.verbs.iter().map(|verb| part(resource, sub, verb, end)).collect()
        };
        add(format!("{item}/{}", sub.name), operations(""));
        if sub.name == "proxy" {
            add(format!("{item}/proxy/{{path}}"), operations("WithPath"));
        }
    }
    paths
}

/// A path at which a document is read, with no object.
pub(super) fn document(path: &str, id: &str, description: &str, answer: Option<&str>) -> Path {
    let operation = Operation {
        method: "get",
        action: "",
        id: id.to_owned(),
        description: description.to_owned(),
        tag: path.trim_matches('/').split('/').next().unwrap_or_default().to_owned(),
        kind: None,
        parameters: Vec::new(),
        body: None,
        answers: (&[200], answer.map(str::to_owned)),
    };
    Path { path: path.to_owned(), operations: vec![operation] }
}

/// `AppsV1`, for ids.
fn camel(group: &str, version: &str) -> String {
    let group = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
    group.split('.').chain([version]).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Which method a verb is, how it is told, and its first word in an id.
fn told(verb: &str) -> (&'static str, &'static str, &'static str) {
    match verb {
        "list" => ("get", "list", "list"),
        "create" => ("post", "post", "create"),
        "update" => ("put", "put", "replace"),
        "patch" => ("patch", "patch", "patch"),
        "delete" => ("delete", "delete", "delete"),
        "deletecollection" => ("delete", "deletecollection", "deleteCollection"),
        _ => ("get", "get", "read"),
    }
}

fn id(resource: &Resource, word: &str, end: &str) -> String {
    let place = if resource.namespaced && end != "ForAllNamespaces" { "Namespaced" } else { "" };
    let group = camel(resource.group, resource.version);
    format!("{word}{group}{place}{}{end}", resource.kind)
}

fn main(resource: &'static Resource, verb: &'static str, end: &str) -> Operation {
    let (method, action, word) = told(verb);
    let kind = (resource.group, resource.version, resource.kind);
    let own = name_of(kind);
    let name = resource.kind;
    let status = format!("{META}Status");
    let options = format!("{META}DeleteOptions");
    let (parameters, body, answers, description): (Vec<&[Parameter]>, _, _, _) = match verb {
        "list" => {
            let answers: (&[u16], _) = (&[200], Some(list_name(resource)));
            (vec![LIST], None, answers, format!("Lists or watches objects of the kind {name}."))
        }
        "create" => (
            vec![WRITE],
            Some(own.clone()),
            (&[200, 201, 202], Some(own)),
            format!("Makes a {name}."),
        ),
        "update" => (
            vec![WRITE],
            Some(own.clone()),
            (&[200, 201], Some(own)),
            format!("Replaces a {name}."),
        ),
        "patch" => {
            let body = Some(format!("{META}Patch"));
            (vec![WRITE, FORCE], body, (&[200, 201], Some(own)), format!("Changes a {name}."))
        }
        "delete" => {
            (vec![DELETE], Some(options), (&[200, 202], Some(status)), format!("Deletes a {name}."))
        }
        "deletecollection" => {
            let description = format!("Deletes all objects of the kind {name} that are chosen.");
            (vec![DELETE, &LIST[..7]], Some(options), (&[200], Some(status)), description)
        }
        _ => (vec![], None, (&[200], Some(own)), format!("Reads a {name}.")),
    };
    Operation {
        method,
        action,
        id: id(resource, word, end),
        description,
        tag: tag(resource),
        kind: Some(kind),
        parameters,
        body,
        answers,
    }
}

fn tag(resource: &Resource) -> String {
    let group =
        if resource.group.is_empty() { "core" } else { resource.group.trim_end_matches(".k8s.io") };
    format!("{}_{}", group.replace('.', "_"), resource.version)
}

/// An operation of a subresource.
fn part(
    resource: &'static Resource,
    sub: &'static Subresource,
    verb: &'static str,
    end: &str,
) -> Operation {
    let own = (resource.group, resource.version, resource.kind);
    let end = format!("{}{end}", capital(sub.name));
    let connects: Option<&[Parameter]> = match sub.name {
        "exec" | "attach" => Some(EXEC),
        "portforward" => Some(FORWARD),
        "proxy" => Some(PROXY),
        _ => None,
    };
    if let Some(parameters) = connects {
        let (method, ..) = told(verb);
        return Operation {
            method,
            action: "connect",
            id: id(resource, &format!("connect{}", capital(method)), &end),
            description: format!("Connects to {} of a {}.", sub.name, resource.kind),
            tag: tag(resource),
            kind: Some(sub.kind.unwrap_or(own)),
            parameters: vec![parameters],
            body: None,
            answers: (&[200], None),
        };
    }
    let mut operation = main(resource, verb, &end);
    operation.description = format!("{} Of it: {}.", operation.description, sub.name);
    if sub.name == "log" {
        operation.parameters = vec![LOG];
        operation.answers = (&[200], None);
    }
    if let Some(kind) = sub.kind {
        operation.kind = Some(kind);
        if verb != "patch" {
            operation.body = operation.body.map(|_| name_of(kind));
        }
        operation.answers.1 = Some(name_of(kind));
    }
    operation
}

impl Path {
    /// The definitions that are spoken of.
    pub(super) fn definitions(&self, form: Form) -> impl Iterator<Item = String> {
        self.operations.iter().flat_map(move |operation| {
            let streams = operation.action == "list" && form == Form::V3;
            let watch = streams.then(|| format!("{META}WatchEvent"));
            operation.body.clone().into_iter().chain(operation.answers.1.clone()).chain(watch)
        })
    }

    /// As a document has it.
    pub(super) fn item(&self, form: Form) -> Value {
        let mut item = Map::new();
        for operation in &self.operations {
            item.insert(operation.method.to_owned(), operation.value(form));
        }
        let mut parameters = Vec::new();
        for (name, about) in [
            ("namespace", "The namespace it is in."),
            ("name", "Its name."),
            ("path", "Where to, behind it."),
        ] {
            if self.path.contains(&format!("{{{name}}}")) {
                parameters.push(parameter(form, "path", &Parameter(name, "string", about)));
            }
        }
        if self.operations.iter().any(|operation| operation.kind.is_some()) {
            let pretty = Parameter("pretty", "string", "Indents what is answered.");
            parameters.push(parameter(form, "query", &pretty));
        }
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), parameters.into());
        }
        item.into()
    }
}

fn parameter(form: Form, place: &str, Parameter(name, kind, about): &Parameter) -> Value {
    let mut value = json!({"name": name, "in": place, "description": about});
    if place == "path" {
        value["required"] = true.into();
    }
    match form {
        Form::V2 => {
            value["type"] = (*kind).into();
            value["uniqueItems"] = true.into();
        }
        Form::V3 => value["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    value
}

const WRITTEN: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMED: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

impl Operation {
    /// What is answered in.
    fn produces(&self) -> Vec<&'static str> {
        match (self.action, &self.answers.1) {
            ("list", _) => WRITTEN.into_iter().chain(STREAMED).collect(),
            ("", Some(_)) => vec!["application/json"],
            (_, Some(_)) => WRITTEN.to_vec(),
            ("connect", None) => vec!["*/*"],
            (_, None) => vec!["text/plain"],
        }
    }

    /// What is taken.
    fn consumes(&self) -> Vec<&'static str> {
        match (self.action, &self.body) {
            ("patch", _) => Patch::ALL.into_iter().map(Patch::media_type).collect(),
            _ => vec!["*/*"],
        }
    }

    fn value(&self, form: Form) -> Value {
        let mut parameters: Vec<_> = self
            .parameters
            .iter()
            .flat_map(|list| list.iter())
            .map(|one| parameter(form, "query", one))
            .collect();
        let answered = match &self.answers.1 {
            Some(name) => form.reference(name),
            None => json!({"type": "string"}),
        };
        let mut responses = Map::new();
        for code in self.answers.0 {
            let description = match code {
                201 => "Created",
                202 => "Accepted",
                _ => "OK",
            };
            let mut response = json!({"description": description});
            match form {
                Form::V2 => response["schema"] = answered.clone(),
                Form::V3 => {
                    let each = self.produces().into_iter().map(|name| {
                        let event = || form.reference(&format!("{META}WatchEvent"));
                        let streams = STREAMED.contains(&name);
                        let schema = if streams { event() } else { answered.clone() };
                        (name.to_owned(), json!({"schema": schema}))
                    });
                    response["content"] = each.collect::<Map<_, _>>().into();
                }
            }
            responses.insert(code.to_string(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let mut value = json!({
            "tags": [self.tag],
            "description": self.description,
            "operationId": self.id,
            "responses": responses,
        });
        if let Some(body) = &self.body {
            let required = self.action != "delete" && self.action != "deletecollection";
            match form {
                Form::V2 => {
                    let mut body =
                        json!({"name": "body", "in": "body", "schema": form.reference(body)});
                    if required {
                        body["required"] = true.into();
                    }
                    parameters.insert(0, body);
                }
                Form::V3 => {
                    let each = self.consumes().into_iter();
                    let content: Map<_, _> = each
                        .map(|name| (name.to_owned(), json!({"schema": form.reference(body)})))
                        .collect();
                    value["requestBody"] = json!({"content": content});
                    if required {
                        value["requestBody"]["required"] = true.into();
                    }
                }
            }
        }
        if form == Form::V2 {
            value["consumes"] = self.consumes().into_iter().collect();
            value["produces"] = self.produces().into_iter().collect();
            value["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            value["parameters"] = parameters.into();
        }
        if !self.action.is_empty() {
            value["x-kubernetes-action"] = self.action.into();
        }
        if let Some(kind) = self.kind {
            value["x-kubernetes-group-version-kind"] = extension(kind);
        }
        value
    }
}
