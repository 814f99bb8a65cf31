//! Thin: everything is in the library, so that tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    service_kit::host::main::<secret_broker::Broker>()
}
