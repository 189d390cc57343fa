//! An image from a registry: manifest, configuration, then its layers, a few at a time, each resumed where it broke off.
//!
//! A download lies in `partial/<digest>` until its length and digest are right; the layer is unpacked from there. Nothing
//! names the image before all of it is in the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_RANGE, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::auth::{Challenge, Credentials, token_in, token_url};
use super::endpoint;
use super::http::{self, Ask, Http, SILENCE};
use crate::image::digest::Digest;
use crate::image::error::{Context, Error};
use crate::image::import::entry;
use crate::image::manifest::{DOCUMENT_MAX, Descriptor, Document, MANIFEST_TYPES, Manifest, parse_config};
use crate::image::reference::Reference;
use crate::image::store::{Image, ImageStore, check_digest, check_size, digest_of_file};

/// Layers downloaded at a time.
const PARALLEL: usize = 3;
/// Times a download is continued before the pull fails.
const ATTEMPTS: u32 = 5;
const INDEX_DEPTH_MAX: usize = 4;

impl ImageStore {
    /// Pulls an image: present layers are not fetched again, an interrupted pull is resumed.
    pub async fn pull(self: &Arc<Self>, reference: &str, auth: Option<Credentials>) -> Result<Image, Error> {
        let reference: Reference = reference.parse()?;
        let store = self.clone();
        let in_use = blocking(move || store.begin_use()).await?;
        let remote = Arc::new(Remote::new(self, &reference, auth));
        let (top, digest, bytes, manifest) = remote.manifest(&reference).await?;
        let config = remote.document(&manifest.config).await?;
        let (_, diff_ids) = parse_config(&config, manifest.layers.len())?;
        let layers = diff_ids.iter().cloned().zip(manifest.layers.iter().cloned());
        stream::iter(layers.map(|(diff_id, layer)| pull_layer(self.clone(), remote.clone(), diff_id, layer)))
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        let store = self.clone();
        blocking(move || {
            let _in_use = in_use;
            store.write_blob("the image's configuration", &config, &manifest.config.digest)?;
            store.write_blob("the image's manifest", &bytes, &digest)?;
            let digests = vec![reference.with_digest(top)];
            let names = if reference.digest().is_some() {
                Vec::new()
            } else {
                vec![reference]
            };
            store.commit(entry(&manifest, digest, names, digests, diff_ids))
        })
        .await
    }
}

async fn pull_layer(
    store: Arc<ImageStore>,
    remote: Arc<Remote>,
    diff_id: Digest,
    layer: Descriptor,
) -> Result<(), Error> {
    let busy = store.busy_with(&layer.digest);
    let _one = busy.lock().await;
    let (checking, id) = (store.clone(), diff_id.clone());
    if blocking(move || Ok(checking.has_layer(&id))).await? {
        return Ok(());
    }
    let path = store.partial_dir().join(layer.digest.hex());
    let mut attempt = 0;
    loop {
        match remote.download(&layer, &path).await {
            Ok(()) => break,
            Err(Error::Registry { transient: true, .. }) if attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
    blocking(move || {
        let what = || format!("reading the download {}", path.display());
        let unpacked =
            check_download(&layer, &path).and_then(|()| store.add_layer(&diff_id, File::open(&path).context(what)?));
        // Right or wrong, it has served: what is wrong is not to be resumed.
        crate::image::store::remove_any(&path)?;
        unpacked
    })
    .await
}

fn check_download(layer: &Descriptor, path: &std::path::Path) -> Result<(), Error> {
    let what = format!("layer {}", layer.digest);
    let size = std::fs::metadata(path)
        .context(|| format!("looking at {}", path.display()))?
        .len();
    check_size(&what, layer.size, size)?;
    check_digest(&what, &layer.digest, &digest_of_file(path)?)
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::io("waiting for the image store", std::io::Error::other(error))),
    }
}

/// A repository of a registry, with the authorization that it accepts.
struct Remote {
    http: Http,
    base: String,
    scope: String,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<String>>,
}

impl Remote {
    fn new(store: &ImageStore, reference: &Reference, credentials: Option<Credentials>) -> Self {
        let http = Http::new(store.registries.clone());
        let registry = endpoint(reference.registry());
        Self {
            base: format!("{}://{registry}/v2/{}", http.scheme(registry), reference.repository()),
            scope: format!("repository:{}:pull", reference.repository()),
            http,
            credentials,
            authorization: Mutex::new(None),
        }
    }

    /// Follows the reference to the manifest for this machine. Returns the digest that the reference stands for, the
    /// manifest's own, its bytes and itself.
    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Digest, Vec<u8>, Manifest), Error> {
        let mut bytes = self.fetch_manifest(reference.version()).await?;
        let top = Digest::of(&bytes);
        if let Some(expected) = reference.digest() {
            check_digest(&format!("manifest {reference}"), expected, &top)?;
        }
        let mut digest = top.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            match Document::parse(&format!("manifest {digest}"), &bytes)? {
                Document::Manifest(manifest) => return Ok((top, digest, bytes, manifest)),
                Document::Index(index) => {
                    let chosen = index.choose()?;
                    bytes = self.fetch_manifest(chosen.digest.as_str()).await?;
                    check_size(chosen.digest.as_str(), chosen.size, bytes.len() as u64)?;
                    digest = chosen.digest.clone();
                    check_digest(&format!("manifest {digest}"), &digest, &Digest::of(&bytes))?;
                }
            }
        }
        Err(Error::malformed(
            "the image index",
            format!("nested deeper than {INDEX_DEPTH_MAX}"),
        ))
    }

    async fn fetch_manifest(&self, version: &str) -> Result<Vec<u8>, Error> {
        let url = format!("{}/manifests/{version}", self.base);
        let response = self.get(&url, Some(MANIFEST_TYPES), 0).await?;
        Ok(http::body(&url, response, DOCUMENT_MAX).await?.to_vec())
    }

    /// A small blob, checked.
    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let url = self.blob_url(&descriptor.digest);
        let what = format!("blob {}", descriptor.digest);
        if descriptor.size > DOCUMENT_MAX {
            return Err(Error::Size {
                what,
                expected: DOCUMENT_MAX,
                found: descriptor.size,
            });
        }
        let bytes = http::body(&url, self.get(&url, None, 0).await?, DOCUMENT_MAX).await?;
        check_size(&what, descriptor.size, bytes.len() as u64)?;
        check_digest(&what, &descriptor.digest, &Digest::of(&bytes))?;
        Ok(bytes.to_vec())
    }

    /// Downloads a blob, or what is missing of it.
    async fn download(&self, blob: &Descriptor, path: &std::path::Path) -> Result<(), Error> {
        let what = || format!("writing {}", path.display());
        let file = OpenOptions::new().append(true).create(true).open(path).context(what)?;
        let mut have = file.metadata().context(what)?.len();
        if have > blob.size {
            file.set_len(0).context(what)?;
            have = 0;
        }
        if have == blob.size {
            return Ok(());
        }
        let url = self.blob_url(&blob.digest);
        let response = self.get(&url, None, have).await?;
        if have > 0 && !continues_at(&response, have) {
            file.set_len(0).context(what)?;
            have = 0;
        }
        self.append(&url, response, file, blob, have).await
    }

    async fn append(
        &self,
        url: &str,
        response: Response<Incoming>,
        file: File,
        blob: &Descriptor,
        mut have: u64,
    ) -> Result<(), Error> {
        let file = Arc::new(file);
        let mut body = response.into_body();
        let broken = |reason: &str| http::parse(url).map(|uri| http::failed(&uri, reason, true));
        loop {
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(broken(&format!("the download broke off: {error}"))?),
                Err(_) => return Err(broken("the download stalls")?),
            };
            let Ok(data) = frame.into_data() else { continue };
            have += data.len() as u64;
            if have > blob.size {
                let _ = file.set_len(0);
                return Err(Error::Size {
                    what: format!("layer {}", blob.digest),
                    expected: blob.size,
                    found: have,
                });
            }
            write(file.clone(), data).await?;
        }
        if have < blob.size {
            Err(broken("the download ended early")?)
        } else {
            Ok(())
        }
    }

    fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}", self.base)
    }

    /// GET with authorization; answers one challenge.
    async fn get(&self, url: &str, accept: Option<&'static str>, from: u64) -> Result<Response<Incoming>, Error> {
        let mut ask = Ask {
            accept,
            authorization: self.authorization.lock().clone(),
            from,
        };
        let mut response = self.http.get(url, &ask).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            ask.authorization = Some(self.authorize(url, &response).await?);
            response = self.http.get(url, &ask).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status => Err(refused(url, response, status).await),
        }
    }

    async fn authorize(&self, url: &str, response: &Response<Incoming>) -> Result<String, Error> {
        let uri = http::parse(url)?;
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = headers
            .filter_map(|header| header.to_str().ok())
            .find_map(Challenge::parse);
        let authorization = match (challenge, &self.credentials) {
            (Some(Challenge::Basic), Some(credentials)) => credentials.basic(),
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                if uri.scheme_str() == Some("https") && !realm.starts_with("https://") {
                    return Err(http::failed(
                        &uri,
                        &format!("its token service {realm} is not protected"),
                        false,
                    ));
                }
                let token_url = token_url(&realm, service.as_deref(), scope.as_deref().unwrap_or(&self.scope));
                let authorization = credentials.as_ref().map(Credentials::basic);
                self.token(&token_url, authorization).await?
            }
            _ => {
                return Err(http::failed(
                    &uri,
                    "it wants a name and password (401): add an image pull secret",
                    false,
                ));
            }
        };
        *self.authorization.lock() = Some(authorization.clone());
        Ok(authorization)
    }

    async fn token(&self, url: &str, authorization: Option<String>) -> Result<String, Error> {
        let response = self
            .http
            .get(
                url,
                &Ask {
                    authorization,
                    ..Ask::default()
                },
            )
            .await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(refused(url, response, status).await);
        }
        let body = http::body(url, response, DOCUMENT_MAX).await?;
        let uri = http::parse(url)?;
        let token = token_in(&body).ok_or_else(|| http::failed(&uri, "the token service gave no token", false))?;
        Ok(format!("Bearer {token}"))
    }
}

/// Written on a thread for that, so that a slow disk holds up this download only.
async fn write(file: Arc<File>, data: Bytes) -> Result<(), Error> {
    blocking(move || (&*file).write_all(&data).context(|| "writing a download".into())).await
}

/// Whether a registry honoured the request for a part.
fn continues_at(response: &Response<Incoming>, from: u64) -> bool {
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

async fn refused(url: &str, response: Response<Incoming>, status: StatusCode) -> Error {
    const SHOWN_MAX: usize = 300;
    let body = http::body(url, response, DOCUMENT_MAX).await.unwrap_or_default();
    let text: String = String::from_utf8_lossy(&body).chars().take(SHOWN_MAX).collect();
    let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    match http::parse(url) {
        Ok(uri) => http::failed(&uri, &format!("it says {status}: {}", text.trim()), transient),
        Err(error) => error,
    }
}
