//! Reads the log files of one attempt of a container, rotated ones included, and follows them as they grow.
//!
//! Following waits on inotify(7) for the directory and on the pod's view, never on a timer: a line is sent when it is
//! written, and the stream ends when the container has ended and its file is read to the end.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hull_runtime::warden::rotated_files;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::logs::{Options, Renderer};
use crate::pod::fd;
use crate::pod::host::Host;
use crate::pod::view::View;

/// How much is read at a time.
const CHUNK: usize = 32 << 10;

/// The log of one attempt.
#[derive(Clone, Debug)]
pub struct Source {
    uid: String,
    container: String,
    attempt: u32,
    path: PathBuf,
}

impl Source {
    /// The current log of `container`, or the one before it; what to tell the client when there is none.
    pub fn find(host: &Host, view: &View, container: &str, previous: bool) -> Result<Self, String> {
        let name = view.pod.metadata.name.as_deref().unwrap_or_default();
        let known = view.containers.get(container);
        let known = known.ok_or_else(|| format!("container {container} is not valid for pod {name}"))?;
        let attempt = if previous {
            known.attempt.checked_sub(1)
        } else if known.existed {
            Some(known.attempt)
        } else {
            // Between two attempts the last one's log is the interesting one.
            known.attempt.checked_sub(1).or_else(|| known.id.as_ref().map(|_| 0))
        };
        let directory = host.logs(&view.pod).join(container);
        let found = attempt
            .map(|attempt| (attempt, directory.join(format!("{attempt}.log"))))
            .filter(|(_, path)| path.exists());
        let missing = || {
            if previous {
                format!("previous terminated container {container:?} in pod {name:?} not found")
            } else {
                format!("container {container:?} in pod {name:?} is waiting to start: ContainerCreating")
            }
        };
        let (attempt, path) = found.ok_or_else(missing)?;
        Ok(Source {
            uid: view.pod.metadata.uid.clone().unwrap_or_default(),
            container: container.to_owned(),
            attempt,
            path,
        })
    }

    fn is_running(&self, host: &Host) -> bool {
        host.views.all().iter().any(|view| {
            view.pod.metadata.uid.as_ref() == Some(&self.uid)
                && view
                    .containers
                    .get(&self.container)
                    .is_some_and(|known| known.running && known.attempt == self.attempt)
        })
    }
}

/// Sends what `options` ask of `source` until the end or until nobody listens.
pub async fn stream(host: &Arc<Host>, source: Source, options: Options, sender: mpsc::Sender<Bytes>) {
    if let Err(error) = try_stream(host, &source, &options, &sender).await {
        let text = format!("reading {}: {error}\n", source.path.display());
        let _ = sender.send(Bytes::from(text)).await;
    }
}

async fn try_stream(
    host: &Arc<Host>,
    source: &Source,
    options: &Options,
    sender: &mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut watcher = if options.follow {
        Some(Watcher::new(&source.path)?)
    } else {
        None
    };
    let mut changes = host.views.changes();
    let mut renderer = Renderer::new(options);
    let mut current = File::open(&source.path)?;
    let mut older = rotated_files(&source.path);
    let mut skipped = 0;
    if let Some(lines) = options.tail {
        (older, skipped) = seek_tail(&older, &mut current, lines)?;
    }
    for path in older {
        // A file that rotation has just removed is no loss.
        let Ok(mut file) = File::open(&path) else { continue };
        file.seek(SeekFrom::Start(std::mem::take(&mut skipped)))?;
        if !drain(file, &mut renderer, sender).await? {
            return Ok(());
        }
    }
    loop {
        let running = source.is_running(host);
        if !drain(&current, &mut renderer, sender).await? {
            return Ok(());
        }
        if let Some(next) = successor(&current, &source.path)? {
            drain(&current, &mut renderer, sender).await?;
            current = next;
            continue;
        }
        let Some(watcher) = watcher.as_mut().filter(|_| running) else {
            return Ok(());
        };
        tokio::select! {
            changed = watcher.changed() => changed?,
            _ = changes.changed() => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Reads to the end. False when the client has enough.
async fn drain(mut file: impl Read, renderer: &mut Renderer, sender: &mpsc::Sender<Bytes>) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(true);
        }
        let mut out = Vec::with_capacity(read);
        renderer.push(&chunk[..read], &mut out);
        if !out.is_empty() && sender.send(Bytes::from(out)).await.is_err() {
            return Ok(false);
        }
        if renderer.is_full() {
            return Ok(false);
        }
    }
}

/// The file that has taken the place of `current`, if rotation put one there.
fn successor(current: &File, path: &Path) -> io::Result<Option<File>> {
    let Ok(next) = File::open(path) else { return Ok(None) };
    let (old, new) = (current.metadata()?, next.metadata()?);
    Ok(((old.dev(), old.ino()) != (new.dev(), new.ino())).then_some(next))
}

/// Places `current` at the last `lines`. When they begin in older files, returns those to be read first and where in
/// the first of them to begin.
fn seek_tail(older: &[PathBuf], current: &mut File, lines: usize) -> io::Result<(Vec<PathBuf>, u64)> {
    let mut wanted = lines;
    if let Some(position) = tail_position(current, &mut wanted)? {
        current.seek(SeekFrom::Start(position))?;
        return Ok((Vec::new(), 0));
    }
    current.seek(SeekFrom::Start(0))?;
    let mut chosen = Vec::new();
    for path in older.iter().rev() {
        let mut file = File::open(path)?;
        chosen.insert(0, path.clone());
        if let Some(position) = tail_position(&mut file, &mut wanted)? {
            return Ok((chosen, position));
        }
    }
    Ok((chosen, 0))
}

/// Where the last `wanted` lines begin; `None` when the file has fewer, which are then taken off.
fn tail_position(file: &mut File, wanted: &mut usize) -> io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    if *wanted == 0 {
        return Ok(Some(length));
    }
    let mut chunk = vec![0; CHUNK];
    let mut end = length;
    let mut found = 0;
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let size = usize::try_from(end - begin).unwrap_or(CHUNK);
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut chunk[..size])?;
        for (offset, _) in chunk[..size]
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            let position = begin + offset as u64;
            if position + 1 == length {
                continue;
            }
            found += 1;
            if found == *wanted {
                return Ok(Some(position + 1));
            }
        }
        end = begin;
    }
    *wanted -= (found + usize::from(length > 0)).min(*wanted);
    Ok(if *wanted == 0 { Some(0) } else { None })
}

/// Changes in the directory of a log file.
struct Watcher {
    queue: AsyncFd<OwnedFd>,
}

impl Watcher {
    fn new(path: &Path) -> io::Result<Self> {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&queue, directory, events)?;
        Ok(Watcher {
            queue: fd::watch(queue)?,
        })
    }

    /// Waits for a change and takes all that are there.
    async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.queue.readable().await?;
        let mut buffer = [0; 4096];
        while let Ok(1..) = rustix::io::read(ready.get_inner(), &mut buffer) {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, text: &str) -> (PathBuf, File) {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        (path.clone(), File::open(path).unwrap())
    }

    fn tail(text: &str, lines: usize) -> (Option<String>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut file) = file(dir.path(), "f", text);
        let mut wanted = lines;
        let position = tail_position(&mut file, &mut wanted).unwrap();
        (
            position.map(|at| text[usize::try_from(at).unwrap()..].to_owned()),
            wanted,
        )
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), (Some("b\nc\n".into()), 2));
        assert_eq!(tail("a\nb\nc", 1), (Some("c".into()), 1));
        assert_eq!(tail("a\nb\n", 0), (Some(String::new()), 0));
        assert_eq!(tail("a\nb\n", 2), (Some("a\nb\n".into()), 0));
        assert_eq!(tail("a\nb\n", 5), (None, 3));
        assert_eq!(tail("", 1), (None, 1));
        let long = format!("{}\nlast\n", "x".repeat(3 * CHUNK));
        assert_eq!(tail(&long, 1), (Some("last\n".into()), 1));
    }

    #[test]
    fn a_tail_longer_than_the_file_begins_in_the_rotated_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (oldest, _) = file(dir.path(), "1", "a\nb\n");
        let (older, _) = file(dir.path(), "2", "c\n");
        let (_, mut current) = file(dir.path(), "3", "d\n");
        let all = [oldest.clone(), older.clone()];
        let mut at = |lines| seek_tail(&all, &mut current, lines).unwrap();
        assert_eq!(at(1), (vec![], 0));
        assert_eq!(at(2), (vec![older.clone()], 0));
        assert_eq!(at(3), (vec![oldest.clone(), older.clone()], 2));
        assert_eq!(at(9), (vec![oldest.clone(), older.clone()], 0));
    }

    #[test]
    fn a_rotated_file_has_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let (path, current) = file(dir.path(), "l", "old");
        assert!(successor(&current, &path).unwrap().is_none());
        std::fs::rename(&path, dir.path().join("l.1")).unwrap();
        assert!(
            successor(&current, &path).unwrap().is_none(),
            "the new one is not there yet"
        );
        std::fs::write(&path, "new").unwrap();
        assert!(successor(&current, &path).unwrap().is_some());
    }
}
