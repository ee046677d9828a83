use tartarus_types::net::NetLimits;
use tartarus_types::{Ground, Language, NetMode, NetRequest, NodeId, Overcommit, Timestamp};

use super::*;

/// What an operator who says nothing gives.
const MOST: NetCeiling = NetCeiling { mode: NetMode::Allow, public_ports: false, limits: NetLimits::MOST };

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
        ..TemplateSpec::default()
    };
    TemplateRecord { name: "python".into(), spec, created_at: Timestamp(0) }
}

fn with_runner() -> TemplateRecord {
    let mut template = template();
    template.spec.warm.runner = Some(RunnerSpec { language: Language::Python, preload: Vec::new() });
    template
}

fn resolve(change: impl FnOnce(&mut CreateSandbox)) -> Result<SandboxSpec, Refusal> {
    resolve_from(template(), change)
}

fn resolve_from(template: TemplateRecord, change: impl FnOnce(&mut CreateSandbox)) -> Result<SandboxSpec, Refusal> {
    let kernel = KernelRecord { digest: "sha256:k".into(), release: "6.1".into(), size: 1, created_at: Timestamp(0) };
    let mut request = CreateSandbox { template: "python".into(), ..CreateSandbox::default() };
    change(&mut request);
    sandbox_spec(request, template, &kernel, &Limits::default(), MOST)
}

fn node(memory_mib: u64, max_cpus: u32) -> NodeRecord {
    NodeRecord {
        id: NodeId::random(),
        memory_mib,
        overhead_mib: 96,
        overcommit: Overcommit::NEVER,
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

#[test]
fn the_snapshot_is_named_by_what_the_sandbox_really_gets() {
    let own = resolve(|_| ()).unwrap();
    let larger = resolve(|r| r.memory_mib = Some(512)).unwrap();
    // What only the command sees does not matter.
    let other_env = resolve(|r| r.env = [("A".to_owned(), "mine".to_owned())].into()).unwrap();
    assert_eq!(own.golden, other_env.golden);
    assert_eq!(own.golden.as_deref().map(str::len), Some(64));
    assert_ne!(own.golden, larger.golden);
    let ground = Ground { env: template().spec.env, workdir: Some("/srv".into()), user: Some("nobody".into()) };
    assert_eq!((own.ground, own.snapshot), (ground, SnapshotUse::Prefer));
    assert_eq!(resolve(|r| r.no_snapshot = true).unwrap().snapshot, SnapshotUse::Never);
    assert_eq!(resolve(|r| r.require_snapshot = true).unwrap().snapshot, SnapshotUse::Require);
    let cold = || {
        let mut template = template();
        template.spec.cold = true;
        template
    };
    assert_eq!(resolve_from(cold(), |_| ()).unwrap().golden, None);
    for refusal in [
        resolve_from(cold(), |r| r.require_snapshot = true).unwrap_err(),
        resolve(|r| (r.require_snapshot, r.memory_mib) = (true, Some(512))).unwrap_err(),
    ] {
        assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::SnapshotRequired, Some("require_snapshot")));
    }
    let both = resolve(|r| (r.require_snapshot, r.no_snapshot) = (true, true)).unwrap_err();
    assert_eq!(both.field.as_deref(), Some("no_snapshot"));
}

#[test]
fn code_needs_a_runner_and_has_a_size() {
    let code = |text: &str| Some(text.to_owned());
    let refusal = resolve(|r| r.code = code("print(1)")).unwrap_err();
    assert_eq!(refusal.to_string(), "code: template python has no runner: create it with --runner python");
    let spec = resolve_from(with_runner(), |r| (r.code, r.command) = (code(""), Some(vec![String::new()]))).unwrap();
    assert_eq!((spec.code.as_deref(), spec.command.len()), (Some(""), 1), "an argument may be empty");
    assert!(spec.has_command());
    resolve_from(with_runner(), |r| (r.code, r.command) = (code("x"), Some(vec![]))).unwrap();
    let blame = |change: fn(&mut CreateSandbox)| resolve_from(with_runner(), change).unwrap_err().field.unwrap();
    assert_eq!(blame(|r| r.code = Some("a\0".into())), "code");
    assert_eq!(blame(|r| r.code = Some("x".repeat((1 << 20) + 1))), "code");
    assert_eq!(blame(|r| (r.code, r.command) = (Some("x".repeat(1 << 20)), Some(vec!["y".into()]))), "code");
    assert_eq!(blame(|r| (r.code, r.command) = (Some("x".into()), Some(vec!["a\0".into()]))), "command");
    assert_eq!(blame(|r| r.command = Some(vec![])), "command");

    let sandbox = resolve(|_| ()).unwrap();
    let exec = CreateExec { code: code("x"), ..CreateExec::default() };
    assert_eq!(check_exec(&exec, &sandbox, &Limits::default()).unwrap_err().field.as_deref(), Some("code"));
    check_exec(&exec, &resolve_from(with_runner(), |_| ()).unwrap(), &Limits::default()).unwrap();
    let empty = check_exec(&CreateExec::default(), &sandbox, &Limits::default()).unwrap_err();
    assert_eq!(empty.field.as_deref(), Some("command"));
}

#[test]
fn a_template_is_checked_like_what_it_makes() {
    let spec = |change: fn(&mut CreateTemplate)| {
        let mut request = CreateTemplate::default();
        change(&mut request);
        template_spec(request, "sha256:i".into(), &Limits::default(), MOST)
    };
    const A: Shape = Shape { cpus: 1, memory_mib: 64 };
    const B: Shape = Shape { cpus: 2, memory_mib: 64 };
    assert_eq!(spec(|t| t.shapes = vec![B, A, B]).unwrap().shapes, [A, B]);
    let python = spec(|t| {
        t.runner = Some(Language::Python);
        t.preload = ["numpy", "os.path", "_x1", "numpy"].map(str::to_owned).into();
        t.warm = Some("true".into());
    });
    let warm = python.unwrap().warm;
    assert_eq!(warm.runner.unwrap().preload, ["numpy", "os.path", "_x1"]);
    let blame = |change: fn(&mut CreateTemplate)| spec(change).unwrap_err().field.unwrap();
    assert_eq!(blame(|t| t.preload = vec!["numpy".into()]), "preload");
    assert_eq!(blame(|t| t.shapes = vec![Shape { cpus: 0, memory_mib: 64 }]), "shapes.cpus");
    assert_eq!(blame(|t| t.shapes = vec![Shape { cpus: 1, memory_mib: 1 }]), "shapes.memory_mib");
    assert_eq!(blame(|t| t.shapes = (1..=17).map(|cpus| Shape { cpus, memory_mib: 64 }).collect()), "shapes");
    assert_eq!(blame(|t| (t.cold, t.shapes) = (true, vec![A])), "shapes");
    assert_eq!(blame(|t| t.warm = Some(" ".into())), "warm");
    assert_eq!(blame(|t| t.warm = Some("a\0".into())), "warm");
    for bad in ["", ".", "a.", ".a", "1a", "a b", "a;b", "a\nb", "ä", &"x".repeat(256)] {
        let request = CreateTemplate {
            runner: Some(Language::Python),
            preload: vec![bad.to_owned()],
            ..CreateTemplate::default()
        };
        let refusal = template_spec(request, "sha256:i".into(), &Limits::default(), MOST).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("preload"), "{bad:?}");
    }
}

#[test]
fn the_network_is_the_requests_or_the_templates_and_never_more_than_the_operator_gives() {
    let to = |cidr: &str| NetRequest { mode: NetMode::Allow, cidrs: vec![cidr.to_owned()], ..NetRequest::default() };
    let with_net = |net: Contract| {
        let mut template = template();
        template.spec.net = net;
        template
    };
    let own = to("203.0.113.0/24").check(MOST).unwrap();
    assert!(!resolve(|_| ()).unwrap().net.is_some(), "nobody gets a network by accident");
    assert_eq!(resolve_from(with_net(own.clone()), |_| ()).unwrap().net, own);
    let other = resolve_from(with_net(own.clone()), |r| r.net = Some(to("8.8.8.8"))).unwrap().net;
    assert_eq!(other, to("8.8.8.8").check(MOST).unwrap(), "whole, not beside the template's");
    let none = resolve_from(with_net(own.clone()), |r| r.net = Some(NetRequest::default())).unwrap().net;
    assert_eq!(none, Contract::default());
    // The golden snapshot is the template's, whatever this clone of it may reach.
    let golden = |net| resolve_from(with_net(own.clone()), |r| r.net = net).unwrap().golden;
    assert_eq!(golden(Some(NetRequest::default())), golden(None));
    assert_eq!(golden(Some(to("8.8.8.8"))), golden(None));

    let refusal = resolve(|r| r.net = Some(to("8.8.8.8/8"))).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("net.cidrs[0]"));
    let open = Contract { mode: NetMode::Open, ..Contract::default() };
    let refusal = resolve_from(with_net(open), |_| ()).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("net.mode"));
    for word in ["template python asks for it", "`up --net open`"] {
        assert!(refusal.detail.contains(word), "{refusal}");
    }
    let wanted = |net| CreateTemplate { net, ..CreateTemplate::default() };
    let spec = |net| template_spec(wanted(net), "sha256:i".into(), &Limits::default(), MOST);
    assert_eq!(spec(None).unwrap().net, Contract::default());
    assert_eq!(spec(Some(to("8.8.8.8"))).unwrap().net, to("8.8.8.8").check(MOST).unwrap());
    let refusal = spec(Some(to("169.254.169.254"))).unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("net.cidrs[0]"));
}
