//! A network namespace with a resolver, name servers above it that do what a test says, and a guest's side that asks.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use styx::names::{Pins, Rate, Refused, Upstream, serve};
use tartarus_types::Timestamp;
use tartarus_types::net::{Contract, NetMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Runs `test` on a thread whose network is a new one with loopback only; without root it says that it does not.
pub(crate) fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a network namespace needs root");
        return;
    }
    let test = move || {
        // SAFETY: only this thread's network namespace becomes another; no descriptor or memory is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().set(rtnetlink::LinkUnspec::new_with_index(1).up().build()).execute().await.unwrap();
            tokio::time::timeout(Duration::from_secs(50), test()).await.unwrap();
        });
    };
    std::thread::scope(|scope| scope.spawn(test).join()).unwrap();
}

/// What a name server says to a question.
#[derive(Clone)]
pub(crate) enum Say {
    Records(Vec<Record>),
    /// Over UDP that it is too long, over TCP this.
    Long(Vec<Record>),
    Code(ResponseCode),
    /// After a while.
    Late(Duration, Vec<Record>),
    Nothing,
}

/// A real name server on loopback, and what it was asked.
pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    zone: HashMap<String, Say>,
    seen: Mutex<Vec<(String, RecordType)>>,
    /// Names whose late answers are waited for, and the most of them at once.
    busy: Mutex<(HashSet<String>, usize)>,
}

impl Server {
    pub(crate) async fn start(zone: impl IntoIterator<Item = (&'static str, Say)>) -> Arc<Self> {
        Self::start_at("127.0.0.1:0", zone).await
    }

    pub(crate) async fn start_at(at: &str, zone: impl IntoIterator<Item = (&'static str, Say)>) -> Arc<Self> {
        let udp = Arc::new(UdpSocket::bind(at).await.unwrap());
        let at = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(at).await.unwrap();
        let zone = zone.into_iter().map(|(name, say)| (name.to_owned(), say)).collect();
        let server = Self { at, zone, seen: Mutex::default(), busy: Mutex::default() };
        let server = Arc::new(server);
        tokio::spawn(server.clone().datagrams(udp));
        tokio::spawn(server.clone().connections(tcp));
        server
    }

    async fn datagrams(self: Arc<Self>, udp: Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let (server, udp) = (self.clone(), udp.clone());
            tokio::spawn(async move {
                if let Some(answer) = server.answer(question, false).await {
                    udp.send_to(&answer, from).await.unwrap();
                }
            });
        }
    }

    async fn connections(self: Arc<Self>, tcp: TcpListener) {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let server = self.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut message = vec![0; length.into()];
                    stream.read_exact(&mut message).await.unwrap();
                    let answer = server.answer(Message::from_vec(&message).unwrap(), true).await.unwrap();
                    stream.write_u16(answer.len() as u16).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    }

    async fn answer(&self, question: Message, tcp: bool) -> Option<Vec<u8>> {
        let query = question.queries[0].clone();
        let name = query.name().to_ascii();
        self.seen.lock().unwrap().push((name.clone(), query.query_type()));
        let say = self.zone.get(&name).or_else(|| self.zone.get("*"));
        let mut answer = Message::response(question.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(query);
        match say.cloned().unwrap_or(Say::Code(ResponseCode::NXDomain)) {
            Say::Nothing => return None,
            Say::Code(code) => answer.metadata.response_code = code,
            Say::Long(_) if !tcp => answer.metadata.truncation = true,
            Say::Records(records) | Say::Long(records) => drop(answer.add_answers(records)),
            Say::Late(wait, records) => {
                {
                    let mut busy = self.busy.lock().unwrap();
                    busy.0.insert(name.clone());
                    busy.1 = busy.1.max(busy.0.len());
                }
                tokio::time::sleep(wait).await;
                self.busy.lock().unwrap().0.remove(&name);
                answer.add_answers(records);
            }
        }
        Some(answer.to_vec().unwrap())
    }

    /// The names that it was asked for, with a final dot; all for addresses.
    pub(crate) fn seen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        assert!(seen.iter().all(|(_, kind)| *kind == RecordType::A), "{seen:?}");
        seen.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The most names whose late answers were waited for at once.
    pub(crate) fn most(&self) -> usize {
        self.busy.lock().unwrap().1
    }
}

/// Addresses of `name`, valid for `ttl` seconds.
pub(crate) fn addresses(name: &str, ttl: u32, addresses: &[&str]) -> Vec<Record> {
    let record =
        |text: &&str| Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::A(A(text.parse().unwrap())));
    addresses.iter().map(record).collect()
}

/// `name` is an alias of `of`.
pub(crate) fn alias(name: &str, ttl: u32, of: &str) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::CNAME(CNAME(Name::from_ascii(of).unwrap())))
}

/// Notes what is pinned, and takes as long for it as a process does, or fails.
#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) done: Mutex<Vec<Vec<(Ipv4Addr, Duration)>>>,
    pub(crate) fails: AtomicBool,
    pub(crate) takes: Mutex<Duration>,
}

#[async_trait]
impl Pins for Noted {
    async fn pin(&self, addresses: &[(Ipv4Addr, Duration)], _: &Contract) -> Result<(), String> {
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes.max(Duration::from_millis(20))).await;
        if self.fails.load(Ordering::SeqCst) {
            return Err("no rule".to_owned());
        }
        self.done.lock().unwrap().push(addresses.to_vec());
        Ok(())
    }
}

impl Noted {
    /// What was pinned by each call, as text, with the seconds.
    pub(crate) fn texts(&self) -> Vec<String> {
        let one = |(address, time): &(Ipv4Addr, Duration)| format!("{address} {}", time.as_secs());
        self.done.lock().unwrap().iter().map(|call| call.iter().map(one).collect::<Vec<_>>().join(", ")).collect()
    }
}

/// A resolver that runs.
pub(crate) struct Resolver {
    pub(crate) at: SocketAddr,
    pub(crate) contract: watch::Sender<Arc<Contract>>,
    pub(crate) pins: Arc<Noted>,
    pub(crate) refused: Arc<Refused>,
    _task: JoinSet<()>,
}

/// What lists `domains` and nothing else.
pub(crate) fn listing(domains: &[&str]) -> Contract {
    let domains = domains.iter().map(|text| text.parse().unwrap()).collect();
    Contract { mode: NetMode::Allow, domains, ..Contract::default() }
}

impl Resolver {
    pub(crate) fn start(contract: Contract, upstream: SocketAddr) -> Self {
        Self::beneath(contract, Upstream::of(&[upstream]))
    }

    pub(crate) fn beneath(contract: Contract, upstream: Upstream) -> Self {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = udp.local_addr().unwrap();
        let tcp = std::net::TcpListener::bind(at).unwrap();
        let (contract, current) = watch::channel(Arc::new(contract));
        let (pins, refused) = (Arc::new(Noted::default()), Arc::new(Refused::default()));
        let (upstream, rate) = (Arc::new(upstream), Rate::default());
        let serving = serve((udp, tcp), rate, current, upstream, pins.clone(), refused.clone(), || Timestamp(5));
        let mut task = JoinSet::new();
        task.spawn(async {
            let Err(error) = serving.await;
            panic!("{error}");
        });
        Self { at, contract, pins, refused, _task: task }
    }

    /// Asks over UDP, without EDNS.
    pub(crate) async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.send(&question(name, kind, None)).await.expect("an answer")
    }

    /// What comes back, within 6 s, for bytes.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Option<Message> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.at).await.unwrap();
        socket.send(bytes).await.unwrap();
        let mut buffer = [0; 4096];
        let received = tokio::time::timeout(Duration::from_secs(6), socket.recv(&mut buffer)).await.ok()?;
        let answer = Message::from_vec(&buffer[..received.unwrap()]).unwrap();
        assert_eq!(answer.message_type, MessageType::Response);
        assert_eq!(answer.id.to_be_bytes(), bytes[..2]);
        Some(answer)
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// The names that were refused and why, the newest first.
    pub(crate) fn refused(&self) -> Vec<(String, String)> {
        self.refused.list().into_iter().map(|refused| (refused.name, refused.why)).collect()
    }
}

/// Asks over a connection.
pub(crate) async fn ask_over(stream: &mut TcpStream, name: &str) -> std::io::Result<Message> {
    let message = question(name, RecordType::A, None);
    stream.write_all(&[&(message.len() as u16).to_be_bytes()[..], &message].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(Message::from_vec(&answer).unwrap())
}

/// A question's bytes.
pub(crate) fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        message.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(size);
    }
    message.to_vec().unwrap()
}

/// The addresses of an answer, and for how many seconds they are valid; all at the name of its question.
pub(crate) fn told(answer: &Message) -> (Vec<String>, Option<u32>) {
    let read = |record: &Record| {
        assert!(record.name.eq_case(answer.queries[0].name()));
        let RData::A(address) = &record.data else { panic!("{record:?}") };
        address.to_string()
    };
    (answer.answers.iter().map(read).collect(), answer.answers.first().map(|record| record.ttl))
}
