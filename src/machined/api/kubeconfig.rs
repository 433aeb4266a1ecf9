//! `Kubeconfig`: a configuration for `kubectl` with a certificate made for it, as a gzip'd tar with the
//! single member `kubeconfig` (spec §5.6).

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use orlop_config::kubeconfig::Kubeconfig;
use orlop_config::machine::MachineConfig;
use orlop_pki::{Authority, Leaf, Usage};
use tonic::Status;

/// A year, when the configuration does not say (`cluster.adminKubeconfig.certLifetime`).
const LIFETIME: Duration = Duration::from_secs(8760 * 3600);

/// The archive.
///
/// # Errors
/// `FailedPrecondition` on a node without the key of Kubernetes' authority.
pub(super) fn kubeconfig(config: &MachineConfig, now: SystemTime) -> Result<Vec<u8>, Status> {
    let cluster = &config.cluster;
    let ca = cluster.ca.as_ref().and_then(|pair| Some((&pair.crt, pair.key.as_ref()?)));
    let endpoint = cluster.control_plane.endpoint.as_ref();
    let (Some((ca, key)), Some(endpoint)) = (ca, endpoint) else {
        return Err(Status::failed_precondition(
            "kubeconfig: this node has no key of Kubernetes' authority; ask a control plane node",
        ));
    };
    let leaf = Leaf {
        common_name: "apiserver-kubelet-client".to_owned(),
        organizations: vec!["system:masters".to_owned()],
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: cluster.admin_kubeconfig.cert_lifetime.unwrap_or(LIFETIME),
    };
    let client = Authority::from_pem(ca, key.expose())
        .and_then(|authority| authority.issue(&leaf, now))
        .map_err(|error| {
            Status::internal(format!("issue the certificate: {}", orlop_rt::Chain(&error)))
        })?;
    let name = cluster.cluster_name.as_deref().unwrap_or_default();
    let server = endpoint.as_str().trim_end_matches('/');
    let text = Kubeconfig { cluster: name, server, ca, client: &client }.to_yaml();
    archive(&text, now).map_err(|error| Status::internal(format!("pack the kubeconfig: {error}")))
}

fn archive(text: &str, now: SystemTime) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    archive.append_data(&mut header, "kubeconfig", text.as_bytes())?;
    let mut zipped = archive.into_inner()?;
    zipped.flush()?;
    zipped.finish()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Read as _;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use flate2::read::GzDecoder;
    use orlop_config::generate;

    use super::*;

    fn generated() -> generate::Generated {
        let options = generate::Options::default();
        let now = SystemTime::now();
        generate::generate("my cluster", "https://[fd00::1]:6443", &options, now).unwrap()
    }

    #[test]
    fn it_is_one_private_file_that_names_the_cluster() {
        let bytes = kubeconfig(&generated().control_plane, SystemTime::now()).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        let mut members = archive.entries().unwrap();
        let mut member = members.next().unwrap().unwrap();
        assert_eq!(member.path().unwrap().to_str(), Some("kubeconfig"));
        assert_eq!(member.header().mode().unwrap(), 0o600);
        let mut text = String::new();
        member.read_to_string(&mut text).unwrap();
        assert!(members.next().is_none());
        assert!(text.contains("server: https://[fd00::1]:6443\n"), "{text}");
        assert!(text.contains("current-context: admin@my cluster\n"), "{text}");
        let data = text.split("client-certificate-data: ").nth(1).unwrap();
        let crt = STANDARD.decode(data.lines().next().unwrap()).unwrap();
        let crt = String::from_utf8(crt).unwrap();
        let der = orlop_pki::encoding::certificates(&crt).unwrap().swap_remove(0);
        let organizations = orlop_pki::certificate::organizations(&der).unwrap();
        assert_eq!(organizations, ["system:masters"]);
    }

    #[test]
    fn a_worker_has_none_to_give() {
        let refused = kubeconfig(&generated().worker, SystemTime::now()).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    }
}
