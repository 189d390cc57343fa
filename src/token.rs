//! `hull token`: the bootstrap tokens that other machines join with, kept as secrets in kube-system.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hull_agent::client::Client;
use hull_control::auth::bootstrap_token::{BootstrapToken, NAMESPACE, PREFIX, TYPE};
use hull_control::pki;
use hull_control::registry::Environment;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::cluster::{Cluster, duration};

/// `hull token …`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a token and print it
    Create {
        /// The token, if it should not be a random one: [a-z0-9]{6}.[a-z0-9]{16}
        token: Option<String>,
        /// How long it is good for; 0 for ever
        #[arg(long, default_value = "24h", value_name = "TIME", value_parser = life)]
        ttl: SignedDuration,
        /// Print the command that joins a machine to the cluster
        #[arg(long)]
        print_join_command: bool,
        /// For people
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        description: String,
    },
    /// The tokens there are
    List,
    /// Remove tokens, each by its id or as a whole
    Delete {
        /// Which
        #[arg(required = true)]
        tokens: Vec<String>,
    },
}

fn life(text: &str) -> Result<SignedDuration, String> {
    if text == "0" {
        return Ok(SignedDuration::ZERO);
    }
    SignedDuration::try_from(duration(text)?).map_err(|error| error.to_string())
}

/// Runs the command.
///
/// # Errors
/// There is no administrator's kubeconfig here, or the API server refuses.
pub fn run(cluster: &Cluster, command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let client = Client::from_kubeconfig(&cluster.kubeconfig())
        .context("tokens are made where the control plane runs, with its --data-dir")?;
    runtime.block_on(async {
        match command {
            Command::Create {
                token,
                ttl,
                print_join_command,
                description,
            } => create(&client, token, ttl, &description, print_join_command).await,
            Command::List => list(&client).await,
            Command::Delete { tokens } => delete(&client, &tokens).await,
        }
    })
}

fn secrets() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets")
}

async fn create(
    client: &Client,
    token: Option<String>,
    ttl: SignedDuration,
    description: &str,
    print_join_command: bool,
) -> Result<()> {
    let token = match token {
        Some(text) => text.parse().map_err(anyhow::Error::msg)?,
        None => BootstrapToken::generate(&Environment::system()),
    };
    let expires = (!ttl.is_zero()).then(|| Timestamp::now() + ttl);
    client
        .create(&secrets(), &token.to_secret(expires, description))
        .await
        .context("make the token")?;
    if print_join_command {
        let (server, hash) = cluster_info(client).await?;
        println!("hull agent --join {server} --token {token} --ca-hash {hash}");
    } else {
        println!("{token}");
    }
    Ok(())
}

/// URL of the API server and hash of its authority, as joining machines are told.
async fn cluster_info(client: &Client) -> Result<(String, String)> {
    let path = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let info = client.get(path).await.context("read cluster-info")?;
    let kubeconfig = info["data"]["kubeconfig"].as_str().unwrap_or_default();
    let value = |key: &str| {
        let line = kubeconfig
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
        line.with_context(|| format!("cluster-info has no {key}"))
    };
    let ca = STANDARD
        .decode(value("certificate-authority-data")?)
        .context("cluster-info")?;
    let ca = String::from_utf8(ca).context("cluster-info")?;
    let hash = pki::pin(&ca).map_err(anyhow::Error::msg).context("cluster-info")?;
    Ok((value("server")?.to_owned(), hash))
}

async fn list(client: &Client) -> Result<()> {
    let path = format!("{}?fieldSelector=type%3D{}", secrets(), TYPE.replace('/', "%2F"));
    let secrets = client.list(&path).await.context("list the tokens")?;
    println!(
        "{:<24} {:<12} {:<22} {:<24} DESCRIPTION",
        "TOKEN", "TTL", "EXPIRES", "USAGES"
    );
    for secret in secrets {
        println!("{}", line(&secret, Timestamp::now()));
    }
    Ok(())
}

fn line(secret: &Value, now: Timestamp) -> String {
    let text = |name: &str| {
        let encoded = secret["data"][name].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(encoded).unwrap_or_default()).unwrap_or_default()
    };
    let expires = text("expiration");
    let ttl = match expires.parse::<Timestamp>() {
        _ if expires.is_empty() => "<forever>".to_owned(),
        Ok(end) if end <= now => "<expired>".to_owned(),
        Ok(end) => format!("{:#}", SignedDuration::from_secs(end.duration_since(now).as_secs())),
        Err(_) => "<invalid>".to_owned(),
    };
    let usages: Vec<&str> = ["authentication", "signing"]
        .into_iter()
        .filter(|usage| text(&format!("usage-bootstrap-{usage}")) == "true")
        .collect();
    let expires = if expires.is_empty() {
        "<never>".to_owned()
    } else {
        expires
    };
    format!(
        "{:<24} {ttl:<12} {expires:<22} {:<24} {}",
        format!("{}.{}", text("token-id"), text("token-secret")),
        usages.join(","),
        text("description")
    )
    .trim_end()
    .to_owned()
}

async fn delete(client: &Client, tokens: &[String]) -> Result<()> {
    for token in tokens {
        let id = token.split('.').next().unwrap_or_default();
        match client
            .delete(&format!("{}/{PREFIX}{id}", secrets()), &Value::Null)
            .await
        {
            Ok(_) => println!("token {id} deleted"),
            Err(error) if error.is_not_found() => bail!("there is no token {id}: hull token list"),
            Err(error) => return Err(error).context("delete the token"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_one_line() {
        let encode = |text: &str| STANDARD.encode(text);
        let mut secret = json!({"data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "expiration": encode("2026-01-01T01:00:00Z"), "usage-bootstrap-signing": encode("true")}});
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let words =
            |secret: &Value| -> Vec<String> { line(secret, now).split_whitespace().map(str::to_owned).collect() };
        assert_eq!(
            words(&secret),
            ["abcdef.0123456789abcdef", "1h", "2026-01-01T01:00:00Z", "signing"]
        );
        secret["data"]["expiration"] = json!(encode("2025-01-01T01:00:00Z"));
        assert_eq!(words(&secret)[1], "<expired>");
        secret["data"].as_object_mut().unwrap().remove("expiration");
        assert_eq!(words(&secret)[1..3], ["<forever>", "<never>"]);
    }
}
