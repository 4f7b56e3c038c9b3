//! On and off a machine: a plan that can be shown, applied, interrupted and applied again.
//!
//! Installing is in three parts. [`facts`] looks at the machine. [`mod@plan`] compares what is there with what should be and
//! says, as data, what would change; it is pure, and `--dry-run` prints it. [`mod@apply`] does it, step by step, each step
//! harmless when done twice. What is made is written into the [`receipt`] *before* it is made, so that whatever an
//! interrupted installation leaves behind can be found and removed.
//!
//! [`uninstall`] removes what the receipt lists, and then looks for anything that is left.

pub mod accounts;
pub mod apply;
pub mod copies;
pub mod facts;
pub mod owned;
pub mod plan;
pub mod receipt;
pub mod uninstall;

pub use accounts::Accounts;
pub use apply::{ApplyError, apply};
pub use copies::{Copy, find_copies};
pub use facts::{Facts, Found, Misfit};
pub use owned::{Owner, owner_of};
pub use plan::{Plan, Request, Situation, Step, plan};
pub use receipt::Receipt;
pub use uninstall::{Removal, RemovalPlan, plan_removal};
