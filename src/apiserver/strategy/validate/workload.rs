//! What makes pods from templates: selectors that match, strategies, schedules.

use serde_json::{Value, json};

use super::names::Form;
use super::{Check, child, labels, meta, named};
use crate::object::{Object, at, items, text};
use crate::resources::Resource;
use crate::status::Cause;

pub(super) const CHECKS: &[(&str, &str, Check)] = &[
    ("meta/v1", "LabelSelector", selector),
    ("meta/v1", "LabelSelectorRequirement", requirement),
    ("core/v1", "PodTemplateSpec", template),
    ("batch/v1", "JobSpec", job_spec),
    ("apps/v1", "DeploymentStrategy", strategy),
    ("apps/v1", "RollingUpdateDaemonSet", rolling_daemons),
];

/// What a kind asks of its template.
pub(super) fn kind(resource: &Resource, object: &Object, causes: &mut Vec<Cause>) {
    match (resource.group, resource.plural) {
        ("apps", plural @ ("deployments" | "replicasets" | "statefulsets" | "daemonsets")) => {
            // The reference words it so for replica sets too, and the other the other way round.
            let (named, makes) = match plural {
                "statefulsets" => ("statefulset", "StatefulSet"),
                "daemonsets" => ("daemonset", "DaemonSet"),
                _ => ("deployment", "ReplicaSet"),
            };
            matching_selector(object, named, causes);
            always_restarted(object, makes, causes);
            if plural == "deployments" {
                progress(object, causes);
            }
        }
        ("", "replicationcontrollers") => {
            let selector = at(object, "/spec/selector").and_then(Value::as_object);
            let labels = at(object, "/spec/template/metadata/labels");
            if at(object, "/spec/template").is_none_or(Value::is_null) {
                causes.push(Cause::required("spec.template", ""));
            } else if let Some(selector) = selector
                && selector
                    .iter()
                    .any(|(key, value)| labels.and_then(|labels| labels.get(key)) != Some(value))
            {
                mismatch(object, causes);
            }
            always_restarted(object, "ReplicationController", causes);
        }
        ("batch", "jobs") => {
            job_template(at(object, "/spec/template"), "spec.template", causes);
            let fits = at(object, "/spec/selector").is_none_or(|selector| {
                fits(selector, at(object, "/spec/template/metadata/labels"))
            });
            if !fits {
                mismatch(object, causes);
            }
            let policy = text(object, "/spec/template/spec/restartPolicy");
            if policy == "OnFailure" && at(object, "/spec/podFailurePolicy").is_some() {
                let path = "spec.template.spec.restartPolicy";
                let why = "only \"Never\" is supported when podFailurePolicy is specified";
                causes.push(Cause::invalid(path, &json!(policy), why));
            }
            let indexed = text(object, "/spec/completionMode") == "Indexed";
            if indexed && at(object, "/spec/completions").is_none() {
                let why = "when completion mode is Indexed";
                causes.push(Cause::required("spec.completions", why));
            }
        }
        ("batch", "cronjobs") => cron_job(object, causes),
        _ => {}
    }
}

/// Does a selector fit labels? An empty one fits all.
pub(in crate::strategy) fn fits(selector: &Value, labels: Option<&Value>) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key)?.as_str());
    let mut exact = selector["matchLabels"].as_object().into_iter().flatten();
    exact.all(|(key, value)| label(key) == value.as_str())
        && selector["matchExpressions"].as_array().into_iter().flatten().all(|requirement| {
            let value = label(requirement["key"].as_str().unwrap_or_default());
            let among = || {
                let mut values = requirement["values"].as_array().into_iter().flatten();
                value.is_some_and(|value| values.any(|known| known == value))
            };
            match requirement["operator"].as_str().unwrap_or_default() {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

fn matching_selector(object: &Object, named: &str, causes: &mut Vec<Cause>) {
    let Some(selector) = at(object, "/spec/selector").filter(|selector| !selector.is_null()) else {
        return;
    };
    let empty = |name: &str| match &selector[name] {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if empty("matchLabels") && empty("matchExpressions") {
        let why = format!("empty selector is invalid for {named}");
        causes.push(Cause::invalid("spec.selector", selector, &why));
    } else if !fits(selector, at(object, "/spec/template/metadata/labels")) {
        mismatch(object, causes);
    }
}

fn mismatch(object: &Object, causes: &mut Vec<Cause>) {
    let labels = at(object, "/spec/template/metadata/labels").cloned().unwrap_or_default();
    let why = "`selector` does not match template `labels`";
    causes.push(Cause::invalid("spec.template.metadata.labels", &labels, why));
}

/// Controllers start what ends, so its pods must not end.
fn always_restarted(object: &Object, makes: &str, causes: &mut Vec<Cause>) {
    let policy = text(object, "/spec/template/spec/restartPolicy");
    if !matches!(policy, "" | "Always") {
        let path = "spec.template.spec.restartPolicy";
        causes.push(Cause::not_supported(path, &json!(policy), &["Always"]));
    }
    if at(object, "/spec/template/spec/activeDeadlineSeconds").is_some_and(Value::is_number) {
        let path = "spec.template.spec.activeDeadlineSeconds";
        let why = format!("activeDeadlineSeconds in {makes} is not Supported");
        causes.push(Cause::forbidden(path, &why));
    }
}

fn progress(deployment: &Object, causes: &mut Vec<Cause>) {
    let seconds = |name: &str| at(deployment, &format!("/spec/{name}")).and_then(Value::as_i64);
    if let Some(deadline) = seconds("progressDeadlineSeconds")
        && deadline <= seconds("minReadySeconds").unwrap_or(0)
    {
        let why = "must be greater than minReadySeconds";
        causes.push(Cause::invalid("spec.progressDeadlineSeconds", &json!(deadline), why));
    }
}

fn template(template: &Object, path: &str, causes: &mut Vec<Cause>) {
    let metadata = child(path, "metadata");
    labels(at(template, "/metadata/labels"), &child(&metadata, "labels"), causes);
    let notes = at(template, "/metadata/annotations");
    meta::annotations(notes, &child(&metadata, "annotations"), causes);
    if items(template, "/spec/ephemeralContainers").next().is_some() {
        let why = "ephemeral containers not allowed in pod template";
        causes.push(Cause::forbidden(format!("{path}.spec.ephemeralContainers"), why));
    }
}

fn selector(selector: &Object, path: &str, causes: &mut Vec<Cause>) {
    labels(selector.get("matchLabels"), &child(path, "matchLabels"), causes);
}

fn requirement(requirement: &Object, path: &str, causes: &mut Vec<Cause>) {
    let count = items(requirement, "/values").count();
    let here = child(path, "values");
    match text(requirement, "/operator") {
        "In" | "NotIn" => {
            if count == 0 {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                causes.push(Cause::required(here, why));
            }
        }
        "Exists" | "DoesNotExist" => {
            if count > 0 {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.push(Cause::forbidden(here, why));
            }
        }
        other => {
            let why = "not a valid selector operator";
            causes.push(Cause::invalid(child(path, "operator"), &json!(other), why));
        }
    }
    named(Form::Qualified, text(requirement, "/key"), &child(path, "key"), causes);
}

/// A count of pods, or a share of them.
pub(super) fn count_or_share(value: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    match value {
        Some(Value::String(text)) => {
            let before = causes.len();
            named(Form::Percent, text, path, causes);
            if causes.len() == before && amount(Some(&json!(text))) > 100 {
                let why = "must not be greater than 100%";
                causes.push(Cause::invalid(path, &json!(text), why));
            }
        }
        Some(number) if number.as_i64().is_some_and(|number| number < 0) => {
            let why = "must be greater than or equal to 0";
            causes.push(Cause::invalid(path, number, why));
        }
        _ => {}
    }
}

/// Of either; none is zero.
fn amount(value: Option<&Value>) -> i64 {
    match value {
        Some(Value::String(text)) => text.trim_end_matches('%').parse().unwrap_or(i64::MAX),
        Some(number) => number.as_i64().unwrap_or(0),
        None => 0,
    }
}

fn strategy(strategy: &Object, path: &str, causes: &mut Vec<Cause>) {
    let rolling = strategy.get("rollingUpdate").and_then(Value::as_object);
    if text(strategy, "/type") == "Recreate" && rolling.is_some() {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden(child(path, "rollingUpdate"), why));
    }
    let Some(rolling) = rolling.filter(|_| text(strategy, "/type") == "RollingUpdate") else {
        return;
    };
    let here = child(path, "rollingUpdate");
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    count_or_share(unavailable, &child(&here, "maxUnavailable"), causes);
    if let Some(Value::String(text)) = surge {
        named(Form::Percent, text, &child(&here, "maxSurge"), causes);
    } else {
        count_or_share(surge, &child(&here, "maxSurge"), causes);
    }
    if amount(unavailable) == 0 && amount(surge) == 0 {
        let value = unavailable.cloned().unwrap_or_else(|| json!(0));
        let why = "may not be 0 when `maxSurge` is 0";
        causes.push(Cause::invalid(child(&here, "maxUnavailable"), &value, why));
    }
}

fn rolling_daemons(rolling: &Object, path: &str, causes: &mut Vec<Cause>) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    count_or_share(unavailable, &child(path, "maxUnavailable"), causes);
    count_or_share(surge, &child(path, "maxSurge"), causes);
    match (amount(unavailable), amount(surge)) {
        (0, 0) => {
            let value = unavailable.cloned().unwrap_or_else(|| json!(0));
            let why = "cannot be 0 when maxSurge is 0";
            causes.push(Cause::invalid(child(path, "maxUnavailable"), &value, why));
        }
        (1.., 1..) => {
            let value = surge.cloned().unwrap_or_default();
            let why = "may not be set when maxUnavailable is non-zero";
            causes.push(Cause::invalid(child(path, "maxSurge"), &value, why));
        }
        _ => {}
    }
}

fn job_spec(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    if text(spec, "/completionMode") == "Indexed"
        && spec.get("parallelism").and_then(Value::as_i64).unwrap_or(0) > 100_000
    {
        let why = "must be less than or equal to 100000 when completion mode is Indexed";
        let value = spec.get("parallelism").cloned().unwrap_or_default();
        causes.push(Cause::invalid(child(path, "parallelism"), &value, why));
    }
}

fn job_template(template: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    let policy = template.map(|template| &template["spec"]["restartPolicy"]);
    let policy = policy.and_then(Value::as_str).unwrap_or_default();
    if !matches!(policy, "OnFailure" | "Never") {
        let why = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required(format!("{path}.spec.restartPolicy"), why));
    }
}

fn cron_job(job: &Object, causes: &mut Vec<Cause>) {
    let template = at(job, "/spec/jobTemplate/spec/template");
    job_template(template, "spec.jobTemplate.spec.template", causes);
    if at(job, "/spec/jobTemplate/spec/manualSelector") == Some(&Value::Bool(true)) {
        let path = "spec.jobTemplate.spec.manualSelector";
        let known = Cause::not_supported(path, &json!(true), &["nil", "false"]);
        causes.push(known);
    }
    let schedule = text(job, "/spec/schedule");
    if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.push(Cause::invalid("spec.schedule", &json!(schedule), why));
    } else if !schedule.is_empty()
        && let Err(why) = read_schedule(schedule)
    {
        causes.push(Cause::invalid("spec.schedule", &json!(schedule), &why));
    }
    if let Some(Value::String(zone)) = at(job, "/spec/timeZone") {
        let why = match zone.as_str() {
            "" => "timeZone must be nil or non-empty string".to_owned(),
            zone if zone.eq_ignore_ascii_case("local") => {
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
                    .to_owned()
            }
            zone if !is_zone(zone) => format!("unknown time zone {zone}"),
            _ => return,
        };
        causes.push(Cause::invalid("spec.timeZone", &json!(zone), &why));
    }
}

/// Of the IANA's names, as far as it can be told without their data: an area and a place, or a name without a place.
fn is_zone(zone: &str) -> bool {
    const AREAS: &[&str] = &[
        "Africa",
        "America",
        "Antarctica",
        "Arctic",
        "Asia",
        "Atlantic",
        "Australia",
        "Brazil",
        "Canada",
        "Chile",
        "Etc",
        "Europe",
        "Indian",
        "Mexico",
        "Pacific",
        "US",
    ];
    const ALONE: &[&str] = &[
        "CET",
        "CST6CDT",
        "Cuba",
        "EET",
        "EST",
        "EST5EDT",
        "Egypt",
        "Eire",
        "Factory",
        "GB",
        "GB-Eire",
        "GMT",
        "GMT+0",
        "GMT-0",
        "GMT0",
        "Greenwich",
        "HST",
        "Hongkong",
        "Iceland",
        "Iran",
        "Israel",
        "Jamaica",
        "Japan",
        "Kwajalein",
        "Libya",
        "MET",
        "MST",
        "MST7MDT",
        "NZ",
        "NZ-CHAT",
        "Navajo",
        "PRC",
        "PST8PDT",
        "Poland",
        "Portugal",
        "ROC",
        "ROK",
        "Singapore",
        "Turkey",
        "UCT",
        "UTC",
        "Universal",
        "W-SU",
        "WET",
        "Zulu",
    ];
    match zone.split_once('/') {
        None => ALONE.contains(&zone),
        Some((area, place)) => {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-/".contains(&byte);
            let starts = |part: &str| part.starts_with(|first: char| first.is_ascii_uppercase());
            AREAS.contains(&area)
                && place.bytes().all(known)
                && place.split('/').all(|part| starts(part) && part.len() > 1)
        }
    }
}

/// Five fields of minutes, hours, days, months and days of the week, or one word; what is wrong is worded as the
/// reference's parser does (robfig/cron, standard form).
fn read_schedule(schedule: &str) -> Result<(), String> {
    if let Some(word) = schedule.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        if known.contains(&word) {
            return Ok(());
        }
        let every = word.strip_prefix("every ").filter(|text| is_duration(text));
        return every.map(|_| ()).ok_or_else(|| format!("unrecognized descriptor: {schedule}"));
    }
    const MONTHS: &[&str] =
        &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    let limits: [(u32, u32, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    for (field, (least, most, names)) in fields.iter().zip(limits) {
        for part in field.split(',').filter(|part| !part.is_empty()) {
            read_range(part, least, most, names)?;
        }
    }
    Ok(())
}

/// `*`, `5`, `1-5`, each with `/step`.
fn read_range(part: &str, least: u32, most: u32, names: &[&str]) -> Result<(), String> {
    let number = |text: &str| -> Result<u32, String> {
        let name = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        if let Some(index) = name.and_then(|index| u32::try_from(index).ok()) {
            return Ok(index + u32::from(names.len() == 12));
        }
        text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
            )
        })
    };
    let (range, step) =
        part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| step.contains('/')) {
        return Err(format!("too many slashes: {part}"));
    }
    let (start, end) = if matches!(range, "*" | "?") {
        (least, most)
    } else {
        let (start, end) = match range.split_once('-') {
            None => (number(range)?, None),
            Some((_, end)) if end.contains('-') => return Err(format!("too many hyphens: {part}")),
            Some((start, end)) => (number(start)?, Some(number(end)?)),
        };
        (start, end.unwrap_or(if step.is_some() { most } else { start }))
    };
    let step = step.map(number).transpose()?;
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {part}"));
    }
    if end > most {
        return Err(format!("end of range ({end}) above maximum ({most}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

/// As Go writes them: `1h30m`.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(0);
        if digits == 0 {
            return false;
        }
        rest = &rest[digits..];
        let units = ["ns", "us", "ms", "s", "m", "h"];
        let Some(unit) = units.into_iter().find(|unit| rest.starts_with(unit)) else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_the_reference_does() {
        for schedule in [
            "* * * * *",
            "*/5 0 1,15 * sun-fri",
            "0-30/2 1 ? JAN 6",
            "@daily",
            "@every 1h30m",
            "5/15 * * * *",
        ] {
            assert_eq!(read_schedule(schedule), Ok(()), "{schedule}");
        }
        for (schedule, why) in [
            ("", "expected exactly 5 fields, found 0: []"),
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@never", "unrecognized descriptor: @never"),
        ] {
            assert_eq!(read_schedule(schedule), Err(why.to_owned()), "{schedule}");
        }
        for (zone, known) in [
            ("Etc/UTC", true),
            ("America/Argentina/Buenos_Aires", true),
            ("UTC", true),
            ("Europe/Berlin", true),
            ("Mars/Olympus", false),
            ("berlin", false),
            ("Europe/", false),
            ("Europe/ber lin", false),
        ] {
            assert_eq!(is_zone(zone), known, "{zone}");
        }
    }
}
