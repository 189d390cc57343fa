//! placeholder: helper S owns this file. The integrator calls `ensure(dir: &Path, config: &PkiConfig) -> Result<Pki, PkiError>`.
//! Files: ca.crt ca.key apiserver.crt/.key sa.key sa.pub admin.kubeconfig agent.kubeconfig agent.crt/.key (serving cert of the kubelet API,
//! names and IPs as the API server's) kubelet-client.crt/.key (control's client certificate for the agent).

/// What the certificates must say.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// Name of the first node: the agent's user is `system:node:<name>`.
    pub node_name: String,
    /// The API server's URL in the kubeconfigs.
    pub server: String,
    /// IP addresses of the API server's (and the agent's) certificate.
    pub ips: Vec<std::net::IpAddr>,
    /// Further DNS names; `kubernetes`, `kubernetes.default`, … are always there.
    pub names: Vec<String>,
}
