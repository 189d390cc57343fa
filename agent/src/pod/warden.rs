//! The agent's end of the warden: calls off the async threads, exits delivered to whom they concern, and a warden
//! that died replaced by a new one which is told everything the old one knew.
//!
//! Invariant: for every container that somebody listens to, exactly one exit is delivered at least once, also when
//! the container ended while no warden lived; then it may be an unknown one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hull_runtime::warden::{
    self, Client, ContainerInfo, ContainerState, CreateRequest, Error, Event, ExecRequest, ExecStarted, Exit, Held,
    Stop,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Pause between attempts to start a warden that does not come up.
const RESPAWN_PAUSE: Duration = Duration::from_millis(200);

/// Where exits of one container go: its id and how it ended.
pub type ExitSender = mpsc::UnboundedSender<(String, Exit)>;

/// The node's warden. Clones share everything.
#[derive(Clone)]
pub struct Warden {
    inner: Arc<Inner>,
}

struct Inner {
    binary: PathBuf,
    dir: PathBuf,
    client: Client,
    held: Mutex<HashMap<String, Held>>,
    listeners: Mutex<HashMap<String, ExitSender>>,
    stop: Mutex<Option<Stop>>,
    stopping: AtomicBool,
}

impl Warden {
    /// Starts the warden of `dir` unless one lives, and follows it. Blocks for a few milliseconds.
    pub fn start(binary: &Path, dir: &Path) -> Result<Self, Error> {
        warden::spawn(binary, dir)?;
        let inner = Arc::new(Inner {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            client: Client::connect(dir)?,
            held: Mutex::default(),
            listeners: Mutex::default(),
            stop: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        for container in inner.client.list()? {
            if !matches!(container.state, ContainerState::Exited(_))
                && let Ok(held) = inner.client.hold(&container.id)
            {
                inner.held.lock().insert(container.id, held);
            }
        }
        let follower = Arc::clone(&inner);
        thread::Builder::new()
            .name("warden-events".to_owned())
            .stack_size(256 << 10)
            .spawn(move || follower.follow())
            .map_err(|source| Error::Io {
                what: "starting the thread for the warden's events".to_owned(),
                source,
            })?;
        Ok(Warden { inner })
    }

    /// Stops following. Containers and warden run on.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        if let Some(stop) = self.inner.stop.lock().take() {
            stop.stop();
        }
    }

    /// Sends the exit of container `id` to `sender` when it comes. Listen before the container starts.
    pub fn listen(&self, id: &str, sender: ExitSender) {
        self.inner.listeners.lock().insert(id.to_owned(), sender);
    }

    /// Creates a container; its program waits for [`Warden::start_container`].
    pub async fn create(&self, request: CreateRequest) -> Result<(), Error> {
        let id = request.id.clone();
        let created = self.call(move |client| client.create(request)).await?;
        self.inner.held.lock().insert(id, created.held);
        Ok(())
    }

    /// Lets a created container's program run.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.call(move |client| client.start(&id)).await
    }

    /// Sends a signal to a container's init, or to all its processes.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let id = id.to_owned();
        self.call_repeatable(move |client| client.kill(&id, signal, all)).await
    }

    /// Removes a container, killing it if it lives; one that is gone is no error.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        self.inner.listeners.lock().remove(id);
        let name = id.to_owned();
        self.call_repeatable(move |client| client.delete(&name, true)).await?;
        self.inner.held.lock().remove(id);
        Ok(())
    }

    /// Runs a process in a container.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecStarted, Error> {
        self.call(move |client| client.exec(request)).await
    }

    /// How an exec whose pidfd is readable ended.
    pub async fn exec_exit(&self, id: &str, exec_id: &str) -> Result<Option<Exit>, Error> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        self.call_repeatable(move |client| client.exec_exit(&id, &exec_id))
            .await
    }

    /// Every container the warden knows.
    pub async fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        self.call_repeatable(Client::list).await
    }

    /// A call that is repeated only if it certainly was not received.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || {
            if let Err(Error::NotRunning { .. }) = Client::connect(&inner.dir) {
                warden::spawn(&inner.binary, &inner.dir)?;
            }
            call(&inner.client)
        })
        .await
    }

    /// A call that does no harm when it is received twice: after a lost connection it is made again, to a new warden
    /// if need be.
    async fn call_repeatable<T: Send + 'static>(
        &self,
        call: impl Fn(&Client) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || match call(&inner.client) {
            Err(error) if error.is_disconnected() => {
                warden::spawn(&inner.binary, &inner.dir)?;
                call(&inner.client)
            }
            other => other,
        })
        .await
    }
}

async fn run_blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io {
            what: "calling the warden".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}

impl Inner {
    /// Runs in its own thread until [`Warden::stop`].
    fn follow(&self) {
        while !self.stopping.load(Ordering::SeqCst) {
            match self.follow_one() {
                Ok(()) => {}
                Err(error) if self.stopping.load(Ordering::SeqCst) => tracing::debug!(%error, "the warden is let go"),
                Err(error) => {
                    tracing::warn!(%error, "the connection to the warden was lost; starting it again");
                    if let Err(error) = warden::spawn(&self.binary, &self.dir) {
                        tracing::error!(%error, "the warden does not start");
                        thread::sleep(RESPAWN_PAUSE);
                    }
                }
            }
        }
    }

    /// Subscribes, hands over what is held, catches up, then delivers events until the connection ends.
    fn follow_one(&self) -> Result<(), Error> {
        let events = self.client.subscribe()?;
        *self.stop.lock() = Some(events.stopper()?);
        for (id, held) in &*self.held.lock() {
            if let Err(error) = self.client.adopt(id, held)
                && !error.is_not_found()
            {
                tracing::warn!(container = id, %error, "a container's descriptors were not taken over");
            }
        }
        self.catch_up(&self.client.list()?);
        for event in events {
            let Event::Exited { id, exec_id, exit } = event?;
            if exec_id.is_none() {
                self.deliver(&id, exit);
            }
        }
        Ok(())
    }

    fn catch_up(&self, containers: &[ContainerInfo]) {
        let listening: Vec<String> = self.listeners.lock().keys().cloned().collect();
        for id in listening {
            match containers.iter().find(|container| container.id == id) {
                Some(ContainerInfo {
                    state: ContainerState::Exited(exit),
                    ..
                }) => self.deliver(&id, *exit),
                Some(_) => {}
                None => self.deliver(&id, unknown_exit()),
            }
        }
    }

    fn deliver(&self, id: &str, exit: Exit) {
        self.held.lock().remove(id);
        let listener = self.listeners.lock().remove(id);
        if let Some(listener) = listener {
            let _ = listener.send((id.to_owned(), exit));
        }
    }
}

/// The end of a container that nobody saw.
#[must_use]
pub fn unknown_exit() -> Exit {
    let at = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    Exit {
        code: None,
        signal: None,
        oom_killed: false,
        at,
    }
}
