//! The operator's side of the controller: requests, documents, who may ask what.

pub mod authorize;
pub mod client;
pub mod doc;
mod follow;
mod gates;
pub mod msg;
mod releases;
pub mod server;
