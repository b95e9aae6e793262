//! What is said to the other end of a conversation, which must take it in time: while one side waits for that, it hears nothing.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::SendTimeoutError;

/// How long the other end may leave no room for what is said.
const TAKES_WITHIN: Duration = Duration::from_secs(5);

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The conversation is over.
    Gone,
    /// The other end takes nothing, though it may give signs of life.
    Late,
}

/// Says something, for which there must be room in a bounded time.
pub(super) async fn say<T>(channel: &Sender<T>, message: T) -> Result<(), NotTaken> {
    channel.send_timeout(message, TAKES_WITHIN).await.map_err(|error| match error {
        SendTimeoutError::Closed(_) => NotTaken::Gone,
        SendTimeoutError::Timeout(_) => NotTaken::Late,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::channel;

    #[tokio::test]
    async fn whoever_takes_nothing_is_waited_for_in_bounded_time() {
        let (sender, mut taken) = channel(1);
        assert_eq!(say(&sender, 1).await, Ok(()));
        let late = tokio::time::timeout(2 * TAKES_WITHIN, say(&sender, 2)).await;
        assert_eq!(late, Ok(Err(NotTaken::Late)));
        assert_eq!(taken.recv().await, Some(1));
        assert_eq!(say(&sender, 3).await, Ok(()));
        drop(taken);
        assert_eq!(say(&sender, 4).await, Err(NotTaken::Gone));
    }
}
