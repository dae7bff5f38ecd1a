//! The operator's side of the controller: requests, documents, who may ask what.

mod audit;
pub mod authorize;
pub mod checks;
pub mod client;
pub mod doc;
mod follow;
mod gates;
pub(crate) mod keeper;
pub mod msg;
mod papers;
mod releases;
pub mod server;
mod sign;
