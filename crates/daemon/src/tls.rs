//! A certificate authority of one's own and a server certificate under it, kept in a folder and renewed in time.

use std::path::Path;
use std::sync::Arc;

use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{DaemonError, files};

/// What a server needs, and the authority that its clients must trust.
pub struct Identity {
    pub server: Arc<rustls::ServerConfig>,
    pub authority_pem: String,
}

const CA_DAYS: i64 = 3650;
const SERVER_DAYS: i64 = 365;

/// Makes rustls use the one provider that is compiled in; a second call changes nothing.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The authority is kept in `dir` and made on first use; the server certificate is made anew at every start, for
/// these host names and addresses.
pub fn identity(dir: &Path, names: &[String], now: Timestamp) -> Result<Identity, DaemonError> {
    files::create_private_dir(dir)?;
    let (ca_pem, ca_key) = match (read(dir, "ca.crt"), read(dir, "ca.key")) {
        (Some(pem), Some(key)) => (pem, KeyPair::from_pem(&key).map_err(tls)?),
        _ => new_authority(dir, now)?,
    };
    // The authority's name and usages are constants, so its key alone makes it the same issuer again.
    let issuer = Issuer::new(authority_params(now)?, ca_key);
    let key = KeyPair::generate().map_err(tls)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(tls)?;
    validity(&mut params, now, SERVER_DAYS);
    params.distinguished_name.push(DnType::CommonName, "server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &issuer).map_err(tls)?;
    let chain = vec![certificate.der().clone(), first_certificate(&ca_pem)?];
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| DaemonError::Tls(e.to_owned()))?;
    let mut server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|e| DaemonError::Tls(e.to_string()))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity { server: Arc::new(server), authority_pem: ca_pem })
}

fn authority_params(now: Timestamp) -> Result<CertificateParams, DaemonError> {
    let mut params = CertificateParams::new(vec![]).map_err(tls)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "local authority");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, now, CA_DAYS);
    Ok(params)
}

fn new_authority(dir: &Path, now: Timestamp) -> Result<(String, KeyPair), DaemonError> {
    let key = KeyPair::generate().map_err(tls)?;
    let pem = authority_params(now)?.self_signed(&key).map_err(tls)?.pem();
    files::write_atomically(&dir.join("ca.key"), 0o600, key.serialize_pem().as_bytes())?;
    files::write_atomically(&dir.join("ca.crt"), 0o644, pem.as_bytes())?;
    Ok((pem, key))
}

/// Begins a day early, since clients' clocks differ.
fn validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let date = |days: i64| {
        let zoned = now.checked_add((days * 24).hours()).unwrap_or(now).to_zoned(jiff::tz::TimeZone::UTC);
        rcgen::date_time_ymd(i32::from(zoned.year()), zoned.month().unsigned_abs(), zoned.day().unsigned_abs())
    };
    params.not_before = date(-1);
    params.not_after = date(days);
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, DaemonError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| DaemonError::Tls(e.to_string()))
}

fn read(dir: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(name)).ok()
}

fn tls(error: rcgen::Error) -> DaemonError {
    DaemonError::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_kept() {
        install_provider();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let now = Timestamp::from_second(1_790_000_000).expect("in range");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let first = identity(dir.path(), &names, now).expect("made");
        let second = identity(dir.path(), &names, now).expect("read");
        assert_eq!(first.authority_pem, second.authority_pem);
    }
}
