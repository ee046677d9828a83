//! Where a template's golden snapshots stand, and which should be made. Pure: what the node has, who makes what, and
//! what was tried arrives as arguments.

use std::collections::BTreeMap;

use hades::store::{KernelRecord, NodeRecord, Record, TemplateRecord};
use tartarus_api::node::SnapshotInfo;
use tartarus_api::v1::{SnapshotState, TemplateSnapshot};
use tartarus_types::{Outcome, Reason, Shape, State};

use crate::accept::check_fits;
use crate::golden::{golden, maker_spec, shapes};

/// What is known of golden snapshots.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The kernel that new sandboxes get.
    pub(crate) kernel: Option<KernelRecord>,
    /// All nodes.
    pub(crate) nodes: Vec<NodeRecord>,
    /// What the node has; `None` when it cannot be asked.
    pub(crate) stored: Option<Vec<SnapshotInfo>>,
    /// The newest sandbox that makes, or made, each.
    pub(crate) makers: BTreeMap<String, Record>,
}

/// The golden snapshots that a template should have.
pub(crate) fn snapshots(template: &TemplateRecord, known: &Known) -> Vec<TemplateSnapshot> {
    shapes(&template.spec).into_iter().map(|shape| snapshot(template, shape, known)).collect()
}

fn snapshot(template: &TemplateRecord, shape: Shape, known: &Known) -> TemplateSnapshot {
    let bare = |state, golden, why: Option<String>| TemplateSnapshot {
        shape,
        golden,
        state,
        sandbox: None,
        why,
        bytes: None,
        layer_bytes: None,
        created_at: None,
    };
    let kernel = known.kernel.as_ref().map(|kernel| kernel.digest.as_str());
    let Some((kernel, golden)) = kernel.and_then(|kernel| Some((kernel, golden(&template.spec, kernel, shape)?)))
    else {
        let why = "there is no guest kernel: add one with `tartarus kernel add`";
        return bare(SnapshotState::Missing, None, Some(why.to_owned()));
    };
    let maker = known.makers.get(&golden);
    let stored = known.stored.iter().flatten().find(|info| info.golden == golden);
    let failed = maker.and_then(failure);
    let (state, why) = match (maker, stored) {
        (Some(record), _) if !record.state.is_terminal() => (SnapshotState::Building, building(record)),
        (_, Some(SnapshotInfo { unusable: Some(why), .. })) => (SnapshotState::Unusable, Some(why.clone())),
        (_, Some(SnapshotInfo { outdated: Some(why), .. })) => (SnapshotState::Outdated, Some(why.clone())),
        (_, Some(_)) => (SnapshotState::Ready, None),
        (_, None) if failed.is_some() => (SnapshotState::Failed, failed),
        (_, None) if known.stored.is_none() => {
            (SnapshotState::Missing, Some("the node that would have it cannot be asked".to_owned()))
        }
        (_, None) => {
            let spec = maker_spec(template, kernel, shape, golden.clone());
            let too_large = check_fits(&known.nodes, &spec).err().filter(|_| !known.nodes.is_empty());
            (SnapshotState::Missing, too_large.map(|refusal| refusal.detail))
        }
    };
    TemplateSnapshot {
        sandbox: maker.map(|record| record.id.clone()),
        bytes: stored.map(|info| info.bytes),
        layer_bytes: stored.map(|info| info.layer_bytes),
        created_at: stored.map(|info| info.created_at),
        ..bare(state, Some(golden), why)
    }
}

fn building(maker: &Record) -> Option<String> {
    matches!(maker.state, State::Queued).then(|| "it waits for a place on the node".to_owned())
}

/// Why a maker that has ended made nothing.
fn failure(maker: &Record) -> Option<String> {
    let Some(Outcome { reason, message, exit_code, .. }) = &maker.outcome else { return None };
    if maker.state == State::Succeeded {
        return None;
    }
    let what = match (message.as_deref().filter(|message| !message.is_empty()), exit_code) {
        (Some(message), _) => message.to_owned(),
        (None, Some(code)) => format!("the warm-up exited with {code}"),
        (None, None) => {
            let reason = serde_json::to_value(reason).unwrap_or_default();
            format!("{}: {}", maker.state.as_str(), reason.as_str().unwrap_or_default())
        }
    };
    Some(format!("{what}; `tartarus logs {}` has the output", maker.id))
}

/// How eagerly snapshots are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eagerness {
    /// By itself: what is not there or should be made again, each once.
    ByItself,
    /// Somebody made the template: whatever cannot be used.
    Asked,
    /// Somebody wants all of them anew.
    Anew,
}

/// Tries by itself after the first, when that failed for a reason that passes.
const MORE_TRIES: u32 = 3;

/// The snapshot should be made now. `tries` says how often it was tried since the server started, `passing` that the
/// last one failed for a reason that passes.
pub(crate) fn wanted(snapshot: &TemplateSnapshot, eagerness: Eagerness, tries: u32, passing: bool) -> bool {
    if snapshot.golden.is_none() {
        return false;
    }
    match (snapshot.state, eagerness) {
        (SnapshotState::Building, _) => false,
        (_, Eagerness::Anew) => true,
        (SnapshotState::Ready, _) => false,
        (SnapshotState::Outdated, Eagerness::Asked) => false,
        (_, Eagerness::Asked) => true,
        (_, Eagerness::ByItself) => tries == 0 || passing && tries <= MORE_TRIES,
    }
}

/// The maker failed for a reason that has nothing to do with what it made: it never began, or its node or server went.
pub(crate) fn passing(maker: &Record) -> bool {
    let reason = maker.outcome.as_ref().map(|outcome| outcome.reason);
    matches!(reason, Some(Reason::StartTimeout | Reason::StartFailed | Reason::NodeLost | Reason::Shutdown))
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
mod tests;
