//! Asks the node's name servers, for all of its sandboxes.
//!
//! Nothing of the host but its name servers is used: not its hosts file, not its search domains, no multicast. The cache is
//! shared, so a sandbox can learn from how fast an answer comes whether a name was asked for lately on this node; not by
//! whom.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::screen::{MAX_TTL, MIN_TTL};
use super::servers::Watched;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long one server has for one answer, and how often it is asked again.
const TIMEOUT: Duration = Duration::from_secs(2);
const AGAIN: usize = 1;
/// How long one name may take, with all that it is an alias of and the wait for its turn. Guests ask again after 5 s.
const IN_ALL: Duration = Duration::from_millis(4500);
/// How many answers are kept. An answer is some hundred bytes, and 64 KiB when its sender means ill.
const CACHED: u64 = 512;
/// The longest that a name is remembered to be absent.
const ABSENT: Duration = Duration::from_secs(60);
/// How many names are asked for at once: each needs a socket of the node agent.
const AT_ONCE: usize = 512;
/// How many aliases are followed within an answer.
const ALIASES: usize = 16;

/// The name servers that this node asks, with a bounded cache.
pub struct Upstream {
    asked: Mutex<Asked>,
    turns: Semaphore,
}

/// Who is asked now.
struct Asked {
    /// Where it is read; none where the operator said.
    file: Option<Watched>,
    servers: Vec<SocketAddr>,
    /// Or why nobody can be.
    resolver: Result<TokioResolver, String>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// These addresses, for so many seconds; perhaps none.
    Addresses(Vec<Ipv4Addr>, u32),
    /// It does not exist.
    Absent,
}

/// There is no name server to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoUpstream {
    /// The host names none.
    #[error("no nameserver in {0}: sandboxes cannot resolve names; add a line `nameserver ADDRESS`")]
    None(String),
    /// The host's file cannot be read.
    #[error("cannot read name servers from {0}: {1}; sandboxes cannot resolve names until it is mended")]
    Unreadable(String, String),
    /// The resolver cannot be made.
    #[error("cannot make a resolver for {0:?}: {1}")]
    Resolver(Vec<SocketAddr>, String),
}

/// No name server answered of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot resolve {name}: {why}")]
pub struct Unanswered {
    name: String,
    why: String,
}

impl Upstream {
    /// Asks the name servers of this host, those that `/etc/resolv.conf` names whenever a name is asked for.
    pub fn of_host() -> Self {
        Self::of_file(Path::new(RESOLV_CONF))
    }

    /// Asks those that such a file names.
    pub fn of_file(path: &Path) -> Self {
        let resolver = Err(NoUpstream::None(path.display().to_string()).to_string());
        Self::new(Asked { file: Some(Watched::new(path)), servers: Vec::new(), resolver })
    }

    /// Asks `servers`.
    pub fn of(servers: &[SocketAddr]) -> Self {
        let resolver = match servers {
            [] => Err(NoUpstream::None("the configuration of this node".to_owned())),
            servers => resolver(servers),
        };
        Self::new(Asked { file: None, servers: servers.to_vec(), resolver: resolver.map_err(|e| e.to_string()) })
    }

    fn new(asked: Asked) -> Self {
        Self { asked: Mutex::new(asked), turns: Semaphore::new(AT_ONCE) }
    }

    /// Why there is nobody to ask, if that is so.
    pub fn problem(&self) -> Option<String> {
        self.resolver().err()
    }

    /// Whoever is asked now.
    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = asked.file.as_mut().and_then(|file| file.look(Instant::now())) {
            asked.change(read);
        }
        asked.resolver.clone()
    }

    /// What `name` (a host name, without a final dot) stands for; within 4.5 s.
    ///
    /// # Errors
    /// When no server answered, or none with what can be used.
    pub async fn addresses(&self, name: &str) -> Result<Found, Unanswered> {
        let unanswered = |why: String| Unanswered { name: name.to_owned(), why };
        let asked = Name::from_labels(name.split('.').map(str::as_bytes)).map_err(|e| unanswered(e.to_string()))?;
        let resolver = self.resolver().map_err(unanswered)?;
        let ask = async {
            let _turn = self.turns.acquire().await.map_err(|e| NetError::Msg(e.to_string()))?;
            resolver.lookup(asked.clone(), RecordType::A).await
        };
        match tokio::time::timeout(IN_ALL, ask).await {
            Ok(Ok(lookup)) => Ok(flatten(&asked, lookup.answers())),
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => match none.response_code {
                ResponseCode::NXDomain => Ok(Found::Absent),
                ResponseCode::NoError => Ok(Found::Addresses(Vec::new(), 0)),
                code => Err(unanswered(code.to_string())),
            },
            Ok(Err(error)) => Err(unanswered(error.to_string())),
            Err(_) => Err(unanswered("no answer in time".to_owned())),
        }
    }
}

impl Asked {
    /// The file was read anew. One that names nobody may be just being written, so who was asked is asked on.
    fn change(&mut self, read: Result<Vec<SocketAddr>, NoUpstream>) {
        match read.and_then(|servers| Ok((resolver(&servers)?, servers))) {
            Ok((_, servers)) if self.resolver.is_ok() && servers == self.servers => {}
            Ok((resolver, servers)) => {
                tracing::info!(?servers, "names of sandboxes are looked up there");
                (self.servers, self.resolver) = (servers, Ok(resolver));
            }
            Err(why) if self.resolver.is_ok() => tracing::warn!(%why, "the name servers from before are asked on"),
            Err(why) => self.resolver = Err(why.to_string()),
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NoUpstream> {
    let config = ResolverConfig::from_name_servers(servers.iter().copied().map(server).collect());
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options())
        .build()
        .map_err(|e| NoUpstream::Resolver(servers.to_vec(), e.to_string()))
}

/// A server as the library has it; a lie of one is not mended by asking another, so "no such name" is believed.
fn server(at: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = at.port();
        connection
    });
    NameServerConfig::new(at.ip(), true, connections.into())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    options.attempts = AGAIN;
    options.cache_size = CACHED;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4Only;
    options.positive_min_ttl = Some(Duration::from_secs(MIN_TTL.into()));
    options.positive_max_ttl = Some(Duration::from_secs(MAX_TTL.into()));
    options.negative_min_ttl = Some(Duration::from_secs(MIN_TTL.into()));
    options.negative_max_ttl = Some(ABSENT);
    options
}

/// The addresses that `records` have for `asked`, over its aliases, and for how many seconds all of it is valid. Records of
/// other names are none of it: who answers for one name is not believed about others.
pub(super) fn flatten(asked: &Name, records: &[Record]) -> Found {
    let (mut name, mut ttl) = (asked, u32::MAX);
    for _ in 0..ALIASES {
        let alias = records.iter().filter(|record| record.name == *name).find_map(|record| match &record.data {
            RData::CNAME(alias) => Some((&alias.0, record.ttl)),
            _ => None,
        });
        let Some((next, valid)) = alias else { break };
        (name, ttl) = (next, ttl.min(valid));
    }
    let mut addresses = Vec::new();
    for record in records.iter().filter(|record| record.name == *name) {
        if let RData::A(address) = &record.data {
            addresses.push(address.0);
            ttl = ttl.min(record.ttl);
        }
    }
    Found::Addresses(addresses, ttl)
}
