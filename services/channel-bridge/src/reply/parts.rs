//! Cuts styled text into pieces, measured in UTF-16 units, at the best place near the limit: between paragraphs, lines,
//! words; never within a character, nor between one and what belongs to it. A style goes on in the next piece, so a block
//! of code is one in both.

use super::links;
use super::markup::{Cell, Style};

/// Pieces of differing style in one part: Telegram forgets the styles beyond the hundredth, and with them what keeps
/// addresses inert.
const MOST_STYLED: usize = 90;

/// What a text needs at most, in either form of a part.
pub(super) fn cost(cells: &[Cell]) -> usize {
    cells.iter().map(|cell| links::cost(cell.character)).sum()
}

/// Cuts; white space around a cut is dropped, and so are pieces of white space alone.
pub(super) fn split(cells: &[Cell], most: usize) -> Vec<Vec<Cell>> {
    let mut pieces = Vec::new();
    let mut rest = trimmed_start(cells);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at_checked(cut(rest, most)).unwrap_or((rest, &[]));
        let piece = trimmed_end(piece);
        if !piece.is_empty() {
            pieces.push(piece.to_vec());
        }
        rest = if behind.is_empty() { behind } else { trimmed_newlines(behind) };
    }
    pieces
}

/// Cuts and drops nothing.
pub(super) fn split_exactly(cells: &[Cell], most: usize) -> Vec<Vec<Cell>> {
    let mut pieces = Vec::new();
    let mut rest = cells;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at_checked(cut(rest, most)).unwrap_or((rest, &[]));
        pieces.push(piece.to_vec());
        rest = behind;
    }
    pieces
}

/// Where the first piece ends; at least one cell is in it.
fn cut(cells: &[Cell], most: usize) -> usize {
    let fits = fitting(cells, most);
    if fits >= cells.len() {
        return cells.len();
    }
    let from = fits / 2;
    let window = cells.get(from..fits).unwrap_or_default();
    let behind = |wanted: &dyn Fn(usize) -> bool| {
        (0..window.len()).rev().find(|at| wanted(*at)).map(|at| from.saturating_add(at).saturating_add(1))
    };
    let is = |at: usize, character: char| window.get(at).is_some_and(|cell| cell.character == character);
    behind(&|at| is(at, '\n') && at.checked_sub(1).is_some_and(|before| is(before, '\n')))
        .or_else(|| behind(&|at| is(at, '\n')))
        .or_else(|| behind(&|at| window.get(at).is_some_and(|cell| cell.character.is_whitespace())))
        .unwrap_or_else(|| {
            let mut at = fits;
            while at > from.max(1) && belong_together(cells, at) {
                at = at.saturating_sub(1);
            }
            at
        })
        .max(1)
}

/// How many cells fit; at least one.
fn fitting(cells: &[Cell], most: usize) -> usize {
    let (mut room, mut styled, mut style) = (most, 0_usize, Style::PLAIN);
    for (at, cell) in cells.iter().enumerate() {
        if cell.style != style {
            style = cell.style;
            // Bold and italic at once are two.
            styled = styled.saturating_add(style.tags().0.matches('<').count());
        }
        match room.checked_sub(links::cost(cell.character)) {
            Some(left) if styled <= MOST_STYLED => room = left,
            _ => return at.max(1),
        }
    }
    cells.len()
}

/// Whether the cell at a place belongs to the one before it: marks, skin tones, the second half of a flag.
fn belong_together(cells: &[Cell], at: usize) -> bool {
    let regional = |cell: &Cell| matches!(cell.character, '\u{1f1e6}'..='\u{1f1ff}');
    let Some(cell) = cells.get(at) else { return false };
    match cell.character {
        '\u{300}'..='\u{36f}' | '\u{20d0}'..='\u{20ff}' | '\u{1f3fb}'..='\u{1f3ff}' => true,
        _ if regional(cell) => {
            let before = cells.get(..at).unwrap_or_default().iter().rev().take_while(|cell| regional(cell)).count();
            before % 2 == 1
        }
        _ => false,
    }
}

fn trimmed_start(cells: &[Cell]) -> &[Cell] {
    cells.get(cells.iter().take_while(|cell| cell.character.is_whitespace()).count()..).unwrap_or_default()
}

fn trimmed_newlines(cells: &[Cell]) -> &[Cell] {
    cells.get(cells.iter().take_while(|cell| cell.character == '\n').count()..).unwrap_or_default()
}

fn trimmed_end(cells: &[Cell]) -> &[Cell] {
    let behind = cells.iter().rev().take_while(|cell| cell.character.is_whitespace()).count();
    cells.get(..cells.len().saturating_sub(behind)).unwrap_or_default()
}
