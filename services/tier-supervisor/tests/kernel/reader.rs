//! The reader of drops, in the VM's namespace, with a bus that keeps what is emitted.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use service_kit::bus::Bus;
use service_kit::turns::Turns;
use tier_supervisor::kernel;
use tier_supervisor::nflog::{self, Ledger, Principals};
use tokio_util::sync::CancellationToken;

use crate::world::{World, desired, wait_for};

/// Asked in the VM's namespace.
fn is_group_held() -> bool {
    // A line of its own: group, netlink port, and so on (net/netfilter/nfnetlink_log.c).
    std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log")
        .is_ok_and(|text| text.split_ascii_whitespace().next() == Some("87"))
}

/// Runs the reader of drops in the VM's namespace as long as it lives.
pub(crate) struct Reader {
    pub(crate) bus: Bus,
    pub(crate) ledger: Ledger,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    seen: usize,
}

impl Reader {
    /// As if one had listened until now.
    pub(crate) fn start(world: &World) -> Self {
        let counted = world.in_vm(kernel::drops).unwrap().unwrap_or_default().total();
        std::fs::write(world.ledger(), counted.to_string()).unwrap();
        Self::resume(world)
    }

    /// After the last one of this world ended.
    pub(crate) fn resume(world: &World) -> Self {
        let ledger = Ledger::at(&world.ledger());
        // The thread of the one before holds the group until it sees that nobody wants it.
        world.in_vm(|| wait_for("the NFLOG group to be free", || !is_group_held()));
        let (bus, stop) = (Bus::detached(), CancellationToken::new());
        let ports = world.ports();
        let principals = world.in_vm(|| Arc::new(Principals::of_this_vm(&desired(), &ports)));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (reader_bus, reader_stop, kept) = (bus.clone(), stop.clone(), ledger.clone());
        // The thread inherits the namespace of the one that starts it.
        let thread = world.in_vm(move || {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let (_keep, principals) = tokio::sync::watch::channel(principals);
                runtime.block_on(async {
                    let run = nflog::run(reader_bus, Turns::new(), principals, ledger, reader_stop);
                    ready.send(()).unwrap();
                    run.await.unwrap();
                });
            })
        });
        is_ready.recv().unwrap();
        world.in_vm(|| wait_for("the NFLOG group", is_group_held));
        Self { bus, ledger: kept, stop, thread: Some(thread), seen: 0 }
    }

    /// The next event, which must come within a second of now.
    pub(crate) fn next(&mut self) -> Value {
        let started = std::time::Instant::now();
        wait_for("an event", || self.bus.emitted().len() > self.seen);
        assert!(started.elapsed() < Duration::from_secs(1), "an event took {:?}", started.elapsed());
        let (subject, event) = self.bus.emitted().swap_remove(self.seen);
        self.seen += 1;
        assert_eq!(subject, format!("egress.denied.{}", event["tier"].as_str().unwrap()));
        event
    }

    pub(crate) fn expect(
        &mut self,
        what: &str,
        reason: &str,
        protocol: &str,
        host: Ipv4Addr,
        port: Option<u16>,
    ) -> Value {
        let event = self.next();
        let found = (&event["reason"], &event["protocol"], &event["host"], &event["port"], &event["count"]);
        let (reason, protocol) = (Value::from(reason), Value::from(protocol));
        let wanted = (&reason, &protocol, &Value::from(host.to_string()), &Value::from(port), &Value::from(1));
        assert_eq!(found, wanted, "{what}: {event}");
        event
    }

    /// No event is left over.
    pub(crate) fn end(mut self) {
        self.stop();
        let more = self.bus.emitted().split_off(self.seen);
        assert!(more.is_empty(), "{more:?}");
    }

    fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}
