//! The power button of the machine (spec §8.1): pressing it shuts the node down.

use orlop_netlink::{AcpiEvent, AcpiEvents};
use tracing::{info, warn};

/// Returns when it is pressed; never on a machine that cannot tell.
pub(crate) async fn pressed() {
    match wait().await {
        Ok(true) => return,
        Ok(false) => info!("no ACPI here: a power button goes unheard"),
        Err(error) => warn!(%error, "the power button goes unheard"),
    }
    std::future::pending().await
}

/// Whether it was pressed; else there is nobody to tell.
async fn wait() -> std::io::Result<bool> {
    let Some(events) = AcpiEvents::subscribe()? else { return Ok(false) };
    loop {
        let event = events.next().await?;
        if is_power(&event) {
            return Ok(true);
        }
        tracing::debug!(?event, "no power button");
    }
}

/// Those of a cabinet and those of its front panel, which ACPI describes in two ways. Lids, sleep buttons
/// and chargers tell of themselves in the same way.
fn is_power(event: &AcpiEvent) -> bool {
    event.class == "button/power"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_button_counts() {
        let event = |class: &str| AcpiEvent {
            class: class.to_owned(),
            bus: "LNXPWRBN:00".to_owned(),
            kind: 0x80,
            data: 1,
        };
        assert!(is_power(&event("button/power")));
        for class in ["button/sleep", "button/lid", "ac_adapter", "button", ""] {
            assert!(!is_power(&event(class)), "{class}");
        }
    }
}
