use orlop_proto::metropolis::proto::api::node::Health;
use orlop_proto::metropolis::proto::common::node_labels::Pair;
use orlop_proto::metropolis::proto::common::node_roles::KubernetesWorker;
use orlop_proto::metropolis::proto::common::{NodeLabels, NodeRoles, NodeState, NodeStatus};
use orlop_proto::version::spec::Version;
use orlop_proto::version::spec::version::{GitInformation, Release};
use tonic::{Code, Status};

use super::*;

const ID: &str = "metropolis-00112233445566778899aabbccddeeff";

fn node() -> Node {
    let pair = |key: &str, value: &str| Pair { key: key.to_owned(), value: value.to_owned() };
    let version = Version {
        release: Some(Release { major: 0, minor: 12, patch: -1 }),
        git_information: Some(GitInformation {
            commit_hash: "0123456789abcdef".to_owned(),
            commits_since_release: u64::MAX,
            build_tree_state: 1,
        }),
    };
    let status = NodeStatus {
        external_address: "10.1.0.3".to_owned(),
        timestamp: Some(prost_types::Timestamp { seconds: 1_234_567_890, nanos: 500_000_000 }),
        version: Some(version),
        boot_id: vec![0xff; 16],
        ..NodeStatus::default()
    };
    Node {
        pubkey: vec![1; 32],
        id: ID.to_owned(),
        state: NodeState::Up.into(),
        status: Some(status),
        roles: Some(NodeRoles {
            kubernetes_worker: Some(KubernetesWorker {}),
            ..NodeRoles::default()
        }),
        health: Health::Healthy.into(),
        time_since_heartbeat: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        tpm_usage: 3,
        labels: Some(NodeLabels { pairs: vec![pair("zone", "a"), pair("rack", "")] }),
    }
}

fn bare() -> Node {
    Node { state: NodeState::New.into(), roles: Some(NodeRoles::default()), ..Node::default() }
}

fn is(text: &str, node: &Node) -> Result<bool, Error> {
    Filter::new(text)?.keeps(node)
}

fn all_true(texts: &[&str]) {
    for text in texts {
        assert_eq!(is(text, &node()), Ok(true), "{text}");
    }
}

/// Refused before any node is seen.
fn all_refused(texts: &[&str]) {
    for text in texts {
        match Filter::new(text) {
            Err(error @ Error::Text { .. }) => {
                assert_eq!(Status::from(error).code(), Code::InvalidArgument, "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

/// Sound in themselves, but not for a node.
fn all_fail(texts: &[&str]) {
    for text in texts {
        match is(text, &node()) {
            Err(error @ Error::Run { .. }) => {
                assert_eq!(Status::from(error).code(), Code::InvalidArgument, "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

fn all_too_expensive(texts: &[&str]) {
    for text in texts {
        let error = is(text, &node()).expect_err(text);
        assert_eq!(error, Error::Steps, "{text}");
        assert_eq!(Status::from(error).code(), Code::ResourceExhausted);
    }
}

#[test]
fn the_expressions_of_the_seed_document() {
    let lost = Node {
        state: NodeState::Up.into(),
        health: Health::HeartbeatTimeout.into(),
        time_since_heartbeat: Some(prost_types::Duration {
            seconds: 9_223_372_036,
            nanos: 854_775_807,
        }),
        ..Node::default()
    };
    let id = format!("node.id == {ID:?}");
    for (text, kept) in [
        ("", [true, true, true]),
        ("node.state == NODE_STATE_UP", [true, true, false]),
        ("has(node.roles.kubernetes_worker)", [true, false, false]),
        ("node.time_since_heartbeat < duration('6s')", [true, false, true]),
        (
            "node.time_since_heartbeat > duration('4s') && node.time_since_heartbeat < duration('6s')",
            [true, false, false],
        ),
        (&*id, [true, false, false]),
        ("node.status.external_address==\"10.1.0.3\"", [true, false, false]),
        ("node.health == HEALTH_HEARTBEAT_TIMEOUT", [false, true, false]),
        (
            "node.labels.pairs.exists(p, p.key == \"zone\" && p.value == \"a\")",
            [true, false, false],
        ),
        ("!has(node.status)", [false, true, true]),
    ] {
        let result = [&node(), &lost, &bare()].map(|node| is(text, node));
        assert_eq!(result, kept.map(Ok), "{text}");
    }
}

#[test]
fn fields_are_what_the_wire_says() {
    all_true(&[
        "node.state == 3 && type(node.state) == int",
        "type(node.status.version.git_information.commits_since_release) == uint",
        "node.status.version.git_information.commits_since_release == 18446744073709551615u",
        "node.status.version.release.patch == -1 && node.status.version.release.major == 0",
        "!has(node.status.version.release.major) && has(node.status.version.release.minor)",
        "type(node.status) == metropolis.proto.common.NodeStatus",
        "type(node) == metropolis.proto.api.Node",
        "type(node.status.timestamp) == google.protobuf.Timestamp",
        "type(node.time_since_heartbeat) == google.protobuf.Duration",
        "type(node.labels.pairs) == list && type(node.labels.pairs[0].key) == string",
        "node.pubkey.size() == 32 && type(node.pubkey) == bytes",
        r"node.status.boot_id == b'\xff\377\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff'",
        "node.tpm_usage == NODE_TPM_USAGE_PRESENT_AND_USED",
        "node.state == metropolis.proto.common.NodeState.NODE_STATE_UP",
        "node.health == .metropolis.proto.api.Node.Health.HEALTH_HEALTHY",
        "[1].all(metropolis, .metropolis.proto.common.NodeState.NODE_STATE_UP == 3)",
        "NODE_STATE_INVALID == 0 && NODE_STATE_DECOMMISSIONED == 4 && HEALTH_UNKNOWN == 1",
        "node.labels == node.labels && node.status != node.roles",
        "node.status.timestamp == timestamp('2009-02-13T23:31:30.5Z')",
        "has(node.labels.pairs) && !has(node.status.running_curator)",
        "node.status.running_curator.port == 0",
    ]);
    // What is not there is empty, however deep.
    for text in [
        "node.status.version.release.minor == 0 && node.status.external_address == ''",
        "!has(node.status.version.release.minor) && !has(node.status.version)",
        "node.time_since_heartbeat == duration('0')",
        "node.status.timestamp == timestamp(0)",
        "node.labels.pairs == [] && !has(node.labels.pairs)",
        "!node.labels.pairs.exists(p, true) && node.labels.pairs.all(p, false)",
    ] {
        assert_eq!(is(text, &bare()), Ok(true), "{text}");
    }
}

#[test]
fn arithmetic_has_ranges() {
    all_true(&[
        "1 + 2 * 3 - 4 / 2 == 5 && 7 % 3 == 1 && -7 % 3 == -1 && -7 / 2 == -3",
        "1u + 2u == 3u && 5u % 3u == 2u && 6u / 4u == 1u",
        "0x1F == 31 && 0xffu == 255u && -0x10 == -16",
        "-9223372036854775808 < 9223372036854775807",
        "1.5 + .5 == 2.0 && 1e3 == 1000.0 && 2.5e-1 == 0.25 && -1.5 < 0.0",
        "1.0 / 0.0 > 1e308 && !(0.0 / 0.0 == 0.0 / 0.0) && 0.0 / 0.0 != 0.0 / 0.0",
        "!(0.0 / 0.0 < 1.0) && !(0.0 / 0.0 >= 1.0)",
        "- -1 == 1 && !!true && --1 == 1",
        "(1 + 2) * 3 == 9 && 1 - 1 - 1 == -1 && 2 * 3 % 4 == 2",
    ]);
    all_refused(&[
        "9223372036854775807 + 1 > 0",
        "-9223372036854775808 - 1 < 0",
        "-(-9223372036854775808) > 0",
        "-9223372036854775808 / -1 > 0",
        "-9223372036854775808 % -1 == 0",
        "9223372036854775807 * 2 > 0",
        "0u - 1u > 0u",
        "18446744073709551615u + 1u > 0u",
        "1 / 0 > 0",
        "1 % 0 == 0",
        "1u / 0u == 0u",
        "9223372036854775808 > 0",
        "18446744073709551616u > 0u",
        "1 + 1u == 2",
        "1 + 1.0 == 2.0",
        "1.5 % 1.0 == 0.5",
        "-1u == 1u",
        "'a' - 'b' == ''",
    ]);
    all_fail(&["1 / (node.state - 3) > 0", "node.state * 9223372036854775807 > 0"]);
}

#[test]
fn equality_and_order_go_across_types() {
    all_true(&[
        "1 == 1u && 1 == 1.0 && 1u == 1.0 && 1 != 1.5 && dyn(1) == 1u",
        "1 < 2u && 1 < 1.5 && 2u > 1.5 && -1 < 0u && 1.5 >= 1",
        "9223372036854775807 != 9223372036854775808.0 && 9223372036854775807 < 9223372036854775808.0",
        "9007199254740993 != 9007199254740992.0 && -1e300 < -9223372036854775808",
        "1 != '1' && true != 1 && null == null && null != 0 && b'a' != 'a'",
        "[1, 2] == [1u, 2.0] && [1] != [2] && [] == [] && [[1]] != [[1, 1]]",
        "{'a': 1} == {'a': 1u} && {1: 2, 3: 4} == {3u: 4, 1u: 2} && {} != {'a': 1}",
        "'a' < 'b' && 'a' < 'aa' && b'a' < b'b' && false < true && 'é' > 'z'",
        "duration('1m') == duration('60s') && duration('-1s') < duration('0')",
        "1 in [3, 2, 1.0] && !(4 in [1]) && 'a' in {'a': 1} && !('b' in {'a': 1}) && 1 in {1u: 0}",
        "type(1) != type(1u) && type(type(1)) == type && type(null) == null_type",
        "type([]) == list && type({}) == map && type(1.0) == double && type('') == string",
    ]);
    all_refused(&["1 < '1'", "null < null", "[1] < [2]", "1 in 1", "node < node", "true < 1"]);
    all_fail(&["dyn(node.state) < dyn('a')"]);
}

#[test]
fn lists_maps_and_conditions() {
    all_true(&[
        "[1, 2, 3][1] == 2 && [1, 2][1u] == 2 && [1, 2][1.0] == 2 && [1, 'a',][1] == 'a'",
        "{'a': 1}['a'] == 1 && {'a': 1}.a == 1 && {1: 'x'}[1u] == 'x' && {true: 1,}[true] == 1",
        "has({'a': 1}.a) && !has({'a': 1}.b) && {'a': {'b': 2}}.a.b == 2",
        "[1] + [2] == [1, 2] && size([1, 2]) == 2 && {'a': 1}.size() == 1 && 'é'.size() == 1",
        "b'é'.size() == 2 && size('') == 0",
        "true ? true : 1 / 0 > 0",
        "(node.state == 3 ? 'up' : 'down') == 'up' && (false ? 1 : true ? 2 : 3) == 2",
        "(node.state == 3 ? 1 : 'one') == 1",
    ]);
    all_refused(&[
        "[1][1] == 1",
        "[1][-1] == 1",
        "[1][0.5] == 1",
        "[1]['a'] == 1",
        "{'a': 1}.b == 1",
        "{'a': 1, 'a': 2}.a == 1",
        "{1: 1, 1u: 2}[1] == 1",
        "{1.0: 1}[1.0] == 1",
        "{null: 1}.a == 1",
        "1[0] == 1",
        "1 ? true : false",
        "node.state ? true : false",
        "{'a'} == {}",
        "node.labels.pairs['zone'] == 'a'",
    ]);
    all_fail(&["node.labels.pairs[2].key == 'a'", "node.labels.pairs[-node.state].key == 'a'"]);
}

#[test]
fn one_side_decides_whatever_the_other_does() {
    all_true(&[
        "true || 1 / 0 > 0",
        "1 / 0 > 0 || true",
        "!(false && 1 / 0 > 0)",
        "!(1 / 0 > 0 && false)",
        "1 / (node.state - 3) > 0 || node.state == 3",
        "!(1 / (node.state - 3) > 0 && node.state == 4)",
        "node.state == 3 || dyn(node.state)",
        "false || false || true && true",
        "[0, 1].exists(n, 1 / n == 1) && !([0, 1].all(n, 1 / n == 2))",
        "node.labels.pairs.exists(p, p.key == 'rack' || 1 / (node.state - 3) > 0)",
    ]);
    all_refused(&["1 || true", "true && 'a'", "node.id || true", "true || node.nothing"]);
    all_fail(&[
        "1 / (node.state - 3) > 0 || node.state == 4",
        "1 / (node.state - 3) > 0 && node.state == 3",
        "dyn(node.state) && true",
        "node.state == 3 ? node : node.id",
    ]);
}

#[test]
fn macros() {
    all_true(&[
        "[1, 2].all(n, n > 0) && [].all(n, false) && ![].exists(n, true)",
        "[1, 2, 2].exists_one(n, n == 1) && ![1, 2, 2].existsOne(n, n == 2)",
        "[1, 2, 3].filter(n, n > 1) == [2, 3] && [1, 2].map(n, n * 2) == [2, 4]",
        "[1, 2, 3].map(n, n > 1, n * n) == [4, 9]",
        "{'a': 1}.all(key, key == 'a') && {'b': 1, 'a': 2}.map(key, key).size() == 2",
        "[1].all(node, node == 1) && node.state == 3",
        "[[1, 2], [3]].exists(l, l.exists(n, n == 3)) && [[1]].all(n, n.all(n, n == 1))",
        "node.labels.pairs.map(p, p.key) == ['zone', 'rack']",
        "node.labels.pairs.filter(p, p.value == '')[0].key == 'rack'",
        "node.labels.pairs.exists_one(p, has(p.value))",
        "[1, 2].exists(n, node.labels.pairs.exists(p, [n].all(m, m == 2) && p.key == 'zone'))",
        "node.labels.pairs.all(p, [1, 2].map(x, x + 1) == [2, 3])",
    ]);
    all_refused(&[
        "has(node)",
        "has(node.id, node.id)",
        "has()",
        "has('a')",
        "[1].all(1, true)",
        "[1].all(n)",
        "[1].all(n, true, true)",
        "[1].all(n, n)",
        "[1].exists(a.b, true)",
        "[1].map(n, 1, 2) == []",
        "'abc'.all(c, true)",
        "[1].all(n, true) && n == 1",
        "[0].exists_one(n, 1 / n == 1)",
        "all(n, true)",
        "node.labels.pairs.exists(p, p.nothing == 1)",
        "node.labels.all(p, true)",
    ]);
}

#[test]
fn texts_and_patterns() {
    all_true(&[
        "'ab' + 'c' == 'abc' && b'a' + b'b' == b'ab'",
        "'abc'.contains('b') && 'abc'.startsWith('ab') && 'abc'.endsWith('bc') && !'a'.contains('A')",
        "'abc'.matches('^a.c$') && matches('xabcx', 'b') && !'abc'.matches('^b')",
        r"node.id.matches('^metropolis-[0-9a-f]{32}$') && 'a1'.matches(r'\d')",
        "node.id.matches('^' + 'metro') && 'abc'.matches(node.labels.pairs[1].value)",
        "'(?i)'.size() == 4 && 'ABC'.matches('(?i)abc')",
        r#"'\a\b\f\n\r\t\v\\\?\"\'\`'.size() == 12 && '\x41\u00e9\U0001F600\101' == 'Aé😀A'"#,
        r#"r'\n' == '\\n' && R"\x" == '\\x' && b'\x00' == b'\000' && rb'\1' == b'\\1'"#,
        "'''a\n'b''' != 'a' && \"\"\"a\"b\"\"\" == 'a\"b'",
        "'a' == \"a\" // a comment\n && true",
        "\t'a'\r\n==\x0c'a' ",
    ]);
    all_refused(&[
        "'a",
        "'a\nb' == ''",
        "'\\q' == ''",
        "'\\x4' == ''",
        "'\\ud800' == ''",
        "'\\400' == ''",
        "b'\\u0041' == b'A'",
        "'abc'.matches('(')",
        "'abc'.matches('a{1000}{1000}')",
        "node.id.matches('((a{100}){100}){100}')",
        "'abc'.matches(1)",
        "'abc'.contains(b'a')",
        "contains('abc', 'a')",
    ]);
    all_fail(&["node.id.matches(node.id + '(')"]);
}

#[test]
fn conversions() {
    all_true(&[
        "int('-12') == -12 && int(1.9) == 1 && int(-1.9) == -1 && int(3u) == 3 && int(3) == 3",
        "uint('12') == 12u && uint(1.9) == 1u && uint(3) == 3u && uint(18446744073709549568.0) > 1u",
        "double('1.5') == 1.5 && double(2) == 2.0 && double(2u) == 2.0",
        "string(1) == '1' && string(-1) == '-1' && string(true) == 'true'",
        "string(1u) == '1' && string(1.5) == '1.5' && string(b'a') == 'a' && string('a') == 'a'",
        "string(6.02214e23) == '6.02214e+23' && string(1e-5) == '1e-05' && string(100.0) == '100'",
        "string(1.0 / 0.0) == '+Inf' && string(-1.0 / 0.0) == '-Inf' && string(0.0 / 0.0) == 'NaN'",
        "string(duration('90s')) == '90s' && string(duration('1ms')) == '0.001s'",
        "string(timestamp('2009-02-13T23:31:30Z')) == '2009-02-13T23:31:30Z'",
        "bytes('é') == b'\\303\\251' && bool('true') && !bool('F') && bool('1')",
        "int(timestamp('1970-01-01T00:00:01.9Z')) == 1 && timestamp(1) == timestamp('1970-01-01T00:00:01Z')",
        "dyn(node.id) == node.id && type(dyn(1)) == int",
    ]);
    all_refused(&[
        "int('x') == 0",
        "int('1.0') == 1",
        "int(9223372036854775808u) == 0",
        "int(1e19) == 0",
        "int(-9223372036854775808.0) == 0",
        "int(0.0 / 0.0) == 0",
        "uint(-1) == 0u",
        "uint(-0.5) == 0u",
        "uint(1e20) == 0u",
        "double('x') == 0.0",
        "string(b'\\xff') == ''",
        "string([1]) == ''",
        "bool('yes')",
        "duration('x') == duration('0')",
        "node.time_since_heartbeat < duration('x')",
        "duration(1) == duration('1s')",
        "timestamp('yesterday') == timestamp(0)",
        "timestamp(253402300800) == timestamp(0)",
        "int() == 0",
        "int(1, 2) == 0",
    ]);
    all_fail(&["int(node.id) == 0", "node.time_since_heartbeat < duration(node.id)"]);
}

#[test]
fn times() {
    let at = |accessor: &str| format!("timestamp('2009-02-13T23:31:30.123456789Z').{accessor}");
    for (accessor, value) in [
        ("getFullYear()", 2009),
        ("getMonth()", 1),
        ("getDate()", 13),
        ("getDayOfMonth()", 12),
        ("getDayOfYear()", 43),
        ("getDayOfWeek()", 5),
        ("getHours()", 23),
        ("getMinutes()", 31),
        ("getSeconds()", 30),
        ("getMilliseconds()", 123),
        ("getHours('+02:00')", 1),
        ("getDate('02:00')", 14),
        ("getMinutes('-00:30')", 1),
        ("getHours('UTC')", 23),
    ] {
        let text = format!("{} == {value}", at(accessor));
        assert_eq!(is(&text, &node()), Ok(true), "{text}");
    }
    all_true(&[
        "duration('1h30m5s').getHours() == 1 && duration('1h30m5s').getMinutes() == 90",
        "duration('1h').getSeconds() == 3600 && duration('1.5s').getMilliseconds() == 1500",
        "timestamp(0) + duration('1s') == timestamp(1) && duration('1s') + timestamp(0) == timestamp(1)",
        "timestamp(10) - timestamp(4) == duration('6s') && timestamp(1) - duration('1s') == timestamp(0)",
        "duration('1s') + duration('1s') == duration('2s') && duration('1s') - duration('2s') == duration('-1s')",
        "timestamp(1) < timestamp(2) && node.status.timestamp.getFullYear() == 2009",
    ]);
    all_refused(&[
        "timestamp('9999-12-31T23:59:59Z') + duration('1s') > timestamp(0)",
        "timestamp('0001-01-01T00:00:00Z') - duration('1ns') < timestamp(0)",
        "timestamp('9999-12-31T23:59:59Z') - timestamp('0001-01-01T00:00:00Z') > duration('0')",
        "duration('9223372036854775807ns') + duration('1ns') > duration('0')",
        "duration('1s') * 2 == duration('2s')",
        "timestamp(0).getHours('Europe/Berlin') == 1",
        "duration('1s').getFullYear() == 0",
        "duration('1s').getHours('UTC') == 0",
        "timestamp(0) + timestamp(0) == timestamp(0)",
    ]);
}

#[test]
fn what_is_no_filter_is_refused_with_its_place() {
    all_refused(&[
        " ",
        "node",
        "node.id",
        "1",
        "'true'",
        "[true]",
        "node.state",
        "unknown == 1",
        "NODE_STATE_LOST == node.state",
        "node.nothing == 1",
        "node.status.external_adress == ''",
        "node.id.nothing == 1",
        "node.labels.pairs.key == 'a'",
        "nothing(1)",
        "node.nothing()",
        "size(1) == 1",
        "node.state == NODE_STATE_UP node.state",
        "node.state = 3",
        "(true",
        "true)",
        "[true",
        "true &&",
        "&& true",
        "true & true",
        "node.",
        "node.in == 1",
        "in == 1",
        "if == 1",
        "size(1,) == 1",
        "true ? false",
        "@",
        "é",
        "#",
        "1.2.3 == 1",
        "google.protobuf.Duration{seconds: 1} == duration('1s')",
    ]);
    let error = Filter::new("node.state == NODE_STATE_UP && 'é' == nothing").expect_err("a name");
    assert!(
        error.to_string().starts_with("the filter, column 39: \"nothing\" is not known"),
        "{error}"
    );
    let error = Filter::new("node.status.adress == ''").expect_err("a field").to_string();
    assert!(error.contains("external_address"), "{error}");
}

#[test]
fn bombs_are_stopped_by_length_and_depth() {
    let long = format!("'{}' == ''", "a".repeat(LENGTH));
    assert_eq!(Filter::new(&long).map(drop), Err(Error::Long(long.len())));
    let nested = |open: &str, close: &str, times: usize| {
        format!("{}{}{} == 1", open.repeat(times), 1, close.repeat(times))
    };
    assert!(Filter::new(&nested("(", ")", DEPTH - 1)).is_ok());
    for text in [
        nested("(", ")", 2000),
        nested("[", "]", 2000),
        nested("-", "", 2000).replace('1', "node.state"),
        nested("!", "", 2000),
        nested("", "+1", 2000),
        nested("", ".a", 2000),
        nested("", "[0]", 1300),
        nested("{1:", "}", 1000),
        nested("size(", ")", 600),
        nested("true?1:", "", 500),
        nested("[1].map(x,", ")", 300),
    ] {
        match Filter::new(&text) {
            Err(Error::Text { why, .. }) => assert!(why.contains("within each other"), "{why}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    // Alternatives beside each other are not within each other.
    let beside = ["node.state == 3"; 200].join(" || ");
    assert_eq!(is(&beside, &node()), Ok(true));
}

#[test]
fn bombs_are_stopped_by_cost() {
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = |of: &str| {
        format!(
            "{of}.all(a, {of}.all(b, {of}.all(c, {of}.all(d, {of}.all(e, a + b + c + d + e >= 0)))))"
        )
    };
    let doubled = |literal: &str, times: usize| {
        let mut text = format!("x{times}.size() > 0");
        for level in (0..times).rev() {
            text = format!("[x{level} + x{level}].all(x{}, {text})", level + 1);
        }
        format!("[{literal}].all(x0, {text})")
    };
    let shared = {
        let mut text = "x30 == x30".to_owned();
        for level in (0..30).rev() {
            text = format!("[[x{level}, x{level}]].all(x{}, {text})", level + 1);
        }
        format!("[node.state].all(x0, {text})")
    };
    let pattern =
        format!("('{}' + node.id).matches('^(a|a)*(a{{500}}|b{{500}})*$')", "a".repeat(3000));
    let patterns = format!(
        "{ten}.all(a, {ten}.all(b, {ten}.all(c, ('a' + string(a)).matches('a' + string(b * c)) || true)))"
    );
    all_too_expensive(&[
        &nested(ten),
        // Also if no node has a part in it.
        &nested(ten).replace("a + b", "node.state + b"),
        &doubled("node.id", 30),
        &doubled("'aaaaaaaaaaaaaaaa'", 30),
        &doubled("[node.state]", 30),
        &doubled("node.pubkey", 30),
        &shared,
        &pattern,
        &patterns,
    ]);
}

#[test]
fn a_bomb_is_no_error_that_an_alternative_absorbs() {
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let bomb = format!(
        "{ten}.all(a, {ten}.all(b, {ten}.all(c, {ten}.all(d, {ten}.all(e, node.state == 3)))))"
    );
    all_too_expensive(&[&format!("{bomb} || true"), &format!("{bomb} && false || true")]);
}
