//! `GET /v1/cluster/snapshot`: everything that the cluster has, as one stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use grey_api::{ErrorCode, Problem};
use grey_proof::Digest;
use grey_store::{Frozen, RecordKey, SnapshotWriter, StoreError};
use tokio::runtime::Handle;
use tokio_stream::wrappers::ReceiverStream;

use super::reply::{Refusal, typed};
use crate::cluster::Header;
use crate::handle::Node;
use crate::items;
use crate::prover::issuers;
use crate::retention::{Asker, Gathered, Stop};
use crate::snapshot::{Pieces, stream};

/// `GET /v1/cluster/snapshot`.
pub(crate) async fn take(State(node): State<Arc<Node>>) -> Result<Response, Refusal> {
    if node.forwarder.is_none() {
        let problem = Problem::new(ErrorCode::InvalidRequest, "a local cluster has no snapshots");
        return Err(Refusal(problem.hint("end it with `grey down` and copy its data directory")));
    }
    let index = node.ask(|replica| replica.state().applied_index()).await?;
    let taken = node.snapshots.take(index).await.map_err(Refusal)?;
    let header = Header::new(node.signing.cluster, node.server, issuers(&node));
    let runtime = Handle::current();
    let pieces = stream(taken, header.encode(), move |frozen, writer| write(&node, frozen, writer, &runtime));
    Ok(typed("application/octet-stream", Body::from_stream(ReceiverStream::new(pieces))))
}

/// Writes a server's content, and all content that this names.
fn write(
    node: &Node,
    frozen: &Frozen,
    mut writer: SnapshotWriter<Pieces>,
    runtime: &Handle,
) -> Result<(), String> {
    let text = |error: StoreError| error.to_string();
    let mut gathered = Gathered::default();
    writer.frozen(frozen, |key: RecordKey, bytes: &[u8]| gathered.add(key, bytes)).map_err(text)?;
    let mut missing = 0;
    for digest in named(node, &gathered, runtime)? {
        if runtime.block_on(node.depot.ensure(&digest)).is_err() {
            // It was kept for a time that is over, or is on servers that are away.
            missing += 1;
            continue;
        }
        let read = runtime.block_on(node.blobs.reader(&digest, 0));
        let (_, mut pieces) = read.map_err(|error| error.to_string())?;
        writer.content(&digest).map_err(text)?;
        while let Some(piece) = runtime.block_on(pieces.next()) {
            writer.piece(&piece.map_err(|error| error.to_string())?).map_err(text)?;
        }
    }
    if missing > 0 {
        tracing::info!(missing, "content that the snapshot names is on no server that answers");
    }
    writer.end().map(drop).map_err(text)
}

/// All content that records and live jobs name.
fn named(node: &Node, gathered: &Gathered, runtime: &Handle) -> Result<BTreeSet<Digest>, String> {
    let text = |stop| match stop {
        Stop::Ended => "the node is ending".to_owned(),
        Stop::Failed(reason) => reason,
    };
    let (mut named, mut lists) = (BTreeSet::new(), BTreeSet::new());
    let mut take = |digest: Digest, is_list: bool| {
        named.insert(digest);
        if is_list {
            lists.insert(digest);
        }
    };
    gathered.blobs().for_each(|(digest, is_list)| take(digest, is_list));
    let asker = Asker {
        control: node.control.clone(),
        kept: node.kept.clone(),
        runtime: runtime.clone(),
        is_among_others: true,
    };
    let live = asker.needed(
        |blob, is_list| {
            take(blob.digest, is_list);
            Ok(())
        },
        || Ok(()),
    );
    live.map_err(text)?;
    for list in lists {
        if runtime.block_on(node.depot.ensure(&list)).is_ok() {
            let walked = items::files(&node.blobs.path_of(&list), |digest| {
                named.insert(digest);
            });
            walked.map_err(|error| error.to_string())?;
        }
    }
    Ok(named)
}
