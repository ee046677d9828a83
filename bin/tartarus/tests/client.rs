//! The client outlives its server: nothing lost, nothing doubled, and what cannot be helped is told soon.

mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use support::{Server, exited, lock, script};
use tartarus_api::client::{Client, Process};
use tartarus_api::node::OutputEvent;
use tartarus_api::v1::CreateSandbox;
use tartarus_api::{ClientError, output};
use tartarus_types::{ErrorCode, Refusal};

async fn collect(client: &Client, id: &str) -> Result<[Vec<u8>; 2], ClientError> {
    let mut events = Box::pin(client.output(&Process::main(id), [Some(0), Some(0)], true));
    let mut streams: [Vec<u8>; 2] = Default::default();
    while let Some(event) = events.next().await {
        match event? {
            OutputEvent::Data { stream, offset, bytes } => {
                assert_eq!(offset, streams[stream].len() as u64);
                streams[stream].extend_from_slice(&bytes);
            }
            OutputEvent::Gap { .. } => panic!("a gap"),
            OutputEvent::End => return Ok(streams),
        }
    }
    panic!("no end");
}

#[tokio::test]
async fn a_connection_may_break_at_any_byte() {
    let wanted = [b"standard output\0\xff\n".to_vec(), b"standard error, longer\n".to_vec()];
    // A keepalive, frames of up to 7 bytes and their headers: at most so many bytes in all.
    let longest = output::HEADER * 12 + wanted.concat().len();
    let tries = (0..longest).map(|cut| {
        let wanted = wanted.clone();
        async move {
            let script = script();
            {
                let mut script = lock(&script);
                script.streams = wanted.clone();
                script.outcome = Some(exited(0));
                script.cuts = [cut, longest - cut].into();
            }
            let server = Server::start(&script);
            let client = Client::new(&server.url(), "key").unwrap();
            let id = lock(&script).id.to_string();
            assert_eq!(collect(&client, &id).await.unwrap(), wanted, "cut at {cut}");
            assert_eq!(lock(&script).connections, 3, "cut at {cut}");
        }
    });
    // A few at a time: each has a server.
    let tries: Vec<_> = tries.collect();
    for few in futures_util::stream::iter(tries).chunks(16).collect::<Vec<_>>().await {
        join_all(few).await;
    }
}

#[tokio::test]
async fn patience_with_a_server_that_is_gone_ends() {
    let script = script();
    lock(&script).cuts = [3].into();
    lock(&script).streams[0] = vec![b'x'; 1000];
    let server = Server::start(&script);
    let client = Client::new(&server.url(), "key").unwrap().with_patience(Duration::from_millis(300));
    let id = lock(&script).id.to_string();
    client.inspect(&id).await.unwrap();
    drop(server);
    let started = Instant::now();
    assert!(matches!(collect(&client, &id).await, Err(ClientError::Unreachable { .. })));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_server_that_never_was_is_told_at_once() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(&format!("http://{free}"), "key").unwrap();
    let started = Instant::now();
    let error = client.create(&CreateSandbox::default(), None).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let text = error.to_string();
    assert!(
        text.contains(&free.to_string()) && text.contains("tartarus up") && text.contains("TARTARUS_URL"),
        "{text}"
    );
}

#[tokio::test]
async fn a_lost_answer_costs_no_second_sandbox() {
    let script = script();
    lock(&script).lost_answers = 2;
    let server = Server::start(&script);
    let client = Client::new(&server.url(), "key").unwrap();
    client.create(&CreateSandbox::default(), None).await.unwrap();
    let keys: Vec<String> = lock(&script).created.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]) && keys[0].len() >= 20, "{keys:?}");
    client.create(&CreateSandbox::default(), None).await.unwrap();
    assert_ne!(lock(&script).created[3].0, keys[0], "another request is another run");
    client.create(&CreateSandbox::default(), Some("mine")).await.unwrap();
    assert_eq!(lock(&script).created[4].0, "mine");
}

#[tokio::test]
async fn problems_keep_their_code_and_field() {
    let script = script();
    lock(&script).refusal = Some(Refusal::field("memory_mib", "too much"));
    let server = Server::start(&script);
    let client = Client::new(&server.url(), "key").unwrap();
    let error = client.create(&CreateSandbox::default(), None).await.unwrap_err();
    assert_eq!(error, ClientError::Refused(Refusal::field("memory_mib", "too much")));
    let other = Client::new(&server.url(), "wrong").unwrap();
    let error = other.create(&CreateSandbox::default(), None).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthenticated));
    // Not a problem at all: something else listens there.
    assert!(matches!(client.images().await, Err(ClientError::Protocol(_))));
}

#[tokio::test]
async fn a_name_cannot_become_a_path() {
    let client = Client::new("http://127.0.0.1:1/prefix/", "key").unwrap();
    for name in ["", ".", ".."] {
        assert_eq!(client.inspect(name).await.unwrap_err().code(), Some(ErrorCode::NotFound), "{name:?}");
    }
    for url in ["https://example.invalid", "file:///x", "nonsense", ""] {
        let error = Client::new(url, "key").unwrap_err();
        assert!(matches!(&error, ClientError::Refused(r) if r.field.as_deref() == Some("url")), "{url}: {error}");
    }
    assert!(Client::new("https://x", "key").unwrap_err().to_string().contains("http only"));
    assert!(Client::new("http://x", "a\nb").is_err());
    assert!(!format!("{:?}", Client::new("http://x", "secret").unwrap()).contains("secret"));
}
