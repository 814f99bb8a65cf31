//! Rendered files of a container: written whole, with owner and mode, and nothing else beside them.
//!
//! The directories lie beneath one that only root may enter, and containers mount them read-only, so nobody else moves
//! things here. A SaaS secret is copied in pieces from one file to the other and never held as a whole.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use crate::desired::{ContainerSpec, Content, RenderedFile};

/// Mode of the directory of all rendered files.
const ROOT_MODE: u32 = 0o700;
/// Mode of directories beneath it: what is mounted must be searchable by the container's user.
const DIRECTORY_MODE: u32 = 0o755;
/// Content is compared and copied in pieces of this size.
const PIECE: usize = 4096;

/// Why rendered files are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `write`, `remove` ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A specification names a file outside its container's directory.
    #[error("{} does not lie beneath the rendered files of {container}; this is a bug", path.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// The container.
        container: String,
    },
    /// A secret was replaced between reading and copying.
    #[error("{} changed while it was handed on; it is tried again by itself", source_path.display())]
    Changed {
        /// The secret's file.
        source_path: PathBuf,
    },
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FilesError {
    move |source| FilesError::Io { what, path: path.to_owned(), source }
}

/// Whether a container's files differ from its specification, or strangers lie among them.
pub(super) fn is_stale(render_dir: &Path, spec: &ContainerSpec) -> bool {
    let directory = render_dir.join(&spec.name);
    if spec.files.is_empty() && !directory.exists() {
        return false;
    }
    let strangers = strangers(&directory, spec);
    spec.files.iter().any(|file| !is_as_specified(file)) || strangers.map_or(true, |found| !found.is_empty())
}

/// Writes what differs and removes strangers.
pub(super) fn write(render_dir: &Path, spec: &ContainerSpec) -> Result<(), FilesError> {
    make_directory(render_dir, ROOT_MODE)?;
    let directory = render_dir.join(&spec.name);
    make_directory(&directory, DIRECTORY_MODE)?;
    for stranger in strangers(&directory, spec)? {
        remove(&stranger)?;
    }
    for file in &spec.files {
        let Some(parent) = file.path.parent().filter(|parent| parent.starts_with(&directory) && is_plain(&file.path))
        else {
            return Err(FilesError::Outside { path: file.path.clone(), container: spec.name.clone() });
        };
        if is_as_specified(file) {
            continue;
        }
        for ancestor in ancestors_below(&directory, parent) {
            make_directory(&ancestor, DIRECTORY_MODE)?;
        }
        replace(parent, file)?;
    }
    Ok(())
}

/// No `.` or `..` in it.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)))
}

/// Directories from just below `top` down to `bottom`.
fn ancestors_below(top: &Path, bottom: &Path) -> Vec<PathBuf> {
    let mut between: Vec<PathBuf> =
        bottom.ancestors().take_while(|ancestor| *ancestor != top).map(Path::to_path_buf).collect();
    between.reverse();
    between
}

fn make_directory(path: &Path, mode: u32) -> Result<(), FilesError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && found.mode() & 0o7777 == mode => return Ok(()),
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            std::fs::remove_file(path).map_err(io("remove", path))?;
            DirBuilder::new().mode(mode).create(path).map_err(io("make", path))?;
        }
        Err(_) => {
            DirBuilder::new().recursive(true).mode(mode).create(path).map_err(io("make", path))?;
        }
    }
    // The umask may have taken bits away.
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io("change the mode of", path))
}

/// What lies in the directory and is not in the specification: files, and directories that hold none of its files.
fn strangers(directory: &Path, spec: &ContainerSpec) -> Result<Vec<PathBuf>, FilesError> {
    let wanted: BTreeSet<&Path> = spec.files.iter().map(|file| file.path.as_path()).collect();
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io("list", &directory)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(io("list", &directory))?;
            let path = entry.path();
            // Of the entry itself: a symbolic link is a stranger, wherever it leads.
            let is_directory = entry.file_type().map_err(io("look at", &path))?.is_dir();
            if is_directory && wanted.iter().any(|file| file.starts_with(&path)) {
                open.push(path);
            } else if is_directory || !wanted.contains(path.as_path()) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn remove(path: &Path) -> Result<(), FilesError> {
    let metadata = std::fs::symlink_metadata(path).map_err(io("look at", path))?;
    if metadata.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
        .map_err(io("remove", path))
}

fn is_as_specified(file: &RenderedFile) -> bool {
    let opened =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(&file.path);
    let Ok(mut opened) = opened else { return false };
    let Ok(metadata) = opened.metadata() else { return false };
    metadata.is_file()
        && metadata.uid() == file.uid
        && metadata.gid() == file.gid
        && metadata.mode() & 0o7777 == file.mode
        && digest_of(&mut opened).is_ok_and(|digest| digest == wanted_digest(&file.content))
}

fn wanted_digest(content: &Content) -> String {
    match content {
        Content::Inline(bytes) => hex::encode(aws_lc_rs::digest::digest(&SHA256, bytes).as_ref()),
        Content::CopyOf { sha256, .. } => sha256.clone(),
    }
}

fn digest_of(file: &mut File) -> std::io::Result<String> {
    let mut context = Context::new(&SHA256);
    each_piece(file, |piece| {
        context.update(piece);
        Ok(())
    })?;
    Ok(hex::encode(context.finish().as_ref()))
}

fn each_piece(file: &mut File, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut piece = [0_u8; PIECE];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        take(piece.get(..length).unwrap_or_default())?;
    }
}

/// Replaces one file in one step: a reader or a crash sees the old one or the new one.
fn replace(parent: &Path, file: &RenderedFile) -> Result<(), FilesError> {
    let temporary = parent.join(format!(".new-{:016x}", rand::random::<u64>()));
    let outcome = fill(&temporary, file).and_then(|()| {
        std::fs::rename(&temporary, &file.path).map_err(io("write", &file.path))?;
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(io("write", parent))
    });
    if outcome.is_err() {
        // Best effort: the failure is reported, and what is left is removed as a stranger next time.
        drop(std::fs::remove_file(&temporary));
    }
    outcome
}

fn fill(temporary: &Path, file: &RenderedFile) -> Result<(), FilesError> {
    let failed = || io("write", &file.path);
    // Private until owner and mode are right.
    let mut new =
        OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(temporary).map_err(failed())?;
    match &file.content {
        Content::Inline(bytes) => new.write_all(bytes).map_err(failed())?,
        Content::CopyOf { source, sha256 } => {
            let mut from = OpenOptions::new()
                .read(true)
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(source)
                .map_err(io("read", source))?;
            let mut context = Context::new(&SHA256);
            each_piece(&mut from, |piece| {
                context.update(piece);
                new.write_all(piece)
            })
            .map_err(failed())?;
            if hex::encode(context.finish().as_ref()) != *sha256 {
                return Err(FilesError::Changed { source_path: source.clone() });
            }
        }
    }
    fchown(&new, Some(file.uid), Some(file.gid)).map_err(io("give away", &file.path))?;
    new.set_permissions(Permissions::from_mode(file.mode)).map_err(failed())?;
    new.sync_all().map_err(failed())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::unix::fs::symlink;

    use super::*;
    use crate::plan::samples;

    fn spec(render_dir: &Path) -> ContainerSpec {
        let mut spec = samples::desired().containers.remove(0);
        let metadata = std::fs::metadata(render_dir).unwrap();
        for file in &mut spec.files {
            file.path = render_dir.join(&spec.name).join("etc/config.json");
            // A test cannot give files away.
            (file.uid, file.gid) = (metadata.uid(), metadata.gid());
        }
        spec
    }

    #[test]
    fn writes_what_is_asked_for_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let render = dir.path().join("render");
        std::fs::create_dir(&render).unwrap();
        let spec = spec(&render);
        let directory = render.join(&spec.name);
        assert!(is_stale(&render, &spec));
        write(&render, &spec).unwrap();
        assert!(!is_stale(&render, &spec));
        assert_eq!(std::fs::metadata(&render).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(std::fs::metadata(directory.join("etc")).unwrap().mode() & 0o7777, 0o755);
        let inode = std::fs::metadata(directory.join("etc")).unwrap().ino();

        let file = directory.join("etc/config.json");
        for spoil in [
            &|| std::fs::write(&file, "other").unwrap() as (),
            &|| std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap(),
            &|| std::fs::remove_file(&file).unwrap(),
            &|| std::fs::write(directory.join("etc/stranger"), "x").unwrap(),
            &|| std::fs::create_dir_all(directory.join("more/deep")).unwrap(),
            &|| symlink("/etc/passwd", directory.join("link")).unwrap(),
            &|| {
                std::fs::remove_file(&file).unwrap();
                symlink("/etc/passwd", &file).unwrap();
            },
        ] as [&dyn Fn(); 7]
        {
            spoil();
            assert!(is_stale(&render, &spec));
            write(&render, &spec).unwrap();
            assert!(!is_stale(&render, &spec));
        }
        // A directory that is mounted somewhere must stay the same one.
        assert_eq!(std::fs::metadata(directory.join("etc")).unwrap().ino(), inode);
        assert_eq!(std::fs::read_dir(directory.join("etc")).unwrap().count(), 1);
    }

    #[test]
    fn secrets_are_copied_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let render = dir.path().join("render");
        std::fs::create_dir(&render).unwrap();
        let mut spec = spec(&render);
        let source = dir.path().join("secret");
        let value = "s".repeat(3 * PIECE + 1);
        std::fs::write(&source, &value).unwrap();
        let sha256 = hex::encode(aws_lc_rs::digest::digest(&SHA256, value.as_bytes()).as_ref());
        spec.files[0].mode = 0o400;
        spec.files[0].content = Content::CopyOf { source: source.clone(), sha256 };
        write(&render, &spec).unwrap();
        assert!(!is_stale(&render, &spec));
        assert_eq!(std::fs::read_to_string(&spec.files[0].path).unwrap(), value);

        std::fs::remove_file(&spec.files[0].path).unwrap();
        std::fs::write(&source, "rotated").unwrap();
        let error = write(&render, &spec).unwrap_err().to_string();
        assert!(error.contains("changed") && !error.contains("rotated"), "{error}");
        assert_eq!(std::fs::read_dir(render.join(&spec.name).join("etc")).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        let render = dir.path().join("render");
        std::fs::create_dir(&render).unwrap();
        let mut spec = spec(&render);
        for outside in [dir.path().join("x"), render.join(&spec.name).join("../../x"), render.join("other/x")] {
            spec.files[0].path = outside;
            assert!(matches!(write(&render, &spec), Err(FilesError::Outside { .. })));
        }
        assert!(!dir.path().join("x").exists());
    }
}
