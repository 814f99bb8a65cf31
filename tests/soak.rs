//! Long-running truths: many real turns through the drill, and whether anything of it grows that should not.
//!
//! `drive` makes the turns, `sample` looks at what the parts use, `judge` says what that means. `main.rs` is the program;
//! `tests/run.sh soak` starts it. Nothing here starts, stops or changes a part of the stack.

pub mod drive;
pub mod judge;
pub mod sample;
