//! Three tiers as the older stack has them: a set of ours with every field of theirs, and theirs where they are at hand
//! (`ASSISTANT_COMPAT_DIR`, or `shared/compat` beside the project; without them the test says SKIPPED, which
//! `tests/run.sh` takes for a failure).

use std::io::Write;
use std::path::PathBuf;

use tier_supervisor::config::Tiers;

use crate::stack::{Stack, project};

/// The three tiers of a set, by what they are.
pub(crate) struct Set {
    pub(crate) tiers: PathBuf,
    pub(crate) allowlist: PathBuf,
    pub(crate) env: PathBuf,
    pub(crate) names: [&'static str; 3],
}

impl Set {
    pub(crate) fn ours() -> Self {
        let dir = project().join("services/tier-supervisor/tests/inputs/glue");
        Self {
            tiers: dir.join("tiers.yaml"),
            allowlist: dir.join("allowlist.txt"),
            env: dir.join("env.example"),
            names: ["news", "todo", "workshop"],
        }
    }

    #[allow(clippy::disallowed_methods, reason = "where the older stack's files are is the environment's to say")]
    pub(crate) fn theirs() -> Option<Self> {
        let dir =
            std::env::var_os("ASSISTANT_COMPAT_DIR").map_or_else(|| project().join("../shared/compat"), PathBuf::from);
        let set = Self {
            tiers: dir.join("seed-tiers.yaml"),
            allowlist: dir.join("seed-allowlist.txt"),
            env: dir.join("seed-env.example"),
            names: ["updates", "tasks", "unrestricted"],
        };
        if set.tiers.is_file() {
            return Some(set);
        }
        // Past the capture of a test's output: nobody looks into a test that passed.
        let line = format!("SKIPPED: the older stack's files are not in {} (ASSISTANT_COMPAT_DIR)\n", dir.display());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        None
    }

    pub(crate) fn all() -> Vec<Self> {
        std::iter::once(Self::ours()).chain(Self::theirs()).collect()
    }

    pub(crate) fn stack(&self) -> Stack {
        let mut stack = Stack::drill();
        stack.settings.tiers_file = self.tiers.clone();
        stack.settings.allowlist_file = self.allowlist.clone();
        stack
    }

    pub(crate) fn read(&self) -> Tiers {
        self.stack().prepare().unwrap_or_else(|error| panic!("{error}")).tiers
    }
}
