use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::super::config;
use super::*;
use crate::driver::{Layer, Machine};

/// Every request that the driver sends.
fn requests() -> Vec<Request> {
    vec![
        Request::Version,
        Request::Describe,
        Request::MachineConfig,
        Request::Action { action_type: ActionType::FlushMetrics },
        Request::Vm { state: VmState::Paused },
        Request::Vm { state: VmState::Resumed },
        Request::SnapshotCreate {
            snapshot_type: SnapshotType::Diff,
            snapshot_path: "/saved-state",
            mem_file_path: "/saved-memory",
        },
        config::load(),
    ]
}

/// Every body of a boot's configuration, with the request that would say the same.
fn configured() -> Vec<(&'static str, &'static str, Value)> {
    let machine = Machine {
        dir: "/d".into(),
        cpus: 1,
        memory_mib: 64,
        kernel: "/k".into(),
        initramfs: "/i".into(),
        base: "/b".into(),
        layer: Layer::raw("/l".into()),
        network: None,
    };
    let Value::Object(whole) = serde_json::to_value(config::configuration(&machine)).unwrap() else { panic!() };
    let list = |value: Value| value.as_array().unwrap().clone();
    let bodies = whole.into_iter().flat_map(|(key, value)| match key.as_str() {
        "boot-source" => vec![("PUT", "/boot-source", value)],
        "machine-config" => vec![("PUT", "/machine-config", value)],
        "vsock" => vec![("PUT", "/vsock", value)],
        "drives" => list(value).into_iter().map(|body| ("PUT", "/drives/{drive_id}", body)).collect(),
        "network-interfaces" => {
            list(value).into_iter().map(|body| ("PUT", "/network-interfaces/{iface_id}", body)).collect()
        }
        other => panic!("{other}"),
    });
    bodies.collect()
}

/// All of them: method, path, body.
fn sent() -> Vec<(&'static str, &'static str, Option<Value>)> {
    let requests = requests().into_iter().map(|request| {
        let (method, path) = request.line();
        (method, path, request.body().unwrap())
    });
    requests.chain(configured().into_iter().map(|(method, path, body)| (method, path, Some(body)))).collect()
}

/// The names of all fields of a body, with those inside of others.
fn fields(body: &Value, within: &str, found: &mut BTreeSet<String>) {
    for (name, value) in body.as_object().into_iter().flatten() {
        let name = format!("{within}{name}");
        fields(value, &format!("{name}."), found);
        found.insert(name);
    }
}

/// Written by hand: whoever sends something else says so here.
#[test]
fn what_is_sent_is_this_and_nothing_else() {
    let mut table: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for (method, path, body) in sent() {
        fields(&body.unwrap_or_default(), "", table.entry((method, path)).or_default());
    }
    let bandwidth = "rate_limiter rate_limiter.bandwidth rate_limiter.bandwidth.one_time_burst \
                     rate_limiter.bandwidth.refill_time rate_limiter.bandwidth.size rate_limiter.ops \
                     rate_limiter.ops.one_time_burst rate_limiter.ops.refill_time rate_limiter.ops.size";
    let drive = format!("cache_type drive_id is_read_only is_root_device path_on_host {bandwidth}");
    let expected = [
        ("GET", "/", ""),
        ("GET", "/machine-config", ""),
        ("GET", "/version", ""),
        ("PATCH", "/vm", "state"),
        ("PUT", "/actions", "action_type"),
        ("PUT", "/boot-source", "boot_args initrd_path kernel_image_path"),
        ("PUT", "/drives/{drive_id}", drive.as_str()),
        ("PUT", "/machine-config", "mem_size_mib vcpu_count"),
        ("PUT", "/network-interfaces/{iface_id}", "guest_mac host_dev_name iface_id"),
        ("PUT", "/snapshot/create", "mem_file_path snapshot_path snapshot_type"),
        (
            "PUT",
            "/snapshot/load",
            "mem_backend mem_backend.backend_path mem_backend.backend_type resume_vm snapshot_path track_dirty_pages",
        ),
        ("PUT", "/vsock", "guest_cid uds_path"),
    ];
    let expected = expected.map(|(method, path, fields)| {
        ((method, path), fields.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>())
    });
    assert_eq!(table, BTreeMap::from(expected));
}

#[test]
fn answers_are_read() {
    let info: InstanceInfo = serde_json::from_value(json!({"state": "Not started", "id": "vm"})).unwrap();
    assert_eq!(info.state, InstanceState::NotStarted);
    assert!(serde_json::from_value::<InstanceInfo>(json!({"state": "Melting"})).is_err());
}

/// Where Firecracker's own description of its API may be; a clone of the repository has none.
const DESCRIPTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/reference/firecracker-api.yaml");

#[test]
fn firecrackers_own_description_knows_all_that_is_sent() {
    let Ok(text) = std::fs::read_to_string(DESCRIPTION) else {
        return println!("skipped: Firecracker's description of its API is not there");
    };
    let api = yaml::read(&text);
    for (method, path, body) in sent() {
        let known = &api["paths"][path][method.to_lowercase()];
        assert!(known.is_object(), "{method} {path}");
        let parameters = known["parameters"].as_array().cloned().unwrap_or_default();
        let in_body = parameters.iter().find(|parameter| parameter["in"] == "body");
        match (&body, in_body) {
            (None, None) => {}
            (Some(body), Some(parameter)) => check(&api, &parameter["schema"], body, &format!("{method} {path}")),
            _ => panic!("{method} {path}: {body:?} is sent, {in_body:?} is expected"),
        }
    }
    // What is read of answers is there as well.
    for (definition, field) in [
        ("FirecrackerVersion", "firecracker_version"),
        ("InstanceInfo", "state"),
        ("MachineConfiguration", "mem_size_mib"),
        ("Error", "fault_message"),
    ] {
        assert!(api["definitions"][definition]["properties"][field].is_object(), "{definition}.{field}");
    }
    let states = json!(["Not started", "Running", "Paused"]);
    assert_eq!(api["definitions"]["InstanceInfo"]["properties"]["state"]["enum"], states);
    let wrong = json!({"state": "Melting"});
    let vm = json!({"$ref": "#/definitions/Vm"});
    assert!(std::panic::catch_unwind(|| check(&api, &vm, &wrong, "a value that is none")).is_err());
    assert!(std::panic::catch_unwind(|| check(&api, &vm, &json!({}), "nothing")).is_err());
    assert!(std::panic::catch_unwind(|| check(&api, &vm, &json!({"state": "Paused", "x": 1}), "more")).is_err());
}

/// Holds a value against a schema.
fn check(api: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/definitions/").unwrap();
        let definition = &api["definitions"][name];
        assert!(definition.is_object(), "{at}: {name} is not defined");
        return check(api, definition, value, at);
    }
    match schema["type"].as_str().unwrap() {
        "object" => {
            let object = value.as_object().unwrap_or_else(|| panic!("{at}: {value} is no object"));
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(object.contains_key(name.as_str().unwrap()), "{at}: {name} is missing");
            }
            for (name, value) in object {
                let property = &schema["properties"][name];
                assert!(property.is_object(), "{at}: {name} is not known");
                check(api, property, value, &format!("{at} {name}"));
            }
        }
        "string" => assert!(value.is_string(), "{at}: {value}"),
        "boolean" => assert!(value.is_boolean(), "{at}: {value}"),
        "integer" => assert!(value.is_u64(), "{at}: {value}"),
        other => panic!("{at}: a {other} is not sent"),
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{at}: {value} is none of {values:?}");
    }
    let number = |name: &str| schema[name].as_str().and_then(|number| number.parse::<u64>().ok());
    if let Some(value) = value.as_u64() {
        assert!(number("minimum").is_none_or(|least| value >= least), "{at}: {value}");
        assert!(number("maximum").is_none_or(|most| value <= most), "{at}: {value}");
    }
}

/// As much of YAML as that file has: maps, lists, and text, which may go on in deeper lines. Every scalar is a string.
mod yaml {
    use serde_json::{Map, Value};

    type Lines<'a> = std::iter::Peekable<std::vec::IntoIter<(usize, &'a str)>>;

    pub(super) fn read(text: &str) -> Value {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
        let lines: Vec<_> = lines.map(|line| (line.len() - line.trim_start().len(), line.trim())).collect();
        block(&mut lines.into_iter().peekable(), 0)
    }

    /// What begins at the next line, and all lines that are indented at least as far.
    fn block(lines: &mut Lines<'_>, least: usize) -> Value {
        let Some(&(indent, first)) = lines.peek().filter(|(indent, _)| *indent >= least) else { return Value::Null };
        if first.starts_with("- ") { list(lines, indent) } else { map(lines, indent) }
    }

    fn list(lines: &mut Lines<'_>, indent: usize) -> Value {
        let mut items = Vec::new();
        while let Some((_, line)) = lines.next_if(|(at, line)| *at == indent && line.starts_with("- ")) {
            let item = line[2..].trim_start();
            if entry(item).is_none() {
                items.push(scalar(item));
                continue;
            }
            // The first entry of a map is in the line of its dash.
            let mut own = vec![(indent + 2, item)];
            while let Some(line) = lines.next_if(|(at, _)| *at > indent) {
                own.push(line);
            }
            items.push(map(&mut own.into_iter().peekable(), indent + 2));
        }
        Value::Array(items)
    }

    fn map(lines: &mut Lines<'_>, indent: usize) -> Value {
        let mut found = Map::new();
        while let Some((_, line)) = lines.next_if(|(at, _)| *at == indent) {
            let (key, value) = entry(line).unwrap_or_else(|| panic!("{line:?} is no entry"));
            let deeper =
                lines.peek().is_some_and(|(at, line)| *at > indent || (*at == indent && line.starts_with("- ")));
            let text = lines.peek().is_some_and(|(_, line)| !line.starts_with("- ") && entry(line).is_none());
            let value = match (value, deeper) {
                ("", true) if !text && key != "description" => block(lines, indent),
                (value, _) => {
                    // Text that goes on; nothing here asks what it says.
                    while lines.next_if(|(at, _)| *at > indent).is_some() {}
                    scalar(value)
                }
            };
            assert!(found.insert(key.to_owned(), value).is_none(), "{key} twice");
        }
        Value::Object(found)
    }

    /// `key: value`, or `key:`.
    fn entry(line: &str) -> Option<(&str, &str)> {
        let (key, value) = line.split_once(": ").or_else(|| Some((line.strip_suffix(':')?, "")))?;
        Some((key.trim_matches('"'), value.trim()))
    }

    fn scalar(text: &str) -> Value {
        match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(items) => items.split(',').map(|item| scalar(item.trim())).collect(),
            None => Value::from(text.trim_matches('"')),
        }
    }
}
