//! Linux: netlink `sock_diag` first, `/proc` where that is not to be had.

mod diag;
mod netlink;
mod owners;
mod proc_net;
mod run;

pub use run::Running;
