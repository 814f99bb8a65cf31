//! Makes text from tiers, peers and third-party logs harmless before it reaches a terminal, a page or a record.

/// Shows control, escape, bidirectional and invisible characters as `\u{..}`, and cuts after `most` characters with an
/// ellipsis. Line feed and tab survive; carriage return does not, it can overwrite what was shown.
///
/// The set follows Unicode's `Bidi_Control` property (UAX #9), the zero-width and tag characters used to hide text, and
/// the categories Cc and Cf as far as they are named here.
#[must_use]
pub fn harmless(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most.saturating_mul(4)));
    for (shown, character) in text.chars().enumerate() {
        if shown >= most {
            out.push('\u{2026}');
            break;
        }
        if is_harmful(character) {
            out.push_str(&format!("\\u{{{:x}}}", u32::from(character)));
        } else {
            out.push(character);
        }
    }
    out
}

/// The same for one line: line feeds and tabs are shown as well.
#[must_use]
pub fn harmless_line(text: &str, most: usize) -> String {
    harmless(text, most).replace('\n', "\\n").replace('\t', "\\t")
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn is_harmful(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        _ if character.is_control() => true,
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}' => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shows_what_would_act() {
        assert_eq!(harmless("a\u{1b}[31mb\r\n", 99), "a\\u{1b}[31mb\\u{d}\n");
        assert_eq!(harmless("\u{202e}cod.exe", 99), "\\u{202e}cod.exe");
        assert_eq!(harmless("abcdef", 3), "abc\u{2026}");
        assert_eq!(harmless("abc", 3), "abc");
        assert_eq!(harmless_line("a\nb", 9), "a\\nb");
        assert_eq!(harmless("Gr\u{fc}\u{df}e \u{1f600}", 99), "Gr\u{fc}\u{df}e \u{1f600}");
    }

    proptest! {
        #[test]
        fn nothing_harmful_survives(text in ".*", most in 0usize..64) {
            let shown = harmless(&text, most);
            prop_assert!(!shown.chars().any(is_harmful));
        }
    }
}
