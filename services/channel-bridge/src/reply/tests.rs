#![allow(clippy::unwrap_used, clippy::string_slice, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

const MOST: usize = 4096;

fn reach() -> Reach {
    Reach::parse(["ok.example", ".docs.example", "*.one.example"]).unwrap()
}

fn tier() -> TierName {
    "tasks".parse().unwrap()
}

fn planned(text: &str) -> Vec<Part> {
    plan(&tier(), text, &reach(), MOST)
}

/// The one part of a short text, without the name of the tier.
fn html(text: &str) -> String {
    let parts = planned(text);
    assert_eq!(parts.len(), 1, "{parts:?}");
    parts[0].html.strip_prefix("[tasks]").unwrap()[1..].to_owned()
}

fn plain(text: &str) -> String {
    planned(text)[0].plain.strip_prefix("[tasks]").unwrap()[1..].to_owned()
}

#[test]
fn markup_becomes_html() {
    let table = [
        ("a < b & c > d", "a &lt; b &amp; c &gt; d"),
        ("**bold** and *it* and _it_", "<b>bold</b> and <i>it</i> and <i>it</i>"),
        ("**a *b* c**", "<b>a </b><b><i>b</i></b><b> c</b>"),
        ("2 * 3 * 4, a_b_c, **, ****, *", "2 * 3 * 4, a_b_c, **, ****, *"),
        ("`a<b` ``c`d`` `open", "<code>a&lt;b</code> <code>c`d</code> `open"),
        ("# Title\ntext", "<b>Title\n</b>text"),
        ("####### no", "####### no"),
        ("```rust\nlet x = 1;\n```\nafter", "<pre>let x = 1;</pre>\nafter"),
        ("```\n**no**\n[a](b)", "<pre>**no**\n[a](b)</pre>"),
        ("[a]", "[a]"),
        ("[see](https://ok.example/x) it", "see (https://ok.example/x) it"),
        ("![pic](https://ok.example/x.png)", "pic (https://ok.example/x.png)"),
    ];
    for (text, expected) in table {
        assert_eq!(html(text), expected, "{text:?}");
    }
}

#[test]
fn only_reachable_addresses_stay_links() {
    for live in [
        "https://ok.example",
        "http://ok.example/a?b=c#d",
        "(https://ok.example/a).",
        "HTTPS://OK.example",
        "https://ok.example:443/",
        "https://a.b.docs.example/M\u{fc}ller",
        "https://x.one.example",
        "ok.example/path",
        "\"ok.example\"",
        "anna@elsewhere.example",
        "anna.b+list@mail.else-where.example",
        "1.5 3.14 v1.2.3 e.g. U.S.A. 12:30 a/b",
    ] {
        assert_eq!(html(live), escape(live), "{live}");
        assert_eq!(plain(live), live, "{live}");
    }
    let dead = [
        ("https://evil.example/x?d=secret", "<code>hxxps://evil[.]example/\u{2026}</code>"),
        ("(http://evil.example),", "(<code>hxxp://evil[.]example</code>),"),
        ("https://10.0.0.1/", "<code>hxxps://10[.]0[.]0[.]1/\u{2026}</code>"),
        ("https://ok.example@evil.example/", "<code>hxxps://ok[.]example(at)evil[.]example/\u{2026}</code>"),
        ("https://ok.example.evil.example", "<code>hxxps://ok[.]example[.]evil[.]example</code>"),
        ("https://a.x.one.example", "<code>hxxps://a[.]x[.]one[.]example</code>"),
        ("https://ok.example\\@evil.example", "<code>hxxps://ok[.]example\\(at)evil[.]example</code>"),
        ("https://ok.example\u{3002}evil.example", "<code>hxxps://ok[.]example[.]evil[.]example</code>"),
        ("https://ok.example/\"evil.example", "<code>hxxps://ok[.]example/\u{2026}</code>"),
        (
            "https://ok.example/?u=https://evil.example",
            "<code>https[:]//ok[.]example/?u=https[:]//evil[.]example</code>",
        ),
        ("tg://resolve?domain=x", "<code>tg[:]//resolve?domain=x</code>"),
        ("xhttps://ok.example", "<code>xhttps[:]//ok[.]example</code>"),
        ("evil.example/x", "<code>evil.example/x</code>"),
        ("t.me/x", "<code>t.me/x</code>"),
        ("2.Mai", "<code>2.Mai</code>"),
        ("README.md", "<code>README.md</code>"),
        ("10.0.0.1", "<code>10.0.0.1</code>"),
        ("\u{43f}\u{440}.\u{440}\u{444}", "<code>\u{43f}\u{440}.\u{440}\u{444}</code>"),
        ("anna@evil.example/x", "<code>anna@evil.example/x</code>"),
        ("anna@secret.evil.photography", "<code>anna@secret.evil.photography</code>"),
        (
            "anna@abcdefghijklmnopqrstuvwxyz012345.evil.example",
            "<code>anna@abcdefghijklmnopqrstuvwxyz012345.evil.example</code>",
        ),
        ("abcdefghijklmnopqrstuvwxyz0@evil.example", "<code>abcdefghijklmnopqrstuvwxyz0@evil.example</code>"),
        ("a.b.c.d.e.f.g@evil.example", "<code>a.b.c.d.e.f.g@evil.example</code>"),
        ("a@b.c.d.e.f.g.h.example", "<code>a@b.c.d.e.f.g.h.example</code>"),
        ("\u{1f44d}.ws/x", "<code>\u{1f44d}.ws/x</code>"),
        ("secret.\u{1f44d}.ws/x", "<code>secret.\u{1f44d}.ws/x</code>"),
        ("secret~.ws/x", "<code>secret~.ws/x</code>"),
        ("@durov", "<code>@durov</code>"),
        ("/@durov", "<code>/@durov</code>"),
        ("[ok.example](https://evil.example/y)", "ok.example (<code>hxxps://evil[.]example/\u{2026}</code>)"),
        ("https://ok.example**.evil.example**", "<code>hxxps://ok[.]example[.]evil[.]example</code>"),
        ("https://ok.example`.evil.example`", "<code>hxxps://ok[.]example[.]evil[.]example</code>"),
        ("**evil**.**example**", "<code>evil.example</code>"),
    ];
    for (text, expected) in dead {
        assert_eq!(html(text), expected, "{text:?}");
    }
}

#[test]
fn nothing_in_the_plain_form_looks_like_a_link() {
    let text =
        "see https://evil.example/x?d=1 or `evil.example` or\n```\ncurl https://evil.example\n```\n@durov 10.0.0.1";
    let plain = plain(text);
    assert!(!plain.contains("://evil") && !plain.contains("evil.example") && !plain.contains("@durov"), "{plain}");
    assert!(
        plain.contains("evil[.]example") && plain.contains("(at)durov") && plain.contains("10[.]0[.]0[.]1"),
        "{plain}"
    );
    // In HTML a block of code is shown as it is: messengers make no links in it.
    assert!(html(text).contains("<pre>curl https://evil.example</pre>"));
}

#[test]
fn long_replies_are_cut_between_words_and_numbered() {
    let text = "word ".repeat(2000);
    let parts = planned(&text);
    assert_eq!(parts.len(), 3);
    assert!(parts[1].plain.starts_with("[tasks 2/3] word word"), "{}", &parts[1].plain[..40]);
    let words: usize = parts.iter().map(|part| part.plain.matches("word").count()).sum();
    assert_eq!(words, 2000);
    assert!(parts.iter().all(|part| part.plain.ends_with("word")));
}

#[test]
fn a_block_of_code_goes_on_in_the_next_part() {
    let text = format!("```\n{}```\nend", "line of code\n".repeat(600));
    let parts = planned(&text);
    assert!(parts.len() >= 2);
    for part in &parts {
        assert_eq!(part.html.matches("<pre>").count(), part.html.matches("</pre>").count());
        assert!(part.html.contains("<pre>line of code\n"), "{}", part.html);
    }
    assert!(parts[1].html.starts_with("[tasks 2/"), "{}", parts[1].html);
}

#[test]
fn characters_stay_whole() {
    // Two units each, and nothing to cut at.
    let parts = planned(&"\u{1f600}".repeat(5000));
    let count: usize = parts.iter().map(|part| part.plain.matches('\u{1f600}').count()).sum();
    assert_eq!(count, 5000);
    // A thumb and its skin tone.
    for lead in 0..3 {
        let text = format!("{}{}", "x".repeat(lead), "\u{1f44d}\u{1f3fd}".repeat(2000));
        for part in planned(&text) {
            let body = part.plain.split_once("] ").unwrap().1;
            assert!(!body.starts_with('\u{1f3fd}'), "{lead}");
        }
    }
}

#[test]
fn there_is_an_end_to_it_and_it_is_said() {
    let parts = planned(&"x".repeat(200_000));
    assert_eq!(parts.len(), MOST_PARTS + 1);
    assert!(parts.last().unwrap().plain.contains("more characters are not shown"));
    assert_eq!(planned("").len(), 1);
    assert!(planned(" \n ")[0].plain.contains("(no text)"));
}

#[test]
fn a_question_is_shown_to_its_last_character_before_its_code() {
    let action = format!("Approve shell?\ncommand: curl https://evil.example/{}", "a b\n\n  ".repeat(1500));
    let parts = question(&tier(), &action, "7K3M", 10, &reach(), MOST);
    assert!(parts.len() >= 2);
    for (index, part) in parts.iter().enumerate() {
        assert_eq!(part.html.contains("7K3M"), index + 1 == parts.len(), "{part:?}");
    }
    let shown: String = parts.iter().map(|part| part.html.strip_prefix("[tasks]").unwrap()[1..].to_owned()).collect();
    let shown = shown.replace("</pre><pre>", "");
    assert!(shown.contains(&format!("<pre>{}</pre>", escape(&action))), "{shown}");
    assert!(parts[0].html.starts_with("[tasks] The agent asks for permission:\n<pre>Approve shell?"));
}

/// What a messenger would count, with the tags and the entities gone.
fn visible(html: &str) -> String {
    let mut out = String::new();
    let mut tag = false;
    for character in html.chars() {
        match character {
            '<' => tag = true,
            '>' => tag = false,
            _ if tag => {}
            other => out.push(other),
        }
    }
    out.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// A reply may have 256 KiB, and hold what it likes.
#[test]
fn no_text_takes_long() {
    let most = 256 * 1024;
    for piece in [
        "x",
        "*",
        "_",
        "`",
        "[",
        "a.",
        "@",
        "*a ",
        "**a ",
        "_a ",
        "`a ``",
        "[a",
        "[a](",
        "https://",
        "\u{1f1e6}",
        "a\n",
        "- *x\n",
        " ",
    ] {
        let begun = std::time::Instant::now();
        planned(&piece.repeat(most / piece.len()));
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{piece:?}: {:?}", begun.elapsed());
    }
}

proptest! {
    #[test]
    fn every_part_fits_in_both_forms(
        text in "([a-z@:./` *_\\[\\]()#\n\u{1f600}\u{e4}<&]|https://|evil\\.example|```\n|\\*\\*){0,150}",
        most in 120_usize..240,
    ) {
        for part in plan(&tier(), &text, &reach(), most) {
            prop_assert!(part.plain.encode_utf16().count() <= most, "{} {:?}", most, part);
            prop_assert!(visible(&part.html).encode_utf16().count() <= most, "{} {:?}", most, part);
            for tag in ["b", "i", "code", "pre"] {
                let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
                prop_assert_eq!(part.html.matches(&open).count(), part.html.matches(&close).count());
            }
        }
    }

    #[test]
    fn nothing_but_marks_is_lost(text in "[a-z \n*_`]{0,200}") {
        let letters = |text: &str| text.chars().filter(char::is_ascii_lowercase).collect::<String>();
        let shown: String = planned(&text).iter().map(|part| visible(&part.html)).collect();
        let shown = shown.replace("[tasks]", "").replace("(no text)", "");
        // The name of a fence is a mark.
        prop_assume!(!text.contains("```"));
        prop_assert_eq!(letters(&shown), letters(&text));
    }
}
