//! What a recipe may have several of: files, users, groups and services.

use super::{
    Content, File, Group, User,
    words::{all, checked, is_absolute, is_account, is_name, is_owner, text},
};
use crate::{
    fault::{Section, Source},
    service::{LONGEST_SOCKET, Limits, Restart, Service},
};

pub(super) fn file(source: &Source<'_>, section: Section<'_, '_>) -> Option<File> {
    let dest = section
        .required("dest", "the absolute path in the image")
        .and_then(|d| checked(source, d, "an absolute path without \"..\"", is_absolute));
    let from = section.string("source").map(|s| match s.get_ref().strip_prefix('@') {
        Some(program) => Content::Program(program.to_owned()),
        None => Content::Path((*s.get_ref()).to_owned()),
    });
    let inline = text(section.string("text")).map(Content::Text);
    let link = text(section.string("link")).map(Content::Link);
    let directory = section.boolean("directory").filter(|d| *d).map(|_| Content::Directory);
    let is_program = matches!(from, Some(Content::Program(_)));
    let is_directory = directory.is_some();
    let mut contents: Vec<Content> = [from, inline, link, directory].into_iter().flatten().collect();
    if contents.len() != 1 {
        source.fault(
            section.span(),
            format!("[[file]] has {} contents", if contents.is_empty() { "no" } else { "several" }),
            "give exactly one of: source = \"path or @program\", text = \"...\", link = \"target\", directory = true",
        );
    }
    let default = if is_program || is_directory { 0o755 } else { 0o644 };
    let mode = match section.string("mode") {
        None => default,
        Some(mode) => match u32::from_str_radix(mode.get_ref(), 8) {
            Ok(bits) if bits <= 0o7777 => bits,
            _ => {
                source.fault(
                    mode.span(),
                    format!("\"{}\" is not a file mode", mode.get_ref()),
                    "write it in octal, such as mode = \"0644\"",
                );
                default
            }
        },
    };
    let owner = match section.string("owner") {
        None => Some("root:root".to_owned()),
        Some(owner) => checked(source, owner, "an owner (user or user:group)", is_owner),
    };
    section.close();
    Some(File { dest: dest?, content: contents.pop()?, mode, owner: owner? })
}

pub(super) fn user(source: &Source<'_>, section: Section<'_, '_>) -> Option<User> {
    let name = section
        .required("name", "the login name")
        .and_then(|n| checked(source, n, "a user name", is_account));
    let uid = section.integer("uid", 1..=65_533);
    if uid.is_none() {
        section.missing("uid", "ids are fixed, so that two builds are the same");
    }
    let group = section.string("group").and_then(|g| checked(source, g, "a group name", is_account));
    let groups = all(source, section.strings("groups"), "a group name", is_account);
    let home = text(section.string("home")).unwrap_or_else(|| "/nonexistent".to_owned());
    let shell = text(section.string("shell")).unwrap_or_else(|| "/usr/sbin/nologin".to_owned());
    section.close();
    Some(User { name: name?, uid: u32::try_from(uid?).ok()?, group, groups, home, shell })
}

pub(super) fn group(source: &Source<'_>, section: Section<'_, '_>) -> Option<Group> {
    let name = section
        .required("name", "the group's name")
        .and_then(|n| checked(source, n, "a group name", is_account));
    let gid = section.integer("gid", 1..=65_533);
    if gid.is_none() {
        section.missing("gid", "ids are fixed, so that two builds are the same");
    }
    section.close();
    Some(Group { name: name?, gid: u32::try_from(gid?).ok()? })
}

pub(super) fn service(source: &Source<'_>, section: Section<'_, '_>) -> Option<Service> {
    let name = section
        .required("name", "the service's name")
        .and_then(|n| checked(source, n, "a service name", is_name));
    let exec = section.strings("exec");
    match exec.first() {
        None => section.missing("exec", "the absolute path of the program, then its arguments"),
        Some(program) if !is_absolute(program.get_ref()) => source.fault(
            program.span(),
            format!("\"{}\" is not an absolute path", program.get_ref()),
            "no shell and no PATH are involved: name the program in full",
        ),
        Some(_) => {}
    }
    let restart = match section.string("restart") {
        None => Restart::default(),
        Some(text) => match *text.get_ref() {
            "always" => Restart::Always,
            "on-failure" => Restart::OnFailure,
            "never" => Restart::Never,
            other => {
                source.fault(
                    text.span(),
                    format!("unknown restart rule \"{other}\""),
                    "known rules: always, on-failure, never",
                );
                Restart::default()
            }
        },
    };
    let ready = section.string("ready");
    let tty = section.string("tty");
    let listen = section.string("listen");
    if let Some(listen) = &listen {
        let others = [
            ("ready", &ready, "it is ready when its socket is open"),
            ("tty", &tty, "nobody at a terminal connects to it"),
        ];
        for (key, other, why) in others {
            if let Some(other) = other {
                source.fault(
                    other.span(),
                    format!("\"{key}\" does not go with \"listen\""),
                    format!("{why}: remove one of the two"),
                );
            }
        }
        if restart == Restart::Never {
            source.fault(
                listen.span(),
                "\"listen\" does not go with restart = \"never\"",
                "connections start it again and again: remove one of the two",
            );
        }
    }
    let limit = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok());
    let service = Service {
        name: name.unwrap_or_default(),
        exec: exec.into_iter().map(|e| (*e.get_ref()).to_owned()).collect(),
        after: all(source, section.strings("after"), "a service name", is_name),
        restart,
        environment: all(source, section.strings("environment"), "a NAME=value pair", |e| {
            e.split_once('=').is_some_and(|(name, _)| !name.is_empty())
        }),
        user: section.string("user").and_then(|u| checked(source, u, "a user name", is_account)),
        ready: ready.and_then(|r| checked(source, r, "an absolute path", is_absolute)),
        listen: listen.and_then(|l| {
            checked(source, l, "an absolute path of at most 107 bytes", |p| {
                is_absolute(p) && p.len() <= LONGEST_SOCKET
            })
        }),
        tty: tty.and_then(|t| checked(source, t, "an absolute path", is_absolute)),
        limits: Limits {
            memory_mib: limit(section.integer("memory_mib", 4..=16_777_216)),
            cpu_weight: limit(section.integer("cpu_weight", 1..=10_000)),
            processes: limit(section.integer("processes", 1..=1_000_000)),
        },
    };
    section.close();
    (!service.name.is_empty()).then_some(service)
}
