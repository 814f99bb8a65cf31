//! The files of ZeroClaw's dashboard, read once at the start, from a directory of the pinned release. Never from an agent's
//! container: what a browser runs must not come from there.
//!
//! A request is looked up by name in a table, so no path of a request ever reaches the file system. Not here: which
//! requests are answered with a file (`paths`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// The page everything begins with.
const INDEX: &str = "index.html";
/// Several times what 0.8.7 has: 62 files, 3.4 MB.
const MOST_FILES: usize = 1024;
const MOST_BYTES: usize = 64 << 20;
const MOST_DEPTH: usize = 8;

/// Why there is no dashboard.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file system said no.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something else than a dashboard lies there.
    #[error("{path} holds more than any dashboard has")]
    TooMuch {
        /// Where.
        path: PathBuf,
    },
    /// The page is missing, or is no text.
    #[error("{path} has no usable index.html; the image of channel-bridge is not what it should be, build it again")]
    NoPage {
        /// Where.
        path: PathBuf,
    },
}

/// A file as it is sent.
#[derive(Debug, Clone)]
pub struct File {
    /// Its content.
    pub bytes: Bytes,
    /// Its content type, by its ending.
    pub kind: &'static str,
    /// Whether its name changes with its content.
    pub fixed: bool,
}

/// Everything a browser may load.
#[derive(Debug)]
pub struct Files {
    files: BTreeMap<String, File>,
    page: Bytes,
    /// What the page's own scripts are known by, as a source expression of a content security policy.
    scripts: String,
    /// The same for style attributes.
    styles: String,
}

impl Files {
    /// Reads a directory. Symlinks and files of unknown kinds are left out.
    ///
    /// # Errors
    /// See [`FilesError`].
    pub fn load(dir: &Path) -> Result<Self, FilesError> {
        let mut reading = Reading { root: dir, files: BTreeMap::new(), bytes: 0 };
        reading.directory(dir, "", 0)?;
        let Reading { mut files, .. } = reading;
        let no_page = || FilesError::NoPage { path: dir.to_owned() };
        let page = files.remove(INDEX).ok_or_else(no_page)?.bytes;
        // Pages beside the one would be pages of their own.
        files.retain(|_, file| file.kind != HTML);
        let text = std::str::from_utf8(&page).map_err(|_| no_page())?;
        let scripts = hashes(between(text, "<script>", "</script>"));
        let styles = hashes(between(text, "style=\"", "\""));
        Ok(Self { files, page: page.clone(), scripts, styles })
    }

    /// The file of a name below `/_app/`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&File> {
        self.files.get(name)
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> Bytes {
        self.page.clone()
    }

    /// The page's policy: scripts and styles of this site only, nothing loaded or sent anywhere else, whatever the
    /// agent's words make of the page. `socket` is the site's own address for WebSockets, which some browsers want named.
    #[must_use]
    pub fn policy(&self, socket: &str) -> String {
        format!(
            "default-src 'none'; script-src 'self'{}; style-src 'self' 'unsafe-hashes'{}; img-src 'self' data:; \
             font-src 'self'; connect-src 'self' {socket}; object-src 'none'; base-uri 'none'; form-action 'none'; \
             frame-src 'none'; frame-ancestors 'none'",
            self.scripts, self.styles
        )
    }
}

struct Reading<'a> {
    root: &'a Path,
    files: BTreeMap<String, File>,
    bytes: usize,
}

impl Reading<'_> {
    fn directory(&mut self, dir: &Path, name: &str, depth: usize) -> Result<(), FilesError> {
        if depth > MOST_DEPTH {
            return Err(self.too_much());
        }
        let failed = |source| FilesError::Io { path: dir.to_owned(), source };
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            // Not followed: a link is neither a file nor a directory here.
            let kind = entry.file_type().map_err(failed)?;
            let Some(part) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let name = if name.is_empty() { part } else { format!("{name}/{part}") };
            if kind.is_dir() {
                self.directory(&path, &name, depth.saturating_add(1))?;
            } else if kind.is_file()
                && let Some(kind) = content_type(&name)
            {
                let bytes = std::fs::read(&path).map_err(|source| FilesError::Io { path: path.clone(), source })?;
                self.bytes = self.bytes.saturating_add(bytes.len());
                if self.bytes > MOST_BYTES || self.files.len() >= MOST_FILES {
                    return Err(self.too_much());
                }
                let fixed = name.starts_with("assets/");
                self.files.insert(name, File { bytes: bytes.into(), kind, fixed });
            }
        }
        Ok(())
    }

    fn too_much(&self) -> FilesError {
        FilesError::TooMuch { path: self.root.to_owned() }
    }
}

const HTML: &str = "text/html; charset=utf-8";

fn content_type(name: &str) -> Option<&'static str> {
    Some(match name.rsplit_once('.')?.1 {
        "html" => HTML,
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "txt" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "svg" => "image/svg+xml",
        "ico" => "image/x-icon",
        "webp" => "image/webp",
        "woff2" => "font/woff2",
        _ => return None,
    })
}

/// What stands between two marks, each time.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let pieces = text.split(open).skip(1);
    pieces.filter_map(|piece| piece.split_once(close)).map(|(inside, _)| inside).collect()
}

/// Source expressions (Content Security Policy Level 3, 6.7.2.3).
fn hashes(contents: Vec<&str>) -> String {
    let hash = |content: &str| STANDARD.encode(digest::digest(&digest::SHA256, content.as_bytes()));
    contents.into_iter().map(|content| format!(" 'sha256-{}'", hash(content))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("assets")).unwrap();
        write(INDEX, "<body style=\"a\"><script>alert(1)</script><script src=\"x\"></script>");
        write("assets/a-1.js", "1");
        write("other.html", "no");
        write("program", "no");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("passwd.txt")).unwrap();
        dir
    }

    #[test]
    fn only_files_of_the_directory_are_served() {
        let dir = sample();
        let files = Files::load(dir.path()).unwrap();
        let script = files.find("assets/a-1.js").unwrap();
        assert!(script.kind.starts_with("text/javascript") && script.fixed);
        for name in [
            "index.html",
            "other.html",
            "program",
            "passwd.txt",
            "assets",
            "",
            "assets/../assets/a-1.js",
            "../../etc/passwd",
            "/etc/passwd",
            "assets//a-1.js",
        ] {
            assert!(files.find(name).is_none(), "{name}");
        }
    }

    #[test]
    fn the_policy_names_what_the_page_itself_holds() {
        let files = Files::load(sample().path()).unwrap();
        let policy = files.policy("ws://tasks.localhost:1");
        // printf 'alert(1)' | openssl dgst -sha256 -binary | base64
        assert!(
            policy.contains("script-src 'self' 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI=';"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe-inline") && !policy.contains('*'), "{policy}");
    }

    #[test]
    fn without_a_page_there_is_no_dashboard() {
        let dir = sample();
        std::fs::remove_file(dir.path().join(INDEX)).unwrap();
        assert!(matches!(Files::load(dir.path()), Err(FilesError::NoPage { .. })));
        assert!(matches!(Files::load(&dir.path().join("none")), Err(FilesError::Io { .. })));
    }
}
