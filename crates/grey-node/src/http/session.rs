//! What is held open for somebody: within bounds, and only as long as they may have it. The guard looks at a token once, when a request
//! begins; what goes on looks again.

use std::sync::Arc;
use std::time::Duration;

use grey_api::{ErrorCode, Problem};
use tokio::sync::watch;

use super::access::Principal;
use crate::clock::wall_ms;
use crate::directory::Directory;
use crate::handle::Node;
use crate::places::Place;

/// How long nobody looks at a clock that says when a token expires: it may be set meanwhile.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// A stream that is open for somebody.
pub(super) struct Session {
    principal: Principal,
    directory: watch::Receiver<Arc<Directory>>,
    _place: Option<Place>,
}

impl Session {
    /// Opens one where there is a place for it.
    pub(super) async fn open(node: &Node, principal: Principal) -> Result<Session, Problem> {
        let place = node.held.take(principal.scope()).await?;
        Ok(Session { principal, directory: node.directory.clone(), _place: Some(place) })
    }

    /// For how long its token is good, if it has one; or why it is not any more.
    fn left(&mut self) -> Result<Option<Duration>, Problem> {
        let Principal::Bearer { token, .. } = &self.principal else { return Ok(None) };
        let row = self.directory.borrow_and_update().tokens.get(token).map(|row| row.expires_wall_ms);
        let left_ms = row.map(|expires_wall_ms| expires_wall_ms.saturating_sub(wall_ms()));
        match left_ms {
            Some(left_ms) if left_ms > 0 => Ok(Some(Duration::from_millis(left_ms))),
            Some(_) => Err(refused("the token has expired")),
            None => Err(refused("the token was revoked")),
        }
    }

    /// Refuses whoever may not go on.
    pub(super) fn check(&mut self) -> Result<(), Problem> {
        self.left().map(drop)
    }

    /// Resolves when it must not go on, with why.
    pub(super) async fn over(mut self) -> Problem {
        loop {
            let left = match self.left() {
                Ok(Some(left)) => left.min(LOOK_WITHIN),
                // Who needs no token may go on for as long as there is somebody to answer.
                Ok(None) => core::future::pending().await,
                Err(problem) => return problem,
            };
            if let Ok(Err(_)) = tokio::time::timeout(left, self.directory.changed()).await {
                // The node is ending, and its streams with it.
                return core::future::pending().await;
            }
        }
    }
}

fn refused(detail: &str) -> Problem {
    Problem::new(ErrorCode::Unauthorized, detail).hint("show a token that `grey token create` made")
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_api::Role;
    use grey_core::{TenantId, TokenRole, TokenRow};
    use grey_proof::Digest;

    const TOKEN: Digest = Digest([7; 32]);

    fn directory(expires_wall_ms: Option<u64>) -> Arc<Directory> {
        let row = |expires_wall_ms| TokenRow {
            id: TOKEN,
            name: "r".to_owned(),
            role: TokenRole::Viewer,
            tenant: Some(TenantId(2)),
            expires_wall_ms,
            created_wall_ms: 0,
            created_by: String::new(),
        };
        let tokens = expires_wall_ms.into_iter().map(|at| (TOKEN, row(at))).collect();
        let mut directory = Directory::default();
        directory.tokens = tokens;
        Arc::new(directory)
    }

    fn session(directory: &watch::Receiver<Arc<Directory>>, principal: &Principal) -> Session {
        Session { principal: principal.clone(), directory: directory.clone(), _place: None }
    }

    #[tokio::test]
    async fn a_session_is_over_when_its_token_is_revoked_or_expires_and_never_without_one() {
        let bearer = Principal::Bearer {
            token: TOKEN,
            name: "r".to_owned(),
            role: Role::Viewer,
            tenant: Some(TenantId(2)),
        };
        let later = wall_ms() + 3_600_000;
        let (directories, seen) = watch::channel(directory(Some(later)));
        let mut going_on = session(&seen, &bearer);
        assert!(going_on.check().is_ok());
        let revoked = tokio::spawn(session(&seen, &bearer).over());
        let mut owner = Box::pin(session(&seen, &Principal::Owner).over());
        // Another change ends nothing.
        directories.send_replace(directory(Some(later + 1)));
        tokio::task::yield_now().await;
        assert!(!revoked.is_finished());
        directories.send_replace(directory(None));
        let problem = revoked.await.unwrap();
        assert_eq!((problem.status, problem.detail.as_str()), (401, "the token was revoked"));
        assert_eq!(going_on.check().unwrap_err().status, 401);
        directories.send_replace(directory(Some(wall_ms() + 100)));
        assert_eq!(session(&seen, &bearer).over().await.detail, "the token has expired");
        assert!(futures_util::FutureExt::now_or_never(&mut owner).is_none());
    }
}
