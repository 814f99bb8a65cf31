//! Codes of questions, and the words of an answer. Pure.
//!
//! Owns what a code looks like and how people may type it. Not here: which codes are open, and what they are worth
//! ([`super`]).

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;

/// Crockford's base 32 (<https://www.crockford.com/base32.html>): no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LENGTH: usize = 4;

/// A code in its normal form. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Code([u8; LENGTH]);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

impl Code {
    /// Makes a code of 20 random bits, or none: every code has a digit from 2 to 9, which no letter is read as. So no
    /// pair of words such as "no wait" is ever an answer.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        let symbol = |shift: u32| {
            let index = usize::try_from((bits >> shift) & 31).unwrap_or(0);
            ALPHABET.get(index).copied().unwrap_or(b'0')
        };
        Self([symbol(15), symbol(10), symbol(5), symbol(0)]).distinct()
    }

    /// Reads a code as people type it: any case, O for 0, I and L for 1.
    #[must_use]
    pub fn parse(typed: &str) -> Option<Self> {
        let mut code = [0_u8; LENGTH];
        if typed.len() != LENGTH {
            return None;
        }
        for (place, byte) in code.iter_mut().zip(typed.bytes()) {
            *place = match byte.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                byte if ALPHABET.contains(&byte) => byte,
                _ => return None,
            };
        }
        Self(code).distinct()
    }

    /// The code, for the person who is asked.
    #[must_use]
    pub fn dangerous_reveal(&self) -> String {
        self.0.iter().map(|byte| char::from(*byte)).collect()
    }

    fn distinct(self) -> Option<Self> {
        self.0.iter().any(|byte| (b'2'..=b'9').contains(byte)).then_some(self)
    }

    /// Whether it is the same, in a time that says nothing about where it differs.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

/// `YES <code>` or `NO <code>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it says YES.
    pub yes: bool,
    /// The code that was typed.
    pub code: Code,
}

impl Answer {
    /// Reads an answer: exactly two words.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let (word, code) = (words.next()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        let yes = word.eq_ignore_ascii_case("yes");
        if !yes && !word.eq_ignore_ascii_case("no") {
            return None;
        }
        Some(Self { yes, code: Code::parse(code)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_no_codes() {
        for words in [
            "no wait",
            "no more",
            "yes then",
            "no loli",
            "yes 0o1l",
            "no",
            "no 70K",
            "no 70KMX",
            "no 7\u{e4}K",
            "no 70KU",
        ] {
            assert_eq!(Answer::parse(words), None, "{words}");
        }
    }

    #[test]
    fn debug_hides_the_code() {
        let answer = Answer::parse("yes 70KM");
        assert!(!format!("{answer:?}").contains("70KM"));
    }

    proptest! {
        #[test]
        fn a_code_survives_being_typed(bits in 0_u32..(1 << 20)) {
            if let Some(code) = Code::from_bits(bits) {
                let shown = code.dangerous_reveal();
                prop_assert_eq!(Code::parse(&shown.to_lowercase()), Some(code.clone()));
                prop_assert_eq!(Code::parse(&shown.replace('0', "o").replace('1', "l")), Some(code));
            }
        }

        #[test]
        fn any_text_is_an_answer_or_none(text in ".{0,16}") {
            if let Some(answer) = Answer::parse(&text) {
                prop_assert_eq!(answer.code.dangerous_reveal().len(), LENGTH);
            }
        }
    }
}
