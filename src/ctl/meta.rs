//! `meta`: small values that a node keeps in its partition META.

use orlop_proto::machine::{MetaDeleteRequest, MetaWriteRequest};

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::stranger::Stranger;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Set the value of a key
    Write {
        #[command(flatten)]
        key: Key,
        /// Its value
        value: String,
    },
    /// Delete a key
    Delete {
        #[command(flatten)]
        key: Key,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Key {
    /// 0 to 255, or 0x00 to 0xff
    #[arg(value_parser = number)]
    key: u8,
    #[command(flatten)]
    stranger: Stranger,
}

impl Command {
    pub(crate) fn stranger(&self) -> &Stranger {
        let (Self::Write { key, .. } | Self::Delete { key }) = self;
        &key.stranger
    }
}

pub(crate) async fn run(client: &Client, command: &Command) -> Result<(), Error> {
    match command {
        Command::Write { key: Key { key, .. }, value } => {
            let request = MetaWriteRequest { key: (*key).into(), value: value.clone().into() };
            let call = async |node| machine(node).meta_write(request.clone()).await;
            for Answer { node, .. } in client.ask("write into META", call).await? {
                say!("{node} keeps key {key}");
            }
        }
        Command::Delete { key: Key { key, .. } } => {
            let request = MetaDeleteRequest { key: (*key).into() };
            let call = async |node| machine(node).meta_delete(request).await;
            for Answer { node, .. } in client.ask("delete from META", call).await? {
                say!("{node} has forgotten key {key}");
            }
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<u8, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|error| format!("keys are 0 to 255, or 0x00 to 0xff: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bytes() {
        for (text, key) in
            [("0", Some(0)), ("255", Some(255)), ("0x0a", Some(10)), ("0xFF", Some(255))]
        {
            assert_eq!(number(text).ok(), key, "{text}");
        }
        for text in ["", "256", "-1", "0x", "0x100", "ten"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
