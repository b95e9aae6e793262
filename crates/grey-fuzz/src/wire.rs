//! What travels on the node plane.

use grey_core::{Command, FromWorker};
use grey_wire::{
    decode_digest, decode_from_worker, decode_stage, decode_to_worker, encode_from_worker, encode_stage,
    encode_to_worker,
};

use crate::bytes::Bytes;
use crate::commands::{busy, next};

/// A message is refused, or written back the same.
pub(crate) fn node_plane(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(message) = decode_from_worker(data) {
                assert_eq!(decode_from_worker(&encode_from_worker(&message)).ok(), Some(message));
            }
        }
        1 => {
            if let Ok(message) = decode_to_worker(data) {
                assert_eq!(decode_to_worker(&encode_to_worker(&message)).ok(), Some(message));
            }
        }
        2 => {
            if let Ok(stage) = decode_stage(data) {
                assert_eq!(decode_stage(&encode_stage(&stage)).ok(), Some(stage));
            }
        }
        _ => assert_eq!(decode_digest(data).is_ok(), data.len() == 32),
    }
}

pub(crate) fn node_plane_corpus() -> Vec<Vec<u8>> {
    let made = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let mut random = crate::Random::seeded(41);
    let said = (0..200).filter_map(|_| {
        let choices = random.bytes(60);
        match next(&busy(), &mut Bytes::new(&choices)).command {
            Command::RegisterWorker(body) => Some(FromWorker::Register(body)),
            Command::Report(body) => Some(FromWorker::Report(body)),
            Command::Revoked(body) => Some(FromWorker::Revoked(body)),
            _ => None,
        }
    });
    let mut corpus: Vec<Vec<u8>> =
        said.take(6).map(|message| made(0, &encode_from_worker(&message))).collect();
    corpus.push(made(3, &random.bytes(32)));
    corpus.extend((0..4u8).map(|kind| made(kind, &random.bytes(60))));
    corpus
}
