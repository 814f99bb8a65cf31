//! A person of this machine who is not root: an account of its own for as long as a test runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::command::{Output, run};

/// An account with a home and a login shell. It and all that is in the home go when this is dropped.
#[derive(Debug)]
pub struct Person {
    name: String,
    home: PathBuf,
}

impl Person {
    /// Makes the account.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn make(name: &str) -> anyhow::Result<Self> {
        // Of a run that was cut off.
        remove(name);
        run("useradd", &["--create-home", "--user-group", "--shell", "/bin/bash", name]).await?.ok()?;
        let entry = run("getent", &["passwd", name]).await?.ok()?;
        let home = entry.split(':').nth(5).context("an account without a home")?;
        Ok(Self { name: name.to_owned(), home: PathBuf::from(home) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Lets it use sudo for everything, without a password.
    ///
    /// # Errors
    /// When there is no sudo.
    pub async fn may_sudo(&self) -> anyhow::Result<()> {
        run("sudo", &["-V"]).await.context("sudo is not installed")?.ok()?;
        let rule = format!("{} ALL=(ALL) NOPASSWD: ALL\n", self.name);
        std::fs::write(sudoers(&self.name), rule).context("sudoers")
    }

    /// A command line in a fresh login shell.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn shell(&self, line: &str) -> anyhow::Result<Output> {
        run("su", &["-", &self.name, "-c", line]).await
    }

    /// The arguments of `setpriv` that start a login shell which becomes the command itself: whoever ends it ends that.
    #[must_use]
    pub fn becoming(&self, line: &str) -> Vec<String> {
        let become_it = format!("exec {line}");
        let arguments = ["--reuid", &self.name, "--regid", &self.name, "--init-groups", "--reset-env", "bash", "-lc"];
        arguments.into_iter().chain([become_it.as_str()]).map(str::to_owned).collect()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn sudoers(name: &str) -> PathBuf {
    Path::new("/etc/sudoers.d").join(name)
}

/// Nobody is told of a failure: what is left over is removed by the next one of this name.
fn remove(name: &str) {
    drop(std::fs::remove_file(sudoers(name)));
    drop(Command::new("userdel").args(["--force", "--remove", name]).output());
}
