//! The feature level of a cluster whose servers all run this version: as it is founded, and of one process.

use std::sync::mpsc::Sender;
use std::time::Instant;

use grey_core::{Command, RaiseFeatureLevel};
use tokio::sync::oneshot;

use crate::control::{Message, Outcome};
use crate::error::NodeError;

/// Puts every level in force from the one that is to the one that is understood.
pub(crate) async fn raise(
    control: &Sender<Message>,
    in_force: u16,
    understood: u16,
) -> Result<(), NodeError> {
    for level in in_force.saturating_add(1)..=understood {
        let (reply, answer) = oneshot::channel();
        let command = Command::RaiseFeatureLevel(RaiseFeatureLevel { level });
        let gone = || NodeError::ThreadEnded("control");
        control.send(Message::Propose(command, Instant::now(), reply)).map_err(|_| gone())?;
        match answer.await {
            Ok(Outcome::Applied(Ok(_), _)) => {}
            other => {
                tracing::warn!(level, ?other, "the feature level stays as it is");
                return Ok(());
            }
        }
    }
    Ok(())
}
