//! Whether a TLS handshake names the host its CONNECT named.
//!
//! Squid falls back to the CONNECT host when a handshake has no SNI, and splices when the SNI names *another* allowed
//! host. Comparing both, and refusing an absent name, closes both holes. This decides nothing else: which hosts are
//! allowed at all is Squid's list.

use crate::helper::channel;

/// The answer to one line of
/// `external_acl_type ... concurrency=N ... %ACL %>rd %ssl::>sni %master_xaction`, that is
/// `<channel> <acl> <host> <sni> <transaction>`. Squid appends the ACL's (empty) arguments as one more field.
///
/// `None` where there is no channel to answer on.
#[must_use]
pub fn answer(line: &[u8], whole: bool) -> Option<String> {
    let mut fields = line.split(|&byte| byte == b' ');
    let channel = channel(fields.next()?)?;
    let same = whole && is_same_host(fields);
    Some(if same { format!("{channel} OK") } else { format!("{channel} ERR") })
}

fn is_same_host<'a>(mut fields: impl Iterator<Item = &'a [u8]>) -> bool {
    let (Some(acl), Some(host), Some(sni), Some(transaction)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    let arguments = fields.next();
    !acl.is_empty()
        && !transaction.is_empty()
        && arguments.is_none_or(|text| text == b"-" || text.is_empty())
        && fields.next().is_none()
        && is_host(host)
        && is_host(sni)
        && host.eq_ignore_ascii_case(sni)
}

/// Letters, digits, hyphens and dots, with a label before and after each dot. A final dot is refused: two spellings of
/// one name would need somebody to decide which of them was meant. `-`, Squid's sign for "absent", is no label.
fn is_host(name: &[u8]) -> bool {
    name.len() <= 253
        && name.split(|&byte| byte == b'.').all(|label| {
            (1..=63).contains(&label.len())
                && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
                && label.first() != Some(&b'-')
                && label.last() != Some(&b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(line: &str) -> Option<String> {
        answer(line.as_bytes(), true)
    }

    #[test]
    fn only_the_same_name_passes() {
        for (line, verdict) in [
            ("0 snichk api.example.com api.example.com 17", "0 OK"),
            ("0 snichk api.example.com api.example.com 17 -", "0 OK"),
            ("5 snichk API.example.com api.EXAMPLE.com 17", "5 OK"),
            ("5 snichk api.example.com - 17", "5 ERR"),
            ("5 snichk - - 17", "5 ERR"),
            ("5 snichk api.example.com other.example.com 17", "5 ERR"),
            ("5 snichk api.example.com api.example.com. 17", "5 ERR"),
            ("5 snichk api.example.com. api.example.com. 17", "5 ERR"),
            ("5 snichk api.example.com xapi.example.com 17", "5 ERR"),
            ("5 snichk a%20b a%20b 17", "5 ERR"),
            ("5 snichk api.example.com  17", "5 ERR"),
            ("5 snichk api.example.com api.example.com", "5 ERR"),
            ("5 snichk api.example.com api.example.com 17 - more", "5 ERR"),
            ("5 snichk api.example.com api.example.com 17 argument", "5 ERR"),
            ("5", "5 ERR"),
            ("5 ", "5 ERR"),
        ] {
            assert_eq!(asked(line).as_deref(), Some(verdict), "{line}");
        }
    }

    #[test]
    fn without_a_channel_there_is_no_answer() {
        for line in ["", " ", "x snichk a.b a.b 1", "-1 snichk a.b a.b 1"] {
            assert_eq!(asked(line), None, "{line}");
        }
    }

    #[test]
    fn a_cut_line_is_refused() {
        assert_eq!(answer(b"1 snichk a.b a.b 1", false).as_deref(), Some("1 ERR"));
    }

    proptest! {
        #[test]
        fn garbage_never_passes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(reply) = answer(&bytes, true) {
                prop_assert!(reply.ends_with(" ERR"));
            }
        }

        #[test]
        fn garbage_after_a_channel_is_refused(channel in 0_u32..1000, rest in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut line = format!("{channel} ").into_bytes();
            line.extend(rest);
            prop_assert_eq!(answer(&line, true), Some(format!("{channel} ERR")));
        }

        #[test]
        fn two_different_names_never_pass(a in "[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){1,3}", b in "[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){1,3}") {
            let verdict = if a == b { "1 OK" } else { "1 ERR" };
            prop_assert_eq!(asked(&format!("1 acl {a} {b} 9")), Some(verdict.to_owned()));
            prop_assert_eq!(asked(&format!("1 acl {a} {a} 9")), Some("1 OK".to_owned()));
        }
    }
}
