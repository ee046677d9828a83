//! Query parameters, each named in its error; one that nobody asked for is an error too, since it is a typo of one
//! that was meant.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use tartarus_types::{ErrorCode, Refusal};

use super::failure::Failure;

/// The parameters of a request that were not taken yet.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(_) => Err(Refusal::new(ErrorCode::InvalidBody, "the query of the URL could not be read").into()),
        }
    }
}

impl Params {
    /// Every value of a parameter that may be repeated.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key == name);
        self.0 = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may come once.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        let mut values = self.all(name);
        let value = values.pop();
        if values.is_empty() { Ok(value) } else { Err(Refusal::field(name, "may be given once")) }
    }

    /// The same, as a number.
    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        let parse = |text: String| text.parse().map_err(|_| Refusal::field(name, "is no number, or out of range"));
        self.text(name)?.map(parse).transpose()
    }

    /// The same, as `true` or `false`; false when absent.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Refusal::field(name, "is true or false")),
        }
    }

    /// How long to wait, from milliseconds: `default` when absent, `most` when more is asked for.
    pub(super) fn wait(&mut self, name: &str, default: Duration, most: Duration) -> Result<Duration, Refusal> {
        Ok(self.number(name)?.map_or(default, Duration::from_millis).min(most))
    }

    /// `stdout` or `stderr` as the index of the stream.
    pub(super) fn stream(&mut self) -> Result<Option<usize>, Refusal> {
        match self.text("stream")?.as_deref() {
            None => Ok(None),
            Some("stdout") => Ok(Some(0)),
            Some("stderr") => Ok(Some(1)),
            Some(_) => Err(Refusal::field("stream", "is stdout or stderr")),
        }
    }

    /// To be called when all known ones were taken.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
                Err(Refusal::field(&name, "the route takes no such parameter"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn each_is_named_in_its_error() {
        let blame = |r: Refusal| r.field.unwrap();
        assert_eq!(blame(params(&[("limit", "-1")]).number::<u32>("limit").unwrap_err()), "limit");
        assert_eq!(blame(params(&[("limit", "1"), ("limit", "2")]).number::<u32>("limit").unwrap_err()), "limit");
        assert_eq!(blame(params(&[("follow", "yes")]).flag("follow").unwrap_err()), "follow");
        assert_eq!(blame(params(&[("stream", "2")]).stream().unwrap_err()), "stream");
        assert_eq!(blame(params(&[("folow", "true")]).finish().unwrap_err()), "folow");
    }

    #[test]
    fn taken_ones_are_gone() {
        let mut given = params(&[("label", "a=1"), ("limit", "5"), ("label", "b=2"), ("wait_ms", "99999999")]);
        assert_eq!(given.all("label"), ["a=1", "b=2"]);
        assert_eq!(given.number("limit").unwrap(), Some(5u32));
        let most = Duration::from_secs(60);
        assert_eq!(given.wait("wait_ms", Duration::ZERO, most).unwrap(), most);
        assert!(!given.flag("follow").unwrap());
        given.finish().unwrap();
    }
}
