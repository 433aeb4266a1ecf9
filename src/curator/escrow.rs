//! How a person comes by an owner's certificate (spec §2): he proves that he holds the key that was named when the
//! cluster was founded. What is decided, in the order that callers can observe; pure.

use orlop_proto::metropolis::node::core::curator::proto::private::InitialOwner;
use orlop_proto::metropolis::proto::api::EscrowRequest;
use prost::Message as _;
use subtle::ConstantTimeEq as _;

use crate::certificates::OWNER;
use crate::names::KEY_LENGTH;

/// Why nobody gets a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// He tries too often.
    #[error("too many attempts from this address failed; wait a minute")]
    TooOften,
    /// Others try.
    #[error("too many callers ask for a certificate at a time; ask again")]
    TooMany,
    /// He says nothing.
    #[error("nothing was asked in time")]
    Silent,
    /// Not the first thing to say.
    #[error(
        "the first message must have parameters: for whom the certificate is, and for which key"
    )]
    NoParameters,
    /// There is only one.
    #[error("only the identity {OWNER:?} can be asked for")]
    Identity,
    /// No key.
    #[error("the public key has {0} bytes instead of {KEY_LENGTH}")]
    Length(usize),
    /// No proof.
    #[error("prove that you hold the key: show it by a certificate that it has signed itself")]
    NoKey,
    /// A certificate for the key of another.
    #[error("the certificate must be for the key that you show; other proofs are not known")]
    OtherKey,
    /// The cluster does not know its owner.
    #[error("the cluster has no initial owner, or what is stored of him cannot be read")]
    NoOwner,
    /// He is not the owner.
    #[error(
        "this is not the key of the cluster's owner; use the owner-key.pem that the cluster was founded with"
    )]
    NotOwner,
}

/// Steps 1 to 5: what can be said before the store is asked. `shown`: the key that the caller has proven to hold.
///
/// # Errors
/// [`Refused`].
pub fn asked(
    first: Option<&EscrowRequest>,
    shown: Option<&[u8; KEY_LENGTH]>,
) -> Result<[u8; KEY_LENGTH], Refused> {
    let parameters = first.and_then(|first| first.parameters.as_ref());
    let parameters = parameters.ok_or(Refused::NoParameters)?;
    if parameters.requested_identity_name != OWNER {
        return Err(Refused::Identity);
    }
    let wanted: &[u8; KEY_LENGTH] = parameters
        .public_key
        .as_slice()
        .try_into()
        .map_err(|_| Refused::Length(parameters.public_key.len()))?;
    let shown = shown.ok_or(Refused::NoKey)?;
    if bool::from(shown.ct_eq(wanted)) { Ok(*shown) } else { Err(Refused::OtherKey) }
}

/// Steps 6 and 7: is it the key of the initial owner, as he lies in the store?
///
/// # Errors
/// [`Refused::NoOwner`], [`Refused::NotOwner`].
pub fn is_owner(key: &[u8; KEY_LENGTH], stored: Option<&[u8]>) -> Result<(), Refused> {
    let owner = stored.and_then(|stored| InitialOwner::decode(stored).ok());
    let owner = owner.filter(|owner| owner.public_key.len() == KEY_LENGTH);
    let owner = owner.ok_or(Refused::NoOwner)?;
    if bool::from(owner.public_key[..].ct_eq(key)) { Ok(()) } else { Err(Refused::NotOwner) }
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::api::escrow_request::{Parameters, Proofs};
    use proptest::prelude::*;

    use super::*;

    fn first(identity: &str, key: &[u8]) -> EscrowRequest {
        let parameters =
            Parameters { requested_identity_name: identity.to_owned(), public_key: key.to_vec() };
        EscrowRequest { parameters: Some(parameters), proofs: None }
    }

    #[test]
    fn the_order_of_the_steps_is_what_a_caller_observes() {
        let (key, other) = ([7; KEY_LENGTH], [8; KEY_LENGTH]);
        let proofs = Some(Proofs { plaintext_password: "x".to_owned() });
        let bare = EscrowRequest { parameters: None, proofs: proofs.clone() };
        // Everything after a step is wrong as well: the first that is wrong is told.
        for (first, shown, told) in [
            (None, None, Refused::NoParameters),
            (Some(bare), Some(&key), Refused::NoParameters),
            (Some(first("admin", &[1; 31])), None, Refused::Identity),
            (Some(first("", &key)), Some(&key), Refused::Identity),
            (Some(first("Owner", &key)), Some(&key), Refused::Identity),
            (Some(first(OWNER, &[1; 31])), None, Refused::Length(31)),
            (Some(first(OWNER, &[])), Some(&key), Refused::Length(0)),
            (Some(first(OWNER, &[1; 33])), Some(&key), Refused::Length(33)),
            (Some(first(OWNER, &key)), None, Refused::NoKey),
            (Some(first(OWNER, &key)), Some(&other), Refused::OtherKey),
        ] {
            assert_eq!(asked(first.as_ref(), shown), Err(told));
        }
        let mut request = first(OWNER, &key);
        // Nobody has asked for a password.
        request.proofs = proofs;
        assert_eq!(asked(Some(&request), Some(&key)), Ok(key));
    }

    #[test]
    fn only_the_key_that_the_cluster_was_founded_with_is_the_owners() {
        let key = [7; KEY_LENGTH];
        let stored = |key: &[u8]| InitialOwner { public_key: key.to_vec() }.encode_to_vec();
        for (stored, told) in [
            (None, Err(Refused::NoOwner)),
            (Some(b"no message".to_vec()), Err(Refused::NoOwner)),
            (Some(stored(&[7; 31])), Err(Refused::NoOwner)),
            (Some(stored(&[])), Err(Refused::NoOwner)),
            (Some(stored(&[8; KEY_LENGTH])), Err(Refused::NotOwner)),
            (Some(stored(&key)), Ok(())),
        ] {
            assert_eq!(is_owner(&key, stored.as_deref()), told);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_and_stored_only_the_owner_passes(
            bytes: Vec<u8>,
            stored: Vec<u8>,
            shown: Option<[u8; KEY_LENGTH]>,
        ) {
            let request = EscrowRequest::decode(&bytes[..]).ok();
            if let Ok(key) = asked(request.as_ref(), shown.as_ref()) {
                prop_assert_eq!(Some(key), shown);
            }
            if let Some(key) = shown && is_owner(&key, Some(&stored)).is_ok() {
                prop_assert!(stored.windows(KEY_LENGTH).any(|window| window == key));
            }
        }
    }
}
