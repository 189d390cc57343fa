//! ConfigMaps and Secrets that pods of this node use, each followed by one watch for as long as some pod uses it.
//!
//! The first value comes from a GET, so a pod never starts with something older than itself; afterwards the watch
//! tells of changes, which is how volumes stay live without polling.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::api::{self, Api};
use super::references::{Objects, References};
use crate::client::{ClientError, ListWatchEvent};

/// Which object: plural, namespace, name.
type Key = (&'static str, String, String);

/// The shared cache.
pub struct ObjectCache {
    api: Arc<dyn Api>,
    entries: Mutex<HashMap<Key, Weak<Entry>>>,
}

/// One followed object; following ends when the last user lets go.
pub struct Entry {
    value: watch::Receiver<Known>,
    task: tokio::task::AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of the object.
#[derive(Clone)]
enum Known {
    /// Not asked yet.
    Unknown,
    /// Its state; `None` when it does not exist.
    State(Option<Arc<Value>>),
    /// The API could not be asked.
    Failed(ClientError),
}

impl Entry {
    /// The object once it is known.
    async fn get(&self) -> Result<Option<Arc<Value>>, ClientError> {
        let mut value = self.value.clone();
        let known = value
            .wait_for(|known| !matches!(known, Known::Unknown))
            .await
            .map(|known| known.clone());
        match known {
            Ok(Known::State(state)) => Ok(state),
            Ok(Known::Failed(error)) => Err(error),
            Ok(Known::Unknown) | Err(_) => Ok(None),
        }
    }

    /// A receiver that is notified of every change after now.
    pub fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut value = self.value.clone();
        value.mark_unchanged();
        async move {
            let _ = value.changed().await;
        }
    }
}

/// The objects of one pod and the entries that keep them followed.
pub struct Held {
    /// What they contain.
    pub objects: Objects,
    /// Keep these while the pod lives.
    pub entries: Vec<Arc<Entry>>,
}

impl ObjectCache {
    /// An empty cache over `api`.
    #[must_use]
    pub fn new(api: Arc<dyn Api>) -> Self {
        ObjectCache {
            api,
            entries: Mutex::default(),
        }
    }

    /// Fetches all that `references` name in `namespace`.
    pub async fn fetch(&self, namespace: &str, references: &References) -> Result<Held, ClientError> {
        let maps: Vec<_> = references
            .config_maps
            .iter()
            .map(|name| (name, self.entry("configmaps", namespace, name)))
            .collect();
        let secrets: Vec<_> = references
            .secrets
            .iter()
            .map(|name| (name, self.entry("secrets", namespace, name)))
            .collect();
        let mut held = Held {
            objects: Objects::default(),
            entries: Vec::new(),
        };
        for (name, entry) in maps {
            held.objects
                .config_maps
                .insert(name.clone(), decode(entry.get().await?)?);
            held.entries.push(entry);
        }
        for (name, entry) in secrets {
            held.objects.secrets.insert(name.clone(), decode(entry.get().await?)?);
            held.entries.push(entry);
        }
        Ok(held)
    }

    fn entry(&self, plural: &'static str, namespace: &str, name: &str) -> Arc<Entry> {
        let key = (plural, namespace.to_owned(), name.to_owned());
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(&key).and_then(Weak::upgrade)
            && !matches!(*entry.value.borrow(), Known::Failed(_))
        {
            return entry;
        }
        let (sender, value) = watch::channel(Known::Unknown);
        let task = tokio::spawn(follow(Arc::clone(&self.api), key.clone(), sender)).abort_handle();
        let entry = Arc::new(Entry { value, task });
        entries.retain(|_, entry| entry.strong_count() > 0);
        entries.insert(key, Arc::downgrade(&entry));
        entry
    }
}

async fn follow(api: Arc<dyn Api>, (plural, namespace, name): Key, sender: watch::Sender<Known>) {
    let first = match api.get(api::path(&namespace, plural, &name)).await {
        Ok(object) => Known::State(Some(Arc::new(object))),
        Err(error) if error.is_not_found() => Known::State(None),
        Err(error) => {
            sender.send_replace(Known::Failed(error));
            return;
        }
    };
    sender.send_replace(first);
    let path = format!("/api/v1/namespaces/{namespace}/{plural}");
    let mut events = api.follow(path, format!("fieldSelector=metadata.name%3D{name}"));
    while let Some(event) = events.recv().await {
        let state = match event {
            ListWatchEvent::Listed(items) => items.into_iter().next().map(Arc::new),
            ListWatchEvent::Applied(object) => Some(Arc::new(object)),
            ListWatchEvent::Deleted(_) => None,
        };
        sender.send_if_modified(|known| {
            let same = matches!(known, Known::State(old) if version(old.as_deref()) == version(state.as_deref()));
            if !same {
                *known = Known::State(state);
            }
            !same
        });
    }
}

fn version(object: Option<&Value>) -> Option<&str> {
    object?["metadata"]["resourceVersion"].as_str()
}

fn decode<T: DeserializeOwned>(value: Option<Arc<Value>>) -> Result<Option<Arc<T>>, ClientError> {
    let Some(value) = value else { return Ok(None) };
    match T::deserialize(&*value) {
        Ok(object) => Ok(Some(Arc::new(object))),
        Err(error) => Err(ClientError {
            status: None,
            what: format!("decoding an object of the API: {error}"),
        }),
    }
}
