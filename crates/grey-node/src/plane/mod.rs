//! The node plane: how servers and workers reach one another. It carries messages and decides nothing.

mod dial;
mod join;
mod listen;
mod replicate;
mod service;
mod servers;
mod work;

pub(crate) use dial::Dialler;
pub(crate) use join::{Admission, Joining};
pub(crate) use listen::{Connection, listen};
pub(crate) use replicate::dial_servers;
pub(crate) use servers::{Content, Servers};
pub(crate) use service::Plane;
pub(crate) use work::link_to_leader;
