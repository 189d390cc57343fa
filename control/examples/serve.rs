//! A control plane without agents, for driving it by hand: `serve DIR PORT`.

use hull_control::pki::{PkiConfig, ensure};
use hull_control::server::{ControlConfig, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(arguments.next().expect("DIR"));
    let port: u16 = arguments.next().expect("PORT").parse().expect("PORT is a number");
    let pki_dir = dir.join("pki");
    let pki = PkiConfig {
        node_name: "n1".into(),
        server: format!("https://127.0.0.1:{port}"),
        ips: vec![[127, 0, 0, 1].into()],
        names: Vec::new(),
    };
    ensure(&pki_dir, &pki).expect("pki");
    let begin = std::time::Instant::now();
    let config = ControlConfig {
        data_dir: dir,
        pki_dir,
        listen: ([127, 0, 0, 1], port).into(),
        advertise: [192, 0, 2, 1].into(),
        service_cidr: "10.96.0.0/16".into(),
        pod_cidr: "10.244.0.0/16".into(),
    };
    let server = Server::start(config).await.expect("start");
    println!("ready on {} after {:?}", server.address(), begin.elapsed());
    tokio::signal::ctrl_c().await.expect("signal");
    server.stop().await;
}
