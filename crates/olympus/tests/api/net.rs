//! Network contracts: what is refused and why, whose words count, and the replacement of a running sandbox's.

use std::net::Ipv4Addr;

use olympus::Settings;
use reqwest::Method;
use serde_json::{Value, json};
use tartarus_api::Client;
use tartarus_api::node::{Assignment, Report};
use tartarus_types::net::{Blocked, Judgement, NetCounter, NetRequest, NetStatus, NetTotals};
use tartarus_types::{NetMode, Timestamp};

use crate::support::{Bench, problem, settings};

fn allow(cidr: &str) -> Value {
    json!({"mode": "allow", "cidrs": [cidr]})
}

fn sandbox(net: Value) -> Value {
    json!({"template": "python", "command": ["true"], "net": net})
}

/// A sandbox whose command has begun, with a network as its node would tell of it.
async fn running(bench: &Bench, net: Value) -> (Assignment, String) {
    bench.expect(Method::POST, "/v1/sandboxes", Some(sandbox(net)), 202).await;
    let attempt = bench.lease().await;
    for report in [Report::Preparing, Report::Begin] {
        bench.report(&attempt, report).await;
    }
    let status = NetStatus { contract: attempt.spec.net.clone(), ..NetStatus::default() };
    bench.node.nets.lock().unwrap().insert(attempt.sandbox.clone(), status);
    let path = format!("/v1/sandboxes/{}/net", attempt.sandbox);
    (attempt, path)
}

#[tokio::test]
async fn what_is_wrong_with_a_contract_is_named_on_every_way() {
    let bench = Bench::start().await;
    let (_, path) = running(&bench, allow("203.0.113.0/24")).await;
    let domains = |name: String| json!({"mode": "allow", "domains": ["example.org", name]});
    let addresses: Vec<String> = (0..10_000u32).map(|n| Ipv4Addr::from(0x0800_0000 + n).to_string()).collect();
    let cases = [
        (allow("203.0.113.7/24"), "cidrs[0]"),
        (allow("2001:db8::/32"), "cidrs[0]"),
        (allow("169.254.169.254"), "cidrs[0]"),
        (allow("203.0.113.0/24/24"), "cidrs[0]"),
        (json!({"mode": "allow", "cidrs": addresses}), "cidrs"),
        (json!({"mode": "allow", "ports": ["443", "0"]}), "ports[1]"),
        (domains("a\0.org".to_owned()), "domains[1]"),
        (domains("a.".repeat(300)), "domains[1]"),
        (domains("*.com".to_owned()), "domains[1]"),
        (json!({"cidrs": ["203.0.113.0/24"]}), "cidrs"),
        (json!({"mode": "allow", "limits": {"mbit": 0}}), "limits.mbit"),
        (json!({"mode": "allow", "limits": {"mbits": 1}}), "limits.mbits"),
        (json!({"mode": "all"}), "mode"),
        (json!({"mode": "allow", "hosts": []}), "hosts"),
        (json!({"mode": "open"}), "mode"),
        (json!({"forwards": [{"port": 0}]}), "forwards[0].port"),
        (json!({"forwards": [{"port": 70_000}]}), "forwards[0].port"),
        (json!({"forwards": [{"port": 80, "listen": "0.0.0.0:80"}]}), "forwards[0].listen"),
    ];
    for (net, field) in cases {
        let template = json!({"name": "t", "image": "debian", "cold": true, "net": net});
        for (method, path, body, field) in [
            (Method::POST, "/v1/sandboxes", sandbox(net.clone()), format!("net.{field}")),
            (Method::POST, "/v1/templates", template, format!("net.{field}")),
            (Method::PUT, path.as_str(), net.clone(), field.to_owned()),
        ] {
            let (code, blamed) = problem(bench.send(method, path, Some(body)).await).await;
            assert_eq!(code, "invalid_field", "{path} {field}");
            assert_eq!(blamed.as_deref(), Some(field.as_str()), "{path}");
        }
    }
    assert_eq!(bench.get("/v1/templates").await.as_array().unwrap().len(), 1, "nothing of them is stored");
    assert_eq!(bench.get(&path).await["contract"]["cidrs"], json!(["203.0.113.0/24"]));
}

#[tokio::test]
async fn nobody_gets_a_network_by_accident_and_a_template_may_give_one() {
    let bench = Bench::start().await;
    let plain = bench.create().await;
    let path = format!("/v1/sandboxes/{plain}");
    assert_eq!(bench.get(&path).await["net"], Value::Null);
    assert_eq!(bench.lease().await.spec.net.mode, NetMode::None);
    assert_eq!(bench.get(&format!("{path}/net")).await["contract"]["mode"], "none");

    let net = json!({"mode": "allow", "domains": ["*.Example.org"], "ports": ["443", "443"]});
    let body = json!({"name": "web", "image": "debian", "cold": true, "net": net});
    let template = bench.expect(Method::POST, "/v1/templates", Some(body.clone()), 201).await;
    assert_eq!(template["net"]["domains"], json!(["*.example.org"]));
    bench.expect(Method::POST, "/v1/templates", Some(body), 200).await;
    let made = |net: Option<Value>| {
        let mut body = json!({"template": "web"});
        if let Some(net) = net {
            body["net"] = net;
        }
        bench.expect(Method::POST, "/v1/sandboxes", Some(body), 202)
    };
    let own = made(None).await;
    assert_eq!((&own["net"]["mode"], &own["net"]["ports"]), (&json!("allow"), &json!(["443/tcp"])));
    let other = made(Some(allow("203.0.113.0/24"))).await;
    assert_eq!((&other["net"]["domains"], &other["net"]["cidrs"]), (&json!([]), &json!(["203.0.113.0/24"])));
    assert_eq!(made(Some(json!({}))).await["net"], Value::Null);
    assert_eq!(bench.lease().await.spec.net.mode, NetMode::Allow, "the node is told");
}

#[tokio::test]
async fn the_operators_word_is_the_last() {
    let with = |net, public_ports| Bench::start_with(Settings { net, public_ports, ..settings() });
    let public = json!({"forwards": [{"port": 80, "listen": "0.0.0.0:0"}]});
    let none = with(NetMode::None, false).await;
    let response = none.send(Method::POST, "/v1/sandboxes", Some(sandbox(allow("8.8.8.8")))).await;
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(body["field"], "net.mode");
    assert!(body["detail"].as_str().unwrap().contains("`up --net allow`"), "{body}");
    // A way in needs no network.
    none.expect(Method::POST, "/v1/sandboxes", Some(sandbox(json!({"forwards": [{"port": 80}]}))), 202).await;
    let open = with(NetMode::Open, true).await;
    open.expect(Method::POST, "/v1/sandboxes", Some(sandbox(json!({"mode": "open"}))), 202).await;
    let made = open.expect(Method::POST, "/v1/sandboxes", Some(sandbox(public)), 202).await;
    assert_eq!(made["net"]["forwards"], json!([{"listen": "0.0.0.0:0", "port": 80}]));

    // What a template was once allowed is judged again.
    let strict = with(NetMode::None, false).await;
    let mut template = hades::store::Catalogue::template(&*strict.store, "python").await.unwrap().unwrap();
    template.name = "web".into();
    template.spec.net.mode = NetMode::Allow;
    hades::store::Catalogue::put_template(&*strict.store, template).await.unwrap();
    let (code, field) =
        problem(strict.send(Method::POST, "/v1/sandboxes", Some(json!({"template": "web"}))).await).await;
    assert_eq!((code.as_str(), field.as_deref()), ("invalid_field", Some("net.mode")));
}

#[tokio::test]
async fn a_running_contract_is_replaced_whole() {
    let bench = Bench::start().await;
    let queued = bench.create().await;
    let early = bench.send(Method::PUT, &format!("/v1/sandboxes/{queued}/net"), Some(allow("8.8.8.8"))).await;
    assert_eq!(problem(early).await.0, "wrong_state");
    bench.lease().await;

    let (attempt, path) =
        running(&bench, json!({"mode": "allow", "cidrs": ["203.0.113.0/24"], "ports": ["443"]})).await;
    let net = json!({"mode": "allow", "domains": ["example.org"], "forwards": [{"port": 80}]});
    let answer = bench.expect(Method::PUT, &path, Some(net), 200).await;
    let contract = &answer["contract"];
    assert_eq!((&contract["cidrs"], &contract["ports"]), (&json!([]), &json!([])), "nothing of the old one is left");
    assert_eq!(contract["forwards"], json!([{"listen": "127.0.0.1:40000", "port": 80}]), "the node chose");
    assert_eq!(bench.get(&path).await, answer);
    let (code, field) = problem(bench.send(Method::PUT, &path, Some(json!({"mode": "none"}))).await).await;
    assert_eq!((code.as_str(), field.as_deref()), ("wrong_state", Some("mode")));
    bench.expect(Method::PUT, &path, Some(json!({"mode": "allow"})), 200).await;

    bench.end(&attempt, 0).await;
    assert_eq!(problem(bench.send(Method::PUT, &path, Some(allow("8.8.8.8"))).await).await.0, "wrong_state");
    let stored = bench.get(&path).await;
    assert_eq!(stored["contract"]["cidrs"], json!(["203.0.113.0/24"]), "as it was accepted");
    assert_eq!(stored["counters"], json!([]));
}

#[tokio::test]
async fn one_without_a_network_can_be_given_ways_in_only() {
    let bench = Bench::start().await;
    let (_, path) = running(&bench, json!({})).await;
    let response = bench.send(Method::PUT, &path, Some(allow("8.8.8.8"))).await;
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!((&body["code"], &body["field"]), (&json!("wrong_state"), &json!("mode")));
    assert!(body["detail"].as_str().unwrap().contains("create another one with mode allow"), "{body}");
    let answer = bench.expect(Method::PUT, &path, Some(json!({"forwards": [{"port": 80}]})), 200).await;
    assert_eq!(answer["contract"]["forwards"][0]["port"], 80);
    bench.expect(Method::PUT, &path, Some(json!({})), 200).await;
}

#[tokio::test]
async fn what_was_blocked_is_shown_while_it_runs() {
    let bench = Bench::start().await;
    let (attempt, path) = running(&bench, allow("203.0.113.0/24")).await;
    let blocked = Blocked {
        to: Ipv4Addr::new(169, 254, 169, 254),
        protocol: "tcp".into(),
        port: Some(80),
        packets: 3,
        last_at: Timestamp(5),
        why: Judgement::Never,
    };
    if let Some(status) = bench.node.nets.lock().unwrap().get_mut(&attempt.sandbox) {
        status.contract.cidrs.clear();
        status.counters.push(NetCounter { name: "never".into(), packets: 3, bytes: 180 });
        status.blocked.push(blocked.clone());
    }
    assert_eq!(bench.get(&path).await["blocked"], serde_json::to_value([blocked]).unwrap());
    let detail = bench.get(&format!("/v1/sandboxes/{}", attempt.sandbox)).await;
    assert_eq!(detail["net_status"]["counters"][0]["packets"], 3);
    assert_eq!(detail["net"]["cidrs"], json!([]), "the contract in force, not the accepted one");
    // A node that cannot tell hides nothing else.
    bench.node.nets.lock().unwrap().clear();
    let detail = bench.get(&format!("/v1/sandboxes/{}", attempt.sandbox)).await;
    assert_eq!((&detail["net_status"], &detail["net"]["mode"]), (&Value::Null, &json!("allow")));
    assert_eq!(problem(bench.send(Method::GET, &path, None).await).await.0, "not_found");
}

#[tokio::test]
async fn the_client_speaks_it() {
    let bench = Bench::start().await;
    let (attempt, _) = running(&bench, allow("203.0.113.0/24")).await;
    let client = Client::new(&bench.url, &bench.key).unwrap();
    let before = client.net(attempt.sandbox.as_str()).await.unwrap();
    assert_eq!(before.contract, attempt.spec.net);
    let mut wanted = NetRequest::from(&before.contract);
    wanted.ports.push("443".to_owned());
    let after = client.set_net(attempt.sandbox.as_str(), &wanted).await.unwrap();
    assert_eq!(after.contract.ports.len(), 1);
    assert_eq!(client.net(attempt.sandbox.as_str()).await.unwrap(), after);
}

#[tokio::test]
async fn what_became_of_packets_is_a_metric() {
    let bench = Bench::start().await;
    assert_eq!(bench.request_without_key(Method::GET, "/metrics").send().await.unwrap().status(), 401);
    let (attempt, _) = running(&bench, allow("203.0.113.0/24")).await;
    let counter = NetCounter { name: "unlisted".to_owned(), packets: 7, bytes: 420 };
    *bench.node.totals.lock().unwrap() = NetTotals { networks: 1, counters: vec![counter], ..NetTotals::default() };
    let lines = async || {
        let response = bench.request(Method::GET, "/metrics").send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
        let text = response.text().await.unwrap();
        text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let before = lines().await;
    for line in [
        "tartarus_sandboxes{state=\"running\"} 1",
        "tartarus_sandboxes_ended_total{state=\"succeeded\"} 0",
        "tartarus_net_packets_total{reason=\"unlisted\"} 7",
        "tartarus_net_bytes_total{reason=\"unlisted\"} 420",
    ] {
        assert!(before.contains(line), "{line}\n{before:#?}");
    }
    bench.end(&attempt, 0).await;
    bench.end(&attempt, 0).await;
    let after = lines().await;
    for line in ["tartarus_sandboxes{state=\"running\"} 0", "tartarus_sandboxes_ended_total{state=\"succeeded\"} 1"] {
        assert!(after.contains(line), "{line}\n{after:#?}");
    }
}
