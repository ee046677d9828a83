use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::*;

/// A jail's folder, and somebody in it who notes what the API is told, and does it.
fn pretended() -> (tempfile::TempDir, FirecrackerMonitor, mpsc::Receiver<String>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("run")).unwrap();
    let (tell, told) = mpsc::channel(16);
    let api = UnixListener::bind(root.join("run/api.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = api.accept().await {
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let (line, body) = (asked.lines().next().unwrap(), asked.lines().last().unwrap());
            tell.send(format!("{line} {body}")).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 \r\n\r\n").await.unwrap();
        }
    });
    let jail = Jail {
        jailer: "jailer".into(),
        base: dir.path().into(),
        root,
        locks: "locks".into(),
        groups: Default::default(),
        shared: Vec::new(),
        without: Vec::new(),
    };
    let monitor = FirecrackerMonitor::new(dir.path(), &jail);
    (dir, monitor, told)
}

const RESUMED: &str = "PATCH /vm HTTP/1.1 {\"state\":\"Resumed\"}";
const PAUSED: &str = "PATCH /vm HTTP/1.1 {\"state\":\"Paused\"}";

/// The next connection, after it asked for what it must.
async fn asked(agent: &UnixListener) -> UnixStream {
    let (mut stream, _) = agent.accept().await.unwrap();
    let mut asked = [0; 13];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"CONNECT 1024\n");
    stream
}

#[tokio::test]
async fn a_guest_that_does_not_listen_yet_is_asked_again_and_what_it_says_is_all_there() {
    let (_dir, monitor, mut told) = pretended();
    let agent = UnixListener::bind(monitor.root.join("run/agent.sock")).unwrap();
    let guest = tokio::spawn(async move {
        for _ in 0..3 {
            asked(&agent).await;
        }
        let mut stream = asked(&agent).await;
        stream.write_all(b"OK 1073741824\nhello").await.unwrap();
        (agent, stream)
    });
    let mut channel = monitor.channel().await.unwrap();
    let mut hello = [0; 5];
    channel.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    assert!(told.try_recv().is_err(), "one that was booted is not resumed");

    let (agent, _first) = guest.await.unwrap();
    let liar = tokio::spawn(async move {
        let mut stream = asked(&agent).await;
        stream.write_all(&[b'O'; 100]).await.unwrap();
        (agent, stream)
    });
    let why = monitor.channel().await.err().unwrap().to_string();
    assert!(why.contains("no OK"), "{why}");
    drop(liar.await.unwrap());
    assert!(matches!(monitor.channel().await, Err(RuntimeError::Ended)));
}

#[tokio::test]
async fn the_first_channel_lets_a_restored_machine_go_on_and_no_other_does() {
    let (dir, monitor, mut told) = pretended();
    std::fs::write(dir.path().join(UNOPENED), "").unwrap();
    // Nobody is there to connect to; it was opened nevertheless.
    assert!(matches!(monitor.channel().await, Err(RuntimeError::Ended)));
    assert_eq!(told.recv().await.unwrap(), RESUMED);
    assert!(monitor.channel().await.is_err());
    assert!(told.try_recv().is_err());
    // Nor one that was paused before.
    std::fs::write(dir.path().join(UNOPENED), "").unwrap();
    monitor.pause().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), PAUSED);
    assert!(monitor.channel().await.is_err());
    assert!(told.try_recv().is_err());
    monitor.resume().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), RESUMED);
}
