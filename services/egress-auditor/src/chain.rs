//! The hash chain: each record's hash covers its content and the hash before it, so that changing, removing or
//! inserting one changes every hash after it. Pure.
//!
//! What it does not do: whoever can rewrite the whole file can compute a whole new chain. The head is therefore also
//! held in memory while the service runs, and logged, which is outside the file.

use aws_lc_rs::digest;

use crate::record::Entry;

/// A SHA-256 value.
pub type Hash = [u8; 32];

/// What stands before the first record.
#[must_use]
pub fn genesis() -> Hash {
    finish(domain(b"assistant audit chain, version 1, genesis"))
}

/// The hash of a record. Canonical bytes: a domain string, the previous hash, then every stored field in the order
/// below, integers as 8 octets big-endian, text as UTF-8 behind its length as 8 octets.
#[must_use]
pub fn link(previous: &Hash, sequence: u64, recorded_at: &str, entry: &Entry) -> Hash {
    let mut context = domain(b"assistant audit chain, version 1, record");
    context.update(previous);
    context.update(&sequence.to_be_bytes());
    text(&mut context, recorded_at);
    text(&mut context, &entry.event_id);
    text(&mut context, &entry.kind);
    text(&mut context, &entry.tier);
    text(&mut context, &entry.principal);
    text(&mut context, &entry.layer);
    text(&mut context, &entry.host);
    context.update(&u64::from(entry.port).to_be_bytes());
    text(&mut context, &entry.reason);
    text(&mut context, &entry.fix);
    text(&mut context, &entry.trace_id);
    context.update(&entry.count.to_be_bytes());
    text(&mut context, &entry.payload);
    finish(context)
}

fn domain(name: &[u8]) -> digest::Context {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(name);
    context
}

fn text(context: &mut digest::Context, text: &str) {
    context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
    context.update(text.as_bytes());
}

fn finish(context: digest::Context) -> Hash {
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry::from_bus("egress.denied.tasks", "id", br#"{"host":"a.b","reason":"r","fix":"f","port":1,"count":2}"#)
    }

    #[test]
    fn every_field_counts() {
        let base = link(&genesis(), 1, "t", &entry());
        let changes: [fn(&mut Entry); 12] = [
            |e| e.event_id.push('x'),
            |e| e.kind.push('x'),
            |e| e.tier.push('x'),
            |e| e.principal.push('x'),
            |e| e.layer.push('x'),
            |e| e.host.push('x'),
            |e| e.port += 1,
            |e| e.reason.push('x'),
            |e| e.fix.push('x'),
            |e| e.trace_id.push('x'),
            |e| e.count += 1,
            |e| e.payload.push('x'),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut entry = entry();
            change(&mut entry);
            assert_ne!(link(&genesis(), 1, "t", &entry), base, "change {at}");
        }
        assert_ne!(link(&genesis(), 2, "t", &entry()), base);
        assert_ne!(link(&genesis(), 1, "u", &entry()), base);
        assert_ne!(link(&base, 1, "t", &entry()), base);
        // Text moved from one field to the next is another record.
        let (mut a, mut b) = (entry(), entry());
        a.host = "ab".to_owned();
        a.reason = "c".to_owned();
        b.host = "a".to_owned();
        b.reason = "bc".to_owned();
        assert_ne!(link(&genesis(), 1, "t", &a), link(&genesis(), 1, "t", &b));
    }

    #[test]
    fn the_hashes_do_not_change_between_versions() {
        assert_eq!(hex::encode(genesis()), GENESIS);
        assert_eq!(hex::encode(link(&genesis(), 1, "t", &entry())), FIRST);
    }

    // A store written by an older build must verify with a newer one.
    const GENESIS: &str = "a8a5b6d570706713baece2745acf0261fbdb7661fb709cc771acd3afcace3f9a";
    const FIRST: &str = "21c6f4a56c02b4a338ebf8c7d552f7f8d9ceb9598cd2f784268850dcb5243460";
}
