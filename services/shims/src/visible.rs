//! Makes text of a third-party program harmless before it reaches a log: no control, escape or direction character
//! passes unseen, and no line is longer than its cap.

use std::fmt::Write as _;

/// Bytes as text of at most `most` characters. What could move a cursor, hide or reorder text becomes `\u{..}`; invalid
/// UTF-8 becomes U+FFFD; a cut end is marked with `…`.
#[must_use]
pub fn visible(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len().min(most));
    for (count, c) in text.chars().enumerate() {
        if count >= most {
            out.push('…');
            break;
        }
        if is_invisible(c) {
            // Writing to a String cannot fail.
            if write!(out, "\\u{{{:x}}}", u32::from(c)).is_err() {
                break;
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, line separators, zero-width and bidirectional controls, tag characters (Unicode TR36, TR39).
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_moves_the_cursor() {
        for (given, shown) in [
            (&b"plain text"[..], "plain text"),
            (b"\x1b[31mred", "\\u{1b}[31mred"),
            (b"a\rb\x00", "a\\u{d}b\\u{0}"),
            ("\u{202e}txt.exe".as_bytes(), "\\u{202e}txt.exe"),
            ("caf\u{e9}".as_bytes(), "caf\u{e9}"),
            (b"\xff", "\u{fffd}"),
        ] {
            assert_eq!(visible(given, 100), shown);
        }
        assert_eq!(visible(b"abcdef", 3), "abc…");
        assert_eq!(visible(b"abc", 3), "abc");
    }

    proptest! {
        #[test]
        fn output_is_always_visible(bytes in proptest::collection::vec(any::<u8>(), 0..200), most in 0_usize..50) {
            let shown = visible(&bytes, most);
            prop_assert!(!shown.chars().any(is_invisible));
        }
    }
}
