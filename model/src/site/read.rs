//! Reading a site file: every rule of the format, each reported where it is broken.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::RangeInclusive};

use jiff::{SignedDuration, tz::TimeZone};
use toml::Spanned;

use super::{
    BatchGuest, Interface, Power, Relayed, Room, Server, Site, Template, Unknown, Workstation, calendar,
    network::{self, Networks},
};
use crate::{
    fault::{Faults, Section, Source, nearest},
    guest::Role,
    mac::MacAddr,
};

pub(super) fn site(file: &str, text: &str) -> Result<Site, Faults> {
    let source = Source::new(file, text);
    let site = root(source.root());
    source.finish(site)
}

fn root(root: Section<'_, '_>) -> Option<Site> {
    let name = text(&root, "name", "what people call this site");
    let timezone = timezone(&root);
    let server = match root.section("server") {
        Some(table) => network::server(table),
        None => {
            root.missing("server", "add a [server] table with address = \"10.77.0.1/24\"");
            None
        }
    };
    let interfaces: Vec<_> = root.sections("interface").into_iter().filter_map(network::interface).collect();
    Names::new(&root, "interface", interfaces.iter().map(|(_, n)| n));
    let interfaces: Vec<Interface> = interfaces.into_iter().map(|(i, _)| i).collect();
    let relayed: Vec<Relayed> = root
        .sections("relayed")
        .into_iter()
        .filter_map(|table| network::relayed(table, &interfaces))
        .collect();
    let networks = server.as_ref().map(|server: &Server| Networks::new(server, &interfaces, &relayed));
    if let Some((one, other)) = networks.as_ref().and_then(Networks::overlap) {
        let at = root.section("server").map_or(0..0, |s| s.span());
        let help = "each network of a site has addresses of its own";
        root.source().fault(at, format!("the networks {one} and {other} overlap"), help);
    }
    let power = power(root.section("power"));
    let unknown = unknown(root.section("unknown"));

    let schedules: Vec<_> = root.sections("schedule").into_iter().filter_map(calendar::schedule).collect();
    let schedule_names = Names::new(&root, "schedule", schedules.iter().map(|(_, n)| n));
    let templates: Vec<_> = root.sections("template").into_iter().filter_map(template).collect();
    let template_names = Names::new(&root, "template", templates.iter().map(|(_, n)| n));
    let templates: Vec<Template> = templates.into_iter().map(|(t, _)| t).collect();

    let rooms: Vec<_> = root
        .sections("room")
        .into_iter()
        .filter_map(|table| room(table, &schedule_names, &template_names, &templates))
        .collect();
    let room_names = Names::new(&root, "room", rooms.iter().map(|(_, n)| n));
    let machines = machines(&root, &room_names, networks.as_ref());
    let guests = guests(&root, &template_names, &templates);
    if room_names.0.is_empty() {
        root.missing("room", "add at least one [[room]]");
    }
    root.close();
    Some(Site {
        name: name?,
        timezone: timezone?,
        server: server?,
        interfaces,
        relayed,
        unknown,
        power,
        rooms: rooms.into_iter().map(|(r, _)| r).collect(),
        machines,
        schedules: schedules.into_iter().map(|(s, _)| s).collect(),
        templates,
        guests,
    })
}

fn timezone(root: &Section<'_, '_>) -> Option<TimeZone> {
    let help = "write an IANA name like \"Europe/Budapest\"";
    let found = root.required("timezone", help)?;
    let zone = TimeZone::get(found.get_ref()).ok();
    if zone.is_none() {
        root.source().fault(found.span(), format!("\"{}\" is not a known time zone", found.get_ref()), help);
    }
    zone
}

fn power(table: Option<Section<'_, '_>>) -> Power {
    let mut power = Power { in_flight: 8, per_minute: 30, on_demand: false, idle_off_seconds: 1800 };
    let Some(table) = table else { return power };
    let number = |key, default: u32| {
        table.integer(key, 1..=10_000).and_then(|n| u32::try_from(n).ok()).unwrap_or(default)
    };
    power.in_flight = number("in_flight", power.in_flight);
    power.per_minute = number("per_minute", power.per_minute);
    power.on_demand = table.boolean("on_demand").unwrap_or(power.on_demand);
    power.idle_off_seconds = duration(&table, "idle_off", 0..=86400).unwrap_or(power.idle_off_seconds);
    table.close();
    power
}

fn unknown(table: Option<Section<'_, '_>>) -> Unknown {
    let Some(table) = table else { return Unknown::Ignore };
    let policy = table.required("policy", "write \"ignore\", \"discover\" or \"boot\"");
    let image = |help| text(&table, "image", help).unwrap_or_default();
    let unknown = match policy.as_ref().map(|p| *p.get_ref()) {
        Some("discover") => {
            Unknown::Discover(image("name of a host image: its init reports the machine's hardware"))
        }
        Some("boot") => Unknown::Boot(image("name of the host image that unknown machines boot")),
        Some("ignore") | None => Unknown::Ignore,
        Some(other) => {
            let span = policy.as_ref().map_or_else(|| table.span(), Spanned::span);
            let message =
                format!("\"policy\" must be \"ignore\", \"discover\" or \"boot\", but this is \"{other}\"");
            table.source().fault(span, message, "");
            let _ = table.string("image");
            Unknown::Ignore
        }
    };
    table.close();
    unknown
}

fn template(table: Section<'_, '_>) -> Option<(Template, Spanned<String>)> {
    let name = name(&table, "a name that rooms and guests refer to");
    let image = text(&table, "image", "name of a guest image");
    let role =
        table.required("role", "write role = \"desktop\" or role = \"batch\"").and_then(|found| match *found
            .get_ref()
        {
            "desktop" => Some(Role::Desktop),
            "batch" => Some(Role::Batch),
            other => {
                let message = format!("\"role\" must be \"desktop\" or \"batch\", but this is \"{other}\"");
                table.source().fault(found.span(), message, "");
                None
            }
        });
    let number =
        |key, range: RangeInclusive<i64>| table.integer(key, range).and_then(|n| u32::try_from(n).ok());
    let memory_mib = number("memory_mib", 64..=4 << 20);
    if memory_mib.is_none() {
        table.missing("memory_mib", "MiB of RAM, for example memory_mib = 2048");
    }
    let vcpus = number("vcpus", 1..=512).unwrap_or(1);
    let disk_mib = number("disk_mib", 0..=16 << 20).unwrap_or(0);
    table.close();
    let name = name?;
    let template = Template {
        name: name.get_ref().clone(),
        image: image?,
        role: role?,
        memory_mib: memory_mib?,
        vcpus,
        disk_mib,
    };
    Some((template, name))
}

fn room(
    table: Section<'_, '_>,
    schedules: &Names,
    templates: &Names,
    all_templates: &[Template],
) -> Option<(Room, Spanned<String>)> {
    let name = name(&table, "a name that machines refer to");
    let image = text(&table, "image", "name of a host image");
    let generation = table.string("generation").map(|found| {
        let text = *found.get_ref();
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let help = "write all 64 hexadecimal digits; `labshift image list` prints them";
            table.source().fault(found.span(), format!("\"{text}\" is not a generation"), help);
        }
        text.to_owned()
    });
    let schedule = schedules.refer(&table, "schedule");
    let desktop = templates.refer_role(&table, "desktop", all_templates, Role::Desktop);
    let rcuda = table.boolean("rcuda").unwrap_or(true);
    let peers = table.boolean("peers").unwrap_or(false);
    let grace_seconds = duration(&table, "grace", 0..=3600).unwrap_or(120);
    table.close();
    let name = name?;
    let room = Room {
        name: name.get_ref().clone(),
        image: image?,
        generation,
        schedule: schedule?,
        desktop: desktop?,
        rcuda,
        peers,
        grace_seconds,
    };
    Some((room, name))
}

fn machines(root: &Section<'_, '_>, rooms: &Names, networks: Option<&Networks>) -> Vec<Workstation> {
    let mut names = vec![];
    let mut macs: BTreeMap<MacAddr, String> = BTreeMap::new();
    let mut addresses: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    let mut machines = vec![];
    for table in root.sections("machine") {
        let name = name(&table, "the workstation's host name");
        let owner = name.as_ref().map(|n| n.get_ref().clone()).unwrap_or_default();
        let room = rooms.refer(&table, "room");
        let _ = table.required("mac", "the hardware address of the port it boots from");
        let mac = table.parsed::<MacAddr>("mac");
        let _ = table.required("address", "the address it always gets");
        let address = table.parsed::<Ipv4Addr>("address");
        if let Some(mac) = &mac {
            if mac.get_ref().0[0] & 1 == 1 {
                let message = format!("{} is a group address, not one machine's", mac.get_ref());
                table.source().fault(mac.span(), message, "copy it from the machine's firmware or label");
            } else if let Some(other) = macs.insert(*mac.get_ref(), owner.clone()) {
                let message = format!("{} belongs to machine \"{other}\" already", mac.get_ref());
                table.source().fault(mac.span(), message, "");
            }
        }
        if let (Some(address), Some(networks)) = (&address, networks) {
            let a = *address.get_ref();
            let fault =
                |message: String| table.source().fault(address.span(), message, "take another address");
            if let Err(why) = networks.give(a) {
                fault(why);
            } else if let Some(other) = addresses.insert(a, owner.clone()) {
                fault(format!("{a} belongs to machine \"{other}\" already"));
            }
        }
        table.close();
        names.extend(name);
        if let (Some(room), Some(mac), Some(address)) = (room, mac, address) {
            let (mac, address) = (*mac.get_ref(), *address.get_ref());
            machines.push(Workstation { name: owner, room, mac, address });
        }
    }
    Names::new(root, "machine", names.iter());
    machines
}

fn guests(root: &Section<'_, '_>, templates: &Names, all_templates: &[Template]) -> Vec<BatchGuest> {
    let mut guests = vec![];
    let mut names: Vec<Spanned<String>> = vec![];
    for table in root.sections("guest") {
        let name = name(&table, "the guest's name");
        let template = templates.refer_role(&table, "template", all_templates, Role::Batch);
        let count = table.integer("count", 1..=1000);
        if let Some(n) = name.as_ref().filter(|n| n.get_ref().starts_with("desktop-")) {
            let message = "names that begin with \"desktop-\" are kept for the workstations' own desktops";
            table.source().fault(n.span(), message, "take another name");
        }
        table.close();
        let (Some(name), Some(template)) = (name, template) else { continue };
        let all = match count {
            None => vec![name.get_ref().clone()],
            Some(n) => (1..=n).map(|i| format!("{}-{i}", name.get_ref())).collect(),
        };
        for guest in all {
            names.push(Spanned::new(name.span(), guest.clone()));
            guests.push(BatchGuest { name: guest, template: template.clone() });
        }
    }
    Names::new(root, "guest", names.iter());
    guests
}

/// The names of one kind of table, to refer to.
pub(super) struct Names(Vec<String>, &'static str);

impl Names {
    /// Collects names; one that comes twice is a fault.
    fn new<'n>(
        root: &Section<'_, '_>,
        kind: &'static str,
        names: impl Iterator<Item = &'n Spanned<String>>,
    ) -> Self {
        let mut seen = vec![];
        for name in names {
            if seen.contains(name.get_ref()) {
                let message = format!("there is a {kind} \"{}\" already", name.get_ref());
                root.source().fault(name.span(), message, "names must be unique");
            } else {
                seen.push(name.get_ref().clone());
            }
        }
        Names(seen, kind)
    }

    /// A key that names one of them.
    fn refer(&self, table: &Section<'_, '_>, key: &'static str) -> Option<String> {
        let found = table.required(key, &format!("name of a [[{}]]", self.1))?;
        let wanted = *found.get_ref();
        if self.0.iter().any(|n| n == wanted) {
            return Some(wanted.to_owned());
        }
        let help = match nearest(wanted, self.0.iter().map(String::as_str)) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("add a [[{}]] with this name", self.1),
        };
        table.source().fault(found.span(), format!("there is no {} \"{wanted}\"", self.1), help);
        None
    }

    /// A key that names a template of a role.
    fn refer_role(
        &self,
        table: &Section<'_, '_>,
        key: &'static str,
        templates: &[Template],
        role: Role,
    ) -> Option<String> {
        let wanted = self.refer(table, key)?;
        if templates.iter().any(|t| t.name == wanted && t.role != role) {
            let word = if role == Role::Desktop { "desktop" } else { "batch" };
            let span = table.string(key).map(|f| f.span()).unwrap_or_else(|| table.span());
            let message = format!("template \"{wanted}\" does not have role = \"{word}\"");
            table.source().fault(span, message, "refer to another template, or change its role");
            return None;
        }
        Some(wanted)
    }
}

/// A name by host-name rules (RFC 1123 letters, digits and hyphens; lower case): it becomes host names, file names
/// and URL paths.
pub(super) fn name(table: &Section<'_, '_>, help: &str) -> Option<Spanned<String>> {
    let found = table.required("name", help)?;
    let text = *found.get_ref();
    if !is_name(text) {
        let help = "use up to 48 lower-case letters, digits and inner hyphens";
        table.source().fault(found.span(), format!("\"{text}\" can't be a name"), help);
        return None;
    }
    Some(Spanned::new(found.span(), text.to_owned()))
}

/// Whether a text can be a name: 1 to 48 lower-case letters, digits and inner `-`.
pub fn is_name(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=48).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') && !text.ends_with('-')
}

/// A string that must be there and hold something printable.
pub(super) fn text(table: &Section<'_, '_>, key: &'static str, help: &str) -> Option<String> {
    let found = table.required(key, help)?;
    let text = found.get_ref().trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        table.source().fault(found.span(), format!("\"{key}\" is empty or not printable"), help);
        return None;
    }
    Some(text.to_owned())
}

/// A duration like `90s`, `10m` or `1h 30m`, in seconds.
pub(super) fn duration(
    table: &Section<'_, '_>,
    key: &'static str,
    range: RangeInclusive<u32>,
) -> Option<u32> {
    let found = table.string(key)?;
    let seconds = found.get_ref().parse::<SignedDuration>().ok().map(|d| d.as_secs());
    let good = seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| range.contains(s));
    if good.is_none() {
        let words = |s: u32| format!("{:#}", SignedDuration::from_secs(i64::from(s)));
        let message = match seconds {
            None => format!("\"{}\" is not a duration", found.get_ref()),
            Some(_) => format!(
                "\"{key}\" must be from {} to {}, but this is {}",
                words(*range.start()),
                words(*range.end()),
                found.get_ref()
            ),
        };
        table.source().fault(found.span(), message, "write, for example, \"90s\", \"10m\" or \"1h 30m\"");
    }
    good
}
