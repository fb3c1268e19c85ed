//! The cluster's certificates: one authority, and a certificate for everybody who talks to somebody.

use std::net::Ipv4Addr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::plan::{API_SERVICE, NODE, NODE_ADDRESS};

/// Somebody with a certificate. The subject's common name and organisation are the API server's user and group.
pub struct Client {
    pub name: &'static str,
    user: &'static str,
    group: Option<&'static str>,
    pub kubeconfig: bool,
}

const fn client(name: &'static str, user: &'static str, group: Option<&'static str>, kubeconfig: bool) -> Client {
    Client { name, user, group, kubeconfig }
}

pub const CLIENTS: [Client; 10] = [
    client("admin", "admin", Some("system:masters"), true),
    client("controllers", "system:kube-controller-manager", None, true),
    client("scheduler", "system:kube-scheduler", None, true),
    client("kubelet", "system:node:node-1", Some("system:nodes"), true),
    client("proxy", "system:kube-proxy", None, true),
    client("dns", "dns", None, true),
    client("api", "kube-apiserver", None, false),
    client("api-to-kubelet", "api-to-kubelet", None, false),
    client("front-proxy", "front-proxy", None, false),
    client("accounts", "accounts", None, false),
];

/// A file's name, without folder and ending, and both its halves.
pub struct Pair {
    pub name: &'static str,
    pub certificate: String,
    pub key: String,
}

pub fn make() -> Result<Vec<Pair>, rcgen::Error> {
    let mut params = CertificateParams::new(vec![])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test cluster");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.pem();
    let mut pairs = vec![Pair { name: "ca", certificate, key: key.serialize_pem() }];
    let authority = Issuer::new(params, key);
    for client in &CLIENTS {
        let mut params = CertificateParams::new(names(client.name))?;
        params.distinguished_name.push(DnType::CommonName, client.user);
        if let Some(group) = client.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?.pem();
        pairs.push(Pair { name: client.name, certificate, key: key.serialize_pem() });
    }
    Ok(pairs)
}

/// Under which names and addresses it serves.
fn names(client: &str) -> Vec<String> {
    let addresses = |list: &[Ipv4Addr]| list.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>();
    match client {
        "api" => {
            let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
            let mut names: Vec<String> = service.iter().map(|name| (*name).to_owned()).collect();
            names.push("kubernetes.default.svc.cluster.local".into());
            names.extend(addresses(&[NODE_ADDRESS, API_SERVICE, Ipv4Addr::LOCALHOST]));
            names
        }
        "kubelet" => [vec![NODE.to_owned()], addresses(&[NODE_ADDRESS])].concat(),
        _ => vec![],
    }
}
