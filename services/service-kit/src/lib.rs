//! What every service of the stack shares: its life from start to drain, telemetry, supervised tasks, the control
//! socket, the bus. It knows no domain: nothing here decides what is allowed.

pub mod bus;
pub mod clock;
pub mod files;
pub mod fold;
pub mod host;
pub mod metrics;
pub mod net;
pub mod roots;
pub mod task;
pub mod telemetry;
pub mod text;
pub mod trace;
pub mod turns;
