//! What an `EndpointSlice` must be.

use std::net::IpAddr;

use serde_json::Value;

use super::Must::{Be, Hold, Look, OneOf};
use super::Rule;
use crate::forms::{label_faults, qualified_faults, subdomain_faults};
use crate::status::FieldError;

pub const ENDPOINT_SLICE: &[Rule] = &[
    ("addressType", Be),
    ("addressType", OneOf(&["FQDN", "IPv4", "IPv6"])),
    ("ports[].name", Look(label_faults)),
    ("ports", Hold(names)),
    ("ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
    ("ports[].appProtocol", Look(qualified_faults)),
    ("", Hold(addresses)),
    ("endpoints[].nodeName", Look(subdomain_faults)),
    ("endpoints[].hostname", Look(label_faults)),
];

/// Having none is a name, too.
fn names(ports: &Value, at: &str) -> Vec<FieldError> {
    let ports = ports.as_array().map(Vec::as_slice).unwrap_or_default();
    let twice = (0..ports.len()).filter(|i| ports[..*i].iter().any(|before| before["name"] == ports[*i]["name"]));
    twice.map(|i| FieldError::duplicate(format!("{at}[{i}].name"), ports[i]["name"].clone())).collect()
}

fn addresses(slice: &Value, _: &str) -> Vec<FieldError> {
    let form = slice["addressType"].as_str().unwrap_or_default();
    let mut errors = vec![];
    for (i, endpoint) in slice["endpoints"].as_array().into_iter().flatten().enumerate() {
        let at = format!("endpoints[{i}].addresses");
        let addresses = endpoint["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            errors.push(FieldError::required(at.clone(), "must contain at least 1 address"));
        }
        for (i, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let (item, of_list) = (format!("{at}[{i}]"), at.clone());
            match (form, text.parse::<IpAddr>()) {
                ("IPv4" | "IPv6", Err(_)) => {
                    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    errors.push(FieldError::invalid(item, text, why));
                }
                ("IPv4", Ok(ip)) if !ip.is_ipv4() => {
                    errors.push(FieldError::invalid(of_list, text, "must be an IPv4 address"));
                }
                ("IPv6", Ok(ip)) if !ip.is_ipv6() => {
                    errors.push(FieldError::invalid(of_list, text, "must be an IPv6 address"));
                }
                ("FQDN", _) => {
                    let faults = subdomain_faults(text.strip_suffix('.').unwrap_or(text));
                    if !faults.is_empty() {
                        errors.push(FieldError::invalid(item, text, faults.join(",")));
                    }
                }
                _ => {}
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slices() {
        for (slice, want) in [
            (json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"]}]}), ""),
            (json!({}), "addressType: Required value"),
            (
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["x"]}, {"addresses": []}]}),
                "endpoints[0].addresses[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff), endpoints[1].addresses: Required value: must contain at least 1 address",
            ),
            (
                json!({"addressType": "IPv6", "endpoints": [{"addresses": ["10.1.2.3"]}]}),
                "endpoints[0].addresses: Invalid value: \"10.1.2.3\": must be an IPv6 address",
            ),
            (
                json!({"addressType": "IPv4", "ports": [{"name": ""}, {"name": ""}]}),
                "ports[1].name: Duplicate value: \"\"",
            ),
        ] {
            let told: Vec<String> =
                super::super::check(&slice, "", ENDPOINT_SLICE).iter().map(ToString::to_string).collect();
            assert_eq!(told.join(", "), want, "{slice}");
        }
    }
}
