//! The boot plane's questions, answered from memory; and its journal, passed on to the engine.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    api::BootTarget,
    boot::{
        BootAnswer, BootChoice, BootPlaneEvent, Directory, Journal, Machine, MachineKind, NoAnswer,
        SignedAnswer, Speaker,
    },
    manifest,
    site::{Site, Unknown, Workstation},
};
use labshift_plan::{fleet::Moment, told::Told};

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
    pub(crate) fn boots<'v>(
        &'v self,
        machine: &Workstation,
        told: Option<&'v BootTarget>,
        now: Timestamp,
    ) -> Result<(&'v str, String, Arc<Published>), String> {
        let room =
            self.site.room(&machine.room).ok_or_else(|| format!("there is no room {}", machine.room))?;
        let (image, generation) = self.images.wanted(room, told);
        let generation = generation.cloned().ok_or_else(|| self.trouble(image))?;
        let instead = self.trials.get(&machine.name).and_then(|t| t.instead_of(image, &generation));
        let is_here = |good: &str| self.images.published.contains_key(&(image.to_owned(), good.to_owned()));
        let good = instead.map(|(good, _)| good.to_owned()).filter(|good| is_here(good));
        let generation = good.unwrap_or(generation);
        let published = self.published(image, &generation, now)?;
        Ok((image, generation, published))
    }

    /// An image's generation: the pinned one, or else that of its channel `stable`.
    fn stable(&self, image: &str, pinned: Option<&String>) -> Result<String, String> {
        let generation = pinned.or_else(|| self.images.stable.get(image)).cloned();
        generation.ok_or_else(|| self.trouble(image))
    }

    /// A generation's manifest, if its signature still holds.
    fn published(&self, image: &str, generation: &str, now: Timestamp) -> Result<Arc<Published>, String> {
        let key = (image.to_owned(), generation.to_owned());
        let published = self.images.published.get(&key).ok_or_else(|| self.trouble(image))?;
        // The machine would refuse it, too; here the admin sees it first.
        published.signature.is_fresh(now, None).map_err(|why| {
            format!("image \"{image}\": {why}; sign it anew: labshift image publish {image}")
        })?;
        Ok(published.clone())
    }

    fn trouble(&self, image: &str) -> String {
        let known = self.images.troubles.get(image).cloned();
        known.unwrap_or_else(|| format!("image \"{image}\" is not in the store"))
    }

    /// What a card boots that belongs to no machine and no guest.
    fn stranger_boots(&self, now: Timestamp) -> BootChoice {
        let Some(image) = self.site.unknown.image() else { return BootChoice::Ignore };
        let generation = self.stable(image, None);
        match generation.and_then(|g| self.published(image, &g, now).map(|_| g)) {
            Ok(generation) => {
                BootChoice::Image { name: image.to_owned(), generation, arguments: String::new() }
            }
            Err(why) => BootChoice::Refuse(why),
        }
    }
}

impl Answers {
    /// The answer for a machine that nobody knows.
    fn stranger_answer(&self, view: &View, mac: MacAddr, nonce: &str) -> Result<SignedAnswer, NoAnswer> {
        let site = &view.site.name;
        let unknown = format!("{mac} is no machine of site \"{site}\"");
        match &view.site.unknown {
            Unknown::Ignore => Err(NoAnswer::Refused(format!("{unknown}; add it to the site file"))),
            _ if self.machine(mac).is_some() => Err(NoAnswer::Refused(format!("{mac} is a guest's card"))),
            Unknown::Discover(_) => Err(NoAnswer::Unknown(unknown)),
            Unknown::Boot(image) => {
                let now = self.shared.options.clock.moment().now;
                let generation = view.stable(image, None).map_err(NoAnswer::Refused)?;
                let published = view.published(image, &generation, now).map_err(NoAnswer::Refused)?;
                tracing::info!(%mac, image, "boot answer for a machine that nobody knows");
                Ok(self.shared.keys.sign(&BootAnswer {
                    node: format!("pc-{}", mac.compact()),
                    room: String::new(),
                    image: image.clone(),
                    generation,
                    manifest: published.manifest.clone(),
                    signature: published.signature.clone(),
                    attempt: 0,
                    // It opens no door: only machines of the site have a session.
                    token: random_token(),
                    now,
                    nonce: nonce.to_owned(),
                    peers: vec![],
                }))
            }
        }
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
        let Moment { now, real } = self.shared.options.clock.moment();
        let Some(machine) = view.site.machine_by_mac(mac) else {
            return if self.machine(mac).is_some() { BootChoice::Ignore } else { view.stranger_boots(now) };
        };
        let told = view.told.get(&machine.name).and_then(|told| told.for_firmware(real));
        if told == Some(&BootTarget::Disk) {
            return BootChoice::LocalDisk;
        }
        match view.boots(machine, told, now) {
            Ok((image, generation, _)) => {
                BootChoice::Image { name: image.to_owned(), generation, arguments: String::new() }
            }
            Err(why) => BootChoice::Refuse(why),
        }
    }

    fn answer(&self, mac: MacAddr, nonce: &str, from: IpAddr) -> Result<SignedAnswer, NoAnswer> {
        let view = self.shared.view();
        let Some(machine) = view.site.machine_by_mac(mac) else {
            return self.stranger_answer(&view, mac, nonce);
        };
        let now = self.shared.options.clock.moment().now;
        let told = view.told.get(&machine.name).and_then(Told::for_init);
        if told == Some(&BootTarget::Disk) {
            let name = &machine.name;
            let hint = format!("labshift node boot {name} room takes that back");
            return Err(NoAnswer::Refused(format!("{name} boots its own disk, as an admin said; {hint}")));
        }
        let (image, generation, published) = view.boots(machine, told, now).map_err(NoAnswer::Refused)?;
        let attempt = self.shared.next_attempt();
        let token = random_token();
        let answered = Message::Answered {
            node: machine.name.clone(),
            attempt,
            token: hash(&token),
            image: image.to_owned(),
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
            .map_err(|_| NoAnswer::Refused("the server has too much to do; ask again".to_owned()))?;
        tracing::info!(
            node = machine.name,
            attempt,
            generation = manifest::short(&generation),
            "boot answer"
        );
        Ok(self.shared.keys.sign(&BootAnswer {
            node: machine.name.clone(),
            room: machine.room.clone(),
            image: image.to_owned(),
            generation,
            manifest: published.manifest.clone(),
            signature: published.signature.clone(),
            attempt,
            token,
            now,
            nonce: nonce.to_owned(),
            peers: view.site.peers_of(machine),
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
