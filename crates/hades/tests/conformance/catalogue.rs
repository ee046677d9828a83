use hades::{ImageRecord, KernelRecord, NewSandbox, NodeRecord, Store, StoreError, TemplateRecord};
use tartarus_types::{Overcommit, TemplateSpec};

use super::*;

fn image(name: &str, digest: &str) -> ImageRecord {
    ImageRecord { name: name.into(), digest: digest.into(), size: 7, created_at: T0 }
}

fn kernel(digest: &str, release: &str, ms: u64) -> KernelRecord {
    KernelRecord { digest: format!("sha256:{digest}"), release: release.into(), size: 1 << 40, created_at: at(ms) }
}

fn template(name: &str, image: &str) -> TemplateRecord {
    let spec = TemplateSpec {
        image: image.into(),
        cpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        env: [("A".into(), "b".into())].into(),
        workdir: Some("/".into()),
        ..TemplateSpec::default()
    };
    TemplateRecord { name: name.into(), spec, created_at: T0 }
}

pub(crate) async fn images(s: &impl Store) {
    for (name, digest) in [("b", "sha256:1"), ("a", "sha256:2"), ("c", "sha256:2")] {
        assert_eq!(s.put_image(image(name, digest)).await.unwrap(), None);
    }
    assert_eq!(s.put_image(image("b", "sha256:1")).await.unwrap(), None, "again");
    let listed = s.images().await.unwrap();
    assert_eq!(listed, [image("a", "sha256:2"), image("b", "sha256:1"), image("c", "sha256:2")]);
    refused!(s.remove_image("zz").await, StoreError::NotFound("image", _));

    // Two names of one digest: neither protects the digest when the other goes, until the last.
    assert_eq!(s.remove_image("c").await.unwrap(), None);
    s.put_template(template("t", "sha256:2")).await.unwrap();
    refused!(s.remove_image("a").await, StoreError::InUse(by) if by == "template t");
    s.put_image(image("c", "sha256:2")).await.unwrap();
    assert_eq!(s.remove_image("c").await.unwrap(), None, "another name holds it");
    s.remove_template("t").await.unwrap();

    let sandbox = NewSandbox { spec: SandboxSpec { image: "sha256:2".into(), ..spec(1) }, ..new() };
    let id = accept(s, sandbox, T0).await.id;
    refused!(s.remove_image("a").await, StoreError::InUse(by) if by == format!("sandbox {id}"));
    // Moving a name frees its digest only when nothing uses it.
    assert_eq!(s.put_image(image("a", "sha256:3")).await.unwrap(), None, "a sandbox uses it");
    assert_eq!(s.put_image(image("b", "sha256:3")).await.unwrap(), Some("sha256:1".into()));
    assert_eq!(s.put_image(image("b", "sha256:4")).await.unwrap(), None, "another name uses it");
    s.kill(&id, TERM, false, T0).await.unwrap();
    assert_eq!(s.remove_image("a").await.unwrap(), Some("sha256:3".into()));
    assert_eq!(s.images().await.unwrap(), [image("b", "sha256:4")]);
}

pub(crate) async fn kernels(s: &impl Store) {
    let (a, b, c) = (kernel("aa11", "6.1", 5), kernel("aa22", "6.1", 3), kernel("bb", "6.12", 1));
    for k in [&a, &b, &c] {
        s.put_kernel(k.clone()).await.unwrap();
    }
    assert_eq!(s.kernels().await.unwrap(), [c.clone(), b.clone(), a.clone()]);
    s.put_kernel(a.clone()).await.unwrap();
    assert_eq!(s.kernels().await.unwrap(), [a.clone(), c.clone(), b.clone()], "added again, it is the newest");

    for ambiguous in ["6.1", "aa", "sha256:aa"] {
        refused!(s.remove_kernel(ambiguous).await, StoreError::Ambiguous(_));
    }
    for nothing in ["", "sha256:", "cc", "%", "6", "sha256:bb~"] {
        refused!(s.remove_kernel(nothing).await, StoreError::NotFound("kernel", _));
    }
    let sandbox = NewSandbox { spec: SandboxSpec { kernel: c.digest.clone(), ..spec(1) }, ..new() };
    let id = accept(s, sandbox, T0).await.id;
    refused!(s.remove_kernel("6.12").await, StoreError::InUse(by) if by == format!("sandbox {id}"));
    s.kill(&id, TERM, false, T0).await.unwrap();
    assert_eq!(s.remove_kernel("6.12").await.unwrap(), c);
    assert_eq!(s.remove_kernel("aa1").await.unwrap(), a);
    assert_eq!(s.remove_kernel("sha256:aa22").await.unwrap(), b);
    assert!(s.kernels().await.unwrap().is_empty());
}

pub(crate) async fn templates(s: &impl Store) {
    refused!(s.put_template(template("t", "sha256:1")).await, StoreError::NotFound("image", _));
    for (name, digest) in [("one", "sha256:1"), ("two", "sha256:2")] {
        s.put_image(image(name, digest)).await.unwrap();
    }
    let t = template("t", "sha256:1");
    assert_eq!(s.put_template(t.clone()).await.unwrap(), t);
    let again = TemplateRecord { created_at: at(9), ..t.clone() };
    assert_eq!(s.put_template(again).await.unwrap(), t, "the first stays");
    refused!(s.put_template(template("t", "sha256:2")).await, StoreError::NameTaken(name) if name == "t");
    let a = s.put_template(template("a", "sha256:2")).await.unwrap();
    assert_eq!(s.templates().await.unwrap(), [a, t.clone()]);
    assert_eq!(s.template("t").await.unwrap(), Some(t));
    assert_eq!(s.template("T").await.unwrap(), None);
    s.remove_template("t").await.unwrap();
    refused!(s.remove_template("t").await, StoreError::NotFound("template", _));
}

pub(crate) async fn keys(s: &impl Store) {
    s.put_key("admin", [1; 32], T0).await.unwrap();
    s.put_key("ci", [2; 32], T0).await.unwrap();
    assert_eq!(s.find_key([1; 32]).await.unwrap().as_deref(), Some("admin"));
    assert_eq!(s.find_key([2; 32]).await.unwrap().as_deref(), Some("ci"));
    s.put_key("admin", [3; 32], T0).await.unwrap();
    assert_eq!(s.find_key([1; 32]).await.unwrap(), None, "replaced");
    assert_eq!(s.find_key([3; 32]).await.unwrap().as_deref(), Some("admin"));
}

pub(crate) async fn nodes(s: &impl Store) {
    assert!(s.nodes().await.unwrap().is_empty());
    let first = NodeRecord { reserved_mib: 5, starting: 5, ..node() };
    s.upsert_node(first.clone()).await.unwrap();
    let known = s.nodes().await.unwrap();
    assert_eq!(known, [NodeRecord { reserved_mib: 0, starting: 0, ..first.clone() }], "reservations are the store's");
    let grown = NodeRecord {
        memory_mib: 1 << 30,
        overhead_mib: 96,
        overcommit: Overcommit::from_hundredths(250).unwrap(),
        start_slots: 1,
        max_cpus: 64,
        seen_at: at(1),
        ..node()
    };
    s.upsert_node(NodeRecord { id: first.id.clone(), ..grown.clone() }).await.unwrap();
    assert_eq!(s.nodes().await.unwrap(), [NodeRecord { id: first.id, ..grown }]);
}
