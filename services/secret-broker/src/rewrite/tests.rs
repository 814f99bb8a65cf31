#![allow(clippy::unwrap_used, clippy::string_slice, reason = "a test may panic")]

use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;

use super::*;

const SECRET: &str = "s3cr3t/+\"\\tok%en==";

fn scrubber(values: &[&str]) -> Arc<Scrubber> {
    Arc::new(Scrubber::new(values.iter().map(|value| value.as_bytes())).unwrap())
}

fn whole(scrubber: &Arc<Scrubber>, text: &[u8]) -> Vec<u8> {
    scrubber.scrub(text).unwrap_or_else(|| text.to_vec())
}

fn in_pieces(scrubber: &Arc<Scrubber>, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut stream = Stream::new(Arc::clone(scrubber));
    let mut out = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    cuts.sort_unstable();
    let mut from = 0;
    for to in cuts.into_iter().chain([text.len()]) {
        out.extend(stream.push(&text[from..to]));
        from = to;
    }
    out.extend(stream.finish());
    out
}

/// Percent-encodes the characters that `choose` picks, with digits of either case.
fn percent(text: &str, choose: impl Fn(usize) -> bool) -> String {
    text.bytes()
        .enumerate()
        .map(|(index, byte)| match (choose(index), index % 2) {
            (false, _) => char::from(byte).to_string(),
            (true, 0) => format!("%{byte:02x}"),
            (true, _) => format!("%{byte:02X}"),
        })
        .collect()
}

fn unicode_escapes(text: &str) -> String {
    text.bytes().map(|byte| format!("\\u00{byte:02X}")).collect()
}

fn encodings(secret: &str) -> Vec<String> {
    let json = serde_json::to_string(secret).unwrap();
    let mut all = vec![
        secret.to_owned(),
        hex::encode(secret),
        hex::encode_upper(secret),
        json[1..json.len() - 1].to_owned(),
        json[1..json.len() - 1].replace('/', "\\/"),
        unicode_escapes(secret),
        percent(secret, |_| true),
        percent(secret, |index| !secret.as_bytes()[index].is_ascii_alphanumeric()),
        percent(&STANDARD.encode(secret), |index| index % 3 == 0),
        STANDARD.encode(secret).replace('/', "\\/"),
    ];
    for before in ["", "a", "ab"] {
        all.push(STANDARD.encode(format!("{before}{secret}")));
        all.push(URL_SAFE.encode(format!("{before}{secret}tail")));
    }
    all
}

#[test]
fn every_form_is_found() {
    let scrubber = scrubber(&[SECRET]);
    for form in encodings(SECRET) {
        let text = format!("before {form} after");
        let clean = String::from_utf8(whole(&scrubber, text.as_bytes())).unwrap();
        assert_eq!(clean.len(), text.len());
        // Base64 shares at most its first four and last three characters with the neighbours.
        let seen = clean.trim_start_matches("before ").trim_end_matches(" after");
        let masked = seen.bytes().filter(|byte| *byte == MASK).count();
        assert!(masked * 4 >= form.len() * 2 && masked >= 18, "{form:?} became {clean:?}");
        assert!(clean.starts_with("before ") && clean.ends_with(" after"), "{clean:?}");
    }
}

/// Every other letter in upper case.
fn mixed(text: &str) -> String {
    let case = |(index, letter): (usize, char)| {
        if index % 2 == 0 { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }
    };
    text.chars().enumerate().map(case).collect()
}

#[test]
fn hex_is_found_in_any_case() {
    const UUID: &str = "3f2b8c1e-9d4a-4c6f-8a7b-0e1d2c3b4a5f";
    let bare = UUID.replace('-', "");
    for (secret, form) in [
        (SECRET, mixed(&hex::encode(SECRET))),
        (SECRET, percent(&mixed(&hex::encode(SECRET)), |index| index % 3 == 0)),
        (SECRET, unicode_escapes(&mixed(&hex::encode(SECRET)))),
        (UUID, UUID.to_uppercase()),
        (UUID, mixed(UUID)),
        (UUID, bare.clone()),
        (UUID, bare.to_uppercase()),
        (UUID, percent(&mixed(UUID), |index| index % 2 == 0)),
        ("deadbeef0123456789", "DEADBEEF0123456789".to_owned()),
        ("DEADBEEF0123456789", "deadBEEF0123456789".to_owned()),
    ] {
        let scrubber = scrubber(&[secret]);
        let text = format!("<{form}>");
        let masked = format!("<{}>", "*".repeat(form.len()));
        assert_eq!(String::from_utf8(whole(&scrubber, text.as_bytes())).unwrap(), masked, "{secret}");
        for cut in 0..text.len() {
            assert_eq!(in_pieces(&scrubber, text.as_bytes(), &[cut]), masked.as_bytes(), "{form} cut at {cut}");
        }
    }
    // Other secrets have their case: this is not one.
    let scrubber = scrubber(&["ToKeN-123456"]);
    assert_eq!(whole(&scrubber, b"token-123456"), b"token-123456");
}

#[test]
fn what_a_secret_means_is_found() {
    let basic = "marvin@a.example:p4ss:word+with/odd";
    for (secret, said, found) in [
        (STANDARD.encode(basic), basic, true),
        (STANDARD.encode(basic).trim_end_matches('=').to_owned(), "p4ss:word+with/odd", true),
        (URL_SAFE.encode("me:>>>???>>>???"), ">>>???>>>???", true),
        (hex::encode("text-in-hex"), "text-in-hex", true),
        (STANDARD.encode("sk_live_0123456789:"), "sk_live_0123456789", true),
        // Who the secret is of is no secret, nor is what is too short to be one.
        (STANDARD.encode(basic), "marvin@a.example", false),
        (STANDARD.encode("marvin@a.example:short"), "marvin@a.example", false),
        (STANDARD.encode("a:b"), "a:b", false),
        // Not text, so nothing but itself.
        ("deadbeefdeadbeef".to_owned(), "\u{de}\u{ad}", false),
    ] {
        let scrubber = scrubber(&[&secret]);
        for (form, masked) in [
            (said.to_owned(), "*".repeat(said.len())),
            (format!("x{}", hex::encode(said)), format!("x{}", "*".repeat(said.len() * 2))),
        ] {
            let text = format!("<{form}>");
            let expected = if found { format!("<{masked}>") } else { text.clone() };
            assert_eq!(String::from_utf8(whole(&scrubber, text.as_bytes())).unwrap(), expected, "{secret}");
        }
        let itself = String::from_utf8(whole(&scrubber, secret.as_bytes())).unwrap();
        assert_eq!(itself, "*".repeat(secret.len()));
    }
}

#[test]
fn a_whole_text_is_masked_as_a_stream_is() {
    let scrubber = scrubber(&[SECRET]);
    let text = format!("{}{SECRET}{}", "x".repeat(64 * 1024 - 3), "y".repeat(100));
    let clean = scrub_text(&scrubber, text.clone().into_bytes());
    assert_eq!(clean, whole(&scrubber, text.as_bytes()));
    assert!(clean.contains(&MASK));
    assert_eq!(scrub_text(&scrubber, b"nothing".to_vec()), b"nothing");
}

#[test]
fn overlapping_secrets_do_not_shield_each_other() {
    let scrubber = scrubber(&["abcdefgh", "efghijkl"]);
    assert_eq!(whole(&scrubber, b"xabcdefghijkly"), b"x************y");
    for cut in 0..14 {
        assert_eq!(in_pieces(&scrubber, b"xabcdefghijkly", &[cut]), b"x************y", "{cut}");
    }
}

#[test]
fn what_cannot_be_a_secret_is_not_held_back() {
    let scrubber = scrubber(&[SECRET]);
    let mut stream = Stream::new(scrubber);
    assert_eq!(stream.push(b"data: {\"text\":\"hello\"}\n\n"), b"data: {\"text\":\"hello\"}\n\n");
    assert_eq!(stream.held(), 0);
    assert_eq!(stream.push(b"say s3c"), b"say ");
    assert_eq!(stream.push(b"ond"), b"s3cond");
    assert_eq!(stream.push(b"100%2"), b"100");
    assert_eq!(stream.finish(), b"%2");
    assert!(!stream.found());
}

#[test]
fn without_secrets_nothing_is_touched() {
    let none = scrubber(&[]);
    assert_eq!(whole(&none, b"s3cr3t"), b"s3cr3t");
    assert_eq!(in_pieces(&none, b"s3cr3t", &[2]), b"s3cr3t");
    assert!(!none.is_in_name("x-s3cr3t"));
}

#[test]
fn headers_are_scrubbed_in_value_and_name() {
    let scrubber = scrubber(&["ToKeN-123456"]);
    let mut headers = http::HeaderMap::new();
    headers.insert("x-token-123456", "1".parse().unwrap());
    headers.insert("location", "https://a.example/?t=ToKeN-123456&u=1".parse().unwrap());
    headers.insert("x-clean", "ToKeN-12345".parse().unwrap());
    assert!(scrub_headers(&scrubber, &mut headers));
    assert!(!headers.contains_key("x-token-123456"));
    assert_eq!(headers["location"], "https://a.example/?t=************&u=1");
    assert_eq!(headers["x-clean"], "ToKeN-12345");
}

#[tokio::test]
async fn bodies_and_trailers_are_scrubbed_and_keep_their_length() {
    let scrubber = scrubber(&["ToKeN-123456"]);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "ToKeN-123456".parse().unwrap());
    let frames =
        ["one ToK", "eN-12", "3456 two ToKeN"].map(|text| Ok(http_body::Frame::data(bytes::Bytes::from(text))));
    let frames = frames.into_iter().chain([Ok(http_body::Frame::trailers(trailers))]);
    let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    let clean = scrub_body(&scrubber, body).collect().await.unwrap();
    assert_eq!(clean.trailers().unwrap()["x-sum"], "************");
    assert_eq!(clean.to_bytes(), "one ************ two ToKeN");

    let known = scrub_body(&scrubber, crate::body::full("ToKeN-123456!"));
    assert_eq!(http_body::Body::size_hint(&known).exact(), Some(13));
    assert_eq!(known.collect().await.unwrap().to_bytes(), "************!");
}

/// Text whose characters are in no form of the secret, so that whatever is masked there is a false find.
fn harmless() -> impl Strategy<Value = String> {
    "[ <>,;:.!?()~_{}\n]{0,40}"
}

/// A character of the alphabet that escapes and forms are made of.
fn treacherous() -> impl Strategy<Value = String> {
    "[%\\\\u0a1s3cr/\"]{0,30}"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn no_split_lets_a_secret_through(
        secret in "[!-~]{8,40}",
        which in 0_usize..16,
        before in harmless(),
        after in harmless(),
        cuts in proptest::collection::vec(0_usize..10_000, 0..12),
    ) {
        let scrubber = scrubber(&[&secret]);
        let forms = encodings(&secret);
        let form = &forms[which % forms.len()];
        let text = format!("{before}{form}{after}");
        let out = in_pieces(&scrubber, text.as_bytes(), &cuts);
        prop_assert_eq!(&out, &whole(&scrubber, text.as_bytes()));
        prop_assert_eq!(out.len(), text.len());
        for view in views(&out) {
            let search = scrubber.search.as_ref().unwrap();
            let mut marked = vec![false; out.len()];
            search.mark(&view, &mut marked);
            prop_assert!(!marked.contains(&true), "{:?} still holds it", String::from_utf8_lossy(&out));
        }
        prop_assert!(!String::from_utf8_lossy(&out).contains(form.as_str()));
    }

    #[test]
    fn other_bytes_pass_unchanged(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cuts in proptest::collection::vec(0_usize..300, 0..12),
    ) {
        // 24 random characters do not occur in 300 random bytes.
        let scrubber = scrubber(&["Zq7-Vw2_Kx9.Tb4~Hn6!Rm3$"]);
        prop_assert_eq!(in_pieces(&scrubber, &bytes, &cuts), bytes);
    }

    #[test]
    fn pieces_equal_the_whole_even_for_text_made_of_escapes(
        text in proptest::collection::vec(treacherous(), 1..6),
        cuts in proptest::collection::vec(0_usize..200, 0..20),
    ) {
        let scrubber = scrubber(&["s3cr%00s3", "\\u0061a1", "%a1%a1%a", "r\\\\\"/u0a"]);
        let text = text.concat();
        prop_assert_eq!(in_pieces(&scrubber, text.as_bytes(), &cuts), whole(&scrubber, text.as_bytes()));
    }

    #[test]
    fn little_is_held_back(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let scrubber = scrubber(&["abcdefgh"]);
        let mut stream = Stream::new(scrubber);
        for byte in bytes {
            let _released = stream.push(&[byte]);
            prop_assert!(stream.held() <= 6 * 16 + 5);
        }
    }
}
