//! Finding secrets in what comes back, and masking them. Pure: bytes in, bytes out, whatever the chunks.
//!
//! A secret is found as it is, in base64 and base64url at each of the three alignments, in hex of any case, and each of
//! these also with any of its characters percent-encoded or JSON-escaped. A secret that is itself hex or a UUID is found
//! in any case too, with and without its hyphens: hosts spell such values as they like. A secret that is itself an
//! encoding of text, as what stands behind `Basic` is, is found as that text as well, and so is what stands behind the
//! text's first colon, which is the password. What is found is overwritten with `*`, byte for byte: lengths and offsets stay true, so nothing else of the answer changes, and overlapping finds cannot shield
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
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use base64::{Engine as _, alphabet};
use zeroize::Zeroizing;

pub mod answer;
mod view;

pub use answer::{scrub_body, scrub_headers, scrub_text};
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
    /// Every form of every secret in any case, matched anywhere and overlapping; whether the case is right is looked at
    /// afterwards. One pass over the bytes is what scrubbing costs, and finds are rare.
    automaton: AhoCorasick,
    /// The same forms in the same order, sorted by their lower case, to ask whether some bytes begin one.
    forms: Vec<Form>,
    longest: usize,
}

/// One spelling of a secret.
struct Form {
    text: Zeroizing<Vec<u8>>,
    lower: Zeroizing<Vec<u8>>,
    /// Whether it means the same in any case.
    any_case: bool,
}

impl Form {
    fn new(text: Vec<u8>, any_case: bool) -> Self {
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        Self { text: Zeroizing::new(text), lower, any_case }
    }

    /// Whether bytes that equal its beginning in lower case are its beginning.
    fn begins_with(&self, bytes: &[u8]) -> bool {
        self.any_case || self.text.starts_with(bytes)
    }
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forms = self.search.as_ref().map_or(0, |search| search.forms.len());
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
        let meant: Vec<Zeroizing<Vec<u8>>> = values.iter().flat_map(|value| decoded(value)).collect();
        let values = values.into_iter().chain(meant.iter().map(|value| value.as_slice()));
        let mut forms: Vec<Form> = values.flat_map(forms).collect();
        forms.sort_by(|one, other| {
            let by_text = one.text.as_slice().cmp(other.text.as_slice());
            one.lower.as_slice().cmp(other.lower.as_slice()).then(by_text).then(other.any_case.cmp(&one.any_case))
        });
        // Of equal texts the one that is found in any case comes first and stays.
        forms.dedup_by(|one, other| one.text.as_slice() == other.text.as_slice());
        let longest = forms.iter().map(|form| form.text.len()).max().unwrap_or(0);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .ascii_case_insensitive(true)
            .build(forms.iter().map(|form| form.text.as_slice()))
            .map_err(|_| ScrubberError::TooLarge)?;
        Ok(Self { search: Some(Search { automaton, forms, longest }) })
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

    /// Whether a header name, itself any text a host chose, is made of a secret, in any case: header names are folded to
    /// lower case before they are seen here.
    #[must_use]
    pub fn is_in_name(&self, name: &str) -> bool {
        self.search.as_ref().is_some_and(|search| search.automaton.is_match(name))
    }
}

impl Search {
    /// Marks the source bytes of every form found in a view.
    fn mark(&self, view: &View<'_>, marked: &mut [bool]) {
        for found in self.automaton.find_overlapping_iter(view.bytes()) {
            let form = self.forms.get(found.pattern().as_usize());
            if !view.bytes().get(found.range()).zip(form).is_some_and(|(bytes, form)| form.begins_with(bytes)) {
                continue;
            }
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
        let tail = bytes.get(window..).unwrap_or_default();
        let lower = tail.to_ascii_lowercase();
        (0..tail.len())
            .find(|start| match (tail.get(*start..), lower.get(*start..)) {
                (Some(text), Some(lower)) => self.begins_a_form(text, lower),
                _ => false,
            })
            .map_or(view.pending_from(), |start| view.source_of(window.saturating_add(start)))
    }

    /// Whether some form is longer than `text`, whose lower case is `lower`, and begins with it.
    fn begins_a_form(&self, text: &[u8], lower: &[u8]) -> bool {
        let next = self.forms.partition_point(|form| form.lower.as_slice() <= lower);
        let candidates = self.forms.get(next..).unwrap_or_default().iter();
        candidates.take_while(|form| form.lower.starts_with(lower)).any(|form| form.begins_with(text))
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
fn forms(value: &[u8]) -> Vec<Form> {
    // Hex digits in groups, as UUIDs and many keys are: the case says nothing, and the hyphens little.
    let is_hex = value.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    let mut forms = vec![Form::new(value.to_vec(), is_hex), Form::new(hex::encode(value).into_bytes(), true)];
    if is_hex && value.contains(&b'-') {
        let digits: Vec<u8> = value.iter().copied().filter(|byte| *byte != b'-').collect();
        // As short as the shortest secret: what is shorter would be found by chance.
        if digits.len() >= crate::secrets::SHORTEST {
            forms.push(Form::new(digits, true));
        }
    }
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
                forms.push(Form::new(own.to_vec(), false));
            }
        }
    }
    forms
}

/// What a secret says if it is an encoding of text, and the parts of that which are secrets by themselves: what follows the
/// first colon (`user:password`), or what precedes it where nothing follows (some hosts want a key as the user). Parts
/// as short as no secret is are left out: they would be found by chance.
fn decoded(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let engines = [&alphabet::STANDARD, &alphabet::URL_SAFE].map(|alphabet| GeneralPurpose::new(alphabet, config));
    let base64 = engines.iter().filter_map(|engine| engine.decode(value).ok());
    let texts = base64.chain(hex::decode(value).ok()).map(Zeroizing::new);
    let is_text =
        |text: &[u8]| text.len() >= crate::secrets::SHORTEST && text.iter().all(|byte| (0x21..=0x7e).contains(byte));
    let mut found = Vec::new();
    for text in texts.filter(|text| is_text(text)) {
        let mut halves = text.splitn(2, |byte| *byte == b':');
        let part = match (halves.next(), halves.next()) {
            (Some(before), Some([])) => before,
            (_, Some(after)) => after,
            _ => &[],
        };
        if is_text(part) {
            found.push(Zeroizing::new(part.to_vec()));
        }
        found.push(text);
    }
    found
}

#[cfg(test)]
mod tests;
