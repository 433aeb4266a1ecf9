//! The `kubeconfig` of an administrator: where a cluster's API server is, and the certificate to show it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::Pair;
use serde::Serialize;

use crate::document::to_yaml;

/// What is in it.
#[derive(Debug)]
pub struct Kubeconfig<'a> {
    /// The cluster's name; the user and the context are `admin@` it.
    pub cluster: &'a str,
    /// `https://10.0.0.1:6443`.
    pub server: &'a str,
    /// PEM of the authority that the server's certificate is of.
    pub ca: &'a str,
    /// What is shown to the server.
    pub client: &'a Pair,
}

impl Kubeconfig<'_> {
    /// The file's text, with everything in it. It contains the key.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let user = format!("admin@{}", self.cluster);
        let data = |text: &str| STANDARD.encode(text);
        to_yaml(&File {
            api_version: "v1",
            kind: "Config",
            clusters: [Named {
                name: self.cluster,
                value: Value::Cluster {
                    server: self.server,
                    certificate_authority_data: data(self.ca),
                },
            }],
            users: [Named {
                name: &user,
                value: Value::User {
                    client_certificate_data: data(&self.client.crt),
                    client_key_data: data(self.client.key.expose()),
                },
            }],
            contexts: [Named {
                name: &user,
                value: Value::Context { cluster: self.cluster, namespace: "default", user: &user },
            }],
            current_context: &user,
        })
    }
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    kind: &'a str,
    clusters: [Named<'a>; 1],
    users: [Named<'a>; 1],
    contexts: [Named<'a>; 1],
    #[serde(rename = "current-context")]
    current_context: &'a str,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
    #[serde(flatten)]
    value: Value<'a>,
}

/// Under the key of its kind.
#[derive(Serialize)]
#[serde(rename_all = "lowercase", rename_all_fields = "kebab-case")]
enum Value<'a> {
    Cluster { server: &'a str, certificate_authority_data: String },
    User { client_certificate_data: String, client_key_data: String },
    Context { cluster: &'a str, namespace: &'a str, user: &'a str },
}

#[cfg(test)]
mod tests {
    use orlop_pki::Secret;

    use super::*;

    #[test]
    fn it_is_as_kubectl_writes_it() {
        let client = Pair { crt: "crt".to_owned(), key: Secret::new("key") };
        let server = "https://[fd00::1]:6443";
        let text =
            Kubeconfig { cluster: "my: cluster", server, ca: "ca", client: &client }.to_yaml();
        assert_eq!(
            text,
            "apiVersion: v1
kind: Config
clusters:
- name: 'my: cluster'
  cluster:
    server: https://[fd00::1]:6443
    certificate-authority-data: Y2E=
users:
- name: 'admin@my: cluster'
  user:
    client-certificate-data: Y3J0
    client-key-data: a2V5
contexts:
- name: 'admin@my: cluster'
  context:
    cluster: 'my: cluster'
    namespace: default
    user: 'admin@my: cluster'
current-context: 'admin@my: cluster'
"
        );
    }
}
