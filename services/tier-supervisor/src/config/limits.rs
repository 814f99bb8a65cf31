//! The section `limits` of a tier: what its agent may use up.

use super::problem::Report;
use super::tree::{Fields, Value};

/// What an agent may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierLimits {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Billionths of a processor.
    pub nano_cpus: u64,
}

const MIB: u64 = 1 << 20;

impl Default for TierLimits {
    fn default() -> Self {
        Self { memory_bytes: 1_024 * MIB, pids: 512, nano_cpus: 2_000_000_000 }
    }
}

pub(super) fn limits(fields: &Fields<'_>, report: &mut Report<'_>) -> TierLimits {
    let mut limits = TierLimits::default();
    let Some(node) = fields.node("limits") else { return limits };
    let Some(section) = Fields::of(node, "\"limits\"", &["memory", "pids", "cpus"], report) else { return limits };
    if let Some((at, text)) = section.text("memory", report) {
        match memory(text) {
            Some(bytes) => limits.memory_bytes = bytes,
            None => report.problem(at, "this is not an amount of memory", "write it like 512m or 2g, from 128m to 64g"),
        }
    }
    if let Some(node) = section.node("pids") {
        match node.value {
            Value::Integer(value @ 16..=32_768) => limits.pids = u32::try_from(value).unwrap_or(limits.pids),
            _ => report.problem(node.at, "this is not a number of processes", "write a number from 16 to 32768"),
        }
    }
    if let Some((at, cpus)) = section.number("cpus", report) {
        match nano_cpus(cpus) {
            Some(nano) => limits.nano_cpus = nano,
            None => report.problem(at, "this is not a number of processors", "write a number from 0.1 to 64"),
        }
    }
    limits
}

fn memory(text: &str) -> Option<u64> {
    let (number, unit) = match (text.strip_suffix('m'), text.strip_suffix('g')) {
        (Some(number), _) => (number, MIB),
        (_, Some(number)) => (number, 1_024 * MIB),
        _ => return None,
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bytes = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (128 * MIB..=64 * 1_024 * MIB).contains(&bytes).then_some(bytes)
}

/// Rounded to hundredths, as people write it. Counted up rather than cast: `as` would truncate silently.
fn nano_cpus(cpus: f64) -> Option<u64> {
    if !(0.1..=64.0).contains(&cpus) {
        return None;
    }
    (10_u32..=6_400)
        .find(|hundredths| f64::from(*hundredths) + 0.5 > cpus * 100.0)
        .map(|hundredths| u64::from(hundredths) * 10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("512m", Some(512 * MIB)),
            ("2g", Some(2_048 * MIB)),
            ("64m", None),
            ("65g", None),
            ("1.5g", None),
            ("+1g", None),
            ("1024", None),
            ("", None),
            ("m", None),
            ("99999999999999999999g", None),
        ] {
            assert_eq!(memory(text), bytes, "{text}");
        }
        for (cpus, nano) in [
            (0.5, Some(500_000_000)),
            (2.0, Some(2_000_000_000)),
            (64.0, Some(64_000_000_000)),
            (0.0, None),
            (65.0, None),
            (f64::NAN, None),
        ] {
            assert_eq!(nano_cpus(cpus), nano, "{cpus}");
        }
    }
}
