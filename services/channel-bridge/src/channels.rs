//! The channels people write on. So far the terminal; messengers will stand beside it.

pub mod terminal;
