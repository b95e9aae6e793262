//! A worker's way to the leader: it keeps a stream to whichever server is believed to lead.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use futures_util::stream::{PollNext, select_with_strategy};
use futures_util::{Stream, StreamExt};
use grey_core::{FromWorker, ToWorker, WorkerMessage as Told};
use grey_health::{Backoff, BackoffOptions, Chance};
use grey_proof::Digest;
use grey_wire::{
    ServersRequest, StreamRequest, WorkReply, WorkRequest, decode_to_worker, encode_from_worker, hello,
    work_request,
};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, channel};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

use super::say::{NotTaken, say};
use super::servers::Servers;
use super::standing::Doubt;
use super::tails::Tails;
use crate::directory::ServerPlace;
use crate::worker::WorkerMessage;

/// Messages that wait to be written. A worker has few under way at once.
const WAITING: usize = 256;
/// Pieces of streams that wait to be written.
const PIECES_WAITING: usize = 4;
/// How long a server may take to begin to answer.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// The longest wait before the next server is tried, in milliseconds: a worker that does not find the new leader within its lease ends what it
/// runs, and an election takes up to a third of that.
const LONGEST_WAIT_MS: u64 = 400;
/// For how long a server that is gone is not gone to again because another one still takes it for the leader.
const GONE_FOR: Duration = Duration::from_secs(1);

/// How often a worker asks which issuing key is current.
const ISSUER_EVERY: Duration = Duration::from_secs(20);

/// Why a stream ended.
enum Ended {
    /// The worker ends.
    Stopping,
    /// Another server may lead.
    Elsewhere(u64),
    /// It broke, or the server does not take the worker.
    Broken(String),
}

/// Who speaks at a worker's end.
pub(crate) struct Here {
    /// The worker's thread.
    pub(crate) worker: Sender<WorkerMessage>,
    /// What its attempts write.
    pub(crate) tails: Arc<Tails>,
    /// Whether it may have been removed.
    pub(crate) doubt: Doubt,
}

/// Carries messages between the worker's thread and the leader until the thread ends.
pub(crate) async fn link_to_leader(
    servers: Arc<Servers>,
    cluster: Digest,
    places: watch::Sender<Vec<ServerPlace>>,
    mut messages: UnboundedReceiver<FromWorker>,
    here: Here,
    seed: u64,
) {
    let mut chance = Chance::seeded(seed);
    let Ok(mut backoff) = Backoff::new(BackoffOptions { first_ms: 50, longest_ms: LONGEST_WAIT_MS }) else {
        return;
    };
    let (mut leader, mut turn) = (0u64, 0usize);
    let mut gone: Option<(u64, Instant)> = None;
    loop {
        let known = servers.places();
        let place = known.iter().find(|place| place.number == leader).or_else(|| {
            let place = known.get(turn.checked_rem(known.len())?);
            turn = turn.wrapping_add(1);
            place
        });
        let Some(place) = place.cloned() else {
            tracing::error!("no server is known");
            return;
        };
        let ended = converse(&servers, cluster, &place, &places, &mut messages, &here, &mut backoff).await;
        // What was under way is lost; the worker announces itself anew.
        if here.worker.send(WorkerMessage::Disconnected).is_err() {
            return;
        }
        match ended {
            Ended::Stopping => return,
            Ended::Elsewhere(number) if number != 0 && number != place.number => {
                let is_gone = gone.is_some_and(|(one, at)| one == number && at.elapsed() < GONE_FOR);
                leader = if is_gone { 0 } else { number };
            }
            Ended::Elsewhere(_) => leader = 0,
            Ended::Broken(reason) => {
                // It may be that nobody takes it any more.
                here.doubt.raise();
                tracing::info!(
                    server = place.number,
                    address = place.address,
                    reason,
                    "the connection to a server ended"
                );
                leader = 0;
                gone = Some((place.number, Instant::now()));
            }
        }
        let wait = Duration::from_millis(backoff.wait_ms(None, &mut chance));
        let mut waited = core::pin::pin!(tokio::time::sleep(wait));
        loop {
            tokio::select! {
                () = waited.as_mut() => break,
                // Nobody hears it; the worker says it again when there is somebody.
                message = messages.recv() => if message.is_none() { return },
            }
        }
    }
}

/// Tells which issuing key is current, as any server has it, until nobody listens.
pub(crate) async fn follow_issuer(servers: Arc<Servers>, issuer: watch::Sender<Option<Digest>>) {
    while !issuer.is_closed() {
        for place in servers.places() {
            let Ok(found) = servers.issuer(&place).await else { continue };
            issuer.send_if_modified(|known| {
                let differs = found.is_some() && *known != found;
                if differs {
                    *known = found;
                }
                differs
            });
            break;
        }
        tokio::time::sleep(ISSUER_EVERY).await;
    }
}

async fn converse(
    servers: &Servers,
    cluster: Digest,
    place: &ServerPlace,
    places: &watch::Sender<Vec<ServerPlace>>,
    messages: &mut UnboundedReceiver<FromWorker>,
    here: &Here,
    backoff: &mut Backoff,
) -> Ended {
    let mut client = match servers.to(place).await {
        Ok(client) => client,
        Err(error) => return Ended::Broken(error.to_string()),
    };
    let (sender, receiver) = channel(WAITING);
    let (pieces, read) = channel(PIECES_WAITING);
    let first = WorkRequest { message: Some(work_request::Message::Hello(hello(&cluster, None))) };
    if sender.send(first).await.is_err() {
        return Ended::Broken("the connection broke".to_owned());
    }
    let begun = tokio::time::timeout(BEGIN_WITHIN, client.work(said_first(receiver, read))).await;
    let mut answers = match begun {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => {
            servers.failed(place.number);
            return Ended::Broken(status.message().to_owned());
        }
        Err(_) => {
            servers.failed(place.number);
            return Ended::Broken("no answer within 5 s".to_owned());
        }
    };
    if let Ok(answer) = client.servers(ServersRequest {}).await {
        let found: Vec<ServerPlace> = answer.into_inner().servers.into_iter().filter_map(place_of).collect();
        if !found.is_empty() {
            places.send_if_modified(|known| {
                let differs = *known != found;
                if differs {
                    *known = found;
                }
                differs
            });
        }
    }
    if here.worker.send(WorkerMessage::Connected).is_err() {
        return Ended::Stopping;
    }
    loop {
        tokio::select! {
            message = messages.recv() => {
                let Some(message) = message else { return Ended::Stopping };
                let bytes = encode_from_worker(&message);
                let request = WorkRequest { message: Some(work_request::Message::FromWorker(bytes)) };
                match say(&sender, request).await {
                    Ok(()) => {}
                    Err(NotTaken::Gone) => return Ended::Broken("the connection broke".to_owned()),
                    Err(NotTaken::Late) => {
                        servers.failed(place.number);
                        return Ended::Broken("the server took nothing for 5 s".to_owned());
                    }
                }
            }
            answer = answers.message() => {
                let told = match answer {
                    Ok(Some(WorkReply { stream_request: Some(ask), .. })) => {
                        answer_about_stream(here.tails.clone(), pieces.clone(), ask);
                        continue;
                    }
                    Ok(Some(reply)) => decode_to_worker(&reply.to_worker),
                    Ok(None) => return Ended::Broken("the server ended the connection".to_owned()),
                    Err(status) => {
                        servers.failed(place.number);
                        return Ended::Broken(status.message().to_owned());
                    }
                };
                let told: ToWorker = match told {
                    Ok(told) => told,
                    Err(error) => return Ended::Broken(error.to_string()),
                };
                if let Told::Unavailable { leader } = told.message {
                    return Ended::Elsewhere(leader);
                }
                backoff.reset();
                if here.worker.send(WorkerMessage::FromLeader(told)).is_err() {
                    return Ended::Stopping;
                }
            }
        }
    }
}

/// What a worker says, and what was read of its streams where it says nothing: those who follow logs must not hold up signs of life.
fn said_first(
    said: Receiver<WorkRequest>,
    read: Receiver<WorkRequest>,
) -> impl Stream<Item = WorkRequest> + Send + 'static {
    let said = ReceiverStream::new(said).map(Some).chain(futures_util::stream::once(async { None }));
    let both = select_with_strategy(said, ReceiverStream::new(read).map(Some), |()| PollNext::Left);
    // It is over when nothing more is said.
    both.take_while(|message| core::future::ready(message.is_some())).filter_map(core::future::ready)
}

/// Reads a stream beside the conversation. Servers bound how many questions wait for answers.
fn answer_about_stream(
    tails: Arc<Tails>,
    answers: tokio::sync::mpsc::Sender<WorkRequest>,
    ask: StreamRequest,
) {
    tokio::task::spawn_blocking(move || {
        let message = Some(work_request::Message::StreamPiece(tails.answer(&ask)));
        // A conversation that has ended needs no answer.
        drop(answers.blocking_send(WorkRequest { message }));
    });
}

/// A server as it is dialled, where what was told of it can be read.
pub(super) fn place_of(address: grey_wire::ServerAddress) -> Option<ServerPlace> {
    let tls_key = grey_wire::decode_digest(&address.tls_key).ok()?;
    Some(ServerPlace { number: address.number, address: address.address, tls_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64) -> WorkRequest {
        let piece = grey_wire::StreamPiece { number, ..Default::default() };
        WorkRequest { message: Some(work_request::Message::StreamPiece(piece)) }
    }

    #[tokio::test]
    async fn what_is_said_goes_before_what_was_read_and_ends_the_conversation() {
        // Given: pieces of streams that came first.
        let ((say, said), (give, read)) = (channel(4), channel(4));
        for number in [10, 11] {
            give.send(message(number)).await.unwrap();
        }
        for number in [1, 2] {
            say.send(message(number)).await.unwrap();
        }
        let mut sent = core::pin::pin!(said_first(said, read));
        let mut next = async || match sent.next().await?.message? {
            work_request::Message::StreamPiece(piece) => Some(piece.number),
            _ => None,
        };
        assert_eq!([next().await, next().await, next().await], [Some(1), Some(2), Some(10)]);
        // When: the worker ends, whoever still reads.
        drop(say);
        assert_eq!(next().await, None);
        drop(give);
    }
}
