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
    /// The object once it is known, and the object followed from then on.
    async fn get(self: Arc<Self>) -> Result<(Option<Arc<Value>>, Followed), ClientError> {
        let mut seen = self.value.clone();
        let known = seen
            .wait_for(|known| !matches!(known, Known::Unknown))
            .await
            .map(|known| known.clone());
        let state = match known {
            Ok(Known::State(state)) => state,
            Ok(Known::Failed(error)) => return Err(error),
            Ok(Known::Unknown) | Err(_) => None,
        };
        Ok((state, Followed { seen, _entry: self }))
    }
}

/// An object as it was read, followed while this is kept.
pub struct Followed {
    seen: watch::Receiver<Known>,
    _entry: Arc<Entry>,
}

impl Followed {
    /// Ends when the object is another than the one that was read, however long ago that was.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut seen = self.seen.clone();
        async move {
            let _ = seen.changed().await;
        }
    }
}

/// The objects of one pod, and what keeps them followed.
pub struct Held {
    /// What they contain.
    pub objects: Objects,
    /// Keep these while the pod lives.
    pub followed: Vec<Followed>,
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
            followed: Vec::new(),
        };
        for (name, entry) in maps {
            let (state, followed) = entry.get().await?;
            held.objects.config_maps.insert(name.clone(), decode(state)?);
            held.followed.push(followed);
        }
        for (name, entry) in secrets {
            let (state, followed) = entry.get().await?;
            held.objects.secrets.insert(name.clone(), decode(state)?);
            held.followed.push(followed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_change_between_reading_and_waiting_is_told() {
        let (sender, value) = watch::channel(Known::State(None));
        let task = tokio::spawn(async {}).abort_handle();
        let (state, followed) = Arc::new(Entry { value, task }).get().await.unwrap();
        assert!(state.is_none());
        let quiet = tokio::time::timeout(Duration::ZERO, followed.changed()).await;
        assert!(quiet.is_err(), "nothing has changed yet");
        sender.send_replace(Known::State(Some(Arc::new(Value::Null))));
        let told = tokio::time::timeout(Duration::from_secs(5), followed.changed()).await;
        assert!(told.is_ok(), "the volume would stay as it was");
    }
}
