//! What this service counts and measures of itself beyond what every service does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use service_kit::metrics::Metrics;

/// The numbers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    store_bytes: AtomicU64,
    free_bytes: AtomicU64,
    pruned: AtomicU64,
    folded: AtomicU64,
    permitted: AtomicU64,
    unpermitted: AtomicU64,
    not_compared: AtomicU64,
    unused: AtomicU64,
}

type Field = fn(&Inner) -> &AtomicU64;

impl Figures {
    /// Lets them be sent.
    pub fn register(&self, metrics: &Metrics) {
        let gauges: [(&'static str, &'static str, Field); 2] = [
            ("assistant_audit_store_bytes", "What the audit store holds.", |f| &f.store_bytes),
            ("assistant_audit_free_bytes", "What is left on the audit store's filesystem.", |f| &f.free_bytes),
        ];
        for (name, what, field) in gauges {
            let inner = Arc::clone(&self.inner);
            metrics.gauge(name, what, move |observer| observer.observe(field(&inner).load(Ordering::Relaxed), &[]));
        }
        let counters: [(&'static str, &'static str, Field); 6] = [
            ("assistant_audit_pruned_records_total", "Records that were let go, oldest first.", |f| &f.pruned),
            ("assistant_audit_folded_events_total", "Events of which the reserve kept number and hash.", |f| &f.folded),
            ("assistant_tunnels_with_permit_total", "Tunnels through Squid whose permits were found.", |f| {
                &f.permitted
            }),
            ("assistant_tunnels_without_permit_total", "Tunnels through Squid that nobody permitted.", |f| {
                &f.unpermitted
            }),
            ("assistant_tunnels_not_compared_total", "Tunnels too many to wait for their permits.", |f| {
                &f.not_compared
            }),
            ("assistant_permits_without_tunnel_total", "Permits for which no tunnel was seen.", |f| &f.unused),
        ];
        for (name, what, field) in counters {
            let inner = Arc::clone(&self.inner);
            metrics.counter(name, what, move |observer| observer.observe(field(&inner).load(Ordering::Relaxed), &[]));
        }
    }

    pub(crate) fn store_holds(&self, bytes: u64) {
        self.inner.store_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn free(&self, bytes: u64) {
        self.inner.free_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn pruned(&self, records: u64) {
        self.inner.pruned.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn folded(&self, events: u64) {
        self.inner.folded.fetch_add(events, Ordering::Relaxed);
    }

    pub(crate) fn permitted(&self, tunnels: u64) {
        self.inner.permitted.fetch_add(tunnels, Ordering::Relaxed);
    }

    /// Tunnels whose permits were found, so far.
    #[must_use]
    pub fn tunnels_with_permit(&self) -> u64 {
        self.inner.permitted.load(Ordering::Relaxed)
    }

    pub(crate) fn unpermitted(&self, tunnels: u64) {
        self.inner.unpermitted.fetch_add(tunnels, Ordering::Relaxed);
    }

    pub(crate) fn not_compared(&self, tunnels: u64) {
        self.inner.not_compared.fetch_add(tunnels, Ordering::Relaxed);
    }

    pub(crate) fn unused(&self, permits: u64) {
        self.inner.unused.fetch_add(permits, Ordering::Relaxed);
    }

    /// Permits for which no tunnel was seen, so far.
    #[must_use]
    pub fn permits_without_tunnel(&self) -> u64 {
        self.inner.unused.load(Ordering::Relaxed)
    }
}
