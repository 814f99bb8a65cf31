//! The markup of replies: the small part of Markdown that models write (fences, code, bold, italic, headings, links),
//! read into characters with a style. What is not understood stays as it is; nothing is lost but the marks.
//!
//! A link `[text](address)` becomes `text (address)`: a link never shows one thing and leads to another.

/// Longest text and longest address of a link that is read as one.
const MOST_LINK_TEXT: usize = 200;
const MOST_LINK_ADDRESS: usize = 2048;
/// Longest run of backticks that is read as a mark.
const MOST_TICKS: usize = 3;

/// How characters look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style(u8);

impl Style {
    /// Nothing special.
    pub const PLAIN: Self = Self(0);
    /// Bold.
    pub const BOLD: Self = Self(1);
    /// Italic.
    pub const ITALIC: Self = Self(2);
    /// Code within a line.
    pub const CODE: Self = Self(4);
    /// A block of code.
    pub const BLOCK: Self = Self(8);

    /// Whether it has all of another.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether messengers make no links in it.
    #[must_use]
    pub fn is_code(self) -> bool {
        self.0 & (Self::CODE.0 | Self::BLOCK.0) != 0
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// HTML around it. Code has no other style: messengers do not nest it.
    #[must_use]
    pub fn tags(self) -> (&'static str, &'static str) {
        if self.has(Self::BLOCK) {
            ("<pre>", "</pre>")
        } else if self.has(Self::CODE) {
            ("<code>", "</code>")
        } else if self.has(Self::BOLD.with(Self::ITALIC)) {
            ("<b><i>", "</i></b>")
        } else if self.has(Self::BOLD) {
            ("<b>", "</b>")
        } else if self.has(Self::ITALIC) {
            ("<i>", "</i>")
        } else {
            ("", "")
        }
    }
}

/// A character and how it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The character.
    pub character: char,
    /// Its style.
    pub style: Style,
}

/// Reads a text.
#[must_use]
pub fn parse(text: &str) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::with_capacity(text.len());
    let mut in_block = false;
    for line in text.split_inclusive('\n') {
        match fence(line) {
            Some(Fence::Bare) if in_block => {
                in_block = false;
                // The line feed before the closing fence is not part of the block.
                if let Some(last) = cells.last_mut()
                    && *last == (Cell { character: '\n', style: Style::BLOCK })
                {
                    last.style = Style::PLAIN;
                }
            }
            Some(_) if !in_block => in_block = true,
            _ if in_block => cells.extend(line.chars().map(|character| Cell { character, style: Style::BLOCK })),
            _ => {
                let (style, line) = heading(line);
                let characters: Vec<char> = line.chars().collect();
                Inline { characters: &characters, out: &mut cells }.read(0..characters.len(), style);
            }
        }
    }
    cells
}

enum Fence {
    Bare,
    Named,
}

/// A line that opens or closes a block: three backticks or more, and no further one behind them.
fn fence(line: &str) -> Option<Fence> {
    let line = line.trim();
    let name = line.strip_prefix("```")?.trim_start_matches('`');
    if name.contains('`') {
        return None;
    }
    Some(if name.is_empty() { Fence::Bare } else { Fence::Named })
}

fn heading(line: &str) -> (Style, &str) {
    let rest = line.trim_start_matches('#');
    let level = line.len().saturating_sub(rest.len());
    match rest.strip_prefix(' ') {
        Some(title) if (1..=6).contains(&level) => (Style::BOLD, title),
        _ => (Style::PLAIN, line),
    }
}

struct Inline<'a> {
    characters: &'a [char],
    out: &'a mut Vec<Cell>,
}

impl Inline<'_> {
    fn read(&mut self, range: std::ops::Range<usize>, style: Style) {
        // What is not closed once is not closed later either: without this, a line of marks would be searched to its
        // end for each of them.
        let mut hopeless: Vec<(char, usize)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some(&character) = self.characters.get(at) else { return };
            // Only marks are counted: a text of one character would else be read once for each of them.
            let run = if matches!(character, '`' | '*' | '_') { self.run(at, range.end) } else { 1 };
            let next = match character {
                '`' if run <= MOST_TICKS => self.code(at, run, range.end, &mut hopeless),
                '*' if run == 2 && !style.has(Style::BOLD) => {
                    self.emphasis(at, run, range.end, style, Style::BOLD, &mut hopeless)
                }
                '*' | '_' if run == 1 && !style.has(Style::ITALIC) => {
                    self.emphasis(at, run, range.end, style, Style::ITALIC, &mut hopeless)
                }
                '!' if self.characters.get(at.saturating_add(1)) == Some(&'[') => {
                    self.link(at.saturating_add(1), range.end, style)
                }
                '[' => self.link(at, range.end, style),
                _ => None,
            };
            at = next.unwrap_or_else(|| {
                // A run of marks stands or falls as one.
                self.push(at..at.saturating_add(run), style);
                at.saturating_add(run)
            });
        }
    }

    /// How often the character at a place is repeated.
    fn run(&self, at: usize, end: usize) -> usize {
        let rest = self.characters.get(at..end).unwrap_or_default();
        rest.iter().take_while(|character| Some(*character) == rest.first()).count()
    }

    fn push(&mut self, range: std::ops::Range<usize>, style: Style) {
        let characters = self.characters.get(range).unwrap_or_default();
        self.out.extend(characters.iter().map(|&character| Cell { character, style }));
    }

    /// Code up to a run of as many backticks.
    fn code(&mut self, at: usize, run: usize, end: usize, hopeless: &mut Vec<(char, usize)>) -> Option<usize> {
        if hopeless.contains(&('`', run)) {
            return None;
        }
        let from = at.saturating_add(run);
        let mut close = from;
        while close < end {
            match self.characters.get(close) {
                Some('`') => match self.run(close, end) {
                    length if length == run && close > from => {
                        // Whatever is around it: messengers nest nothing in code.
                        self.push(from..close, Style::CODE);
                        return Some(close.saturating_add(run));
                    }
                    length => close = close.saturating_add(length),
                },
                _ => close = close.saturating_add(1),
            }
        }
        hopeless.push(('`', run));
        None
    }

    /// Emphasis from marks that touch its first and its last character, and no letter outside.
    fn emphasis(
        &mut self,
        at: usize,
        run: usize,
        end: usize,
        style: Style,
        emphasis: Style,
        hopeless: &mut Vec<(char, usize)>,
    ) -> Option<usize> {
        let mark = *self.characters.get(at)?;
        let from = at.saturating_add(run);
        let letter_before =
            at.checked_sub(1).and_then(|before| self.characters.get(before)).is_some_and(|c| c.is_alphanumeric());
        let opens = self.characters.get(from).is_some_and(|next| !next.is_whitespace());
        if !opens || (run == 1 && letter_before) || hopeless.contains(&(mark, run)) {
            return None;
        }
        let mut close = from;
        while close < end {
            if self.characters.get(close) != Some(&mark) {
                close = close.saturating_add(1);
                continue;
            }
            let length = self.run(close, end);
            let after = close.saturating_add(length);
            let touches = close
                .checked_sub(1)
                .and_then(|before| self.characters.get(before))
                .is_some_and(|before| !before.is_whitespace());
            let letter_after = self.characters.get(after).is_some_and(|c| c.is_alphanumeric()) && after < end;
            if length == run && close > from && touches && (run == 2 || !letter_after) {
                self.read(from..close, style.with(emphasis));
                return Some(after);
            }
            close = after;
        }
        hopeless.push((mark, run));
        None
    }

    /// `[text](address)`, shown as `text (address)`.
    fn link(&mut self, at: usize, end: usize, style: Style) -> Option<usize> {
        let from = at.saturating_add(1);
        let text = self.until(from, end, ']', MOST_LINK_TEXT)?;
        if self.characters.get(text.saturating_add(1)) != Some(&'(') || text.saturating_add(1) >= end {
            return None;
        }
        let address = text.saturating_add(2);
        let close = self.until(address, end, ')', MOST_LINK_ADDRESS)?;
        self.push(from..text, style);
        self.out.extend([' ', '('].map(|character| Cell { character, style }));
        self.push(address..close, style);
        self.out.push(Cell { character: ')', style });
        Some(close.saturating_add(1))
    }

    fn until(&self, from: usize, end: usize, wanted: char, most: usize) -> Option<usize> {
        let within = self.characters.get(from..end.min(from.saturating_add(most)))?;
        within.iter().position(|character| *character == wanted).map(|at| from.saturating_add(at))
    }
}
