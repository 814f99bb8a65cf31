//! DNS messages (RFC 1035), as much as a resolver needs that serves a handful of names and refuses the rest. Pure.
//!
//! Parsed by hand rather than with a library: what is accepted is one question and at most one OPT record (RFC 6891),
//! which is a hundred lines; everything a general parser can do beyond that is surface for a hostile peer.

use std::net::Ipv4Addr;

/// Longest message accepted. A query with one question has at most 12 + 255 + 4 octets, and OPT is small.
pub const MOST_QUERY_BYTES: usize = 512;

const HEADER_BYTES: usize = 12;
/// RFC 1035, section 2.3.4.
const MOST_LABEL_BYTES: usize = 63;
const MOST_NAME_BYTES: usize = 255;
/// Addresses are fixed, but a network may be made anew.
const TTL_SECONDS: u32 = 30;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const OPCODE: u16 = 0x7800;
const RCODE: u16 = 0x000f;
const RCODE_REFUSED: u16 = 5;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;

/// What was asked for, of the types told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// Any other type or class.
    Other,
}

/// A well-formed query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    id: u16,
    recursion_desired: bool,
    /// The question as it was sent: a client may check its spelling (0x20 encoding).
    question: Vec<u8>,
    /// Asked name in lower case, dots between labels, no final dot. Bytes outside a-z, 0-9, `-`, `_` are written
    /// `\DDD` (RFC 1035, section 5.1), so the text is one word of harmless ASCII.
    pub name: String,
    /// What was asked for.
    pub kind: Kind,
}

/// Not a query that is understood here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Answer with a bare refusal of this id.
    Refuse {
        /// The query's id.
        id: u16,
        /// The opcode and RD bits, which are copied.
        copied: u16,
    },
    /// Say nothing: too short to have an id, or itself a response. Answering those makes loops.
    Ignore,
}

impl Query {
    /// Parses a message strictly: one question, no other records but one OPT, nothing behind.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { message, at: 0 };
        let (Some(id), Some(flags)) = (reader.u16(), reader.u16()) else { return Err(Malformed::Ignore) };
        if message.len() < HEADER_BYTES || flags & FLAG_RESPONSE != 0 {
            return Err(Malformed::Ignore);
        }
        let refuse = Malformed::Refuse { id, copied: flags & (OPCODE | FLAG_RECURSION_DESIRED) };
        let counts = [reader.u16(), reader.u16(), reader.u16(), reader.u16()];
        let options = match counts {
            [Some(1), Some(0), Some(0), Some(options @ (0 | 1))] => options,
            _ => return Err(refuse),
        };
        if message.len() > MOST_QUERY_BYTES || flags & (OPCODE | FLAG_TRUNCATED | RCODE) != 0 {
            return Err(refuse);
        }
        let name = reader.name().ok_or(refuse)?;
        let (Some(kind), Some(class)) = (reader.u16(), reader.u16()) else { return Err(refuse) };
        let question = message.get(HEADER_BYTES..reader.at).ok_or(refuse)?.to_vec();
        if options == 1 {
            reader.opt().ok_or(refuse)?;
        }
        if reader.at != message.len() {
            return Err(refuse);
        }
        let kind = match (class, kind) {
            (CLASS_IN, TYPE_A) => Kind::A,
            (CLASS_IN, TYPE_AAAA) => Kind::Aaaa,
            _ => Kind::Other,
        };
        Ok(Self { id, recursion_desired: flags & FLAG_RECURSION_DESIRED != 0, question, name, kind })
    }

    /// The name exists; `address` for an A query, none for one that has no record of that type.
    #[must_use]
    pub fn answer(&self, address: Option<Ipv4Addr>) -> Vec<u8> {
        let mut out = self.header(FLAG_AUTHORITATIVE, u16::from(address.is_some()));
        out.extend_from_slice(&self.question);
        if let Some(address) = address {
            // A pointer to the question's name, at offset 12.
            out.extend_from_slice(&[0xc0, 0x0c]);
            out.extend_from_slice(&TYPE_A.to_be_bytes());
            out.extend_from_slice(&CLASS_IN.to_be_bytes());
            out.extend_from_slice(&TTL_SECONDS.to_be_bytes());
            out.extend_from_slice(&4_u16.to_be_bytes());
            out.extend_from_slice(&address.octets());
        }
        out
    }

    /// REFUSED.
    #[must_use]
    pub fn refuse(&self) -> Vec<u8> {
        let mut out = self.header(RCODE_REFUSED, 0);
        out.extend_from_slice(&self.question);
        out
    }

    fn header(&self, flags: u16, answers: u16) -> Vec<u8> {
        let recursion = if self.recursion_desired { FLAG_RECURSION_DESIRED } else { 0 };
        header(self.id, flags | recursion, 1, answers)
    }
}

impl Malformed {
    /// The answer it gets, if any: a header without question.
    #[must_use]
    pub fn response(self) -> Option<Vec<u8>> {
        match self {
            Self::Refuse { id, copied } => Some(header(id, copied | RCODE_REFUSED, 0, 0)),
            Self::Ignore => None,
        }
    }
}

fn header(id: u16, flags: u16, questions: u16, answers: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(MOST_QUERY_BYTES);
    for word in [id, flags | FLAG_RESPONSE, questions, answers, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.message.get(self.at)?;
        self.at = self.at.checked_add(1)?;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.message.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    /// An uncompressed name: in a question there is nothing to point to.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut octets = 1_usize;
        loop {
            let length = usize::from(self.u8()?);
            if length == 0 {
                return Some(name);
            }
            octets = octets.checked_add(length)?.checked_add(1)?;
            if length > MOST_LABEL_BYTES || octets > MOST_NAME_BYTES {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            for &byte in self.take(length)? {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                        name.push(char::from(byte.to_ascii_lowercase()));
                    }
                    _ => name.push_str(&format!("\\{byte:03}")),
                }
            }
        }
    }

    fn opt(&mut self) -> Option<()> {
        if self.u8()? != 0 || self.u16()? != TYPE_OPT {
            return None;
        }
        let _payload_size_class: u16 = self.u16()?;
        let _extended_rcode_and_flags = self.take(4)?;
        let length = usize::from(self.u16()?);
        self.take(length).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn query(labels: &[&[u8]], kind: u16, class: u16) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            out.push(u8::try_from(label.len()).unwrap());
            out.extend_from_slice(label);
        }
        out.push(0);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&class.to_be_bytes());
        out
    }

    const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn names_and_types() {
        type Case = (&'static [&'static [u8]], u16, u16, &'static str, Kind);
        let table: [Case; 7] = [
            (&[b"models"], 1, 1, "models", Kind::A),
            (&[b"MoDeLs"], 28, 1, "models", Kind::Aaaa),
            (&[b"a", b"example"], 16, 1, "a.example", Kind::Other),
            (&[b"a"], 1, 3, "a", Kind::Other),
            (&[], 1, 1, "", Kind::A),
            (&[b"a.b", b"\x1b[2J"], 1, 1, "a\\046b.\\027\\0912j", Kind::A),
            (&[b"\xc3\xbc"], 255, 1, "\\195\\188", Kind::Other),
        ];
        for (labels, kind, class, name, expected) in table {
            let parsed = Query::parse(&query(labels, kind, class)).unwrap();
            assert_eq!((parsed.name.as_str(), parsed.kind), (name, expected));
        }
    }

    #[test]
    fn one_option_record_is_fine_and_nothing_else() {
        let plain = query(&[b"mcp"], 1, 1);
        let mut with_opt = plain.clone();
        with_opt[11] = 1;
        with_opt.extend_from_slice(&OPT);
        assert_eq!(Query::parse(&with_opt).unwrap().name, "mcp");

        type Damage = fn(&mut Vec<u8>);
        let damage: [(&str, Damage); 12] = [
            ("opcode", |m| m[2] |= 0x10),
            ("truncated", |m| m[2] |= 0x02),
            ("rcode", |m| m[3] |= 0x03),
            ("no question", |m| m[5] = 0),
            ("two questions", |m| m[5] = 2),
            ("an answer", |m| m[7] = 1),
            ("an authority", |m| m[9] = 1),
            ("missing additional", |m| m[11] = 1),
            ("two additionals", |m| m[11] = 2),
            ("trailing byte", |m| m.push(0)),
            ("compression pointer", |m| m[12] = 0xc0),
            ("cut", |m| m.truncate(15)),
        ];
        for (name, damage) in damage {
            let mut message = plain.clone();
            damage(&mut message);
            let refused = Query::parse(&message).unwrap_err();
            let response = refused.response().unwrap_or_default();
            assert_eq!(response.len(), 12, "{name}");
            assert_eq!((&response[..2], response[2] & 0x80, response[3] & 0x0f), (&message[..2], 0x80, 5), "{name}");
        }
        let mut additional = plain.clone();
        additional[11] = 1;
        additional.extend_from_slice(&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(Query::parse(&additional).is_err(), "an A record is no option");

        let mut response = plain.clone();
        response[2] |= 0x80;
        assert_eq!(Query::parse(&response), Err(Malformed::Ignore));
        assert_eq!(Query::parse(&plain[..11]), Err(Malformed::Ignore));
        assert_eq!(Malformed::Ignore.response(), None);
    }

    #[test]
    fn limits_of_names() {
        let label = [b'a'; 63];
        let longest: [&[u8]; 4] = [&label, &label, &label, &label[..61]];
        assert!(Query::parse(&query(&longest, 1, 1)).is_ok());
        let too_long: [&[u8]; 4] = [&label, &label, &label, &label[..62]];
        assert!(Query::parse(&query(&too_long, 1, 1)).is_err());
        assert!(Query::parse(&query(&[&[b'a'; 64]], 1, 1)).is_err());
    }

    #[test]
    fn responses_say_what_they_should() {
        let message = query(&[b"Models"], 1, 1);
        let parsed = Query::parse(&message).unwrap();
        let answer = parsed.answer(Some(Ipv4Addr::new(10, 87, 16, 2)));
        assert_eq!(answer[..12], [0x12, 0x34, 0x85, 0x00, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..message.len()], message[12..], "the question, as it was spelt");
        assert_eq!(answer[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 87, 16, 2]);
        assert_eq!(parsed.answer(None)[..8], [0x12, 0x34, 0x85, 0x00, 0, 1, 0, 0]);
        assert_eq!(parsed.refuse()[..8], [0x12, 0x34, 0x81, 0x05, 0, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_amplify(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            match Query::parse(&message) {
                Ok(query) => {
                    prop_assert!(query.answer(Some(Ipv4Addr::LOCALHOST)).len() <= message.len() + 16);
                    prop_assert!(query.refuse().len() <= message.len());
                }
                Err(malformed) => prop_assert!(malformed.response().unwrap_or_default().len() <= message.len()),
            }
        }

        /// As above, but from messages that are nearly right, so that the inner branches are reached.
        #[test]
        fn no_damage_panics(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..64), 0..6),
                            kind in any::<u16>(), at in 0usize..200, byte in any::<u8>(), opt in any::<bool>()) {
            let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
            let mut message = query(&labels, kind, 1);
            if opt { message[11] = 1; message.extend_from_slice(&OPT); }
            if let Some(slot) = message.get_mut(at) { *slot = byte; }
            if let Ok(query) = Query::parse(&message) {
                prop_assert!(query.name.bytes().all(|b| b.is_ascii_graphic()));
                prop_assert!(query.answer(Some(Ipv4Addr::LOCALHOST)).len() <= message.len() + 16);
            }
        }
    }
}
