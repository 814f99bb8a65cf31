//! What each variable of `.env` means: kept as a secret, taken as a setting, or no longer needed.
//!
//! Owns the table of variables, `<state>/secrets/<name>` for the secrets among them and `<state>/env.json` for the rest.
//! env.json has the shape that the same fields have in supervisor.json. A secret that was taken stays when its line is
//! removed from `.env`, which is what the person is asked to do. No value is ever printed.

mod meaning;

use std::fmt;
use std::path::{Path, PathBuf};

use assistant_proto::name::SecretName;
use zeroize::Zeroizing;

use super::env_file;
use super::problem::{Problem, Problems, Report};
use crate::files::{self, FileError};
use meaning::{Meaning, Values};

pub(crate) use meaning::model_variable;
pub(super) use meaning::variable_of;

/// What happened to a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Used as it stands in the file.
    Accepted,
    /// Its value is now the file of this secret.
    Taken(SecretName),
    /// The file of this secret has the same value already.
    Kept(SecretName),
    /// The file of this secret had another value, which is gone.
    Replaced(SecretName),
    /// Empty, or still what the example says.
    Unset,
    /// Nothing reads it any more, and why.
    NotNeeded(&'static str),
    /// Not known, and what may have been meant.
    Unknown(String),
}

/// A variable and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Line of `.env`, from 1.
    pub line: usize,
    /// Its name, as it may be shown.
    pub name: String,
    /// What happened to it.
    pub fate: Fate,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: ", self.line, self.name)?;
        match &self.fate {
            Fate::Accepted => f.write_str("accepted"),
            Fate::Taken(secret) => write!(f, "kept as secret {secret}; now remove the line"),
            Fate::Kept(secret) => write!(f, "is secret {secret} already; remove the line"),
            Fate::Replaced(secret) => write!(f, "replaces what secret {secret} was; now remove the line"),
            Fate::Unset => f.write_str("not set"),
            Fate::NotNeeded(why) => write!(f, "no longer needed: {why}"),
            Fate::Unknown(fix) => write!(f, "not known; {fix}"),
        }
    }
}

/// A `.env` that was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Every variable, in the order of the file.
    pub said: Vec<Said>,
    /// What is worth saying beside, a sentence each.
    pub remarks: Vec<String>,
    /// `<state>/env.json`.
    pub settings: PathBuf,
    /// Whether it, or the secrets beside it, say where model calls go.
    pub has_model: bool,
}

/// Why `.env` was not taken over. Nothing is written then, but where a write itself failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read, or what it is for not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is wrong in it.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads `.env` and writes what it says beneath the state directory.
///
/// # Errors
/// With every problem of the file, or the first file that cannot be written.
pub fn import(file: &Path, state_dir: &Path) -> Result<Imported, ImportError> {
    let text = Zeroizing::new(files::read_text(file)?);
    let secrets_dir = state_dir.join("secrets");
    let there = |name: &SecretName| match files::read_bytes(&secrets_dir.join(name.as_str())) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    };

    let (mut problems, mut remarks): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
    let name = file.display().to_string();
    let mut report = Report { file: &name, problems: &mut problems, remarks: &mut remarks };
    let variables = env_file::parse(&text, &mut report);
    let mut values = Values::default();
    let mut said = Vec::new();
    for variable in &variables {
        let fate = match meaning::of(&variable.name) {
            Meaning::NotNeeded(why) => Fate::NotNeeded(why),
            Meaning::Unknown(fix) => Fate::Unknown(fix),
            _ if meaning::is_unset(&variable.value) => Fate::Unset,
            Meaning::Setting => {
                values.set(variable);
                Fate::Accepted
            }
            Meaning::Secret(secret) => {
                values.secret(&secret, variable, &mut report);
                Fate::Taken(secret)
            }
        };
        said.push(Said { line: variable.at.line, name: env_file::shown(&variable.name).to_owned(), fate });
    }
    let settings = values.settings(&kept(&secrets_dir)?, &mut report);
    if !problems.is_empty() {
        return Err(Problems(problems).into());
    }

    files::private_directory(&secrets_dir)?;
    for (secret, value) in values.secrets() {
        let fate = match there(secret)? {
            Some(old) if old.trim_ascii_end() == value.as_bytes() => Fate::Kept(secret.clone()),
            Some(_) => Fate::Replaced(secret.clone()),
            None => Fate::Taken(secret.clone()),
        };
        // Also where the value is the same, when others could read it.
        let path = secrets_dir.join(secret.as_str());
        if !matches!(fate, Fate::Kept(_)) || files::check_private(&path).is_err() {
            files::write_atomically(&path, value.as_bytes(), 0o600)?;
        }
        for said in said.iter_mut().filter(|said| said.fate == Fate::Taken(secret.clone())) {
            said.fate = fate.clone();
        }
    }
    let path = state_dir.join("env.json");
    let json = format!("{settings:#}\n");
    if files::read_if_present(&path)?.as_ref() != Some(&json) {
        files::write_atomically(&path, json.as_bytes(), 0o600)?;
    }
    let has_model = settings.get("model").is_some() || settings.get("tee").is_some();
    Ok(Imported { said, remarks: remarks.iter().map(ToString::to_string).collect(), settings: path, has_model })
}

/// Secrets that are there from earlier.
fn kept(secrets_dir: &Path) -> Result<Vec<SecretName>, FileError> {
    let names = files::names_in(secrets_dir)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

#[cfg(test)]
mod tests;
