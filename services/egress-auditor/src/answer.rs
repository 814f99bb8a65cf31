//! An explanation as it goes over the control socket. What it says is policy's; this makes it harmless and bounds it.

use assistant_proto::egress::{Change, ExplainRequest, ExplainResponse, Standing as StandingMessage, Verdict};
use policy::explain::{Book, Explained, Line, Question, Standing, Verdict as Said};
use service_kit::text::{harmless, harmless_line};
use tonic::Status;

/// Longer questions are not asked by people; the broker's longest path is shorter.
const MOST_URL_BYTES: usize = 16 * 1024;
const MOST_FIELD_CHARS: usize = 1000;
/// A whole section of tiers.yaml.
const MOST_TEXT_CHARS: usize = 16 * 1024;

/// Answers a question.
///
/// # Errors
/// `NOT_FOUND` for an unknown tier or container, `INVALID_ARGUMENT` for a question that is too long.
pub fn explain(book: &Book, request: &ExplainRequest) -> Result<ExplainResponse, Status> {
    if request.url.len() > MOST_URL_BYTES {
        return Err(Status::invalid_argument(format!("the URL is longer than {MOST_URL_BYTES} bytes")));
    }
    let question = Question {
        tier: &request.tier,
        principal: &request.principal,
        method: &request.method,
        url: &request.url,
        in_turn: !request.outside_turn,
        placeholder: !request.without_placeholder,
    };
    let explained = book.explain(question).map_err(|unknown| Status::not_found(unknown.to_string()))?;
    Ok(message(explained))
}

fn message(explained: Explained) -> ExplainResponse {
    let fix = explained.denial().map(|denial| line(&denial.fix)).unwrap_or_default();
    ExplainResponse {
        allowed: explained.denial().is_none(),
        principal: explained.principal.to_string(),
        fix,
        verdicts: explained.verdicts.into_iter().map(verdict).collect(),
        changes: explained.changes.into_iter().map(change).collect(),
    }
}

fn verdict(said: Said) -> Verdict {
    let (standing, reason, fix) = match &said.standing {
        Standing::Passes => (StandingMessage::Passes, "", String::new()),
        Standing::Refuses(denial) => (StandingMessage::Refuses, denial.reason, line(&denial.fix)),
        Standing::Aside => (StandingMessage::Aside, "", String::new()),
    };
    Verdict {
        layer: said.wall.as_str().to_owned(),
        standing: standing.into(),
        reason: reason.to_owned(),
        detail: line(&said.detail),
        fix,
        rule: said.rule,
        source: said.source,
    }
}

fn change(change: Line) -> Change {
    Change { file: change.file, line: change.line, text: harmless(&change.text, MOST_TEXT_CHARS) }
}

fn line(text: &str) -> String {
    harmless_line(text, MOST_FIELD_CHARS)
}
