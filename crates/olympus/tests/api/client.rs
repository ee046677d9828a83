//! The typed client against this server: both sides read the contract the same way.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tartarus_api::client::{Client, Listing, Process};
use tartarus_api::node::{ControlPlane, OutputEvent, Report};
use tartarus_api::v1::{CreateExec, CreateSandbox, CreateTemplate, Prune};
use tartarus_types::{ErrorCode, State};

use crate::support::Bench;

#[tokio::test]
async fn a_run_from_end_to_end() {
    let bench = Bench::start().await;
    let client = Client::new(&bench.url, &bench.key).unwrap().with_patience(Duration::from_secs(1));
    let tar = || futures_util::stream::iter([Ok(Bytes::from_static(b"tar"))]).boxed();
    client.import_image("base", tar()).await.unwrap();
    client.add_kernel(tar()).await.unwrap();
    let template = CreateTemplate { name: "t".into(), image: "base".into(), cold: true, ..CreateTemplate::default() };
    assert!(client.make_template(&template).await.unwrap().1);
    assert!(!client.make_template(&template).await.unwrap().1, "it was there already");
    assert_eq!(client.templates().await.unwrap().len(), 2);

    let labels = [("team".to_owned(), "red".to_owned())].into();
    let wanted = CreateSandbox { template: "t".into(), stdin: true, labels, ..CreateSandbox::default() };
    let made = client.create(&wanted, Some("key")).await.unwrap();
    assert_eq!(client.create(&wanted, Some("key")).await.unwrap(), made);
    let listing = Listing { labels: vec![("team".into(), "red".into())], ..Listing::default() };
    assert_eq!(client.list(&listing).await.unwrap().len(), 1);
    let process = Process::main(made.id.as_str());
    let data = OutputEvent::Data { stream: 0, offset: 0, bytes: Bytes::from_static(b"hello") };
    *bench.node.output.lock().unwrap() = vec![data.clone()];

    let following = client.output(&process, [Some(0), Some(0)], true).collect::<Vec<_>>();
    let feeding = client.feed(&process, &b"input"[..]);
    let running = async {
        let attempt = bench.lease().await;
        bench.report(&attempt, Report::Preparing).await;
        bench.report(&attempt, Report::Begin).await;
        attempt
    };
    let (output, fed, attempt) = tokio::join!(following, feeding, running);
    fed.unwrap();
    assert_eq!(*bench.node.stdin.lock().unwrap(), b"input");
    assert_eq!(output, [Ok(data), Ok(OutputEvent::End)]);

    let machine = (bench.olympus.clone() as std::sync::Arc<dyn ControlPlane>, attempt.clone());
    *bench.node.machine.lock().unwrap() = Some(machine);
    assert_eq!(client.pause(made.id.as_str()).await.unwrap().state, State::Paused);
    assert_eq!(client.resume(made.id.as_str()).await.unwrap().state, State::Running);
    assert_eq!(client.disk_usage().await.unwrap().snapshots, []);
    assert!(client.prune(&Prune { dry_run: true, ..Prune::default() }).await.unwrap().dry_run);

    let command = CreateExec { command: vec!["ls".into()], ..CreateExec::default() };
    let exec = client.exec(made.id.as_str(), &command, None).await.unwrap();
    client.signal(&Process::exec(&exec), "INT").await.unwrap();
    let killed = client.kill(made.id.as_str(), "TERM", Some(Duration::ZERO)).await.unwrap();
    assert_eq!(killed.state, State::Terminating);
    let (ended, _) = tokio::join!(client.wait(made.id.as_str()), bench.end(&attempt, 7));
    assert_eq!(ended.unwrap().exit_status, Some(7));
    client.remove(made.id.as_str()).await.unwrap();
    let gone = client.inspect(made.id.as_str()).await.unwrap_err();
    assert_eq!(gone.code(), Some(ErrorCode::NotFound));
    let unknown = CreateSandbox { template: "nope".into(), ..CreateSandbox::default() };
    let refused = client.create(&unknown, None).await.unwrap_err();
    assert!(refused.to_string().contains("nope"), "{refused}");
}
