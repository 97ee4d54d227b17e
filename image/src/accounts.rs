//! Users and groups of a root: Debian's fixed ones, those that packages declare for systemd-sysusers, those that
//! maintainer scripts would add, and the recipe's.

use std::collections::BTreeMap;

use labshift_model::recipe::{Group, User};

/// A user's line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Login {
    uid: u32,
    gid: u32,
    comment: String,
    home: String,
    shell: String,
}

/// All users and groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accounts {
    users: BTreeMap<String, Login>,
    groups: BTreeMap<String, (u32, Vec<String>)>,
}

const NOLOGIN: &str = "/usr/sbin/nologin";

impl Accounts {
    /// Reads `passwd` and `group` in their usual form (base-passwd's master files).
    pub fn parse(passwd: &str, group: &str) -> Accounts {
        let mut accounts = Accounts::default();
        for line in group.lines() {
            let parts: Vec<&str> = line.split(':').collect();
            if let [name, _, gid, members] = parts[..]
                && let Ok(gid) = gid.parse()
            {
                let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
                accounts.groups.insert(name.to_owned(), (gid, members));
            }
        }
        for line in passwd.lines() {
            let parts: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, comment, home, shell] = parts[..]
                && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
            {
                let login =
                    Login { uid, gid, comment: comment.into(), home: home.into(), shell: shell.into() };
                accounts.users.insert(name.to_owned(), login);
            }
        }
        accounts
    }

    /// Adds what sysusers.d(5) lines declare. Ids that they leave open are counted down from 999, in the order
    /// of the lines: the same packages give the same ids.
    pub fn sysusers(&mut self, text: &str) {
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let words = words(line);
            let word = |i: usize| words.get(i).map(String::as_str).filter(|w| *w != "-").unwrap_or_default();
            let name = word(1).to_owned();
            let id = word(2);
            match word(0).trim_end_matches(['!', '-']) {
                "g" => self.add_group(&name, id.parse().ok()),
                "m" => self.join(&name, id),
                "u" => {
                    let (uid, gid) = id.split_once(':').unwrap_or((id, id));
                    let home = if word(4).is_empty() { "/" } else { word(4) };
                    let shell = if word(5).is_empty() { NOLOGIN } else { word(5) };
                    let uid = uid.parse().ok();
                    let gid = match gid.parse() {
                        Ok(gid) => Some(gid),
                        Err(_) => self.groups.get(gid).map(|(g, _)| *g),
                    };
                    self.add_user(&name, uid, gid.or(uid), word(3), home, shell);
                }
                _ => {}
            }
        }
    }

    /// Adds a group unless it is there. Without an id, the next free one below 1000.
    pub fn add_group(&mut self, name: &str, gid: Option<u32>) {
        if !name.is_empty() && !self.groups.contains_key(name) {
            let gid = gid.filter(|g| !self.gid_taken(*g)).unwrap_or_else(|| self.free());
            self.groups.insert(name.to_owned(), (gid, vec![]));
        }
    }

    fn add_user(
        &mut self,
        name: &str,
        uid: Option<u32>,
        gid: Option<u32>,
        comment: &str,
        home: &str,
        shell: &str,
    ) {
        if name.is_empty() || self.users.contains_key(name) {
            return;
        }
        let known = self.groups.values().any(|(g, _)| Some(*g) == gid);
        if !known {
            self.add_group(name, gid);
        }
        let own = self.groups.get(name).map(|(g, _)| *g);
        let gid = if known { gid } else { own }.unwrap_or(65_534);
        let free = |uid: &u32| !self.users.values().any(|l| l.uid == *uid);
        let uid = uid.or(own).filter(free).unwrap_or_else(|| self.free());
        let login = Login { uid, gid, comment: comment.into(), home: home.into(), shell: shell.into() };
        self.users.insert(name.to_owned(), login);
    }

    fn join(&mut self, user: &str, group: &str) {
        self.add_group(group, None);
        if let Some((_, members)) = self.groups.get_mut(group)
            && !members.iter().any(|m| m == user)
        {
            members.push(user.to_owned());
        }
    }

    fn gid_taken(&self, gid: u32) -> bool {
        self.groups.values().any(|(g, _)| *g == gid)
    }

    fn free(&self) -> u32 {
        let taken = |id: u32| self.gid_taken(id) || self.users.values().any(|l| l.uid == id);
        (100..=999).rev().find(|id| !taken(*id)).unwrap_or(65_533)
    }

    /// Adds the recipe's users and groups; says what contradicts.
    pub fn add(&mut self, users: &[User], groups: &[Group]) -> Vec<String> {
        let mut problems = vec![];
        for group in groups {
            let holder = self.groups.iter().find(|(n, (gid, _))| *gid == group.gid && **n != group.name);
            if let Some((other, _)) = holder {
                problems.push(format!("group {} has id {}, which is {other}'s", group.name, group.gid));
            }
            self.groups.entry(group.name.clone()).or_default().0 = group.gid;
        }
        for user in users {
            let holder = self.users.iter().find(|(n, l)| l.uid == user.uid && **n != user.name);
            if let Some((other, _)) = holder {
                problems.push(format!("user {} has id {}, which is {other}'s", user.name, user.uid));
            }
            let gid = match &user.group {
                None => {
                    self.add_group(&user.name, Some(user.uid));
                    self.groups[&user.name].0
                }
                Some(group) => match self.groups.get(group) {
                    Some((gid, _)) => *gid,
                    None => {
                        problems
                            .push(format!("user {} is of group {group}, which does not exist", user.name));
                        continue;
                    }
                },
            };
            for group in &user.groups {
                if self.groups.contains_key(group) {
                    self.join(&user.name, group);
                } else {
                    problems.push(format!("user {} is in group {group}, which does not exist", user.name));
                }
            }
            let login = Login {
                uid: user.uid,
                gid,
                comment: String::new(),
                home: user.home.clone(),
                shell: user.shell.clone(),
            };
            self.users.insert(user.name.clone(), login);
        }
        problems
    }

    /// Ids of `user` or `user:group`, by name.
    pub fn owner(&self, owner: &str) -> Result<(u32, u32), String> {
        let (user, group) = owner.split_once(':').unwrap_or((owner, ""));
        let login = self.users.get(user).ok_or_else(|| format!("user {user} does not exist"))?;
        if group.is_empty() {
            return Ok((login.uid, login.gid));
        }
        let (gid, _) = self.groups.get(group).ok_or_else(|| format!("group {group} does not exist"))?;
        Ok((login.uid, *gid))
    }

    /// Home directories below /home with their owners.
    pub fn homes(&self) -> Vec<(String, u32, u32)> {
        let homes = self.users.values().filter(|l| l.home.starts_with("/home/"));
        homes.map(|l| (l.home.trim_start_matches('/').to_owned(), l.uid, l.gid)).collect()
    }

    /// `/etc/passwd`, ordered by id.
    pub fn passwd(&self) -> String {
        let mut users: Vec<_> = self.users.iter().collect();
        users.sort_by_key(|(name, l)| (l.uid, *name));
        let line = |(name, l): (&String, &Login)| {
            format!("{name}:x:{}:{}:{}:{}:{}\n", l.uid, l.gid, l.comment, l.home, l.shell)
        };
        users.into_iter().map(line).collect()
    }

    /// `/etc/group`, ordered by id.
    pub fn group(&self) -> String {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(name, (gid, _))| (*gid, *name));
        groups.into_iter().map(|(name, (gid, m))| format!("{name}:x:{gid}:{}\n", m.join(","))).collect()
    }

    /// `/etc/shadow`: nobody has a password.
    pub fn shadow(&self) -> String {
        self.users.keys().map(|name| format!("{name}:!*:20000:0:99999:7:::\n")).collect()
    }
}

/// Words of a sysusers.d line; quotes hold a word together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut open) = (vec![], String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, open) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            c => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Accounts {
        Accounts::parse(
            "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            "root:*:0:\nnogroup:*:65534:\nkvm:*:109:\n",
        )
    }

    #[test]
    fn sysusers_lines() {
        let mut accounts = base();
        accounts.sysusers(
            "# c\ng render -\nu messagebus - \"System Message Bus\" -\nu! tss 59 \"TPM\"\nm messagebus kvm\n\
             u nobody 65534 x\nu libvirt-qemu 64055:kvm \"Libvirt\" /var/lib/libvirt\n",
        );
        let passwd = accounts.passwd();
        assert!(passwd.contains("messagebus:x:998:998:System Message Bus:/:/usr/sbin/nologin\n"), "{passwd}");
        assert!(passwd.contains("tss:x:59:59:TPM:/"));
        assert!(passwd.contains("libvirt-qemu:x:64055:109:Libvirt:/var/lib/libvirt:"));
        assert_eq!(passwd.matches("nobody:x").count(), 1);
        let group = accounts.group();
        assert!(group.contains("render:x:999:\n") && group.contains("kvm:x:109:messagebus\n"), "{group}");
        assert!(accounts.shadow().contains("root:!*:"));
    }

    #[test]
    fn recipe_users() {
        let user = |name: &str, uid, group: Option<&str>, groups: &[&str]| User {
            name: name.into(),
            uid,
            group: group.map(Into::into),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            home: "/home/x".into(),
            shell: "/bin/sh".into(),
        };
        let mut accounts = base();
        let problems = accounts.add(
            &[user("student", 1000, None, &["kvm"]), user("bad", 0, Some("no"), &[])],
            &[Group { name: "lab".into(), gid: 109 }],
        );
        assert_eq!(
            problems,
            [
                "group lab has id 109, which is kvm's",
                "user bad has id 0, which is root's",
                "user bad is of group no, which does not exist"
            ]
        );
        assert_eq!(accounts.owner("student"), Ok((1000, 1000)));
        assert_eq!(accounts.owner("root:kvm"), Ok((0, 109)));
        assert!(accounts.owner("ghost").is_err());
    }
}
