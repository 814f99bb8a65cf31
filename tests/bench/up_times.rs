//! Where the time of the last `deploy/up.sh` went, from the table that it leaves.

use std::fmt::Write as _;

use anyhow::Context as _;

const TIMES: &str = "/var/log/assistant/up-times.tsv";

/// As a table.
///
/// # Errors
/// When there is none.
pub(crate) fn table() -> anyhow::Result<String> {
    let text = std::fs::read_to_string(TIMES).with_context(|| TIMES)?;
    let mut table = "| step of `up.sh` | s |\n|---|---:|\n".to_owned();
    for (seconds, step) in parse(&text)? {
        writeln!(table, "| {step} | {seconds} |")?;
    }
    Ok(table)
}

fn parse(text: &str) -> anyhow::Result<Vec<(u32, &str)>> {
    text.lines()
        .map(|line| {
            let (seconds, step) = line.split_once('\t').with_context(|| format!("no tab in {line:?}"))?;
            Ok((seconds.parse().with_context(|| line.to_owned())?, step))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert!(matches!(parse("35\ttotal\n0\tDocker\n").as_deref(), Ok([(35, "total"), (0, "Docker")])));
        assert!(parse("no tab").is_err());
        assert!(parse("x\ttotal").is_err());
    }
}
