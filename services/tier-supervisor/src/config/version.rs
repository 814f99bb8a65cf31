//! The version in the tag of an image reference.

/// The ZeroClaw that the rendered configuration was written for and checked against.
pub(super) const ZEROCLAW: (u32, u32, u32) = (0, 8, 7);

/// `(0, 8, 1)` of `ghcr.io/a/b:v0.8.1-debian@sha256:...`; none when the tag is no version.
pub(super) fn of_image(reference: &str) -> Option<(u32, u32, u32)> {
    let without_digest = reference.split('@').next()?;
    let last = without_digest.rsplit('/').next()?;
    let (_, tag) = last.split_once(':')?;
    let tag = tag.strip_prefix('v').unwrap_or(tag);
    let numbers = tag.split('-').next()?;
    let mut parts = numbers.split('.').map(str::parse);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Some((major, minor, patch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::of_image;

    #[test]
    fn tags() {
        for (reference, version) in [
            ("ghcr.io/zeroclaw-labs/zeroclaw:v0.8.1-debian@sha256:9d6f", Some((0, 8, 1))),
            ("zeroclaw:0.8.7", Some((0, 8, 7))),
            ("localhost:5000/zeroclaw:v1.0.0", Some((1, 0, 0))),
            ("localhost:5000/zeroclaw", None),
            ("zeroclaw:latest", None),
            ("zeroclaw:0.8", None),
            ("zeroclaw@sha256:9d6f", None),
            ("", None),
        ] {
            assert_eq!(of_image(reference), version, "{reference}");
        }
    }
}
