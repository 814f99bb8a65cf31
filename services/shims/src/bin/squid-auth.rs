//! Squid's basic authentication helper. See [`shims::users`].
//!
//! `squid-auth <users file>`. The file is read for every question: Squid caches answers, the file is small, and so a
//! user that was taken out of it is out at once. A file that cannot be read or understood admits nobody.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shims::users::Users;

/// Far more than there will ever be tiers.
const FILE_MOST: u64 = 1024 * 1024;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        eprintln!("usage: squid-auth <users file>");
        return ExitCode::from(2);
    };
    if let Err(problem) = users(&path) {
        eprintln!("squid-auth: {problem}; nobody is admitted until that is repaired");
    }
    let served = shims::helper::serve(io::stdin().lock(), io::stdout().lock(), |line, whole| {
        let users = users(&path).unwrap_or_else(|problem| {
            eprintln!("squid-auth: {problem}");
            Users::default()
        });
        users.answer(line, whole)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("squid-auth: lost Squid: {error}");
            ExitCode::FAILURE
        }
    }
}

fn users(path: &Path) -> Result<Users, String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MOST).read_to_string(&mut text))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Users::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}
