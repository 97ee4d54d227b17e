//! Mirrors that this machine's own apt uses, from its `*.sources` (deb822) and `*.list` files; see
//! sources.list(5).

use std::{fs, path::Path};

/// Where Debian packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mirrors {
    /// Roots of the main archive.
    pub main: Vec<String>,
    /// Roots of the security archive.
    pub security: Vec<String>,
}

impl Mirrors {
    /// Mirrors that someone named: the security archive is looked for beside each.
    pub fn named(roots: &[String]) -> Mirrors {
        let main: Vec<String> = roots.iter().map(|r| r.trim_end_matches('/').to_owned()).collect();
        let security = main.iter().map(|r| format!("{r}-security")).collect();
        Mirrors { main, security }
    }

    /// Reads apt's configuration below `etc` (`/etc/apt`). Unreadable files are as absent ones.
    pub fn of_machine(etc: &Path) -> Mirrors {
        let mut files = vec![etc.join("sources.list")];
        let mut parts: Vec<_> = fs::read_dir(etc.join("sources.list.d"))
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        parts.sort();
        files.extend(parts);
        let mut mirrors = Mirrors::default();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|e| e.to_str()) {
                Some("sources") => mirrors.add_deb822(&text),
                Some("list") => mirrors.add_list(&text),
                _ => {}
            }
        }
        mirrors
    }

    /// Adds the entries of a deb822 file.
    pub fn add_deb822(&mut self, text: &str) {
        for stanza in text.replace("\r\n", "\n").split("\n\n") {
            let fields = fields(stanza);
            let get = |name: &str| {
                fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, v)| v.as_str())
            };
            let off = ["no", "false"].contains(&get("Enabled"));
            if off || !get("Types").split_whitespace().any(|t| t == "deb") {
                continue;
            }
            for uri in get("URIs").split_whitespace() {
                for suite in get("Suites").split_whitespace() {
                    self.add(uri, suite, get("Signed-By"));
                }
            }
        }
    }

    /// Adds the entries of a one-line-style file.
    pub fn add_list(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some(mut rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else {
                continue;
            };
            rest = rest.trim_start();
            let mut signed_by = "";
            if let Some((options, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
                signed_by =
                    options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).unwrap_or_default();
                rest = after;
            }
            let mut words = rest.split_whitespace();
            if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                self.add(uri, suite, signed_by);
            }
        }
    }

    /// Notes one entry, if it is of Debian's own archive.
    fn add(&mut self, uri: &str, suite: &str, signed_by: &str) {
        let root = uri.trim_end_matches('/');
        let security = suite.contains("-security") || suite.contains("/updates");
        let last = root.rsplit('/').next().unwrap_or_default();
        let ours = signed_by.contains("debian-archive") || ["debian", "debian-security"].contains(&last);
        if !ours || !(root.starts_with("http://") || root.starts_with("https://")) {
            return;
        }
        let list = if security { &mut self.security } else { &mut self.main };
        if !list.iter().any(|known| known == root) {
            list.push(root.to_owned());
        }
    }
}

/// Fields of one stanza; continuation lines are joined with a space.
fn fields(stanza: &str) -> Vec<(&str, String)> {
    let mut fields: Vec<(&str, String)> = vec![];
    for line in stanza.lines().filter(|l| !l.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim(), value.trim().to_owned()));
        }
    }
    fields
}

/// The proxy that apt uses for HTTP: `Acquire::http::Proxy` of its configuration files, the last one wins.
pub fn proxy_of_machine(etc: &Path) -> Option<String> {
    let mut files: Vec<_> = fs::read_dir(etc.join("apt.conf.d"))
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    files.sort();
    files.push(etc.join("apt.conf"));
    files.iter().filter_map(|f| fs::read_to_string(f).ok()).filter_map(|t| proxy(&t)).next_back()
}

/// Reads the setting in its flat form and in its nested form (`Acquire { http { Proxy "..."; }; };`).
fn proxy(text: &str) -> Option<String> {
    let mut scope: Vec<String> = vec![];
    let mut found = None;
    let clean: String = text
        .lines()
        .map(|l| if l.trim_start().starts_with(['#', '/']) { "" } else { l })
        .collect::<Vec<_>>()
        .join("\n");
    let mut word = String::new();
    let mut characters = clean.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => {
                let value: String = characters.by_ref().take_while(|c| *c != '"').collect();
                let name = [scope.join("::"), word.trim().to_owned()].join("::");
                if name.trim_start_matches(':').eq_ignore_ascii_case("acquire::http::proxy") {
                    found = Some(value).filter(|v| v.starts_with("http"));
                }
            }
            '{' => scope.push(std::mem::take(&mut word).trim().to_owned()),
            '}' => {
                scope.pop();
                word.clear();
            }
            ';' => word.clear(),
            c => word.push(c),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_of_sources() {
        let mut mirrors = Mirrors::default();
        mirrors.add_deb822(
            "Types: deb deb-src\n# old\nURIs: http://mirror.lan/debian/\nSuites: trixie\n trixie-updates\n\
             Components: main\n\nTypes: deb\nURIs: http://mirror.lan/debian-security\nSuites: trixie-security\n\n\
             Types: deb\nURIs: https://tools.example/apt\nSuites: stable\nSigned-By: /usr/share/keyrings/tools.gpg\n\n\
             Enabled: no\nTypes: deb\nURIs: http://off.lan/debian\nSuites: trixie\n\n\
             Types: deb-src\nURIs: http://src.lan/debian\nSuites: trixie\n",
        );
        mirrors.add_list(
            "# deb http://no.lan/debian trixie main\ndeb http://two.lan/debian trixie main # main\n\
             deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://three.lan/pool x main\n\
             deb-src http://src.lan/debian trixie main\ndeb http://two.lan/debian-security trixie-security main\n\
             deb cdrom:[Debian]/ trixie main\n",
        );
        assert_eq!(
            mirrors.main,
            ["http://mirror.lan/debian", "http://two.lan/debian", "http://three.lan/pool"]
        );
        assert_eq!(mirrors.security, ["http://mirror.lan/debian-security", "http://two.lan/debian-security"]);
    }

    #[test]
    fn proxies() {
        let cases = [
            ("Acquire::http::Proxy \"http://proxy.lan:3128\";", Some("http://proxy.lan:3128")),
            ("Acquire { Retries \"3\"; http { Proxy \"http://p.lan\"; }; };", Some("http://p.lan")),
            ("// Acquire::http::Proxy \"http://p.lan\";", None),
            ("Acquire::http::Proxy \"DIRECT\";", None),
            ("Acquire::https::Proxy \"http://p.lan\";", None),
        ];
        for (text, expected) in cases {
            assert_eq!(proxy(text).as_deref(), expected, "{text}");
        }
    }
}
