//! The boot plane's questions, answered from memory; and its journal, passed on to the engine.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    boot::{
        BootAnswer, BootChoice, BootPlaneEvent, Directory, Journal, Machine, MachineKind, SignedAnswer,
        Speaker,
    },
    manifest,
    site::{Room, Site, Workstation},
};

use crate::{
    Shared, View,
    engine::Message,
    keys::{hash, random_token},
    store::Published,
};

/// Answers from the engine's last view.
pub(crate) struct Answers {
    shared: Arc<Shared>,
    cards: Mutex<Cards>,
}

/// Every card of one site, so that a packet costs one look-up.
#[derive(Default)]
struct Cards {
    site: Option<Arc<Site>>,
    machines: HashMap<MacAddr, Machine>,
}

impl Cards {
    fn of(site: Arc<Site>) -> Self {
        let desktops = site.machines.iter().map(Workstation::desktop_guest);
        let guests = site.guests.iter().map(|g| g.name.clone()).chain(desktops).map(|name| {
            let mac = MacAddr::for_guest(&name);
            (mac, Machine { name, address: None, kind: MachineKind::Guest })
        });
        let nodes = site.machines.iter().map(|machine| {
            let (name, address) = (machine.name.clone(), Some(machine.address));
            (machine.mac, Machine { name, address, kind: MachineKind::Node })
        });
        let machines = guests.chain(nodes).collect();
        Cards { site: Some(site), machines }
    }
}

impl Answers {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Answers { shared, cards: Mutex::default() }
    }
}

impl View {
    /// What a workstation boots: image, generation and the manifest; or why it can't.
    pub(crate) fn boots(
        &self,
        machine: &Workstation,
        now: Timestamp,
    ) -> Result<(&Room, String, Arc<Published>), String> {
        let room =
            self.site.room(&machine.room).ok_or_else(|| format!("there is no room {}", machine.room))?;
        let generation = room.generation.clone().or_else(|| self.images.stable.get(&room.image).cloned());
        let trouble = || {
            let known = self.images.troubles.get(&room.image).cloned();
            known.unwrap_or_else(|| format!("image \"{}\" is not in the store", room.image))
        };
        let generation = generation.ok_or_else(trouble)?;
        let mut key = (room.image.clone(), generation);
        let instead = self.trials.get(&machine.name).and_then(|t| t.instead_of(&room.image, &key.1));
        if let Some((good, _)) = instead
            && self.images.published.contains_key(&(room.image.clone(), good.to_owned()))
        {
            key.1 = good.to_owned();
        }
        let published = self.images.published.get(&key).cloned().ok_or_else(trouble)?;
        // The machine would refuse it, too; here the admin sees it first.
        published.signature.is_fresh(now, None).map_err(|why| {
            format!("image \"{0}\": {why}; sign it anew: labshift image publish {0}", room.image)
        })?;
        Ok((room, key.1, published))
    }
}

impl Directory for Answers {
    fn machine(&self, mac: MacAddr) -> Option<Machine> {
        let site = self.shared.view().site.clone();
        let mut cards = self.cards.lock().unwrap_or_else(PoisonError::into_inner);
        if cards.site.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &site)) {
            *cards = Cards::of(site);
        }
        cards.machines.get(&mac).cloned()
    }

    fn boot(&self, mac: MacAddr) -> BootChoice {
        let view = self.shared.view();
        let Some(machine) = view.site.machine_by_mac(mac) else { return BootChoice::Ignore };
        match view.boots(machine, self.shared.options.clock.moment().now) {
            Ok((room, generation, _)) => {
                BootChoice::Image { name: room.image.clone(), generation, arguments: String::new() }
            }
            Err(why) => BootChoice::Refuse(why),
        }
    }

    fn answer(&self, mac: MacAddr, nonce: &str, from: IpAddr) -> Result<SignedAnswer, String> {
        let view = self.shared.view();
        let machine = view.site.machine_by_mac(mac).ok_or_else(|| {
            format!("{mac} is no machine of site \"{}\"; add it to the site file", view.site.name)
        })?;
        let now = self.shared.options.clock.moment().now;
        let (room, generation, published) = view.boots(machine, now)?;
        let attempt = self.shared.next_attempt();
        let token = random_token();
        let answered = Message::Answered {
            node: machine.name.clone(),
            attempt,
            token: hash(&token),
            image: room.image.clone(),
            generation: generation.clone(),
            from,
        };
        self.shared.tokens.write().unwrap_or_else(PoisonError::into_inner).add(
            hash(&token),
            &machine.name,
            attempt,
        );
        self.shared
            .inbox
            .try_send(answered)
            .map_err(|_| "the server has too much to do; ask again".to_owned())?;
        tracing::info!(
            node = machine.name,
            attempt,
            generation = manifest::short(&generation),
            "boot answer"
        );
        Ok(self.shared.keys.sign(&BootAnswer {
            node: machine.name.clone(),
            room: room.name.clone(),
            image: room.image.clone(),
            generation,
            manifest: published.manifest.clone(),
            signature: published.signature.clone(),
            attempt,
            token,
            now,
            nonce: nonce.to_owned(),
        }))
    }
}

/// Passes on what the boot plane saw, if it is news.
pub(crate) struct Ears {
    shared: Arc<Shared>,
    /// Addresses of systems that run, by address: who renews tells nothing new.
    held: Mutex<HashMap<Ipv4Addr, MacAddr>>,
}

impl Ears {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Ears { shared, held: Mutex::default() }
    }

    /// An operating system's offers and renewals belong to no boot: only who has which address matters.
    fn is_news(&self, event: &BootPlaneEvent) -> bool {
        match *event {
            BootPlaneEvent::Offer { speaker: Speaker::Other, .. } => false,
            BootPlaneEvent::Lease { mac, address, speaker } => {
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                held.insert(address, mac) != Some(mac) || speaker != Speaker::Other
            }
            _ => true,
        }
    }
}

impl Journal for Ears {
    fn record(&self, event: BootPlaneEvent) {
        if self.is_news(&event) && self.shared.inbox.try_send(Message::Plane(event)).is_err() {
            tracing::warn!("an event of the boot plane was dropped: the engine has too much to do");
        }
    }
}
