//! The network contract of a sandbox: whose words it is made of, and what a running one may become. Pure; errors name the
//! fields of the request.

use hades::store::Record;
use tartarus_api::v1::NetRequest;
use tartarus_types::{Contract, ErrorCode, NetCeiling, NetMode, Refusal};

use crate::Settings;

/// The most that anybody may ask for.
pub(crate) fn ceiling(settings: &Settings) -> NetCeiling {
    NetCeiling { mode: settings.net, public_ports: settings.public_ports, limits: settings.net_limits }
}

/// The contract of a sandbox: the request's, or its template's where that does not say. What a template was allowed once
/// its operator may have thought better of since.
pub(crate) fn contract(
    wanted: Option<&NetRequest>,
    template: &str,
    default: Contract,
    most: NetCeiling,
) -> Result<Contract, Refusal> {
    match wanted {
        Some(wanted) => asked(wanted, most),
        None => match default.check_ceiling(most) {
            Ok(()) => Ok(default),
            Err(refusal) => {
                let detail = format!("template {template} asks for it: {}", refusal.detail);
                Err(below(Refusal { detail, ..refusal }))
            }
        },
    }
}

/// The contract that the field `net` of a request asks for.
pub(crate) fn asked(wanted: &NetRequest, most: NetCeiling) -> Result<Contract, Refusal> {
    wanted.check(most).map_err(below)
}

fn below(refusal: Refusal) -> Refusal {
    let field = refusal.field.map_or("net".to_owned(), |field| format!("net.{field}"));
    Refusal { field: Some(field), ..refusal }
}

/// Whether a running sandbox can be given this contract. Its card got a peer when it started, or none.
pub(crate) fn check_replacement(record: &Record, wanted: &Contract) -> Result<(), Refusal> {
    let id = &record.id;
    let detail = match (record.spec.net.mode, wanted.mode) {
        (NetMode::None, NetMode::None) => return Ok(()),
        (NetMode::None, mode) => format!(
            "sandbox {id} was started without a network, and only its forwards can be changed: create another one with mode \
             {mode} (`--net {mode}`)"
        ),
        (_, NetMode::None) => format!(
            "sandbox {id} was started with a network, which stays: mode allow (`--net allow`) with nothing listed reaches \
             nothing"
        ),
        _ => return Ok(()),
    };
    Err(Refusal { field: Some("mode".to_owned()), ..Refusal::new(ErrorCode::WrongState, detail) })
}
