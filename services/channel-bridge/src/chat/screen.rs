//! What a chat looks like. Text of the agent is never at the start of a line of ours: an action is quoted line by line,
//! so that it cannot pretend to be the bridge.

use std::io::Write;

use service_kit::text::{harmless, harmless_line};

const DIM: &str = "\u{1b}[2m";
const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";
const PLAIN: &str = "\u{1b}[0m";

/// Writes a chat.
#[derive(Debug)]
pub(super) struct Screen<W> {
    out: W,
    colour: bool,
    /// Whether the cursor stands within a line.
    within: bool,
    /// Whether the answer was shown as it came.
    streamed: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, colour: bool) -> Self {
        Self { out, colour, within: false, streamed: false }
    }

    /// A turn begins.
    pub(super) fn begin(&mut self) {
        self.streamed = false;
    }

    pub(super) fn prompt(&mut self, tier: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        let prompt = self.styled(BOLD, &format!("{tier}> "));
        self.out.write_all(prompt.as_bytes())?;
        self.out.flush()
    }

    pub(super) fn text(&mut self, chunk: &str) -> std::io::Result<()> {
        let chunk = harmless(chunk, usize::MAX);
        if let Some(last) = chunk.chars().last() {
            self.out.write_all(chunk.as_bytes())?;
            self.within = last != '\n';
            self.streamed = true;
        }
        self.out.flush()
    }

    pub(super) fn tool(&mut self, title: &str, status: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        let line = format!("  [{}: {}]", harmless_line(title, 120), harmless_line(status, 20));
        self.write_line(DIM, &line)
    }

    pub(super) fn ask(&mut self, action: &str, code: &str, seconds: u32) -> std::io::Result<()> {
        self.fresh_line()?;
        self.write_line(YELLOW, "The agent asks for permission:")?;
        for line in harmless(action, usize::MAX).lines() {
            self.write_line("", &format!("  | {line}"))?;
        }
        let code = harmless_line(code, 8);
        let minutes = seconds.div_ceil(60);
        self.write_line(
            YELLOW,
            &format!("Type YES {code} or NO {code} within {minutes} min; otherwise it is rejected."),
        )
    }

    pub(super) fn decided(&mut self, code: &str, outcome: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        let outcome = match outcome {
            "approved" => "approved, this once",
            "denied" => "denied",
            "timed_out" => "not answered; rejected",
            "withdrawn" => "withdrawn, the turn is over; rejected",
            _ => "could not be shown to anybody; rejected",
        };
        self.write_line(DIM, &format!("  [{}: {outcome}]", harmless_line(code, 8)))
    }

    pub(super) fn ended(&mut self, reply: &str, stop_reason: &str, trace_id: &str) -> std::io::Result<()> {
        if !self.streamed {
            self.text(reply)?;
        }
        self.fresh_line()?;
        if stop_reason == "cancelled" {
            self.write_line(DIM, "  [stopped]")?;
        }
        self.trace(trace_id)
    }

    pub(super) fn failed(&mut self, reason: &str, fix: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        self.write_line(RED, &format!("failed: {}", harmless(reason, 2000)))?;
        if fix.is_empty() { Ok(()) } else { self.write_line("", &format!("  {}", harmless(fix, 2000))) }
    }

    pub(super) fn trace(&mut self, trace_id: &str) -> std::io::Result<()> {
        if trace_id.is_empty() {
            return Ok(());
        }
        let id = harmless_line(trace_id, 32);
        self.write_line(DIM, &format!("trace: {id}  (deploy/trace.sh {id})"))
    }

    pub(super) fn note(&mut self, note: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        self.write_line(DIM, note)
    }

    /// Ends the line a person or an interrupt left open.
    pub(super) fn line(&mut self) -> std::io::Result<()> {
        self.within = false;
        self.write_line("", "")
    }

    fn fresh_line(&mut self) -> std::io::Result<()> {
        if self.within {
            self.within = false;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn write_line(&mut self, style: &str, line: &str) -> std::io::Result<()> {
        let line = self.styled(style, line);
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour && !style.is_empty() { format!("{style}{text}{PLAIN}") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn shown(colour: bool, act: impl FnOnce(&mut Screen<Vec<u8>>) -> std::io::Result<()>) -> String {
        let mut screen = Screen::new(Vec::new(), colour);
        act(&mut screen).unwrap();
        String::from_utf8(screen.out).unwrap()
    }

    #[test]
    fn a_turn_as_it_looks() {
        let text = shown(false, |screen| {
            screen.begin();
            screen.text("I will ")?;
            screen.tool("hub__add", "pending")?;
            screen.text("done.")?;
            screen.ended("I will done.", "end_turn", "0af7")
        });
        assert_eq!(text, "I will \n  [hub__add: pending]\ndone.\ntrace: 0af7  (deploy/trace.sh 0af7)\n");
        let text = shown(false, |screen| screen.ended("all at once", "cancelled", ""));
        assert_eq!(text, "all at once\n  [stopped]\n");
    }

    #[test]
    fn an_action_cannot_pretend() {
        let text = shown(false, |screen| screen.ask("shell\nType YES AAAA\u{1b}[2J", "7K3M", 600));
        assert_eq!(
            text,
            "The agent asks for permission:\n  | shell\n  | Type YES AAAA\\u{1b}[2J\n\
             Type YES 7K3M or NO 7K3M within 10 min; otherwise it is rejected.\n"
        );
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        assert!(!shown(false, |screen| screen.failed("r", "f")).contains('\u{1b}'));
        assert_eq!(shown(true, |screen| screen.failed("r", "f")), "\u{1b}[31mfailed: r\u{1b}[0m\n  f\n");
    }
}
