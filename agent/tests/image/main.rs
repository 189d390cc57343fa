//! The image store as a whole: import, pull from real and misbehaving registries, overlay mounts, garbage collection, and what
//! a crash leaves (FAULTS 23, 24). Needs root, and for some tests docker-registry and skopeo.

mod registry;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hull_agent::image::build::{Content, ImageConfig, ImageFile, single_binary};
use hull_agent::image::{Credentials, Digest, Error, Image, ImageStore, Registries};
use registry::{Answer, DockerRegistry, Scripted};
use serde_json::json;

/// A store in a directory of its own; unmounts what is mounted when dropped.
struct Fixture {
    dir: tempfile::TempDir,
    store: Arc<ImageStore>,
}

impl Fixture {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(ImageStore::open(&dir.path().join("images")).unwrap());
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds an image archive with one file that holds `content`.
    fn build(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(&format!("{}.tar", name.replace(['/', ':'], "-")));
        let files = [
            ImageFile {
                path: "/app/run".into(),
                content: Content::Bytes(content.into()),
                mode: 0o755,
            },
            ImageFile {
                path: "/bin/run".into(),
                content: Content::Symlink("/app/run".into()),
                mode: 0o777,
            },
            ImageFile {
                path: "/tmp".into(),
                content: Content::Directory,
                mode: 0o1777,
            },
        ];
        let config = ImageConfig {
            entrypoint: vec!["/app/run".into()],
            env: vec!["A=b".into()],
            user: Some("1000".into()),
            ..ImageConfig::default()
        };
        single_binary(&files, &config, name, &path).unwrap();
        path
    }

    fn import(&self, name: &str, content: &str) -> Image {
        self.store.import(&self.build(name, content), None).unwrap().remove(0)
    }

    fn entries(&self, part: &str) -> usize {
        fs::read_dir(self.path("images").join(part)).unwrap().count()
    }

    fn is_empty(&self) -> bool {
        ["layers", "blobs/sha256", "tmp", "partial"]
            .iter()
            .all(|part| self.entries(part) == 0)
            && self.store.list().unwrap().is_empty()
    }

    fn pull(&self, reference: &str, auth: Option<Credentials>) -> Result<Image, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(self.store.pull(reference, auth))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for container in self.store.containers().unwrap_or_default() {
            let _ = self.store.unmount(&container);
        }
    }
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

/// A layer with one file, and its diff id.
fn layer(content: &[u8]) -> (Vec<u8>, Digest) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, "data", content).unwrap();
    let layer = builder.into_inner().unwrap();
    let diff_id = Digest::of(&layer);
    (layer, diff_id)
}

#[test]
fn a_built_image_is_imported_mounted_and_removed() {
    let fixture = Fixture::new();
    let image = fixture.import("web:1", "hello");
    assert_eq!(image.names[0].short(), "web:1");
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_deref(), Some(&["/app/run".to_owned()][..]));
    assert_eq!(
        (config.env().as_deref(), config.user().as_deref()),
        (Some(&["A=b".to_owned()][..]), Some("1000"))
    );
    let found = fixture.store.resolve("docker.io/library/web:1").unwrap().unwrap();
    assert_eq!(found.id, image.id);
    assert!(
        fixture.store.resolve("web").unwrap().is_none(),
        "that would be web:latest"
    );

    let one = fixture.store.mount(&image, "one").unwrap().path;
    let two = fixture.store.mount(&image, "two").unwrap().path;
    assert_eq!(
        (
            read(&one, "app/run"),
            fs::metadata(one.join("tmp")).unwrap().mode() & 0o7777
        ),
        ("hello".into(), 0o1777)
    );
    fs::write(one.join("app/run"), "changed").unwrap();
    fs::remove_file(one.join("bin/run")).unwrap();
    assert_eq!(read(&two, "app/run"), "hello", "what a container writes is its own");
    assert_eq!(
        fixture.store.mount(&image, "one").unwrap().path,
        one,
        "mounting twice is once"
    );
    assert_eq!(read(&one, "app/run"), "changed");

    fixture.store.remove("web:1").unwrap();
    assert!(fixture.store.list().unwrap().is_empty());
    assert_eq!(read(&two, "app/run"), "hello", "layers in use stay");
    assert_eq!(fixture.entries("layers"), 1);
    for id in ["one", "two", "never"] {
        fixture.store.unmount(id).unwrap();
    }
    assert_eq!(fixture.store.gc().unwrap().layers, 1);
    assert_eq!(fixture.store.mounted("one").unwrap(), None);
    assert!(fixture.is_empty());
    assert!(matches!(fixture.store.remove("web:1"), Err(Error::NotFound(_))));
}

#[test]
fn building_is_reproducible() {
    let fixture = Fixture::new();
    let first = fs::read(fixture.build("web", "same")).unwrap();
    assert_eq!(first, fs::read(fixture.build("web", "same")).unwrap());
}

#[test]
fn docker_archives_and_layout_directories_are_the_same_image() {
    let fixture = Fixture::new();
    let archive = fixture.build("web", "hello");
    let image = fixture.store.import(&archive, None).unwrap().remove(0);
    let (docker, layout) = (fixture.path("docker.tar"), fixture.path("layout"));
    let targets = [
        format!("docker-archive:{}:team/saved:2", docker.display()),
        format!("oci:{}:laid:out", layout.display()),
    ];
    for target in targets {
        let output = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                &format!("oci-archive:{}", archive.display()),
                &target,
            ])
            .output()
            .expect("skopeo is needed: apt-get install skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let saved = fixture.store.import(&docker, None).unwrap().remove(0);
    assert!(saved.names.iter().any(|name| name.short() == "team/saved:2"));
    assert_eq!(saved.layers, image.layers);
    let laid = fixture.store.import(&layout, Some("renamed")).unwrap().remove(0);
    assert!(laid.names.iter().any(|name| name.short() == "renamed:latest"));
    assert_eq!(fixture.entries("layers"), 1, "the layer is stored once");
    let gzipped = fixture.path("docker.tar.gz");
    let mut encoder = flate2::write::GzEncoder::new(fs::File::create(&gzipped).unwrap(), flate2::Compression::fast());
    std::io::copy(&mut fs::File::open(&docker).unwrap(), &mut encoder).unwrap();
    encoder.finish().unwrap();
    fixture.store.import(&gzipped, Some("zipped")).unwrap();
    fixture
        .store
        .import_reader(fs::File::open(&archive).unwrap(), Some("streamed"))
        .unwrap();
    for name in ["zipped", "streamed"] {
        assert_eq!(fixture.store.resolve(name).unwrap().unwrap().layers, image.layers);
    }
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let path = fixture.path("x.tar");
    fs::write(&path, "this is no archive").unwrap();
    assert!(matches!(fixture.store.import(&path, None), Err(Error::Archive { .. })));
    assert!(
        fixture
            .store
            .import(Path::new("/nowhere"), None)
            .unwrap_err()
            .to_string()
            .contains("/nowhere")
    );
    assert!(matches!(
        fixture.store.import(&fixture.build("web", "x"), Some("Bad Name")),
        Err(Error::Reference { .. })
    ));
    assert!(fixture.is_empty());
}

#[test]
fn an_archive_with_a_forged_layer_is_refused() {
    let fixture = Fixture::new();
    let archive = fixture.build("web", "honest content");
    let bytes = fs::read(&archive).unwrap();
    let at = bytes
        .windows(14)
        .position(|window| window == b"honest content")
        .unwrap();
    let mut forged = bytes.clone();
    forged[at..at + 14].copy_from_slice(b"forged content");
    fs::write(&archive, forged).unwrap();
    assert!(matches!(
        fixture.store.import(&archive, None),
        Err(Error::Digest { .. })
    ));
    assert!(fixture.is_empty());
}

#[test]
fn a_stack_of_two_hundred_layers_is_mounted_with_its_whiteouts() {
    const LAYERS: usize = 200;
    let fixture = Fixture::new();
    let layout = fixture.path("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    };
    let mut diff_ids = Vec::new();
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: String, content: String| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        };
        add(format!("f{number}"), number.to_string());
        add("top".into(), number.to_string());
        if number > 0 {
            add(format!(".wh.f{}", number - 1), String::new());
        }
        let bytes = builder.into_inner().unwrap();
        diff_ids.push(Digest::of(&bytes));
        layers.push(put(&bytes));
    }
    let config = put(
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string()
            .as_bytes(),
    );
    let manifest = put(json!({"schemaVersion": 2, "config": config, "layers": layers})
        .to_string()
        .as_bytes());
    fs::write(
        layout.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
    )
    .unwrap();
    let image = fixture.store.import(&layout, Some("tall")).unwrap().remove(0);
    let root = fixture.store.mount(&image, "tall").unwrap().path;
    assert_eq!(read(&root, "top"), (LAYERS - 1).to_string());
    let names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "every file but the last is hidden: {names:?}");
}

#[test]
fn an_image_is_pulled_from_a_real_registry() {
    let fixture = Fixture::new();
    let registry = DockerRegistry::start(fixture.dir.path());
    registry.push(&fixture.build("web", "from afar"), "team/web:1");
    let name = format!("{}/team/web:1", registry.address);
    let image = fixture.pull(&name, None).unwrap();
    assert_eq!(image.names[0].to_string(), name);
    let root = fixture.store.mount(&image, "c").unwrap().path;
    assert_eq!(read(&root, "app/run"), "from afar");
    assert_eq!((fixture.entries("tmp"), fixture.entries("partial")), (0, 0));
    let pinned = image.digests[0].to_string();
    assert_eq!(fixture.pull(&pinned, None).unwrap().id, image.id);
    assert_eq!(fixture.store.resolve(&pinned).unwrap().unwrap().id, image.id);
    let error = fixture
        .pull(&format!("{}/team/missing", registry.address), None)
        .unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
}

#[test]
fn a_pull_that_is_cut_is_continued() {
    let fixture = Fixture::new();
    let (layer, diff_id) = layer(&vec![7; 300_000]);
    let registry = Scripted::start(None);
    let (_, blob) = registry.serve_image("web", &layer, &diff_id);
    registry.set(
        &blob,
        Answer {
            body: layer.clone(),
            cut: Some((100_000, 2)),
            ranges: true,
        },
    );
    let image = fixture.pull(&format!("{}/web", registry.address), None).unwrap();
    assert_eq!(image.layers, [diff_id]);
    let ranges: Vec<String> = registry
        .requests()
        .into_iter()
        .filter(|request| request.contains("bytes="))
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges[1].contains("bytes=200000-"), "{ranges:?}");
}

#[test]
fn a_registry_without_ranges_starts_the_download_over() {
    let fixture = Fixture::new();
    let (layer, diff_id) = layer(&vec![7; 300_000]);
    let registry = Scripted::start(None);
    let (_, blob) = registry.serve_image("web", &layer, &diff_id);
    registry.set(
        &blob,
        Answer {
            body: layer,
            cut: Some((100_000, 1)),
            ranges: false,
        },
    );
    fixture.pull(&format!("{}/web", registry.address), None).unwrap();
}

#[test]
fn a_download_left_by_a_crash_is_resumed_by_its_digest() {
    let fixture = Fixture::new();
    let (layer, diff_id) = layer(&vec![7; 300_000]);
    let registry = Scripted::start(None);
    registry.serve_image("web", &layer, &diff_id);
    let partial = fixture.path("images/partial").join(Digest::of(&layer).hex());
    fs::write(&partial, &layer[..250_000]).unwrap();
    fixture.pull(&format!("{}/web", registry.address), None).unwrap();
    assert!(
        registry
            .requests()
            .iter()
            .any(|request| request.contains("bytes=250000-"))
    );
    // One that is damaged costs a failed pull, not a wrong image, and is not kept.
    fixture.store.remove(&format!("{}/web", registry.address)).unwrap();
    fs::write(&partial, vec![9; 250_000]).unwrap();
    assert!(matches!(
        fixture.pull(&format!("{}/web", registry.address), None),
        Err(Error::Digest { .. })
    ));
    assert!(fixture.is_empty());
    fixture.pull(&format!("{}/web", registry.address), None).unwrap();
}

#[test]
fn forged_content_is_refused_and_nothing_stored() {
    let (good, diff_id) = layer(b"honest");
    let (forged, _) = layer(b"forged");
    let (longer, _) = layer(&vec![1; 5000]);
    for body in [forged, longer] {
        let fixture = Fixture::new();
        let registry = Scripted::start(None);
        let (_, blob) = registry.serve_image("web", &good, &diff_id);
        registry.set(
            &blob,
            Answer {
                body,
                ..Answer::default()
            },
        );
        let error = fixture.pull(&format!("{}/web", registry.address), None).unwrap_err();
        assert!(matches!(error, Error::Digest { .. } | Error::Size { .. }), "{error}");
        fs::read_dir(fixture.path("images/partial"))
            .unwrap()
            .for_each(|left| fs::remove_file(left.unwrap().path()).unwrap());
        assert!(fixture.is_empty());
    }
}

#[test]
fn a_layer_with_another_diff_id_is_refused() {
    let fixture = Fixture::new();
    let (good, _) = layer(b"honest");
    let registry = Scripted::start(None);
    registry.serve_image("web", &good, &Digest::of(b"something else"));
    assert!(matches!(
        fixture.pull(&format!("{}/web", registry.address), None),
        Err(Error::Digest { .. })
    ));
    assert!(fixture.is_empty());
}

#[test]
fn a_manifest_other_than_the_pinned_one_is_refused() {
    let fixture = Fixture::new();
    let (good, diff_id) = layer(b"honest");
    let registry = Scripted::start(None);
    let (manifest, _) = registry.serve_image("web", &good, &diff_id);
    let wanted = Digest::of(b"another manifest");
    let body = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec();
    registry.set(
        &manifest.replace("latest", wanted.as_str()),
        Answer {
            body,
            ..Answer::default()
        },
    );
    let pinned = format!("{}/web@{wanted}", registry.address);
    assert!(matches!(fixture.pull(&pinned, None), Err(Error::Digest { .. })));
}

#[test]
fn a_token_is_fetched_with_the_pull_secret() {
    let fixture = Fixture::new();
    let (good, diff_id) = layer(b"honest");
    let registry = Scripted::start(Some("t0ken"));
    registry.serve_image("web", &good, &diff_id);
    let name = format!("{}/web", registry.address);
    let error = fixture.pull(&name, None).unwrap_err();
    assert!(error.to_string().contains("403"), "{error}");
    let credentials = Credentials {
        username: "user".into(),
        password: "pass".into(),
    };
    fixture.pull(&name, Some(credentials)).unwrap();
    let requests = registry.requests();
    assert!(
        requests
            .iter()
            .any(|request| request.starts_with("/token?service=test&scope=repository:x:pull")),
        "{requests:?}"
    );
    let misdirected = requests
        .iter()
        .filter(|request| !request.starts_with("/token") && request.contains("Basic"));
    assert_eq!(misdirected.count(), 0, "the password goes to the token service only");
}

#[test]
fn a_registry_that_is_down_is_a_transient_error_that_names_it() {
    let fixture = Fixture::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = fixture.pull(&format!("{free}/web"), None).unwrap_err();
    assert!(
        matches!(&error, Error::Registry { transient: true, registry, .. } if *registry == free.to_string()),
        "{error}"
    );
}

#[test]
fn what_a_crash_left_unfinished_is_removed_and_images_are_kept() {
    let fixture = Fixture::new();
    let image = fixture.import("web", "hello");
    let images = fixture.path("images");
    fs::create_dir_all(images.join("tmp/1-2/fs/half")).unwrap();
    fs::write(images.join("index.new"), "{\"images\":[").unwrap();
    let orphan = images.join("layers").join(Digest::of(b"orphan").hex());
    fs::create_dir_all(orphan.join("fs")).unwrap();
    let store = ImageStore::open_with(&images, Registries::default()).unwrap();
    assert_eq!(fixture.entries("tmp"), 0);
    assert_eq!(store.list().unwrap()[0].id, image.id);
    assert_eq!(store.gc().unwrap().layers, 1, "a layer that no image names");
    assert!(!orphan.exists() && store.resolve("web").unwrap().is_some());
}

#[test]
fn a_damaged_configuration_is_noticed() {
    let fixture = Fixture::new();
    let image = fixture.import("web", "hello");
    let path = fixture.path("images/blobs/sha256").join(image.id.hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(fixture.store.resolve("web"), Err(Error::Digest { .. })));
}

#[test]
fn container_ids_cannot_lead_outside() {
    let fixture = Fixture::new();
    let image = fixture.import("web", "hello");
    for bad in ["", "..", "../x", "a/b", ".x"] {
        assert!(fixture.store.mount(&image, bad).is_err(), "{bad:?}");
        assert!(fixture.store.unmount(bad).is_err(), "{bad:?}");
    }
}
