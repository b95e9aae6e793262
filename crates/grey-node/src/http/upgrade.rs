//! The next feature level comes into force.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use grey_api::FeatureLevelRaised;
use grey_core::{Command, RaiseFeatureLevel};

use super::reply::{Refusal, json};
use crate::handle::Node;

/// `POST /v1/cluster/upgrade`. Levels come into force one after the other, up to the newest that every server understands.
pub(crate) async fn raise(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    let known = |replica: &grey_replica::Replica| {
        (replica.state().feature_level(), replica.state().understood_by_all())
    };
    let (before, understood) = node.ask(known).await?;
    for level in before.saturating_add(1)..=understood {
        node.propose(Command::RaiseFeatureLevel(RaiseFeatureLevel { level })).await?;
    }
    let (feature_level, _) = node.ask(known).await?;
    json(&FeatureLevelRaised { feature_level, before })
}
