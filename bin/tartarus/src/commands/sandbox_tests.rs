//! What `ps` and `inspect` show.

use tartarus_api::v1::Phase;
use tartarus_types::{SandboxId, State};

use super::*;

fn sandbox() -> Sandbox {
    Sandbox {
        id: SandboxId::random(),
        name: None,
        state: State::Queued,
        template: "python".to_owned(),
        image: "sha256:1".to_owned(),
        kernel: "sha256:2".to_owned(),
        command: vec!["python3".to_owned(), "-c".to_owned(), "\x1b[2J".to_owned() + &"x".repeat(500)],
        labels: [("team".to_owned(), "a".to_owned())].into(),
        cpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        timeout_ms: Some(90_000),
        created_at: Timestamp(0),
        started_at: None,
        ended_at: None,
        attempts: 0,
        node: None,
        outcome: None,
        exit_status: None,
        queue_position: Some(3),
        has_code: false,
        net: None,
    }
}

#[test]
fn a_row_is_short_and_the_id_whole() {
    let sandbox = sandbox();
    let row = row(&sandbox, Timestamp(90_000_000));
    assert_eq!(row[..5], [sandbox.id.as_str(), "-", "queued (3)", "python", "1m"]);
    assert!(row[5].chars().count() == 61 && row[5].ends_with('…'), "{}", row[5]);
    assert!(!table(&["A", "B", "C", "D", "E", "F"], &[row]).contains('\x1b'));
}

#[test]
fn a_description_has_what_is_known_and_no_more() {
    let phases = vec![Phase { name: "accepted".to_owned(), at: Timestamp(0), took_ms: 1.26 }];
    let detail = SandboxDetail {
        sandbox: sandbox(),
        phases,
        hypervisor_pid: Some(42),
        driver: None,
        guest_kernel: None,
        failures: vec!["no\nroom".to_owned()],
        start: Some(StartedFrom::ColdBoot { why: "2 cpus, not 1".to_owned() }),
        net_status: None,
        waiting: Some("3 older ones are in front of it".to_owned()),
    };
    let text = describe(&detail);
    for line in [
        "timeout          1m 30s",
        "hypervisor pid   42",
        "labels           team=a",
        "started from     cold boot: 2 cpus, not 1",
        "waiting because  3 older ones",
        "accepted  1.3",
        "no\\nroom",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    assert!(!text.contains("guest kernel") && !text.contains("ended"), "{text}");
}

#[test]
fn code_is_not_taken_for_a_command() {
    let with = |command: &[&str]| Sandbox {
        has_code: true,
        command: command.iter().map(|arg| (*arg).to_owned()).collect(),
        ..sandbox()
    };
    assert_eq!(command(&with(&[])), "(code)");
    assert_eq!(command(&with(&["a b"])), "(code) 'a b'");
    assert_eq!(start(&StartedFrom::Snapshot { golden: "0123456789abcdef".to_owned() }), "snapshot 0123456789ab");
}
