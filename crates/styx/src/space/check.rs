//! Whether a namespace is still as it was made, and putting it back.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tartarus_types::Contract;

use super::make::{changed_setting, inside, near_name, pair, settings};
use super::{Before, Space, State, close_here, put_here};
use crate::enter::{enter, on_thread, within};
use crate::links::Links;
use crate::rules::{self, Site};
use crate::{FIRST_GENERATION, GATEWAY, StyxError, nft};

impl Space {
    /// Whether links, addresses, routes, settings and rules are as they must be.
    ///
    /// # Errors
    /// [`StyxError::Changed`] and [`StyxError::Differs`] are put right by [`Self::mend`], [`StyxError::Lost`] is not.
    pub async fn check(&self) -> Result<(), StyxError> {
        self.look(|state, _| {
            state.check_card()?;
            nft::verify_here(&state.ruleset)
        })
        .await
    }

    /// Whether a guest may have one that waited: links and all that goes with them are as they must be, and the rules as they were
    /// read back, those that let nothing pass or those of this contract.
    pub(crate) async fn check_waiting(&self, contract: &Contract) -> Result<(), StyxError> {
        let contract = contract.clone();
        self.look(move |state, site| state.ready_for(|own| own == rules::ruleset(&contract, FIRST_GENERATION, &site())))
            .await
    }

    /// `rules` looks at these, with what they depend on if it asks.
    async fn look<F>(&self, rules: F) -> Result<(), StyxError>
    where
        F: FnOnce(&State, &dyn Fn() -> Site) -> Result<(), StyxError> + Send + 'static,
    {
        let (namespace, place) = (self.namespace.clone(), self.place.clone());
        let (index, (near, outer)) = (self.index, pair(self.place.range, self.index));
        let state = self.state.clone().lock_owned().await;
        on_thread(move || {
            enter(&place.node)?;
            let links = Links::here()?;
            let nodes = links.addresses()?;
            is_up(&links, &nodes, &near_name(index), near)?;
            enter(&namespace)?;
            let links = Links::here()?;
            let own = links.addresses()?;
            is_up(&links, &own, "tap0", GATEWAY)?;
            is_up(&links, &own, "eth0", outer)?;
            let way = links.routes()?.into_iter().any(|route| route.to.prefix_len() == 0 && route.via == Some(near));
            if !way {
                return Err(StyxError::Changed("its default route is gone".to_owned()));
            }
            if let Some(setting) = changed_setting() {
                return Err(StyxError::Changed(setting));
            }
            rules(&state, &|| place.site_among(outer, &nodes))
        })
        .await
    }

    /// Ends it: its way out goes at once, the rest with the last descriptor of it.
    pub async fn remove(self) -> Result<(), StyxError> {
        let (node, name) = (self.place.node.clone(), near_name(self.index));
        within(node, move || Links::here()?.remove(&name)).await
    }

    /// Puts everything back as it was made, and checks it. With an error nothing passes, or it could not be closed: the
    /// sandbox must be stopped.
    pub async fn mend(&self) -> Result<(), StyxError> {
        let mut state = self.state.clone().lock_owned().await;
        let (namespace, place) = (self.namespace.clone(), self.place.clone());
        let (index, (near, outer)) = (self.index, pair(self.place.range, self.index));
        on_thread(move || {
            let mut mend = || {
                enter(&namespace)?;
                // Rules first: nothing may pass by links that are put back.
                put_here(&state.ruleset, &rules::pins(&state.held(), false), Before::Whatever, false, place.door)?;
                state.put_back(place.without)?;
                settings()?;
                enter(&place.node)?;
                Links::here()?.set_up(&near_name(index), Some((near, 31)))?;
                enter(&namespace)?;
                inside(&Links::here()?, near, outer)
            };
            mend().inspect_err(|_| drop(close_here(&namespace, place.door)))
        })
        .await?;
        self.check().await
    }
}

/// Whether a link is there, up, and has its address among those of its namespace.
fn is_up(links: &Links, addresses: &[(u32, Ipv4Net)], name: &str, address: Ipv4Addr) -> Result<(), StyxError> {
    let link = links.find(name)?.ok_or_else(|| StyxError::Lost(format!("there is no link {name}")))?;
    if !link.up {
        return Err(StyxError::Changed(format!("the link {name} is down")));
    }
    let has = addresses.iter().any(|(index, net)| *index == link.index && net.addr() == address);
    if has { Ok(()) } else { Err(StyxError::Changed(format!("the link {name} has lost the address {address}"))) }
}
