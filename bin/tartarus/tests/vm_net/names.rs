//! Names: those that are listed are answered and reached, the others are not even asked for.

use crate::world::{OTHER, WEB, World, reach, running, sh};

#[test]
fn a_listed_name_is_reached_by_its_answer_alone() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &["--allow-domain", "good.example.org,rebind.example.org,metadata.example.org"]);
    // Before it was asked for, its address is like any other.
    assert_eq!(reach(&server, &id, WEB, 80), "");
    assert_eq!(reach(&server, &id, "good.example.org", 80), "here is 80");
    assert_eq!(reach(&server, &id, WEB, 80), "here is 80");
    for name in ["other.example.org", "deep.good.example.org", "example.org"] {
        assert_eq!(reach(&server, &id, name, 80), "", "{name}");
        assert_eq!(world.asked_for(name), 0, "{name}");
    }
    assert_eq!(reach(&server, &id, OTHER, 80), "");
    for name in ["rebind.example.org", "metadata.example.org"] {
        assert_eq!(reach(&server, &id, name, 80), "", "{name}");
        assert!(world.asked_for(name) > 0, "{name} is listed; its answer is what is refused");
    }
    // Another resolver is a destination like any other.
    let line = "timeout 4 nslookup other.example.org 203.0.113.53 2>&1 | grep -c 203.0.113.11; true";
    assert_eq!(sh(&server, &id, line), "0");
    let status = server.json(&["net", "show", &id, "--json"]);
    let names: Vec<&str> =
        status["refused_names"].as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap()).collect();
    for name in ["other.example.org", "deep.good.example.org", "rebind.example.org"] {
        assert!(names.contains(&name), "{name} in {status:#}");
    }
    server.ok(&["rm", &id]);
    server.nothing_left();
}

#[test]
fn a_wildcard_is_everything_below_a_name() {
    let Some(world) = World::enter() else { return };
    let server = world.server();
    let id = running(&server, &["--allow-domain", "*.good.example.org"]);
    assert_eq!(reach(&server, &id, "deep.good.example.org", 80), "here is 80");
    let look = "timeout 4 nslookup good.example.org 2>&1 | grep -c 203.0.113.10; true";
    assert_eq!(sh(&server, &id, look), "0", "not the name itself");
    assert_eq!(world.asked_for("good.example.org"), 0);
    server.ok(&["rm", &id]);
    server.nothing_left();
}
