//! Prints the OpenAPI description, as `openapi/v1.json` holds it.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(olympus::openapi_json().as_bytes())
}
