use proptest::prelude::*;
use tokio::net::UnixListener;

use super::super::api::{InstanceInfo, InstanceState, VmState};
use super::*;

#[test]
fn heads_are_told_from_nonsense() {
    let head = b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nContent-length: 17\r\n";
    assert_eq!(parse(head).unwrap(), Head { status: 200, length: head.len() + 2, body: 17 });
    assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n").unwrap().body, 0);
    assert_eq!(parse(b"HTTP/1.1 503\r\n").unwrap().status, 503);
    for bad in [
        &b""[..],
        b"HTTP/1.0 200 \r\n",
        b"HTTP/1.1 2000 \r\n",
        b"HTTP/1.1 20\r\n",
        b"HTTP/1.1 200 \r\nno header\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: +1\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 65537\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 99999999999999999999999\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 1\r\ncontent-length: 1\r\n",
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n",
        b"HTTP/1.1 200 \r\n\xff: x\r\n",
    ] {
        assert_eq!(parse(bad).unwrap_err().kind(), io::ErrorKind::InvalidData, "{}", String::from_utf8_lossy(bad));
    }
}

proptest! {
    #[test]
    fn no_head_is_a_panic(head in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&head);
    }
}

#[test]
fn a_request_is_what_the_server_reads() {
    assert_eq!(
        String::from_utf8(to_bytes(&Request::Vm { state: VmState::Paused }).unwrap()).unwrap(),
        "PATCH /vm HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: application/json\r\n\
         Content-Length: 18\r\n\r\n{\"state\":\"Paused\"}"
    );
    let get = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    assert_eq!(String::from_utf8(to_bytes(&Request::Describe).unwrap()).unwrap(), get);
}

/// Asks a server that sends these bytes whatever it is asked, and then nothing, or closes.
async fn answered(bytes: Vec<u8>, close: bool) -> Result<InstanceInfo, RuntimeError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let listener = UnixListener::bind(dir.path().join("run/api.sock")).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 512];
        let _ = stream.read(&mut asked).await;
        let _ = stream.write_all(&bytes).await;
        if !close {
            std::future::pending::<()>().await;
        }
    });
    let answer = Client::new(dir.path()).ask(&Request::Describe).await;
    server.abort();
    answer
}

#[tokio::test]
async fn an_answer_is_read_and_a_fault_is_told() {
    let body = r#"{"id":"vm","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#;
    let fine = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let info = answered(fine.clone().into_bytes(), false).await.unwrap();
    assert_eq!(info.state, InstanceState::NotStarted);
    let fault = "HTTP/1.1 400 \r\nContent-Length: 29\r\n\r\n{\"fault_message\":\"not\\u001b so\"}";
    let fault = fault.replace("29", "32");
    let told = answered(fault.into_bytes(), false).await.unwrap_err().to_string();
    assert!(told.starts_with("GET / of Firecracker in ") && told.ends_with("it answered 400: not so"), "{told}");
    let more = answered((fine + "x").into_bytes(), false).await.unwrap_err().to_string();
    assert!(more.contains("after its end"), "{more}");
    assert!(answered(b"HTTP/1.1 200 \r\n\r\n".to_vec(), false).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_endless_firecracker_is_given_up() {
    let silent = answered(Vec::new(), false).await.unwrap_err().to_string();
    assert!(silent.contains("timed out"), "{silent}");
    let endless = answered(vec![b'x'; 3 * MAX_HEAD], false).await.unwrap_err().to_string();
    assert!(endless.contains("16 KiB"), "{endless}");
}

#[tokio::test]
async fn a_firecracker_that_is_gone_has_ended() {
    let nowhere = Client::new(Path::new("/nonexistent"));
    assert!(matches!(nowhere.tell(&Request::Describe).await, Err(RuntimeError::Ended)));
    assert!(matches!(answered(b"HTTP/1.1 200 \r\n".to_vec(), true).await, Err(RuntimeError::Ended)));
}
