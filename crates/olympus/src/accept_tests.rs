use tartarus_types::{NodeId, Timestamp};

use super::*;

fn template() -> TemplateRecord {
    let env = [("A", "template"), ("B", "template")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let spec = TemplateSpec {
        image: "sha256:i".into(),
        cpus: 2,
        memory_mib: 256,
        disk_mib: 128,
        env,
        workdir: Some("/srv".into()),
        user: Some("nobody".into()),
    };
    TemplateRecord { name: "python".into(), spec, created_at: Timestamp(0) }
}

fn resolve(change: impl FnOnce(&mut CreateSandbox)) -> Result<SandboxSpec, Refusal> {
    let kernel = KernelRecord { digest: "sha256:k".into(), release: "6.1".into(), size: 1, created_at: Timestamp(0) };
    let mut request = CreateSandbox { template: "python".into(), ..CreateSandbox::default() };
    change(&mut request);
    sandbox_spec(request, template(), &kernel, &Limits::default())
}

fn node(memory_mib: u64, max_cpus: u32) -> NodeRecord {
    NodeRecord {
        id: NodeId::random(),
        memory_mib,
        overhead_mib: 96,
        start_slots: 2,
        max_cpus,
        seen_at: Timestamp(0),
        reserved_mib: memory_mib,
        starting: 2,
    }
}

#[test]
fn the_request_wins_over_the_template() {
    let spec = resolve(|r| {
        r.env.insert("B".into(), "request".into());
        r.memory_mib = Some(512);
    })
    .unwrap();
    assert_eq!((spec.cpus, spec.memory_mib, spec.disk_mib), (2, 512, 128));
    assert_eq!((spec.env["A"].as_str(), spec.env["B"].as_str()), ("template", "request"));
    assert_eq!((spec.image.as_str(), spec.kernel.as_str()), ("sha256:i", "sha256:k"));
    assert_eq!((spec.workdir.as_deref(), spec.user.as_deref()), (Some("/srv"), Some("nobody")));
    assert_eq!((spec.start_timeout_ms, spec.timeout_ms), (60_000, None));
    assert!(spec.command.is_empty());
}

#[test]
fn the_field_to_blame_is_the_requests() {
    let blame = |change: fn(&mut CreateSandbox)| resolve(change).unwrap_err().field.unwrap();
    assert_eq!(blame(|r| r.command = Some(vec![])), "command");
    assert_eq!(blame(|r| r.command = Some(vec!["a\0".into()])), "command");
    assert_eq!(blame(|r| r.name = Some("../etc/passwd".into())), "name");
    assert_eq!(blame(|r| r.name = Some("sbx_0000000000000000".into())), "name");
    assert_eq!(blame(|r| r.labels = [("a b".to_owned(), String::new())].into()), "labels");
    assert_eq!(blame(|r| r.cpus = Some(0)), "cpus");
    assert_eq!(blame(|r| r.memory_mib = Some(u32::MAX)), "memory_mib");
    assert_eq!(blame(|r| r.timeout_ms = Some(0)), "timeout_ms");
    assert_eq!(blame(|r| r.start_timeout_ms = Some(u64::MAX)), "start_timeout_ms");
    assert_eq!(blame(|r| r.idle_timeout_ms = Some(0)), "idle_timeout_ms");
    assert_eq!(blame(|r| r.workdir = Some("relative".into())), "workdir");
    assert_eq!(blame(|r| r.user = Some(String::new())), "user");
}

#[test]
fn what_never_fits_is_told_how_large_a_node_is() {
    let spec = resolve(|r| r.memory_mib = Some(1000)).unwrap();
    // Nodes that are full now count as empty: it can wait.
    check_fits(&[node(512, 8), node(1096, 8)], &spec).unwrap();
    let refusal = check_fits(&[node(512, 8), node(1095, 8)], &spec).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::NeverFits, Some("memory_mib")));
    assert!(refusal.detail.contains("999 MiB"), "{}", refusal.detail);
    assert_eq!(check_fits(&[node(4096, 1)], &spec).unwrap_err().field.as_deref(), Some("cpus"));
    assert_eq!(check_fits(&[], &spec).unwrap_err().code, ErrorCode::NodeUnreachable);
}
