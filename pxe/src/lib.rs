//! The boot plane: DHCP, TFTP and HTTP.
