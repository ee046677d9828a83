use futures_util::StreamExt;
use tartarus_api::node::{OutputEvent, OutputRequest};

use super::*;

const ALL: OutputRequest = OutputRequest { from: [Some(0), Some(0)], follow: true };

async fn collect(mut events: tartarus_api::node::OutputStream) -> ([Vec<u8>; 2], u64) {
    let (mut got, mut gaps) = ([Vec::new(), Vec::new()], 0);
    while let Some(event) = events.next().await {
        match event.unwrap() {
            OutputEvent::Data { stream, bytes, .. } => got[stream].extend_from_slice(&bytes),
            OutputEvent::Gap { length, .. } => gaps += length,
            OutputEvent::End => return (got, gaps),
        }
    }
    panic!("no end");
}

fn numbered(from: u64, n: usize) -> Vec<u8> {
    (0..n as u64).map(|i| ((from + i) * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_written_is_read_back_by_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut writer) = LiveLog::open(dir.path(), LogLimits::default(), false).unwrap();
    let reading = tokio::spawn(collect(follow(dir.path().to_owned(), Some(log), ALL)));
    writer.append([b"out\0\xff".to_vec(), b"err".to_vec()]).await.unwrap();
    writer.append([b"put".to_vec(), Vec::new()]).await.unwrap();
    writer.close();
    assert_eq!(reading.await.unwrap(), ([b"out\0\xffput".to_vec(), b"err".to_vec()], 0));
    // And again from disk, from the middle.
    let request = OutputRequest { from: [Some(3), None], follow: true };
    let (got, _) = collect(follow(dir.path().to_owned(), None, request)).await;
    assert_eq!(got, [b"\0\xffput".to_vec(), Vec::new()]);
}

#[tokio::test]
async fn the_stored_log_keeps_start_and_end_and_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { head: 10_000, tail: 100_000 };
    let (_log, mut writer) = LiveLog::open(dir.path(), limits, false).unwrap();
    let total = 1_000_000;
    for at in (0..total).step_by(7_000) {
        writer.append([numbered(at, 7_000.min((total - at) as usize)), Vec::new()]).await.unwrap();
    }
    drop(writer);
    let (got, gap) = collect(follow(dir.path().to_owned(), None, ALL)).await;
    let whole = numbered(0, total as usize);
    assert_eq!(got[0][..10_000], whole[..10_000]);
    assert!(got[0].len() as u64 + gap == total);
    assert!(got[0].len() >= 110_000 && got[0].len() <= 120_000, "{}", got[0].len());
    assert_eq!(got[0][10_000..], whole[10_000 + gap as usize..]);
    let disk: u64 = segments::list(dir.path(), 0).unwrap().iter().map(|s| s.len).sum();
    assert_eq!(disk, got[0].len() as u64);
}

#[tokio::test]
async fn a_slow_follower_misses_nothing_and_holds_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { head: 10_000, tail: 100_000 };
    let (log, mut writer) = LiveLog::open(dir.path(), limits, false).unwrap();
    let events = follow(dir.path().to_owned(), Some(log), ALL);
    let writing = tokio::spawn(async move {
        for at in (0..1_000_000).step_by(10_000) {
            writer.append([numbered(at, 10_000), Vec::new()]).await.unwrap();
        }
        writer.close();
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!writing.is_finished(), "the writer overtook a follower that read nothing");
    let (got, gap) = collect(events).await;
    assert_eq!((got[0].len(), gap), (1_000_000, 0));
    assert!(got[0] == numbered(0, 1_000_000));
    writing.await.unwrap();
}

#[tokio::test]
async fn a_follower_that_leaves_frees_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { head: 1_000, tail: 10_000 };
    let (log, mut writer) = LiveLog::open(dir.path(), limits, false).unwrap();
    let events = follow(dir.path().to_owned(), Some(log), ALL);
    let writing = tokio::spawn(async move { writer.append([vec![0; 50_000], Vec::new()]).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!writing.is_finished());
    drop(events);
    writing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_attached_client_is_waited_for_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { head: 1_000, tail: 10_000 };
    let (_log, mut writer) = LiveLog::open(dir.path(), limits, true).unwrap();
    let writing = tokio::spawn(async move { writer.append([vec![0; 50_000], Vec::new()]).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!writing.is_finished(), "output was left out although a client had said it would read");
    tokio::time::sleep(ATTACH_GRACE).await;
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_log_is_taken_up_again_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { head: 100, tail: 100_000 };
    let (_, mut writer) = LiveLog::open(dir.path(), limits, false).unwrap();
    writer.append([numbered(0, 5_000), Vec::new()]).await.unwrap();
    drop(writer);
    let (log, mut writer) = LiveLog::open(dir.path(), limits, false).unwrap();
    assert_eq!(log.watch().borrow().len, [5_000, 0]);
    writer.append([numbered(5_000, 5_000), Vec::new()]).await.unwrap();
    drop(writer);
    let (got, gap) = collect(follow(dir.path().to_owned(), None, ALL)).await;
    assert_eq!((got[0].clone(), gap), (numbered(0, 10_000), 0));
}

#[tokio::test]
async fn a_follower_is_cut_off_not_ended_when_the_agent_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut writer) = LiveLog::open(dir.path(), LogLimits::default(), false).unwrap();
    let mut events = follow(dir.path().to_owned(), Some(log), ALL);
    writer.append([b"half".to_vec(), Vec::new()]).await.unwrap();
    drop(writer);
    assert!(matches!(events.next().await, Some(Ok(OutputEvent::Data { .. }))));
    assert!(matches!(events.next().await, Some(Err(_))));
}

#[tokio::test]
async fn a_released_writer_waits_for_no_follower() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { head: 1_000, tail: 10_000 };
    let (log, mut writer) = LiveLog::open(dir.path(), limits, false).unwrap();
    let _stalled = follow(dir.path().to_owned(), Some(log.clone()), ALL);
    let writing = tokio::spawn(async move { writer.append([vec![0; 50_000], Vec::new()]).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!writing.is_finished());
    log.release();
    writing.await.unwrap().unwrap();
}
