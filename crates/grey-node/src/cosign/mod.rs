//! Checkpoints of the cluster's log that a quorum of servers signs: whoever puts a proof together asks the others, and each signs only what
//! its own log says.

mod asker;
mod signer;

pub(crate) use asker::{Cosigners, alone, current_log};
pub(crate) use signer::Cosigner;
