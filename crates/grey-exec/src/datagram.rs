//! Datagrams between a worker and its shim, with descriptors. Nothing here waits.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::message::START_DESCRIPTORS;

/// The most descriptors of one message.
const DESCRIPTORS: usize = START_DESCRIPTORS;

/// What came.
pub(crate) enum Got {
    /// A message of so many bytes. One that is longer than the buffer counts as empty, which no message is.
    Message(usize, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// Nothing more.
    End,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is on its way.
    Whole,
    /// There is no room.
    Full,
    /// Nobody is there any more.
    Gone,
}

/// Takes a message, if one has come.
pub(crate) fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Got {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let capacity = bytes.len();
    let length = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Got::Nothing,
            // No message is empty, so nothing is the end.
            Ok(message) if message.bytes > 0 => break message.bytes,
            _ => return Got::End,
        }
    };
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let descriptors = descriptors.collect();
    Got::Message(if length > capacity { 0 } else { length }, descriptors)
}

/// Sends a message, if there is room for it.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Sent {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    loop {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            // Descriptors on their way are bounded too, as memory is.
            Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => return Sent::Full,
            Ok(_) => return Sent::Whole,
            Err(_) => return Sent::Gone,
        }
    }
}
