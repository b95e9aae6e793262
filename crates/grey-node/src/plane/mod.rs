//! The node plane: how servers and workers reach one another. It carries messages and decides nothing.

#[cfg(test)]
pub(crate) mod answers;
mod dial;
mod join;
mod listen;
mod replicate;
mod say;
mod servers;
mod service;
mod standing;
mod streams;
mod tails;
mod work;

pub(crate) use dial::Dialler;
pub(crate) use join::{Admission, Answered, Joining, certificate_id};
pub(crate) use listen::listen;
pub(crate) use replicate::{OwnHello, dial_servers};
pub(crate) use servers::{Servers, content_of};
pub(crate) use service::{Plane, STANDINGS, Served};
pub(crate) use standing::Doubt;
pub(crate) use streams::{StreamId, Streams};
pub(crate) use tails::Tails;
pub(crate) use work::{Here, follow_issuer, link_to_leader};
