//! From a service to the addresses that a measurement of it goes to.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::{Path, Request, Talk, talk_of};

/// What a request comes down to on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The service's port.
    pub port: u16,
    /// What is said.
    pub talk: Talk,
    /// The paths with their addresses, none empty.
    pub paths: Vec<(Path, Vec<SocketAddr>)>,
}

/// Finds the addresses of what `request` asks for.
///
/// # Errors
/// There is no such port or path, or nobody serves.
pub fn resolve(
    request: &Request,
    service: &Service,
    slices: &[EndpointSlice],
    node: IpAddr,
) -> Result<Resolved, String> {
    let name = format!("{}/{}", request.namespace, request.service);
    let port = find_port(service, request.port.as_deref()).map_err(|what| format!("service {name} {what}"))?;
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    if protocol != "TCP" {
        return Err(format!(
            "port {} of service {name} is {protocol}: only TCP can be measured",
            port.port
        ));
    }
    let number = u16::try_from(port.port).map_err(|_| format!("service {name} has no valid port"))?;
    let talk = request
        .talk
        .clone()
        .unwrap_or_else(|| talk_of(port.app_protocol.as_deref(), port.name.as_deref()));
    let addresses = |path: &Path| match path {
        Path::Pod => pods(slices, port)
            .ok_or_else(|| format!("service {name} has no ready endpoints: there is no pod to measure")),
        Path::ClusterIp => cluster_ip(service)
            .map(|ip| vec![SocketAddr::new(ip, number)])
            .ok_or_else(|| {
                format!("service {name} has no address of its own (headless or ExternalName): measure --paths pod")
            }),
        Path::NodePort => port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .map(|port| vec![SocketAddr::new(node, port)])
            .ok_or_else(|| format!("service {name} has no node port: leave nodeport out of --paths")),
    };
    let paths = request.paths.iter().map(|path| Ok((*path, addresses(path)?)));
    Ok(Resolved {
        port: number,
        talk,
        paths: paths.collect::<Result<_, String>>()?,
    })
}

fn find_port<'a>(service: &'a Service, wanted: Option<&str>) -> Result<&'a ServicePort, String> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let is_wanted = |port: &&ServicePort| match wanted {
        None => true,
        Some(text) => port.name.as_deref() == Some(text) || port.port.to_string() == text,
    };
    ports.iter().find(is_wanted).ok_or_else(|| match wanted {
        None => "has no ports".to_owned(),
        Some(text) => {
            let all: Vec<String> = ports.iter().map(port_text).collect();
            format!("has no port {text:?}: it has {}", all.join(", "))
        }
    })
}

fn port_text(port: &ServicePort) -> String {
    match &port.name {
        Some(name) => format!("{} ({name})", port.port),
        None => port.port.to_string(),
    }
}

fn cluster_ip(service: &Service) -> Option<IpAddr> {
    service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
}

/// The ready endpoints, those of one family: that of the first.
fn pods(slices: &[EndpointSlice], port: &ServicePort) -> Option<Vec<SocketAddr>> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut all: Vec<SocketAddr> = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let number = ports
            .filter(|own| own.name.as_deref().unwrap_or_default() == name)
            .find_map(|own| own.port.and_then(|port| u16::try_from(port).ok()));
        // A service without a selector may have slices of any kind of address; names are not measured.
        let Some(number) = number.or_else(|| target_port(port)) else {
            continue;
        };
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
        all.extend(addresses.map(|ip| SocketAddr::new(ip, number)));
    }
    let v4 = all.first()?.is_ipv4();
    all.retain(|address| address.is_ipv4() == v4);
    all.sort_unstable();
    all.dedup();
    Some(all)
}

fn target_port(port: &ServicePort) -> Option<u16> {
    match &port.target_port {
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::plan::Schedule;
    use super::*;

    fn request(port: Option<&str>, paths: &[Path]) -> Request {
        Request {
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
            port: port.map(str::to_owned),
            paths: paths.to_vec(),
            pod: None,
            schedule: Schedule::Closed,
            connections: 1,
            milliseconds: 1_000,
            talk: None,
        }
    }

    fn service() -> Service {
        serde_json::from_value(json!({"spec": {"clusterIP": "10.96.0.7", "ports": [
            {"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"},
        ]}}))
        .unwrap()
    }

    fn slices() -> Vec<EndpointSlice> {
        let slice = json!({
            "addressType": "IPv4", "ports": [{"name": "dns", "port": 5353}, {"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true}},
                {"addresses": ["10.0.0.1"]},
            ],
        });
        let other = json!({
            "addressType": "IPv6", "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["fd00::1"]}],
        });
        vec![
            serde_json::from_value(slice).unwrap(),
            serde_json::from_value(other).unwrap(),
        ]
    }

    fn find(request: &Request) -> Result<Resolved, String> {
        resolve(request, &service(), &slices(), [192, 0, 2, 1].into())
    }

    #[test]
    fn paths_lead_to_ready_pods_and_the_services_addresses() {
        let found = find(&request(Some("80"), &[Path::NodePort, Path::Pod, Path::ClusterIp])).unwrap();
        let texts: Vec<(Path, Vec<String>)> = found
            .paths
            .iter()
            .map(|(path, all)| (*path, all.iter().map(ToString::to_string).collect()))
            .collect();
        assert_eq!(
            texts,
            [
                (Path::NodePort, vec!["192.0.2.1:30080".to_owned()]),
                (Path::Pod, vec!["10.0.0.1:8080".to_owned(), "10.0.0.2:8080".to_owned()]),
                (Path::ClusterIp, vec!["10.96.0.7:80".to_owned()]),
            ]
        );
        assert_eq!((found.port, found.talk), (80, Talk::Http("/".to_owned())));
    }

    #[test]
    fn what_there_is_not_is_said() {
        let refused = |port, path: Path| find(&request(port, &[path])).unwrap_err();
        assert!(refused(Some("81"), Path::Pod).contains("it has 80 (http), 53 (dns)"));
        assert!(refused(Some("dns"), Path::Pod).contains("only TCP"));
        let mut headless = service();
        headless.spec.as_mut().unwrap().cluster_ip = Some("None".to_owned());
        let found = resolve(
            &request(None, &[Path::ClusterIp]),
            &headless,
            &[],
            [192, 0, 2, 1].into(),
        );
        assert!(found.unwrap_err().contains("--paths pod"));
        let found = resolve(&request(None, &[Path::Pod]), &headless, &[], [192, 0, 2, 1].into());
        assert!(found.unwrap_err().contains("no ready endpoints"));
    }
}
