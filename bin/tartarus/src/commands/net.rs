//! `net` and `port`: what a running sandbox may reach, and what leads to it.

mod show;

use std::net::SocketAddr;

use tartarus_api::client::Client;
use tartarus_types::Refusal;
use tartarus_types::net::{Forward, ForwardRequest, NetRequest};

use crate::cli::{NetCommand, NetUpdateArgs, PortArgs};
use crate::terminal::{print, print_json};
pub(super) use show::{contract, describe};
use show::{describe_all, forwards};

/// `tartarus net …`.
pub(super) async fn run(client: &Client, command: NetCommand) -> anyhow::Result<()> {
    match command {
        NetCommand::Update(args) => update(client, *args).await,
        NetCommand::Show { id, json } => {
            let status = client.net(&id).await?;
            match json {
                true => print_json(&status),
                false => Ok(print(&describe_all(&status))?),
            }
        }
    }
}

async fn update(client: &Client, args: NetUpdateArgs) -> anyhow::Result<()> {
    let Some(wanted) = args.net.request()? else {
        let why = "what shall it reach? --allow-cidr, --allow-port, --allow-domain or --net say so";
        return Err(Refusal::field("net", why).into());
    };
    // Ports are changed with `port`: whoever narrows a network does not mean to cut a person off who looks at it.
    let now = NetRequest::from(&client.net(&args.id).await?.contract);
    let status = client.set_net(&args.id, &NetRequest { forwards: now.forwards, ..wanted }).await?;
    match args.json {
        true => print_json(&status),
        false => Ok(()),
    }
}

/// `tartarus port`.
pub(super) async fn port(client: &Client, args: &PortArgs) -> anyhow::Result<()> {
    let before = client.net(&args.id).await?.contract;
    let mut wanted = NetRequest::from(&before);
    let (kept, text) = match (args.port, args.remove) {
        (Some(port), _) => {
            wanted.forwards.push(ForwardRequest { listen: Some(args.listen.to_string()), port });
            let after = client.set_net(&args.id, &wanted).await?.contract.forwards;
            let address = added(&before.forwards, &after, port, args.listen)
                .ok_or_else(|| Refusal::internal("the server says that it is done, and not where the node listens"))?;
            (after, format!("{address}\n"))
        }
        (None, Some(port)) => {
            wanted.forwards.retain(|forward| forward.port != port);
            if wanted.forwards.len() == before.forwards.len() {
                return Err(Refusal::field("remove", format!("nothing leads to port {port} of {}", args.id)).into());
            }
            (client.set_net(&args.id, &wanted).await?.contract.forwards, String::new())
        }
        (None, None) => {
            let text = forwards(&before.forwards);
            (before.forwards, text)
        }
    };
    match args.json {
        true => print_json(&kept),
        false => Ok(print(&text)?),
    }
}

/// Where the node listens for a forward that was asked for at `listen`.
fn added(before: &[Forward], after: &[Forward], port: u16, listen: SocketAddr) -> Option<SocketAddr> {
    let fits = |forward: &&Forward| {
        forward.port == port
            && forward.listen.ip() == listen.ip()
            && (listen.port() == 0 || forward.listen.port() == listen.port())
            && !before.contains(forward)
    };
    after.iter().find(fits).map(|forward| forward.listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_new_one() {
        let at = |text: &str, port| Forward { listen: text.parse().unwrap(), port };
        let before = [at("127.0.0.1:4000", 80), at("127.0.0.1:4001", 81)];
        let after = [before[0], before[1], at("127.0.0.1:4002", 80), at("0.0.0.0:4003", 80)];
        let found = |listen: &str| added(&before, &after, 80, listen.parse().unwrap());
        assert_eq!(found("127.0.0.1:0"), Some(after[2].listen));
        assert_eq!(found("0.0.0.0:0"), Some(after[3].listen));
        assert_eq!(found("127.0.0.1:4002"), Some(after[2].listen));
        assert_eq!(found("127.0.0.1:4000"), None);
    }
}
