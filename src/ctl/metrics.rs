//! `metrics`: what nodes say of themselves in figures, as Prometheus reads it.

use orlop_proto::orlop::v1alpha1::Metrics;

use crate::client::{Answer, Client, told};
use crate::error::Error;
use crate::table::{escape, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only figures whose name begins like this
    prefix: Option<String>,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| told(node).metrics(()).await;
    let answers = client.ask("read metrics", call).await?;
    print(text(&answers, options.prefix.as_deref().unwrap_or_default()).as_bytes())
}

/// One node's text is complete as it is; several nodes' stand below their names.
fn text(answers: &[Answer<Metrics>], prefix: &str) -> String {
    let mut text = String::new();
    for Answer { node, message } in answers {
        if answers.len() > 1 {
            text += &format!("# NODE {}\n", escape(node));
        }
        for line in message.text.lines().filter(|line| named(line).starts_with(prefix)) {
            text += &escape(line);
            text.push('\n');
        }
    }
    text
}

/// What a line is about; nothing for the last one.
fn named(line: &str) -> &str {
    match line.strip_prefix("# ") {
        Some(about) => about.split(' ').nth(1).unwrap_or_default(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(node: &str) -> Answer<Metrics> {
        let text = "# TYPE a counter\n# HELP a About b.\na_total{x=\"\u{1b}\"} 1\n# TYPE b gauge\n\
                    b 2\n# EOF\n";
        let message = Metrics { metadata: None, text: text.to_owned() };
        Answer { node: node.to_owned(), message }
    }

    #[test]
    fn the_text_of_one_node_is_printed_as_it_is() {
        let printed = text(&[answer("n")], "");
        assert_eq!(printed, answer("n").message.text.replace('\u{1b}', "\\u{1b}"));
    }

    #[test]
    fn a_prefix_keeps_whole_families_and_several_nodes_are_named() {
        let printed = text(&[answer("n"), answer("m")], "b");
        assert_eq!(printed, "# NODE n\n# TYPE b gauge\nb 2\n# NODE m\n# TYPE b gauge\nb 2\n");
    }
}
