//! `.env`: `NAME=value` lines as Docker Compose reads them, but for what cannot be told apart from a mistake.
//!
//! Nothing is substituted, a value ends on its line, and a name stands there once: anything else is an error at its line.
//! Knows no variable; what each means is `env_import`'s. No value, and no name that could be one, is ever in a message.

use zeroize::Zeroizing;

use super::problem::{At, Report};

/// Longest line; keys and tokens are far shorter.
const LONGEST_LINE: usize = 8 * 1024;

/// One variable.
#[derive(Debug)]
pub(super) struct Variable {
    pub(super) at: At,
    pub(super) name: String,
    pub(super) value: Zeroizing<String>,
}

/// Every variable, in the order of the file.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Vec<Variable> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables: Vec<Variable> = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let at = At { line: index.saturating_add(1), column: 1 };
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.len() > LONGEST_LINE {
            report.problem(at, format!("this line is longer than {LONGEST_LINE} bytes"), "that cannot be meant");
            continue;
        }
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        match variable(content) {
            Err((what, fix)) => report.problem(at, what, fix),
            Ok((name, value)) => match variables.iter().find(|earlier| earlier.name == name) {
                Some(earlier) => {
                    let what = format!("{} stands in line {} already", shown(name), earlier.at.line);
                    report.problem(at, what, "keep one");
                }
                None => variables.push(Variable { at, name: name.to_owned(), value }),
            },
        }
    }
    variables
}

/// A name as a message may repeat it: a key on a line of its own can end with `=` and look like a name.
pub(super) fn shown(name: &str) -> &str {
    let word_like = name.contains('_') || !name.bytes().any(|b| b.is_ascii_digit());
    if word_like && name.len() <= 64 { name } else { "a variable (name not shown)" }
}

type Wrong = (&'static str, &'static str);

fn variable(content: &str) -> Result<(&str, Zeroizing<String>), Wrong> {
    let content = content.strip_prefix("export ").map_or(content, str::trim_start);
    let Some((name, rest)) = content.split_once('=') else {
        return Err(("this line has no \"=\"", "write NAME=value, or put # in front of a comment"));
    };
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !plain {
        return Err(("this is not the name of a variable", "write NAME=value, without blanks around the \"=\""));
    }
    value(rest).map(|value| (name, value))
}

fn value(rest: &str) -> Result<Zeroizing<String>, Wrong> {
    if rest.chars().any(|c| c.is_control() && c != '\t') {
        return Err(("this value has control characters", "write it again by hand"));
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let (value, after) = if let Some(quoted) = rest.strip_prefix('\'') {
        let (value, after) = quoted.split_once('\'').ok_or(UNCLOSED)?;
        (Zeroizing::new(value.to_owned()), after)
    } else if let Some(quoted) = rest.strip_prefix('"') {
        double_quoted(quoted)?
    } else {
        (bare(rest)?, "")
    };
    let after = after.trim_start_matches([' ', '\t']);
    if after.is_empty() || after.starts_with('#') {
        Ok(value)
    } else {
        Err(("something stands behind the closing quote", "put the whole value in one pair of quotes"))
    }
}

const UNCLOSED: Wrong = ("this quote is not closed on its line", "close it; a value cannot go on in the next line");
const SUBSTITUTION: Wrong =
    ("this value has a \"$\", and nothing is substituted here", "put the value in single quotes");

fn double_quoted(text: &str) -> Result<(Zeroizing<String>, &str), Wrong> {
    let mut value = Zeroizing::new(String::with_capacity(text.len()));
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Ok((value, characters.as_str())),
            '$' => return Err(SUBSTITUTION),
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\' | '$')) => value.push(escaped),
                Some(_) => {
                    return Err(("this escape is not known", "only \\\", \\\\ and \\$ are; or use single quotes"));
                }
                None => return Err(UNCLOSED),
            },
            other => value.push(other),
        }
    }
    Err(UNCLOSED)
}

fn bare(text: &str) -> Result<Zeroizing<String>, Wrong> {
    // A comment begins behind a blank only: keys may hold a #.
    let mut end = text.len();
    let mut blank_before = true;
    for (index, character) in text.char_indices() {
        if character == '#' && blank_before {
            end = index;
            break;
        }
        blank_before = character == ' ' || character == '\t';
    }
    let value = text.get(..end).unwrap_or_default().trim_end();
    if value.contains('$') {
        return Err(SUBSTITUTION);
    }
    if value.contains(['"', '\'', '`']) {
        return Err(("there is a quote inside this value", "put the whole value in the other kind of quotes"));
    }
    if value.contains([' ', '\t']) {
        return Err(("this value has blanks", "put it in quotes"));
    }
    Ok(Zeroizing::new(value.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::super::problem::Problem;
    use super::*;

    fn read(text: &str) -> (Vec<(String, String)>, Vec<String>) {
        let (mut problems, mut remarks): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
        let mut report = Report { file: ".env", problems: &mut problems, remarks: &mut remarks };
        let variables = parse(text, &mut report);
        (
            variables.iter().map(|variable| (variable.name.clone(), variable.value.to_string())).collect(),
            problems.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn values() {
        for (line, value) in [
            ("A=", ""),
            ("A=x", "x"),
            ("export A=x", "x"),
            ("  A=x  ", "x"),
            ("A=x\r", "x"),
            ("A=x # why", "x"),
            ("A=x#y", "x#y"),
            ("A=# why", ""),
            ("A=a=b==", "a=b=="),
            ("A='x y # z' # why", "x y # z"),
            ("A='$x \\n'", "$x \\n"),
            ("A=\"ssh-ed25519 AAAA you@mac\"", "ssh-ed25519 AAAA you@mac"),
            (r#"A="\"\\\$""#, "\"\\$"),
            ("A=\"\"", ""),
            ("\u{feff}A=x", "x"),
        ] {
            assert_eq!(read(line), (vec![("A".to_owned(), value.to_owned())], Vec::new()), "{line}");
        }
    }

    #[test]
    fn every_wrong_line_is_named_and_no_value_repeated() {
        let text = "# fine\nhunter2\nA B=hunter2\nC=\"hunter2\nD='hunter2\nE=$hunter2\nF=\"${hunter2}\"\nG='a'hunter2\n\
                    H=hunter2 hunter2\nI=it's-hunter2\nJ=\"\\nhunter2\"\nK=a\nK=hunter2\nHUNTER2=a\nHUNTER2=b\n-L=hunter2\n\
                    M=a\u{1}hunter2\nok=1\n";
        let (variables, problems) = read(text);
        let lines: Vec<usize> =
            problems.iter().map(|problem| problem.split(':').nth(1).unwrap().parse().unwrap()).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 16, 17], "{problems:#?}");
        assert!(problems.iter().all(|problem| !problem.to_lowercase().contains("hunter2")), "{problems:#?}");
        assert!(problems.iter().any(|problem| problem.contains("K stands in line 12 already; keep one")));
        assert_eq!(variables.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["K", "HUNTER2", "ok"]);
    }

    proptest! {
        #[test]
        fn single_quoted_values_come_back(value in "[ -&(-~]{0,40}") {
            let (variables, problems) = read(&format!("A='{value}'"));
            prop_assert!(problems.is_empty());
            prop_assert_eq!(&variables[0].1, &value);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}") {
            drop(read(&text));
        }
    }
}
