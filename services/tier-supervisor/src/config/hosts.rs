//! Hosts that this project knows something about: whose they are, and what a line of the allowlist that names one opens.
//!
//! Short lists with a reason each, not a survey of the internet. What is missing here is treated as any other host; what
//! is here is never closed to somebody who names it, except for [`RESERVED`].

use super::allowlist::HostPattern;

/// Open to the stack's own services and never to a tier: attested models and what attestation asks, and messengers that
/// channel-bridge speaks to. A tier that reached them could pass for a channel, or reach a model past the ingress.
const RESERVED: [&str; 5] =
    [".privatemode.ai", ".confidential.cloud", "kdsintf.amd.com", ".tinfoil.sh", "api.telegram.org"];

/// Messengers: whatever is sent there reaches people. Never part of what a tier reaches without naming it.
const MESSENGERS: [&str; 8] = [
    ".telegram.org",
    ".whatsapp.com",
    ".whatsapp.net",
    ".signal.org",
    ".matrix.org",
    ".discord.com",
    ".discordapp.com",
    ".slack.com",
];

/// Hosts below or behind which anybody gets a name, a bucket, a page or a log of their own, and learns what is asked of
/// it: to read there is to send. One line for each who lets it.
const SHARED: [&str; 48] = [
    // Google: buckets, functions, sites, forms and scripts of anyone.
    ".googleapis.com",
    ".googleusercontent.com",
    ".appspot.com",
    ".run.app",
    ".cloudfunctions.net",
    ".web.app",
    ".firebaseapp.com",
    ".firebaseio.com",
    "docs.google.com",
    "script.google.com",
    "sites.google.com",
    // Amazon and Microsoft: the same.
    ".amazonaws.com",
    ".on.aws",
    ".cloudfront.net",
    ".windows.net",
    ".azurewebsites.net",
    ".azureedge.net",
    ".azurefd.net",
    ".cloudapp.azure.com",
    // Cloudflare: buckets, workers, pages, tunnels.
    ".cloudflarestorage.com",
    ".r2.dev",
    ".workers.dev",
    ".pages.dev",
    ".trycloudflare.com",
    // Code hosts: anyone's pages and files; owners see which are visited.
    ".github.com",
    ".github.io",
    ".githubusercontent.com",
    ".gitlab.com",
    ".gitlab.io",
    // Platforms on which a name takes a minute.
    ".vercel.app",
    ".netlify.app",
    ".herokuapp.com",
    ".fly.dev",
    ".onrender.com",
    ".railway.app",
    ".deno.dev",
    ".replit.app",
    ".supabase.co",
    // Buckets and caches of anyone.
    ".digitaloceanspaces.com",
    ".backblazeb2.com",
    ".fastly.net",
    ".akamaized.net",
    ".b-cdn.net",
    // Tunnels, pastes, and services that show their owner every request.
    ".ngrok.io",
    ".ngrok.app",
    ".ngrok-free.app",
    ".pastebin.com",
    ".webhook.site",
];

/// What the older stack reached to build its sandbox inside itself. Ours is built, or pulled, before the stack starts.
const SANDBOX_BUILD: [&str; 11] = [
    "registry-1.docker.io",
    "auth.docker.io",
    "production.cloudflare.docker.com",
    "cgr.dev",
    ".r2.cloudflarestorage.com",
    "packages.wolfi.dev",
    "packages.cgr.dev",
    "raw.githubusercontent.com",
    "github.com",
    "objects.githubusercontent.com",
    "release-assets.githubusercontent.com",
];

fn patterns(list: &'static [&'static str]) -> impl Iterator<Item = HostPattern> {
    list.iter().filter_map(|text| text.parse().ok())
}

/// Whether two patterns have a host in common.
pub(super) fn overlap(a: &HostPattern, b: &HostPattern) -> bool {
    a.covers(b) || b.covers(a)
}

/// Hosts of the stack's services that need no configuration to be known.
pub(super) fn reserved() -> Vec<HostPattern> {
    patterns(&RESERVED).collect()
}

/// Whether it is, or includes, shared hosting.
pub(super) fn is_shared(pattern: &HostPattern) -> bool {
    patterns(&SHARED).any(|shared| overlap(&shared, pattern))
}

/// Whether it is, or includes, a messenger.
pub(super) fn is_messenger(pattern: &HostPattern) -> bool {
    patterns(&MESSENGERS).any(|messenger| overlap(&messenger, pattern))
}

/// Whether the older stack needed this very entry to build its sandbox.
pub(super) fn is_for_building_a_sandbox(pattern: &HostPattern) -> bool {
    patterns(&SANDBOX_BUILD).any(|known| known == *pattern)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn every_entry_is_a_pattern() {
        for (list, count) in [
            (&RESERVED[..], RESERVED.len()),
            (&MESSENGERS[..], MESSENGERS.len()),
            (&SHARED[..], SHARED.len()),
            (&SANDBOX_BUILD[..], SANDBOX_BUILD.len()),
        ] {
            assert_eq!(list.iter().filter(|text| text.parse::<HostPattern>().is_ok()).count(), count, "{list:?}");
        }
    }

    #[test]
    fn wide_and_narrow_spellings_are_both_seen() {
        let shared = |text: &str| is_shared(&text.parse().unwrap());
        for yes in
            [".googleapis.com", "storage.googleapis.com", "github.com", ".google.com", ".r2.cloudflarestorage.com"]
        {
            assert!(shared(yes), "{yes}");
        }
        for no in ["serv.amazingmarvin.com", "packages.wolfi.dev", "notgithub.com", "mail.google.com"] {
            assert!(!shared(no), "{no}");
        }
        assert!(is_messenger(&"web.whatsapp.com".parse().unwrap()));
        assert!(!is_messenger(&"signal.example".parse().unwrap()));
    }
}
