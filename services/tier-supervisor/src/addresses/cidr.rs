//! IPv4 networks, with the little arithmetic that choosing addresses takes.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network in CIDR notation. No host bits are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Cidr {
    pub(super) network: Ipv4Addr,
    pub(super) prefix: u8,
}

/// Text or numbers that are no IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an IPv4 network: write it like 10.87.0.0/16, with no bit set after the prefix")]
pub struct MalformedCidr;

impl Ipv4Cidr {
    /// The network with that first address and prefix length.
    ///
    /// # Errors
    /// When the prefix is longer than 32 or host bits are set.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, MalformedCidr> {
        let cidr = Self { network, prefix };
        if prefix > 32 || network.to_bits() & !cidr.mask() != 0 {
            return Err(MalformedCidr);
        }
        Ok(cidr)
    }

    /// First address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Prefix length.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.network.to_bits()
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(self.prefix))).unwrap_or(0)
    }

    /// The /24 with that number, of a /16.
    pub(super) fn subnet(&self, number: u8) -> Self {
        let [a, b, _, _] = self.network.octets();
        Self { network: Ipv4Addr::new(a, b, number, 0), prefix: 24 }
    }

    /// The address with that last byte, of a /24.
    pub(super) fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.network.octets();
        Ipv4Addr::new(a, b, c, number)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = MalformedCidr;
    fn from_str(text: &str) -> Result<Self, MalformedCidr> {
        let (network, prefix) = text.split_once('/').ok_or(MalformedCidr)?;
        Self::new(network.parse().map_err(|_| MalformedCidr)?, prefix.parse().map_err(|_| MalformedCidr)?)
    }
}

impl TryFrom<String> for Ipv4Cidr {
    type Error = MalformedCidr;
    fn try_from(text: String) -> Result<Self, MalformedCidr> {
        text.parse()
    }
}

impl From<Ipv4Cidr> for String {
    fn from(cidr: Ipv4Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_have_one_spelling() {
        assert_eq!(cidr("10.87.0.0/16").to_string(), "10.87.0.0/16");
        assert!(cidr("0.0.0.0/0").contains(Ipv4Addr::new(1, 2, 3, 4)));
        assert!(cidr("1.2.3.4/32").contains(Ipv4Addr::new(1, 2, 3, 4)));
        for bad in ["10.87.0.1/16", "10.87.0.0", "10.87.0.0/33", "10.87.0.0/-1", "::/0", "10.87/16", ""] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_exact() {
        let pool = cidr("10.87.0.0/16");
        for (other, overlaps) in
            [("10.87.3.0/24", true), ("10.0.0.0/8", true), ("10.86.0.0/16", false), ("10.88.0.0/16", false)]
        {
            assert_eq!(pool.overlaps(&cidr(other)), overlaps, "{other}");
            assert_eq!(cidr(other).overlaps(&pool), overlaps, "{other}");
        }
    }
}
