//! Double of the task service, as far as the real `amazing-marvin-mcp` uses it
//! (<https://github.com/amazingmarvin/MarvinAPI/wiki/Marvin-API>). It echoes the token in one answer on purpose: a peer
//! that says a secret back must not get it past the broker.

use serde_json::json;
use zeroize::Zeroizing;

use super::web::{Answer, Asked, answer};

/// The task service.
#[derive(Debug)]
pub struct Marvin {
    token: Zeroizing<String>,
}

impl Marvin {
    /// A service that knows one token.
    #[must_use]
    pub fn new(token: Zeroizing<String>) -> Self {
        Self { token }
    }

    /// Answers one request.
    #[must_use]
    pub fn answer(&self, asked: &Asked) -> Answer {
        let shown = asked.headers.get("x-api-token").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if shown != self.token.as_str() {
            return answer(401, "application/json", json!({"error": "unknown token"}).to_string(), false);
        }
        let path = asked.path.split('?').next().unwrap_or_default();
        let body = match (asked.method.as_str(), path) {
            ("GET", "/api/todayItems") => json!([
                {"_id": "t1", "title": "Water the plants", "done": false, "day": "2026-01-01"},
                {"_id": "t2", "title": "Call the dentist", "done": false, "day": "2026-01-01"},
            ]),
            ("GET", "/api/dueItems" | "/api/labels" | "/api/goals" | "/api/children") => json!([]),
            ("GET", "/api/categories") => json!([{"_id": "c1", "title": "Home", "type": "project"}]),
            ("GET", "/api/me") => json!({"email": "drill@example.org", "apiToken": shown}),
            ("GET", "/api/trackedItem") => json!({}),
            ("GET", "/api/kudos") => json!({"kudos": 3, "level": 1}),
            ("POST", "/api/addTask") => serde_json::from_slice(&asked.body).unwrap_or_else(|_| json!({})),
            _ => return answer(404, "application/json", json!({"error": "no such endpoint"}).to_string(), true),
        };
        answer(200, "application/json", body.to_string(), true)
    }
}
