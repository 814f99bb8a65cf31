//! The table that this process loaded last, and the putting back of it.
//!
//! It needs nothing but the kernel: while the engine hangs, and nobody can tell what runs, the walls that stood are still
//! the right ones. One lock for loading and mending, so that neither undoes the other's work.

use std::sync::{Mutex, PoisonError};

use super::generation::{self, Generation};
use super::{KernelError, Ruleset, load, matches_loaded, quiet};

/// What was found when the table was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// It stood, or none has been loaded yet.
    Stood,
    /// It did not, and was loaded again.
    Again,
}

/// The table as it should stand until another one is loaded.
#[derive(Debug, Default)]
pub struct Standing(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    loaded: Option<Ruleset>,
    /// The generation of the kernel's tables in which `loaded` was seen to stand.
    seen: Option<Generation>,
}

impl Standing {
    /// Loads a table; from now on it is the one that should stand.
    ///
    /// # Errors
    /// As [`load`]. A table that the kernel refused changes nothing.
    pub fn load(&self, ruleset: &Ruleset) -> Result<(), KernelError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = load(ruleset);
        if !matches!(outcome, Err(KernelError::Tool { what: "loaded", .. })) {
            *state = State { loaded: Some(ruleset.clone()), seen: None };
        }
        outcome
    }

    /// This one was found to stand: another run of this program loaded it.
    pub fn adopt(&self, ruleset: Ruleset) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.loaded.as_ref() != Some(&ruleset) {
            *state = State { loaded: Some(ruleset), seen: None };
        }
    }

    /// The one that should stand.
    #[must_use]
    pub fn loaded(&self) -> Option<Ruleset> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).loaded.clone()
    }

    /// Looks whether it stands, and loads it again where it does not. Costs next to nothing while nobody has written any
    /// table. Interfaces that came since are made quiet.
    ///
    /// # Errors
    /// When it cannot be looked at or loaded.
    pub fn mend(&self) -> Result<Mended, KernelError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ruleset) = state.loaded.clone() else { return Ok(Mended::Stood) };
        // Asked before the look: what is written during it makes another generation, and another look.
        let now = generation::current()?;
        if state.seen != Some(now) {
            if !matches_loaded(&ruleset)? {
                load(&ruleset)?;
                return Ok(Mended::Again);
            }
            state.seen = Some(now);
        }
        quiet::hush(&ruleset)?;
        Ok(Mended::Stood)
    }
}
