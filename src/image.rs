//! `hull image`: what is in this node's image store. It works on the store itself, whether or not hull is running.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use hull_agent::image::{Credentials, Image, ImageStore, Registries};

use crate::cluster::Cluster;
use crate::status::table;

/// Subcommands of `hull image`.
#[derive(Subcommand)]
pub enum Command {
    /// Import an OCI layout (directory or tar) or a docker archive
    Import {
        /// The file or directory; `-` reads an archive from standard input
        path: PathBuf,
        /// Name for the image [default: the names in the archive]
        #[arg(long, short)]
        name: Option<String>,
    },
    /// List images
    Ls {
        /// Output format: text or json
        #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Remove an image's name; layers that no image and no container needs any more go with it
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Pull from a registry
    Pull {
        /// The image's name
        image: String,
        /// `user:password` for the registry
        #[arg(long, value_name = "USER:PASSWORD")]
        creds: Option<String>,
    },
}

/// Runs one of the subcommands.
///
/// # Errors
/// The store cannot be opened, the archive is malformed, the registry does not answer, or there is no such image.
pub fn run(cluster: &Cluster, command: Command) -> Result<()> {
    let registries = Registries {
        plain_http: cluster.insecure_registries.clone(),
        ..Registries::default()
    };
    let store = ImageStore::open_with(&cluster.data_dir.join("images"), registries).context("open the image store")?;
    match command {
        Command::Import { path, name } => {
            let images = match path.to_str() {
                Some("-") => store.import_reader(std::io::stdin().lock(), name.as_deref()),
                _ => store.import(&path, name.as_deref()),
            };
            for image in images.with_context(|| format!("import {}", path.display()))? {
                println!("{}  {}", short_id(&image), names(&image));
            }
            Ok(())
        }
        Command::Ls { output } => list(&store, output == "json"),
        Command::Rm { images } => {
            for image in &images {
                if store.resolve(image)?.is_none() {
                    bail!("no image {image:?} here; hull image ls shows those there are");
                }
                store.remove(image).with_context(|| format!("remove {image}"))?;
                println!("removed {image}");
            }
            store.gc().context("remove layers that nothing needs")?;
            Ok(())
        }
        Command::Pull { image, creds } => pull(store, &image, creds.as_deref()),
    }
}

fn pull(store: ImageStore, image: &str, creds: Option<&str>) -> Result<()> {
    let credentials = match creds.map(|creds| creds.split_once(':')) {
        Some(Some((username, password))) => Some(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        }),
        Some(None) => bail!("--creds wants USER:PASSWORD"),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    eprintln!("pulling {image}");
    let pulled = runtime
        .block_on(Arc::new(store).pull(image, credentials))
        .with_context(|| format!("pull {image}"))?;
    println!("{}  {}", short_id(&pulled), names(&pulled));
    Ok(())
}

fn list(store: &ImageStore, json: bool) -> Result<()> {
    let images = store.list().context("list images")?;
    if json {
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                serde_json::json!({
                    "id": image.id.to_string(), "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "size": image.size, "created": image.created,
                })
            })
            .collect();
        println!("{:#}", serde_json::Value::Array(rows));
        return Ok(());
    }
    let rows = images.iter().map(|image| {
        vec![
            names(image),
            short_id(image),
            format!("{:.1} MB", image.size as f64 / 1e6),
        ]
    });
    print!(
        "{}",
        table(&["IMAGE", "ID", "SIZE"], rows.collect())
            .trim_end_matches('\n')
            .to_owned()
            + "\n"
    );
    Ok(())
}

fn short_id(image: &Image) -> String {
    let id = image.id.to_string();
    id.strip_prefix("sha256:").unwrap_or(&id).chars().take(12).collect()
}

fn names(image: &Image) -> String {
    let names: Vec<String> = image.names.iter().map(hull_agent::image::Reference::short).collect();
    if names.is_empty() {
        "<none>".to_owned()
    } else {
        names.join(", ")
    }
}
