pub mod context;
pub mod durable;
pub mod error;
pub mod exec;
pub mod facts;
pub mod launch;
pub mod service;
pub mod smoke;
