//! What `tartarus doctor` says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, with less than there could be.
    Warn,
    /// Sandboxes cannot run.
    Fail,
    /// Not known yet.
    Unknown,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Stable name.
    pub name: String,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub advice: Option<String>,
}

/// All checks, and the driver that follows from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// `qemu-kvm` or `qemu-tcg`; `unknown` before a kernel is there to probe with.
    pub driver: String,
    /// Why this driver.
    pub why: String,
    /// The checks.
    pub checks: Vec<Check>,
}
