use tartarus_api::v1::CreateSandbox;

use super::*;

fn refusal(json: &str) -> (ErrorCode, Option<String>) {
    let refusal = parse_json::<CreateSandbox>(json.as_bytes()).unwrap_err();
    (refusal.code, refusal.field)
}

#[test]
fn the_field_is_named() {
    let field = |json| match refusal(json) {
        (ErrorCode::InvalidField, Some(field)) => field,
        other => panic!("{json}: {other:?}"),
    };
    assert_eq!(field(r#"{"template":"a","memory_mib":-5}"#), "memory_mib");
    assert_eq!(field(r#"{"template":"a","memory_mib":99999999999}"#), "memory_mib");
    assert_eq!(field(r#"{"template":"a","command":["a",1]}"#), "command[1]");
    assert_eq!(field(r#"{"template":"a","env":{"A":1}}"#), "env.A");
    assert_eq!(field(r#"{"template":"a","memroy_mib":5}"#), "memroy_mib");
    assert_eq!(field(r#"{"template":"a","template":"b"}"#), "template");
    assert_eq!(field("{}"), "template");
}

#[test]
fn a_body_that_is_no_request_is_told_apart() {
    for json in ["", "{", r#"{"template":"a""#, "nonsense", "[]", r#"{"template":"a"} x"#, "\u{1}"] {
        assert_eq!(refusal(json), (ErrorCode::InvalidBody, None), "{json}");
    }
    let detail = |json: &str| parse_json::<CreateSandbox>(json.as_bytes()).unwrap_err().detail;
    assert!(detail(r#"{"template":"a""#).contains("cut off"));
}

#[tokio::test]
async fn a_body_has_its_limit_whether_it_tells_its_size_or_not() {
    let chunks =
        |n: usize| Body::from_stream(futures_util::stream::iter((0..n).map(|_| Ok::<_, std::io::Error>("four"))));
    assert_eq!(read_body(chunks(4), 16).await.unwrap().len(), 16);
    for body in [chunks(5), chunks(50_000), Body::from(vec![0; 17])] {
        assert_eq!(read_body(body, 16).await.unwrap_err().0.code, ErrorCode::TooLarge);
    }
    let cut = Body::from_stream(futures_util::stream::iter([Ok("a"), Err(std::io::Error::other("gone"))]));
    assert_eq!(read_body(cut, 16).await.unwrap_err().0.code, ErrorCode::InvalidBody);
}
