//! What to write into another DHCP server so that machines boot from us, ready to paste. Also what `serve --dhcp off` prints.
//!
//! ```text
//!   BIOS ROM --undionly.kpxe (TFTP)--> iPXE --script (HTTP)--> image
//!   UEFI ----- snponly.efi   (TFTP)--> iPXE --script (HTTP)--> image
//! ```

use std::net::Ipv4Addr;

use labshift_model::paths;

use super::boot::{BIOS_LOADER, UEFI_LOADER};
use crate::config::Config;

/// A DHCP server that others run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// dnsmasq.conf.
    Dnsmasq,
    /// dhcpd.conf of ISC.
    Isc,
    /// kea-dhcp4.conf.
    Kea,
    /// PowerShell for Windows Server.
    Windows,
}

impl Elsewhere {
    /// All of them.
    pub const ALL: [Elsewhere; 4] = [Elsewhere::Dnsmasq, Elsewhere::Isc, Elsewhere::Kea, Elsewhere::Windows];

    /// Its name, and where the text goes.
    pub fn title(self) -> &'static str {
        match self {
            Elsewhere::Dnsmasq => "dnsmasq (dnsmasq.conf)",
            Elsewhere::Isc => "ISC dhcpd (dhcpd.conf, in the subnet)",
            Elsewhere::Kea => "Kea (kea-dhcp4.conf, in \"Dhcp4\")",
            Elsewhere::Windows => "Windows Server (PowerShell)",
        }
    }

    /// The text.
    pub fn text(self, config: &Config) -> String {
        let server = config.server_address;
        let script = format!("{}{}", config.base_url(), paths::IPXE_SCRIPT);
        match self {
            Elsewhere::Dnsmasq => format!(
                "dhcp-match=set:ipxe,175\n\
                 dhcp-match=set:efi,option:client-arch,7\n\
                 dhcp-match=set:efi,option:client-arch,9\n\
                 dhcp-boot=tag:ipxe,{script}\n\
                 dhcp-boot=tag:!ipxe,tag:efi,{UEFI_LOADER},,{server}\n\
                 dhcp-boot=tag:!ipxe,tag:!efi,{BIOS_LOADER},,{server}\n"
            ),
            Elsewhere::Isc => format!(
                "option arch code 93 = unsigned integer 16;\n\
                 next-server {server};\n\
                 if exists user-class and option user-class = \"iPXE\" {{\n    filename \"{script}\";\n\
                 }} elsif option arch = 00:07 or option arch = 00:09 {{\n    filename \"{UEFI_LOADER}\";\n\
                 }} else {{\n    filename \"{BIOS_LOADER}\";\n}}\n"
            ),
            Elsewhere::Kea => format!(
                "\"client-classes\": [\n  \
                 {{ \"name\": \"labshift-ipxe\", \"test\": \"option[77].hex == 'iPXE' or option[175].exists\",\n    \
                 \"boot-file-name\": \"{script}\" }},\n  \
                 {{ \"name\": \"labshift-uefi\", \"next-server\": \"{server}\", \"boot-file-name\": \"{UEFI_LOADER}\",\n    \
                 \"test\": \"not member('labshift-ipxe') and (option[93].hex == 0x0007 or option[93].hex == 0x0009)\" }},\n  \
                 {{ \"name\": \"labshift-bios\", \"next-server\": \"{server}\", \"boot-file-name\": \"{BIOS_LOADER}\",\n    \
                 \"test\": \"not member('labshift-ipxe') and option[93].hex == 0x0000\" }}\n]\n"
            ),
            Elsewhere::Windows => windows(server, network(config), &script),
        }
    }
}

fn network(config: &Config) -> Ipv4Addr {
    let mask = u32::from(config.local().mask());
    Ipv4Addr::from(u32::from(config.server_address) & mask)
}

fn windows(server: Ipv4Addr, scope: Ipv4Addr, script: &str) -> String {
    let mut text = format!(
        "$scope = \"{scope}\"\n\
         Add-DhcpServerv4Class -Name \"iPXE\" -Type User -Data \"iPXE\"\n\
         Add-DhcpServerv4Class -Name \"PXE UEFI x64\" -Type Vendor -Data \"PXEClient:Arch:00007\"\n\
         Add-DhcpServerv4Class -Name \"PXE BIOS\" -Type Vendor -Data \"PXEClient:Arch:00000\"\n\
         Set-DhcpServerv4OptionValue -ScopeId $scope -OptionId 66 -Value \"{server}\"\n"
    );
    let policies = [
        ("labshift-ipxe", 1, "-UserClass EQ,\"iPXE\"", script),
        ("labshift-uefi", 2, "-VendorClass EQ,\"PXE UEFI x64*\"", UEFI_LOADER),
        ("labshift-bios", 3, "-VendorClass EQ,\"PXE BIOS*\"", BIOS_LOADER),
    ];
    for (name, order, condition, file) in policies {
        text += &format!(
            "Add-DhcpServerv4Policy -Name {name} -ScopeId $scope -ProcessingOrder {order} -Condition OR {condition}\n\
             Set-DhcpServerv4OptionValue -ScopeId $scope -PolicyName {name} -OptionId 67 -Value \"{file}\"\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_names_server_loaders_and_script() {
        let config = Config::new("lab0", [10, 77, 0, 1].into(), 24, "/s".into(), "/t".into());
        for elsewhere in Elsewhere::ALL {
            let text = elsewhere.text(&config);
            for word in
                ["10.77.0.1", "undionly.kpxe", "snponly.efi", "http://10.77.0.1:8080/boot/script.ipxe"]
            {
                assert!(text.contains(word), "{}: no {word} in:\n{text}", elsewhere.title());
            }
        }
        assert!(Elsewhere::Windows.text(&config).contains("$scope = \"10.77.0.0\""));
    }
}
