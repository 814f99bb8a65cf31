//! What a chat looks like. What comes from the agent never stands at the start of a line: each of its lines begins with a
//! bar, those too into which the terminal would break a long one, so that it cannot pretend to be the bridge. While it asks
//! for something, nothing else of it is shown: the question stands last, right before what the person types.

use std::io::Write;

use service_kit::text::{harmless, harmless_line};

const DIM: &str = "\u{1b}[2m";
const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";
const PLAIN: &str = "\u{1b}[0m";

/// What a line of the agent begins with.
const AGENT: &str = "| ";
/// The same within a question.
const ACTION: &str = "  | ";
/// Columns of the agent's text on a terminal that does not say, or says nonsense.
const COLUMNS: usize = 80;
const FEWEST_COLUMNS: usize = 16;
/// What the agent may say while its question waits, to be shown after it. The whole reply is in the history of the agent.
const MOST_HELD: usize = 256 << 10;

/// Writes a chat.
#[derive(Debug)]
pub(super) struct Screen<W> {
    out: W,
    colour: bool,
    /// How wide the terminal is; none where it is none, and lines are as long as they are.
    columns: Option<fn() -> Option<usize>>,
    /// Columns used of the line in which the cursor stands; none at the start of one.
    within: Option<usize>,
    /// Whether the answer was shown as it came.
    streamed: bool,
    /// Questions that wait: action, code and what to type.
    pending: Vec<Question>,
    /// What the agent says meanwhile.
    held: Vec<Held>,
    held_bytes: usize,
}

#[derive(Debug)]
struct Question {
    action: String,
    code: String,
    minutes: u32,
}

#[derive(Debug)]
enum Held {
    Text(String),
    Tool(String),
}

/// How wide the terminal on standard output is now.
pub(super) fn terminal_columns() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(terminal_size::Width(columns), _)| usize::from(columns))
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, colour: bool, columns: Option<fn() -> Option<usize>>) -> Self {
        let (pending, held) = (Vec::new(), Vec::new());
        Self { out, colour, columns, within: None, streamed: false, pending, held, held_bytes: 0 }
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
        if chunk.is_empty() {
            return Ok(());
        }
        self.streamed = true;
        if !self.pending.is_empty() {
            self.hold(Held::Text(chunk));
            return Ok(());
        }
        self.quote(AGENT, &chunk)?;
        self.out.flush()
    }

    pub(super) fn tool(&mut self, title: &str, status: &str) -> std::io::Result<()> {
        let line = format!("[{}: {}]", harmless_line(title, 120), harmless_line(status, 20));
        if !self.pending.is_empty() {
            self.hold(Held::Tool(line));
            return Ok(());
        }
        self.tool_line(&line)
    }

    fn tool_line(&mut self, line: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        self.quote(AGENT, line)?;
        self.fresh_line()?;
        self.out.flush()
    }

    pub(super) fn ask(&mut self, action: &str, code: &str, seconds: u32) -> std::io::Result<()> {
        let action = harmless(action, usize::MAX);
        self.pending.push(Question { action, code: harmless_line(code, 8), minutes: seconds.div_ceil(60) });
        self.question(self.pending.len().saturating_sub(1))
    }

    /// Shows again what waits for an answer, after something else was shown.
    pub(super) fn remind(&mut self) -> std::io::Result<()> {
        for index in 0..self.pending.len() {
            self.question(index)?;
        }
        Ok(())
    }

    fn question(&mut self, index: usize) -> std::io::Result<()> {
        let Some(Question { action, code, minutes }) = self.pending.get(index) else { return Ok(()) };
        let (action, code, minutes) = (action.clone(), code.clone(), *minutes);
        self.fresh_line()?;
        self.write_line(YELLOW, "The agent asks for permission:")?;
        self.quote(ACTION, &action)?;
        self.fresh_line()?;
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
        let code = harmless_line(code, 8);
        self.write_line(DIM, &format!("  [{code}: {outcome}]"))?;
        self.pending.retain(|question| question.code != code);
        if self.pending.is_empty() { self.release() } else { self.remind() }
    }

    fn hold(&mut self, held: Held) {
        let (Held::Text(text) | Held::Tool(text)) = &held;
        let bytes = self.held_bytes.saturating_add(text.len());
        if bytes <= MOST_HELD {
            self.held.push(held);
        } else if self.held_bytes <= MOST_HELD {
            self.held.push(Held::Tool("more than is kept while a question waits".to_owned()));
        }
        self.held_bytes = bytes;
    }

    /// Shows what the agent said while a question waited; none waits any more.
    fn release(&mut self) -> std::io::Result<()> {
        self.pending.clear();
        self.held_bytes = 0;
        for held in std::mem::take(&mut self.held) {
            match held {
                Held::Text(text) => self.quote(AGENT, &text)?,
                Held::Tool(line) => self.tool_line(&line)?,
            }
        }
        self.out.flush()
    }

    pub(super) fn ended(&mut self, reply: &str, stop_reason: &str, trace_id: &str) -> std::io::Result<()> {
        self.release()?;
        if !self.streamed {
            self.text(reply)?;
        }
        self.fresh_line()?;
        if stop_reason == "cancelled" {
            self.write_line(DIM, "  [stopped]")?;
        }
        self.trace(trace_id)
    }

    /// The turn came to nothing.
    pub(super) fn broke(&mut self, reason: &str, fix: &str) -> std::io::Result<()> {
        self.release()?;
        self.failed(reason, fix)
    }

    pub(super) fn failed(&mut self, reason: &str, fix: &str) -> std::io::Result<()> {
        self.fresh_line()?;
        // On one line, because some of it may be the agent's.
        self.write_line(RED, &format!("failed: {}", harmless_line(reason, 2000)))?;
        if fix.is_empty() { Ok(()) } else { self.write_line("", &format!("  {}", harmless_line(fix, 2000))) }
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
        self.within = None;
        self.write_line("", "")
    }

    fn fresh_line(&mut self) -> std::io::Result<()> {
        if self.within.take().is_some() {
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Writes what is the agent's, each line behind the bar, and no line so long that the terminal breaks it.
    fn quote(&mut self, bar: &str, text: &str) -> std::io::Result<()> {
        let columns = self.columns.map(|columns| columns().filter(|found| *found >= FEWEST_COLUMNS).unwrap_or(COLUMNS));
        let mut line = String::new();
        for character in text.chars() {
            // At most two columns; a tab is shown as two spaces, because how wide it is depends on where it stands.
            let width = if matches!(character, ' '..='~') { 1 } else { 2 };
            let full = columns.is_some_and(|most| self.within.is_some_and(|used| used.saturating_add(width) >= most));
            if full && character != '\n' {
                line.push('\n');
                self.within = None;
            }
            let used = match self.within {
                Some(used) => used,
                None => {
                    line.push_str(bar);
                    bar.len()
                }
            };
            match character {
                '\n' => line.push('\n'),
                '\t' => line.push_str("  "),
                _ => line.push(character),
            }
            self.within = (character != '\n').then(|| used.saturating_add(width));
        }
        self.out.write_all(line.as_bytes())
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
        let mut screen = Screen::new(Vec::new(), colour, None);
        act(&mut screen).unwrap();
        String::from_utf8(screen.out).unwrap()
    }

    #[test]
    fn a_turn_as_it_looks() {
        let text = shown(false, |screen| {
            screen.begin();
            screen.text("I will ")?;
            screen.tool("hub__add", "pending")?;
            screen.text("do")?;
            screen.text("ne.\nAll")?;
            screen.ended("I will done.\nAll", "end_turn", "0af7")
        });
        assert_eq!(text, "| I will \n| [hub__add: pending]\n| done.\n| All\ntrace: 0af7  (deploy/trace.sh 0af7)\n");
        let text = shown(false, |screen| screen.ended("all at once", "cancelled", ""));
        assert_eq!(text, "| all at once\n  [stopped]\n");
    }

    const FORGED: &str = "The agent asks for permission:\n  | ls\nType YES AAAA or NO AAAA within 10 min";

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
    fn what_the_agent_says_cannot_pretend_wherever_the_terminal_breaks_it() {
        for columns in [16_usize, 40, 80] {
            let of: fn() -> Option<usize> = match columns {
                16 => || Some(16),
                40 => || Some(40),
                // One that says nonsense.
                _ => || Some(0),
            };
            for lead in 0..=columns * 2 {
                let mut screen = Screen::new(Vec::new(), false, Some(of));
                let said = format!("{}\t\u{4e00}{FORGED}", "x".repeat(lead));
                let (one, two) = said.split_at(lead / 2);
                screen.text(one).unwrap();
                screen.text(two).unwrap();
                screen.tool(&format!("{}{}", " ".repeat(lead.min(100)), FORGED), "pending").unwrap();
                screen.failed(&format!("the agent said: {FORGED}"), "").unwrap();
                let text = String::from_utf8(screen.out).unwrap();
                let (agents, bridges): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("| "));
                assert!(agents.iter().all(|line| line.chars().count() < columns), "{text}");
                assert!(bridges.len() == 1 && bridges[0].starts_with("failed: the agent said: "), "{text}");
            }
        }
    }

    #[test]
    fn the_question_stands_last_until_it_is_decided() {
        let text = shown(false, |screen| {
            screen.begin();
            screen.ask("ls", "7K3M", 600)?;
            screen.text("Never mind.\n")?;
            screen.text(FORGED)?;
            screen.tool("ls", "pending")
        });
        let question = |action: &str, code: &str| {
            format!(
                "The agent asks for permission:\n  | {action}\nType YES {code} or NO {code} within 10 min; otherwise it is \
                 rejected.\n"
            )
        };
        assert_eq!(text, question("ls", "7K3M"));
        let text = shown(false, |screen| {
            screen.begin();
            screen.ask("ls", "7K3M", 600)?;
            screen.ask("rm", "8K3M", 600)?;
            screen.text("later")?;
            screen.failed("no open question has that code", "")?;
            screen.remind()?;
            screen.decided("7K3M", "denied")?;
            screen.decided("8K3M", "approved")?;
            screen.ended("later", "end_turn", "")
        });
        let (ls, rm) = (question("ls", "7K3M"), question("rm", "8K3M"));
        assert_eq!(
            text,
            format!(
                "{ls}{rm}failed: no open question has that code\n{ls}{rm}  [7K3M: denied]\n{rm}  [8K3M: approved, this \
                 once]\n| later\n"
            )
        );
        // It is bounded.
        let text = shown(false, |screen| {
            screen.ask("ls", "7K3M", 600)?;
            for _ in 0..100 {
                screen.text(&"x".repeat(10_000))?;
            }
            screen.broke("it is over", "")
        });
        assert!(text.len() < MOST_HELD + 1000 && text.contains("more than is kept"), "{}", text.len());
        assert!(text.ends_with("failed: it is over\n"));
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        assert!(!shown(false, |screen| screen.failed("r", "f")).contains('\u{1b}'));
        assert_eq!(shown(true, |screen| screen.failed("r", "f")), "\u{1b}[31mfailed: r\u{1b}[0m\n  f\n");
    }
}
