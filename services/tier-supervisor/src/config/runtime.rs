//! The fields of a tier that say what its ZeroClaw is and where its shell commands run: `image`, `runtime`,
//! `build_sandbox`, `mcp_port`, `mcp_token_var`.

use super::problem::{At, Report, suggestion};
use super::tier::Runtime;
use super::tiers::World;
use super::tree::Fields;
use super::version;

/// The ZeroClaw that the stack brings.
const OURS: &str = "zeroclaw";

pub(super) fn runtime(fields: &Fields<'_>, report: &mut Report<'_>) -> Runtime {
    match fields.text("runtime", report) {
        None | Some((_, "native")) => Runtime::Native,
        Some((_, "docker")) => Runtime::Docker,
        Some((at, other)) => {
            report.problem(at, "this runtime does not exist", suggestion(other, ["native", "docker"]));
            Runtime::Native
        }
    }
}

pub(super) fn build_sandbox(fields: &Fields<'_>, runtime: Runtime, report: &mut Report<'_>) -> bool {
    let wanted = fields.flag("build_sandbox", false, report);
    let at = fields.at("build_sandbox");
    match (wanted, runtime) {
        (true, Runtime::Native) => {
            let fix = "write runtime: docker to run shell commands in a sandbox, or remove build_sandbox";
            report.problem(at, "\"build_sandbox\" has no effect without runtime: docker", fix);
        }
        (true, Runtime::Docker) => {
            let what = "build_sandbox is no longer needed: the sandbox's image is there before the stack starts";
            report.remark(at, what, "remove the line; nothing is built inside the stack");
        }
        (false, _) => {}
    }
    wanted
}

pub(super) fn mcp_port(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<u16> {
    let (at, port) = fields.port("mcp_port", report)?;
    if !fields.is_true("mcp") {
        report.problem(at, "\"mcp_port\" has no effect without mcp: true", "add mcp: true, or remove it");
        return None;
    }
    Some(port)
}

pub(super) fn mcp_token_var(fields: &Fields<'_>, report: &mut Report<'_>) {
    if let Some((at, _)) = fields.text("mcp_token_var", report) {
        let what = "mcp_token_var is no longer read: tier-supervisor makes the token itself";
        report.remark(at, what, "remove it, here and in .env");
    }
}

pub(super) fn image(
    fields: &Fields<'_>,
    default_image: Option<(At, &str)>,
    world: &World<'_>,
    report: &mut Report<'_>,
) -> Option<String> {
    if fields.node("image").is_some() {
        let (at, image) = fields.text("image", report)?;
        return known_image(at, image, world, report);
    }
    let Some((at, image)) = default_image else { return Some(OURS.to_owned()) };
    known_image(at, image, world, report)
}

fn known_image(at: At, image: &str, world: &World<'_>, report: &mut Report<'_>) -> Option<String> {
    let (major, minor, patch) = version::ZEROCLAW;
    if version::of_image(image).is_some_and(|version| version < version::ZEROCLAW) {
        let what = format!("this image is older than ZeroClaw {major}.{minor}.{patch}, which is used in its place");
        report.remark(at, what, "remove the line to use what the stack brings");
        return Some(OURS.to_owned());
    }
    if world.images.reference(image).is_some() {
        return Some(image.to_owned());
    }
    report.problem(
        at,
        "this image is not on this machine",
        "remove the line to use the ZeroClaw that the stack brings",
    );
    None
}
