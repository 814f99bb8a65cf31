//! Finding secrets in what comes back, and masking them. Pure: bytes in, bytes out, whatever the chunks.
//!
//! A secret is found as it is, in base64 and base64url at each of the three alignments, in hex of either case, and each
//! of these also with any of its characters percent-encoded or JSON-escaped. What is found is overwritten with `*`, byte
//! for byte: lengths and offsets stay true, so nothing else of the answer changes, and overlapping finds cannot shield
//! one another.
//!
//! A stream holds back only what may still become a find: the longest suffix that is the beginning of some form. An
//! answer without secrets flows at once (SSE too), and the rest is bounded by six times the longest form (a JSON
//! escape is six bytes for one).
//!
//! It does not look into compressed bytes (`intercept` refuses those), nor for transformations other than these: a host
//! that hands out a secret reversed or encrypted is not caught.

use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

pub mod answer;
mod view;

pub use answer::{scrub_body, scrub_headers};
use view::{Encoding, View};

/// What a found secret is overwritten with. Valid in header values, in JSON strings and in URLs.
const MASK: u8 = b'*';

/// A scrubber that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ScrubberError {
    /// Too many or too long forms for the automaton.
    #[error("the secrets are too many or too long to be searched for")]
    TooLarge,
}

/// Searches for a fixed set of secrets.
pub struct Scrubber {
    /// None when there is nothing to search for.
    search: Option<Search>,
}

struct Search {
    /// Every form of every secret, matched anywhere and overlapping.
    forms: AhoCorasick,
    /// The secrets themselves, in any case: header names are folded to lower case before they are seen here.
    names: AhoCorasick,
    /// The same forms, sorted, to ask whether some bytes begin one.
    sorted: Vec<Zeroizing<Vec<u8>>>,
    longest: usize,
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forms = self.search.as_ref().map_or(0, |search| search.sorted.len());
        f.debug_struct("Scrubber").field("forms", &forms).finish_non_exhaustive()
    }
}

impl Scrubber {
    /// A scrubber for these values. Values are visible ASCII, see `secrets::Secret`; empty ones are ignored.
    ///
    /// # Errors
    /// See [`ScrubberError`].
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, ScrubberError> {
        let values: Vec<&[u8]> = values.into_iter().filter(|value| !value.is_empty()).collect();
        if values.is_empty() {
            return Ok(Self { search: None });
        }
        let mut sorted: Vec<Zeroizing<Vec<u8>>> = values.iter().flat_map(|value| forms(value)).collect();
        sorted.sort_by(|one, other| one.as_slice().cmp(other.as_slice()));
        sorted.dedup_by(|one, other| one.as_slice() == other.as_slice());
        let longest = sorted.iter().map(|form| form.len()).max().unwrap_or(0);
        let build = |fold: bool, patterns: &mut dyn Iterator<Item = &[u8]>| {
            AhoCorasick::builder()
                .match_kind(MatchKind::Standard)
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .ascii_case_insensitive(fold)
                .build(patterns)
                .map_err(|_| ScrubberError::TooLarge)
        };
        let search = Search {
            forms: build(false, &mut sorted.iter().map(|form| form.as_slice()))?,
            names: build(true, &mut values.into_iter())?,
            sorted,
            longest,
        };
        Ok(Self { search: Some(search) })
    }

    /// Masks every secret in bytes that are complete; `None` when there is none.
    #[must_use]
    pub fn scrub(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let search = self.search.as_ref()?;
        let mut marked = vec![false; bytes.len()];
        for view in views(bytes) {
            search.mark(&view, &mut marked);
        }
        marked.contains(&true).then(|| masked(bytes, &marked))
    }

    /// Whether a header name, itself any text a host chose, is made of a secret.
    #[must_use]
    pub fn is_in_name(&self, name: &str) -> bool {
        self.search.as_ref().is_some_and(|search| search.names.is_match(name) || search.forms.is_match(name))
    }
}

impl Search {
    /// Marks the source bytes of every form found in a view.
    fn mark(&self, view: &View<'_>, marked: &mut [bool]) {
        for found in self.forms.find_overlapping_iter(view.bytes()) {
            let (start, end) = view.source_range(found.start(), found.end());
            if let Some(range) = marked.get_mut(start..end) {
                range.fill(true);
            }
        }
    }

    /// Where, in the source, the first byte stands that may belong to a form which is not complete yet.
    fn undecided_from(&self, view: &View<'_>) -> usize {
        let bytes = view.bytes();
        let window = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        (window..bytes.len())
            .find(|start| bytes.get(*start..).is_some_and(|suffix| self.begins_a_form(suffix)))
            .map_or(view.pending_from(), |start| view.source_of(start))
    }

    /// Whether some form is longer than `text` and begins with it.
    fn begins_a_form(&self, text: &[u8]) -> bool {
        let next = self.sorted.partition_point(|form| form.as_slice() <= text);
        self.sorted.get(next).is_some_and(|form| form.starts_with(text))
    }
}

/// The scrubber at work on one stream of bytes.
#[derive(Debug)]
pub struct Stream {
    scrubber: Arc<Scrubber>,
    /// Received and not yet released; its beginning is a boundary of every view.
    held: Vec<u8>,
    /// Which of them belong to a find.
    marked: Vec<bool>,
    found: bool,
}

impl Stream {
    /// A stream at its beginning.
    #[must_use]
    pub fn new(scrubber: Arc<Scrubber>) -> Self {
        Self { scrubber, held: Vec::new(), marked: Vec::new(), found: false }
    }

    /// Takes the next bytes and returns those that are decided. May return none.
    #[must_use]
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let Some(search) = &self.scrubber.search else { return chunk.to_vec() };
        self.held.extend_from_slice(chunk);
        self.marked.resize(self.held.len(), false);
        let mut release = self.held.len();
        let views = views(&self.held);
        for view in &views {
            search.mark(view, &mut self.marked);
            release = release.min(search.undecided_from(view));
        }
        // The rest is decoded anew next time, so it has to begin between two characters of every view. An escape of one
        // encoding holds none of the other's, so one round settles it.
        for view in &views {
            release = view.boundary_at_or_before(release);
        }
        drop(views);
        self.release(release)
    }

    /// The rest, once the stream has ended.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        // Everything in `held` has been searched by the push that brought it.
        self.release(self.held.len())
    }

    /// Bytes held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether anything was masked so far.
    #[must_use]
    pub fn found(&self) -> bool {
        self.found
    }

    fn release(&mut self, count: usize) -> Vec<u8> {
        let rest = self.held.split_off(count.min(self.held.len()));
        let rest_marked = self.marked.split_off(count.min(self.marked.len()));
        let released = std::mem::replace(&mut self.held, rest);
        let marked = std::mem::replace(&mut self.marked, rest_marked);
        if marked.contains(&true) {
            self.found = true;
            masked(&released, &marked)
        } else {
            released
        }
    }
}

/// The ways in which bytes can be read. A view that would equal the plain one is left out.
fn views(bytes: &[u8]) -> Vec<View<'_>> {
    let mut views = vec![View::plain(bytes)];
    views.extend([Encoding::Percent, Encoding::Json].into_iter().filter_map(|encoding| View::decoded(bytes, encoding)));
    views
}

fn masked(bytes: &[u8], marked: &[bool]) -> Vec<u8> {
    bytes.iter().zip(marked).map(|(byte, marked)| if *marked { MASK } else { *byte }).collect()
}

/// The forms that are searched for literally; percent and JSON escapes come in through the views.
fn forms(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut forms = vec![
        Zeroizing::new(value.to_vec()),
        Zeroizing::new(hex::encode(value).into_bytes()),
        Zeroizing::new(hex::encode_upper(value).into_bytes()),
    ];
    for offset in 0..3_usize {
        let mut shifted = Zeroizing::new(vec![0; offset]);
        shifted.extend_from_slice(value);
        // Characters that also encode a neighbour's bits are not the secret's own: the first ones, and the last one of
        // an incomplete group.
        let from = offset.saturating_add(usize::from(offset > 0));
        let whole = shifted.len().saturating_mul(8) / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let encoded = Zeroizing::new(engine.encode(shifted.as_slice()).into_bytes());
            if let Some(own) = encoded.get(from..whole) {
                forms.push(Zeroizing::new(own.to_vec()));
            }
        }
    }
    forms
}

#[cfg(test)]
mod tests;
