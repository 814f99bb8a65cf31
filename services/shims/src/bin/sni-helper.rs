//! Squid's external ACL helper that compares SNI and CONNECT host. See [`shims::sni`].
//!
//! `sni-helper` takes no arguments; it ends when Squid closes its input.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    match shims::helper::serve(io::stdin().lock(), io::stdout().lock(), shims::sni::answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sni-helper: lost Squid: {error}");
            ExitCode::FAILURE
        }
    }
}
