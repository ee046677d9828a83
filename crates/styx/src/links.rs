//! Links, addresses and routes of the namespace of the calling thread: all that asks the kernel by rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Error, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::StyxError;

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
}

/// One IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Ipv4Net,
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) link: u32,
}

/// The index of a pair's near end, which its far end in another namespace never has. With the same index on both sides the
/// kernel takes a link for one without a peer, and lets up to a second pass until it carries packets.
const INDEX: u32 = 1_000_003;

/// A conversation with the kernel, of one thread.
pub(crate) struct Links {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
}

impl Links {
    /// About the namespace that this thread is in now; it must not be one of the runtime's own.
    pub(crate) fn here() -> Result<Self, StyxError> {
        let opened = || -> io::Result<Self> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let within = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            drop(within);
            Ok(Self { runtime, handle })
        };
        opened().map_err(StyxError::system("ask the kernel about links"))
    }

    fn ask<T>(&self, what: impl Into<String>, request: impl Future<Output = Result<T, Error>>) -> Result<T, StyxError> {
        self.runtime.block_on(request).map_err(|error| StyxError::System { what: what.into(), source: system(error) })
    }

    /// Makes a pair of links, down: `name` here and `peer` in `there`. False where one of the names is taken.
    pub(crate) fn pair(&self, name: &str, peer: &str, there: BorrowedFd<'_>) -> Result<bool, StyxError> {
        let far = LinkUnspec::new_with_name(peer).setns_by_fd(there.as_raw_fd()).build();
        let near = LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(far))).index(INDEX).build();
        match self.runtime.block_on(self.handle.link().add(near).execute()) {
            Ok(()) => Ok(true),
            Err(error) => match system(error) {
                error if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
                error => Err(StyxError::System { what: format!("make the links {name} and {peer}"), source: error }),
            },
        }
    }

    /// Takes `name` up, without any IPv6 address of its own, and gives it `address`. What is there already is fine.
    pub(crate) fn set_up(&self, name: &str, address: Option<(Ipv4Addr, u8)>) -> Result<u32, StyxError> {
        let index = self.index(name)?;
        let silent = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]);
        let quiet = LinkUnspec::new_with_index(index).append_extra_attribute(silent).build();
        // A kernel without IPv6 refuses, and has none.
        drop(self.runtime.block_on(self.handle.link().set(quiet).execute()));
        self.ask(
            format!("take {name} up"),
            self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute(),
        )?;
        if let Some((address, prefix)) = address {
            let mut add = self.handle.address().add(index, IpAddr::V4(address), prefix);
            // Of two addresses the upper one is no broadcast, it is the peer.
            add.message_mut().attributes.retain(|one| !matches!(one, AddressAttribute::Broadcast(_)));
            self.ask(format!("give {name} the address {address}"), there_is_fine(add.execute()))?;
        }
        Ok(index)
    }

    /// Everything else goes to `via`.
    pub(crate) fn default_route(&self, via: Ipv4Addr) -> Result<(), StyxError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).build();
        self.ask("make the default route", there_is_fine(self.handle.route().add(route).execute()))
    }

    /// `address` is at `mac`, without asking.
    pub(crate) fn neighbour(&self, link: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<(), StyxError> {
        let add = self.handle.neighbours().add(link, IpAddr::V4(address)).link_layer_address(&mac).replace();
        self.ask("say where the guest is", add.execute())
    }

    /// All links.
    pub(crate) fn list(&self) -> Result<Vec<Link>, StyxError> {
        let all: Vec<LinkMessage> = self.ask("list links", self.handle.link().get().execute().try_collect())?;
        Ok(all.into_iter().filter_map(link).collect())
    }

    /// All IPv4 addresses, with the index of their link.
    pub(crate) fn addresses(&self) -> Result<Vec<(u32, Ipv4Net)>, StyxError> {
        let all: Vec<_> = self.ask("list addresses", self.handle.address().get().execute().try_collect())?;
        let address = |message: &rtnetlink::packet_route::address::AddressMessage| {
            let own = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            };
            let address = message.attributes.iter().find_map(own)?;
            Some((message.header.index, Ipv4Net::new(address, message.header.prefix_len).ok()?))
        };
        Ok(all.iter().filter_map(address).collect())
    }

    /// All IPv4 unicast routes but those of single own addresses.
    pub(crate) fn routes(&self) -> Result<Vec<Route>, StyxError> {
        let get = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<_> = self.ask("list routes", self.handle.route().get(get).execute().try_collect())?;
        Ok(all.iter().filter_map(route).collect())
    }

    /// Removes a link, and its other end; one that is gone is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StyxError> {
        let Some(link) = self.find(name)? else { return Ok(()) };
        match self.runtime.block_on(self.handle.link().del(link.index).execute()).map_err(system) {
            // It went by itself meanwhile, with the namespace of its other end.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(StyxError::system(format!("remove the link {name}"))),
        }
    }

    /// The link of this name; the kernel looks it up.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Link>, StyxError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match self.runtime.block_on(found.try_next()).map_err(system) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => Ok(other.map_err(StyxError::system(format!("find the link {name}")))?.and_then(link)),
        }
    }

    fn index(&self, name: &str) -> Result<u32, StyxError> {
        let link = self.find(name)?;
        link.map(|link| link.index).ok_or_else(|| StyxError::Lost(format!("there is no link {name}")))
    }
}

/// What is there already is as good as made.
async fn there_is_fine(request: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match request.await {
        Err(Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => Ok(()),
        other => other,
    }
}

fn system(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn link(message: LinkMessage) -> Option<Link> {
    let up = message.header.flags.contains(LinkFlags::Up);
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })?;
    Some(Link { index: message.header.index, name, up })
}

fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.address_family != AddressFamily::Inet || message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut to, mut via, mut link) = (Ipv4Addr::UNSPECIFIED, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::Oif(index) => link = *index,
            _ => {}
        }
    }
    Some(Route { to: Ipv4Net::new(to, message.header.destination_prefix_length).ok()?, via, link })
}
