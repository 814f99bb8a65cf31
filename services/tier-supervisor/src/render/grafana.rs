//! Grafana: its configuration, data sources and dashboards. The files under `deploy/grafana` with our addresses put in.

use std::net::{Ipv4Addr, SocketAddrV4};

use assistant_proto::config::{GRAFANA_PORT, JAEGER_PORT, PROMETHEUS_PORT};

const INI: &str = include_str!("../../../../deploy/grafana/grafana.ini");
const DATA_SOURCES: &str = include_str!("../../../../deploy/grafana/provisioning/datasources.yaml");
const DASHBOARDS: &str = include_str!("../../../../deploy/grafana/provisioning/dashboards.yaml");

/// Dashboards by file name.
pub const GRAFANA_DASHBOARDS: [(&str, &str); 3] = [
    ("turns.json", include_str!("../../../../deploy/grafana/dashboards/turns.json")),
    ("denials.json", include_str!("../../../../deploy/grafana/dashboards/denials.json")),
    ("stack.json", include_str!("../../../../deploy/grafana/dashboards/stack.json")),
];

/// Where Grafana stands and whom it asks.
#[derive(Debug, Clone)]
pub struct Grafana {
    /// Its address on `telemetry`.
    pub address: Ipv4Addr,
    /// Prometheus there.
    pub prometheus: Ipv4Addr,
    /// Jaeger there.
    pub jaeger: Ipv4Addr,
    /// The one site under which a browser sees it through the loopback gate, for example `grafana.localhost` and 3030.
    pub site: (String, u16),
    /// The directory of these files in its container.
    pub etc: String,
    /// The directory it writes to.
    pub data: String,
}

impl Grafana {
    /// Every file, by its path below `etc`. Start it with `server --config=<etc>/grafana.ini`.
    #[must_use]
    pub fn files(&self) -> Vec<(String, String)> {
        let (host, port) = &self.site;
        let url = |address, port| format!("http://{}", SocketAddrV4::new(address, port));
        let fill = |text: &str| {
            text.replace("@ADDRESS@", &self.address.to_string())
                .replace("@PORT@", &GRAFANA_PORT.to_string())
                .replace("@SITE@", host)
                .replace("@URL@", &format!("http://{host}:{port}/"))
                .replace("@ETC@", &self.etc)
                .replace("@DATA@", &self.data)
                .replace("@PROMETHEUS@", &url(self.prometheus, PROMETHEUS_PORT))
                .replace("@JAEGER@", &url(self.jaeger, JAEGER_PORT))
        };
        let mut files = vec![
            ("grafana.ini".to_owned(), fill(INI)),
            ("provisioning/datasources/assistant.yaml".to_owned(), fill(DATA_SOURCES)),
            ("provisioning/dashboards/assistant.yaml".to_owned(), fill(DASHBOARDS)),
        ];
        files.extend(GRAFANA_DASHBOARDS.map(|(name, text)| (format!("dashboards/{name}"), text.to_owned())));
        files
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn every_address_is_put_in() {
        let grafana = Grafana {
            address: Ipv4Addr::new(10, 87, 2, 10),
            prometheus: Ipv4Addr::new(10, 87, 2, 9),
            jaeger: Ipv4Addr::new(10, 87, 2, 7),
            site: ("grafana.localhost".to_owned(), 3030),
            etc: "/etc/assistant".to_owned(),
            data: "/var/lib/assistant".to_owned(),
        };
        let files = grafana.files();
        let text = |path: &str| files.iter().find(|(name, _)| name == path).map(|(_, text)| text.as_str()).unwrap();
        for (path, text) in &files {
            assert!(!text.contains('@'), "{path} has a variable left");
        }
        let sources = text("provisioning/datasources/assistant.yaml");
        assert!(sources.contains("url: http://10.87.2.9:9090\n") && sources.contains("url: http://10.87.2.7:16686\n"));
        let ini = text("grafana.ini");
        for line in [
            "http_addr = 10.87.2.10",
            "http_port = 3000",
            "root_url = http://grafana.localhost:3030/",
            "domain = grafana.localhost",
            "data = /var/lib/assistant/grafana",
            "provisioning = /etc/assistant/provisioning",
        ] {
            assert!(ini.lines().any(|there| there == line), "{line}");
        }
        let dashboards = text("provisioning/dashboards/assistant.yaml");
        assert!(dashboards.contains("path: /etc/assistant/dashboards\n"));
        assert_eq!(files.iter().filter(|(path, _)| path.starts_with("dashboards/")).count(), 3);
    }
}
